"""Columnar and indexed containers: parquet files by pyarrow, TFDS data sets by their data source.

Both know how many rows they hold without reading them, so rows that a restart passes over cost nothing. TFDS is
read without TensorFlow, pictures as the encoded bytes that were stored.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from chameleon_jax.configs import SourceConfig, VocabConfig
from chameleon_jax.data.sources.fields import TEXT_NAMES, holds_media, in_known_case, looks_like_media
from chameleon_jax.data.sources.files import SourceFile, media_root
from chameleon_jax.data.sources.records import Record, Reject, brief
from chameleon_jax.data.sources.schemas import known_fields, record_segments
from chameleon_jax.errors import DataError, did_you_mean
from chameleon_jax.tokenizers.documents import Segment

_BATCH_ROWS = 32
# Columns that say in words what a picture shows, so that a class label is not asked.
_SCHEMAS = ("text", "caption", "captions", "texts", "text_list", "segments", "conversations")
TEXTS = (*_SCHEMAS, *TEXT_NAMES, "prompt", "title")


def parquet_records(config: SourceConfig, files: list[SourceFile], vocab: VocabConfig) -> Iterator[Record | Reject]:
    """One record a row; columns as the fields of a jsonl record, files as bytes, {"bytes", "path"} or a path."""
    import pyarrow
    import pyarrow.parquet

    for file in files:
        try:
            parquet = pyarrow.parquet.ParquetFile(file.path)
            heads = parquet.read(columns=[c for c in ("id", "split") if c in parquet.schema_arrow.names])
            ids, splits = (column(heads, name, parquet.metadata.num_rows) for name in ("id", "split"))
        except (pyarrow.ArrowException, OSError) as error:
            yield Reject(config.name, file.label, f"parquet file cannot be read: {one_line(error)}")
            continue
        labels = ClassLabels.of(ClassLabels.features_in(parquet.schema_arrow), vocab)
        columns = _columns(parquet, config, vocab, labels) if ids else []
        if not columns:
            found = ", ".join(parquet.schema_arrow.names[:12])
            reason = f"parquet file has no known column; found: {found}" if ids else "file has no records"
            yield Reject(config.name, file.label, reason)
            continue
        root, index = media_root(config, file), 0
        for group in range(parquet.num_row_groups):
            rows = _RowGroup(parquet, group, columns, labels)
            for row in range(parquet.metadata.row_group(group).num_rows):
                yield Record(
                    f"{file.label}/{index}",
                    ids[index],
                    splits[index],
                    lambda rows=rows, row=row, root=root: record_segments(
                        rows.row(row), root, vocab, config.ignore_fields
                    ),
                )
                index += 1


def _columns(parquet: Any, config: SourceConfig, vocab: VocabConfig, labels: ClassLabels) -> list[str]:
    import pyarrow

    names = parquet.schema_arrow.names
    first = {}
    if columns_to_read(names, {}, config, vocab, labels):  # or no other column matters
        # A column that cannot be read, and that nobody asked for, is no picture either.
        with contextlib.suppress(pyarrow.ArrowException, OSError, ValueError, StopIteration):
            others = [name for name in names if name not in known_fields(vocab) and name not in config.ignore_fields]
            first = next(parquet.iter_batches(batch_size=1, columns=others)).to_pylist()[0] if others else {}
    return columns_to_read(names, first, config, vocab, labels)


def columns_to_read(
    names: Sequence[str], first: Mapping[str, Any], config: SourceConfig, vocab: VocabConfig, labels: ClassLabels
) -> list[str]:
    """Columns that a schema knows, the class labels, and those that hold pictures in the `first` row: none is lost unsaid.

    Empty where no column is known.
    """
    known, names = known_fields(vocab), [name for name in names if name not in config.ignore_fields]
    cased = zip(names, in_known_case(names, known), strict=True)
    found = [name for name, new in cased if new in known or name == labels.column]
    return found and [*found, *(name for name in names if name not in found and looks_like_media(first.get(name)))]


@dataclasses.dataclass(frozen=True)
class ClassLabels:
    """The column of Hugging Face's feature `ClassLabel`, whose numbers stand for names; empty where words are given otherwise."""

    column: str = ""
    names: tuple[str, ...] = ()
    modalities: tuple[str, ...] = ()

    @classmethod
    def of(cls, features: Mapping[str, Any], vocab: VocabConfig) -> ClassLabels:
        """The first class label of these features, unless one of them holds texts, or a modality is called so.

        Raises DataError where its names are no list.
        """
        if any(name.lower() in TEXTS for name in features):
            return cls()
        for name, feature in features.items():
            if isinstance(feature, Mapping) and feature.get("_type") == "ClassLabel" and name not in vocab.names:
                names = feature.get("names") or []
                if not isinstance(names, list):
                    raise DataError(f"class label '{name}' has no list of names in the metadata: {brief(names)}")
                return cls(name, tuple(map(str, names)), vocab.names)
        return cls()

    @staticmethod
    def features_in(schema: Any) -> Mapping[str, Any]:
        """What an Arrow schema says of Hugging Face's features; nothing where it was written by something else."""
        try:
            found = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        except (KeyError, TypeError, ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}

    def named(self, row: dict[str, Any]) -> dict[str, Any]:
        """The row with the name of its class, as words, as its text; a class of words alone is no text."""
        number = row.get(self.column)
        if not self.column or type(number) is not int or not holds_media(row, self.modalities):
            return row
        if not 0 <= number < len(self.names):  # -1 is "not told", as in a test split
            return {name: value for name, value in row.items() if name != self.column}
        return row | {"text": self.names[number].replace("_", " ")}


