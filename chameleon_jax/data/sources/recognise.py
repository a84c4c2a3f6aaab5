"""Which form of data a path has, known by names and endings alone: nothing is opened but folders.

A folder has one form. Pictures beside a table, a manifest or lines belong to it; two containers of records in one folder are an
error that names both, for nobody can know which is meant.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable
from pathlib import Path, PurePath

from chameleon_jax.configs import SourceConfig
from chameleon_jax.data.sources import huggingface, trees
from chameleon_jax.data.sources.files import MANIFESTS
from chameleon_jax.errors import DataError
from chameleon_jax.progress import count as plural

# Containers of records by their endings, and what they are called.
_ENDINGS = {
    "parquet": (".parquet",),
    "webdataset": (".tar", ".tar.gz", ".tgz"),
    "jsonl": (".jsonl", ".jsonl.gz"),
    "csv": (".csv", ".tsv", ".csv.gz", ".tsv.gz"),
}
_WORDS = {
    "folder": "pictures with a manifest",
    "parquet": "parquet files",
    "webdataset": "WebDataset tars",
    "jsonl": "lines of JSON",
    "csv": "a table",
    "huggingface": "a data set saved by Hugging Face datasets",
    "tfds": "a TFDS data set",
    "pairs": "pictures with a text file beside each",
    "classes": "pictures in a folder for each class",
    "pictures": "pictures alone",
}
_ANY_CASE = re.compile(r"\[([a-z])\1\]")  # a letter of `_patterns`, in lower case
_PARTS = re.compile(r"train(ing)?|test(ing)?|val(id(ation)?)?|dev|images?|img|pictures?|data|\d+", re.IGNORECASE)


def source_of(path: str | os.PathLike[str]) -> SourceConfig:
    """The source that a file, a folder or a glob is. Raises DataError, in one line, for what no reader knows."""
    text = os.fspath(path)
    if "://" in text:
        raise DataError(f"{text} is a URL: download the data and give the local path")
    place = Path(text).expanduser()
    name = re.sub(r"\W+", "_", place.resolve().name if place.exists() else "data").strip("_") or "data"
    if place.is_file() or (not place.exists() and re.search(r"[*?\[]", text)):
        return SourceConfig(name=name, kind=_kind_of_file(place), path=str(place))
    if not place.exists():
        raise DataError(f"{text}: there is no such file or folder")
    return _of_folder(place, name)


def described(source: SourceConfig) -> str:
    """The form of a source in words."""
    return _WORDS[source.kind]


def _kind_of_file(path: PurePath) -> str:
    name = _ANY_CASE.sub(r"\1", path.name.lower())
    if path.name in MANIFESTS:
        return "folder"
    for kind, endings in _ENDINGS.items():
        if name.endswith(endings):
            return kind
    if name.endswith(trees.PICTURES):
        what = "names picture files" if re.search(r"[*?\[]", str(path)) else "is one picture"
        raise DataError(f"{path} {what}: give the folder, {path.parent}")
    if name.endswith((".zip", ".rar", ".7z")):
        raise DataError(f"{path} is an archive that is not read: unpack it and give the folder")
    if name.endswith(".json"):
        raise DataError(
            f"{path} is no file of lines: convert an array with  jq -c '.[]' {path.name} > {path.stem}.jsonl"
        )
    if name.endswith(".arrow"):
        raise DataError(f"{path} is a part of a saved data set: give its folder")
    raise DataError(
        f"{path} is no file of records: give .jsonl, .csv, .tsv, .parquet or .tar (the first two also .gz), or a folder"
    )


def _of_folder(folder: Path, name: str) -> SourceConfig:
    if not any(folder.iterdir()):
        raise DataError(f"{folder} is an empty folder")
    if any((folder / manifest).is_file() for manifest in MANIFESTS):
        return SourceConfig(name=name, kind="folder", path=str(folder))
    if huggingface.is_saved(folder):
        return SourceConfig(name=name, kind="huggingface", path=str(folder))
    listed = trees.all_files(str(folder))
    if {"dataset_info.json", "features.json"} <= {path.rpartition("/")[2] for path in listed if path.endswith(".json")}:
        return SourceConfig(name=name, kind="tfds", path=str(folder))
    pattern, files = "*", _containers(folder, [path for path in listed if "/" not in path])
    if not files:
        pattern, files = "**/*", _containers(folder, listed)
    if len(files) > 1:
        found = " and ".join(f"{len(names):,} {kind} ({names[0]})" for kind, names in files.items())
        raise DataError(
            f"{folder} holds two forms, {found}: say which, as in --data='{folder}/{pattern}.{_last(files)}'"
        )
    if files:
        kind, names = next(iter(files.items()))
        pictures, texts = trees.pictures_and_texts(listed)
        if beside := sum(os.path.splitext(picture)[0] in texts for picture in pictures):
            raise DataError(
                f"{folder} holds two forms, {len(names):,} {kind} ({names[0]}) and {plural(beside, 'picture')} with a text file "
                f"beside: say --data='{folder}/{pattern}.{_last(files)}', or move {names[0]} elsewhere to have the texts read"
            )
        endings = _patterns({_ending(file, kind) for file in names})
        if len(endings) > 1:
            known = sorted({_ending(file, kind).lower() for file in names})
            raise DataError(
                f"{folder} holds {', '.join(known)} files: give one kind, as '{folder}/{pattern}{endings[0]}'"
            )
        path = os.path.join(glob.escape(str(folder)), f"{pattern}{endings[0]}")
        return SourceConfig(name=name, kind=kind, path=path)
    return SourceConfig(name=name, kind=_kind_of_tree(folder, listed), path=str(folder))


def _containers(folder: Path, paths: list[str]) -> dict[str, list[str]]:
    """Names of the files that hold records, by kind, of these in the folder."""
    found: dict[str, list[str]] = {}
    for path in paths:
        kind = next((kind for kind, endings in _ENDINGS.items() if path.lower().endswith(endings)), None)
        if kind and (folder / path).is_file():
            found.setdefault(kind, []).append(path)
    return {kind: [path.rpartition("/")[2] for path in sorted(held)] for kind, held in found.items()}


def _ending(name: str, kind: str) -> str:
    """The ending of a container of this kind, in the case that the name has it; empty for other names."""
    endings = sorted(_ENDINGS[kind], key=len, reverse=True)
    return next((name[-len(ending) :] for ending in endings if name.lower().endswith(ending)), "")


def _patterns(endings: Iterable[str]) -> list[str]:
    """A pattern for each ending, one for those that differ in upper and lower case alone: `.[cC][sS][vV]`."""
    cases: dict[str, list[str]] = {}
    for ending in sorted(endings):
        cases.setdefault(ending.lower(), []).append(ending)
    any_case = {lower: "".join(f"[{c}{c.upper()}]" if c.isalpha() else c for c in lower) for lower in cases}
    return [same[0] if len(same) == 1 else any_case[lower] for lower, same in cases.items()]


def _last(files: dict[str, list[str]]) -> str:
    kind, names = next(iter(files.items()))
    return _ending(names[0], kind).lstrip(".")


def _kind_of_tree(folder: Path, listed: list[str]) -> str:
    pictures, texts = trees.pictures_and_texts(listed)
    if not pictures:
        what = (
            f'{plural(len(texts), "text file")} and no picture: put texts into a .jsonl, {{"text": ...}} a line'
            if texts
            else ("no manifest.jsonl, metadata.jsonl, *.jsonl, *.csv, *.parquet, *.tar, saved data set or pictures")
        )
        raise DataError(f"{folder} holds no data that can be read: {what} (docs/own_data.md)")
    if any(os.path.splitext(picture)[0] in texts for picture in pictures):
        return "pairs"
    # A few stray pictures, in no folder, do not make classes anything else; they become rejects.
    names = {trees.class_name(picture) for picture in pictures}
    strays = sum("/" not in picture for picture in pictures)
    classes = names - {""}
    is_class = len(classes) > 1 and 4 * strays <= len(pictures) and not all(map(_PARTS.fullmatch, classes))
    return "classes" if is_class else "pictures"
