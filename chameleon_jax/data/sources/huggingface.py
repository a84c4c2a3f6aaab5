"""Hugging Face data sets on disk, as `Dataset.save_to_disk` and `DatasetDict.save_to_disk` write them; read by pyarrow alone.

A data set is a folder of Arrow streams with `state.json`, which names them in order, and `dataset_info.json`, which names its
features; a dictionary of splits is a folder of such folders with `dataset_dict.json`.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Any

from chameleon_jax.configs import SourceConfig, VocabConfig
from chameleon_jax.data.sources.columns import ClassLabels, column, columns_to_read, one_line
from chameleon_jax.data.sources.files import SourceFile
from chameleon_jax.data.sources.records import Record, Reject, brief
from chameleon_jax.data.sources.schemas import record_segments
from chameleon_jax.errors import DataError
from chameleon_jax.tokenizers.documents import Segment

STATE, INFO, SPLITS = "state.json", "dataset_info.json", "dataset_dict.json"
_ROWS = 32  # made Python objects at one time


def is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` wrote this folder."""
    return (folder / SPLITS).is_file() or (folder / STATE).is_file() or any(folder.glob("*.arrow"))


def find_streams(config: SourceConfig) -> list[SourceFile]:
    """Arrow files of all splits, labelled SPLIT/FILE where there are splits.

    Raises DataError where the folder holds no data set.
    """
    where = f"source '{config.name}': path '{config.path}'"
    root = Path(config.path).expanduser()
    if not root.is_dir():
        raise DataError(
            f"{where} is {'a file' if root.exists() else 'missing'}: give the folder that save_to_disk wrote"
        )
    splits = _names(root / SPLITS, "splits", where) if (root / SPLITS).is_file() else [""]
    found = []
    for split in splits or ():
        folder = root / split
        named = _names(folder / STATE, "_data_files", where) if (folder / STATE).is_file() else None
        names = sorted(p.name for p in folder.glob("*.arrow")) if named is None else named
        for name in names:
            if not (folder / name).is_file():
                raise DataError(f"{where}: {folder / name} is missing, which {STATE} names")
            found.append(SourceFile(str(folder / name), f"{split}/{name}" if split else name))
    if not found:
        raise DataError(f"{where} holds no data set that save_to_disk wrote ({SPLITS}, or {STATE} with .arrow files)")
    return found


def saved_records(config: SourceConfig, files: list[SourceFile], vocab: VocabConfig) -> Iterator[Record | Reject]:
    """One record a row; columns as the fields of a jsonl record, and names in place of the numbers of a class label."""
    import pyarrow

    for file in files:
        split, index = file.label.rpartition("/")[0] or None, 0
        try:
            stream = _open(file)
            labels = ClassLabels.of(_features(stream.schema, file), vocab)
            first = stream.read_next_batch() if stream.schema.names else None
            head = first.slice(0, 1).to_pylist() if first is not None else []
            wanted = columns_to_read(stream.schema.names, head[0] if head else {}, config, vocab, labels)
            if not wanted:
                found = ", ".join(stream.schema.names[:12])
                yield Reject(config.name, file.label, f"data set has no known column; found: {found}")
                continue
            root = config.media_dir or os.path.dirname(file.path)
            while first is not None:
                ids, splits = (column(first, name, first.num_rows) for name in ("id", "split"))
                rows = _Rows(first.select(wanted), labels)
                for row in range(first.num_rows):
                    load = functools.partial(_load, rows, row, root, vocab, config.ignore_fields)
                    yield Record(f"{file.label}/{index}", ids[row], split or splits[row], load)
                    index += 1
                first = _next(stream)
        except (pyarrow.ArrowException, OSError, StopIteration) as error:
            if index or not isinstance(error, StopIteration):
                reason = f"Arrow file is truncated or damaged from here on: {one_line(error)}"
                yield Reject(config.name, f"{file.label}/{index}", reason)
                continue
        if not index:
            yield Reject(config.name, file.label, "file has no records")


def count_saved(files: list[SourceFile]) -> int | None:
    """Rows of all files, or None when one cannot be read. Pages are mapped, not read."""
    import pyarrow

    try:
        return sum(batch.num_rows for file in files for batch in _open(file))
    except (pyarrow.ArrowException, OSError):
        return None


def _load(rows: _Rows, row: int, root: str, vocab: VocabConfig, ignored: tuple[str, ...]) -> tuple[Segment, ...]:
    return record_segments(rows.row(row), root, vocab, ignored)


class _Rows:
    """Rows of one batch as dictionaries, made a few at a time when the first of them is asked for."""

    def __init__(self, batch: Any, labels: ClassLabels):
        self._batch, self._labels = batch, labels
        self._start, self._made = 0, []

    def row(self, index: int) -> dict[str, Any]:
        import pyarrow

        if not self._start <= index < self._start + len(self._made):
            self._start = index
            try:
                rows = self._batch.slice(index, _ROWS).to_pylist()
            except (pyarrow.ArrowException, ValueError) as error:
                raise DataError(f"row cannot be read: {one_line(error)}") from error
            self._made = [self._labels.named({k: v for k, v in row.items() if v is not None}) for row in rows]
        return self._made[index - self._start]


def _open(file: SourceFile) -> Any:
    import pyarrow
    import pyarrow.ipc

    return pyarrow.ipc.open_stream(pyarrow.memory_map(file.path))


def _next(stream: Any) -> Any | None:
    try:
        return stream.read_next_batch()
    except StopIteration:
        return None


def _features(schema: Any, file: SourceFile) -> dict[str, Any]:
    """The features that stand beside the file, else those in its own schema."""
    beside = Path(file.path).parent / INFO
    if beside.is_file():
        features = _json(beside, f"'{file.path}'").get("features") or {}
        if not isinstance(features, dict):
            raise DataError(f"{beside}: 'features' is no object")
        return features
    return ClassLabels.features_in(schema)


def _names(path: Path, field: str, where: str) -> list[str] | None:
    """Names of folders or files that metadata list, which lie below it; None where the field is missing."""
    listed = _json(path, where).get(field)
    if listed is None:
        return None
    if not isinstance(listed, list):
        raise DataError(f"{where}: '{field}' of {path} is no list")
    names = [entry.get("filename") if isinstance(entry, dict) else entry for entry in listed]
    for name in names:
        if not isinstance(name, str) or not name or PurePath(name).is_absolute() or ".." in PurePath(name).parts:
            raise DataError(f"{where}: '{field}' of {path} must name what lies in its folder: {brief(name)}")
    return names


def _json(path: Path, where: str) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{where}: {path} cannot be read: {one_line(error)}") from error
    if not isinstance(found, dict):
        raise DataError(f"{where}: {path} holds no JSON object")
    return found