class _RowGroup:
    """Rows of one row group, read in small batches when the first of them is asked for; asked for in rising order."""

    def __init__(self, parquet: Any, group: int, columns: list[str], labels: ClassLabels):
        self._batches = None
        self._open = lambda: parquet.iter_batches(batch_size=_BATCH_ROWS, row_groups=[group], columns=columns)
        self._start, self._rows, self._labels = 0, [], labels
        self._fault = ""

    def row(self, index: int) -> dict[str, Any]:
        import pyarrow

        try:
            if self._fault:
                raise DataError(self._fault)
            if self._batches is None:
                self._batches = self._open()
            while index >= self._start + len(self._rows):
                self._start += len(self._rows)
                batch = next(self._batches)
                # A null cell is an absent field: a column has one type for pairs, texts and pictures alike.
                rows = [{k: v for k, v in row.items() if v is not None} for row in batch.to_pylist()]
                self._rows = [self._labels.named(row) for row in rows]
        except (pyarrow.ArrowException, OSError, ValueError, StopIteration) as error:
            self._fault = f"parquet rows cannot be read: {one_line(error)}"
            raise DataError(self._fault) from error
        return self._rows[index - self._start]


def column(table: Any, name: str, rows: int) -> list[Any]:
    """A column of a table or batch of so many rows, Nones where it has none of this name."""
    return table.column(name).to_pylist() if name in table.schema.names else [None] * rows


def column_names(file: SourceFile) -> list[str]:
    """The columns of a parquet file; empty where it cannot be read."""
    import pyarrow
    import pyarrow.parquet

    try:
        return list(pyarrow.parquet.read_schema(file.path).names)
    except (pyarrow.ArrowException, OSError):
        return []


def count_rows(files: list[SourceFile]) -> int | None:
    """Rows of all parquet files by their footers, or None when one cannot be read."""
    import pyarrow
    import pyarrow.parquet

    try:
        return sum(pyarrow.parquet.ParquetFile(file.path).metadata.num_rows for file in files)
    except (pyarrow.ArrowException, OSError):
        return None


class TfdsSource:
    """A prepared TFDS data set, by builder name or by the folder that holds it.

    Raises DataError when it is unknown, not prepared, has no such split, or no feature that we read.
    """

    def __init__(self, config: SourceConfig, vocab: VocabConfig):
        import tensorflow_datasets as tfds

        self._vocab = vocab
        where = f"source '{config.name}': TFDS data set '{config.path}'"
        try:
            is_folder = os.path.isdir(os.path.expanduser(config.path))
            builder = (
                tfds.builder_from_directory(os.path.expanduser(config.path)) if is_folder else tfds.builder(config.path)
            )
        except tfds.core.DatasetNotFoundError as error:
            raise DataError(
                f"{where} is not known to TFDS: import its module, or give the folder it was prepared in"
            ) from error
        except Exception as error:  # metadata of many kinds; all mean that the data set cannot be opened
            raise DataError(f"{where} cannot be opened: {one_line(error)}") from error
        splits = sorted(builder.info.splits)
        if not splits or builder.info.splits.total_num_examples == 0:
            raise DataError(f"{where} is not prepared: run  tfds build {config.path} --file_format=array_record")
        base = config.split.partition("[")[0]
        if base and base not in splits:
            raise DataError(f"{where} has no split '{base}'{did_you_mean(base, splits)}: it has {', '.join(splits)}")
        self._features = builder.info.features
        text = next((f for f in ("caption", "text", "captions") if f in self._features), None)
        image = "image" if "image" in self._features else None
        if image and not text and "label" in self._features:
            text = "label"
        if not text and not image:
            raise DataError(
                f"{where} has no feature image, caption, text or captions: it has {', '.join(self._features)}"
            )
        self._image, self._text = image, text
        skip = {"image": tfds.decode.SkipDecoding()} if image else None
        try:
            self._sources = {
                split: builder.as_data_source(split=split, decoders=skip)
                for split in ([config.split] if config.split else splits)
            }
        except Exception as error:  # file formats without random access raise NotImplementedError, others vary
            raise DataError(
                f"{where} cannot be read at random, prepare it with --file_format=array_record: {one_line(error)}"
            ) from error

    def __len__(self) -> int:
        return sum(len(source) for source in self._sources.values())

    def records(self) -> Iterator[Record]:
        """One record an example, split by split in order of name."""
        for split, source in self._sources.items():
            for index in range(len(source)):
                yield Record(
                    f"{split}/{index}", None, None, lambda source=source, index=index: self._load(source, index)
                )

    def _load(self, source: Any, index: int) -> tuple[Segment, ...]:
        try:
            example = source[index]
        except Exception as error:  # a damaged record raises whatever its decoder raises
            raise DataError(f"TFDS example cannot be read: {one_line(error)}") from error
        record = {}
        if self._image:
            record["image"] = bytes(example["image"])
        if self._text:
            record["text"] = self._as_text(example[self._text])
        return record_segments(record, "", self._vocab)

    def _as_text(self, value: Any) -> Any:
        """The string of a text feature: a class label's name, the first of several captions."""
        if self._text == "label":
            feature = self._features["label"]
            return feature.int2str(int(value)) if hasattr(feature, "int2str") else str(value)
        if isinstance(value, dict):  # captions stored as a sequence of {"text": ..., "id": ...}
            value = value.get("text")
        if not isinstance(value, (bytes, str)) and value is not None:
            value = list(value)
            value = value[0] if value else None
        return value.get("text") if isinstance(value, dict) else value


def one_line(error: BaseException) -> str:
    """The message of another library's error."""
    return " ".join(f"{error or type(error).__name__}".split())[:200]
