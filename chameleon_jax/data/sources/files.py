"""Files of a source, in a fixed order and with names that stay, and the lines of text files.

What is wrong with a whole source (no such path, nothing in it) is an error before work begins; what is wrong with
one line is a reject and the rest goes on.
"""

from __future__ import annotations

import dataclasses
import glob
import gzip
import io
import json
import os
import re
import zlib
from collections.abc import Iterator

from chameleon_jax.configs import SourceConfig, VocabConfig
from chameleon_jax.data.sources.fields import in_known_case
from chameleon_jax.data.sources.records import MAX_RECORD_BYTES, Record, Reject, brief
from chameleon_jax.data.sources.schemas import record_segments
from chameleon_jax.errors import DataError

MANIFESTS = ("manifest.jsonl", "metadata.jsonl")  # of ours, and of Hugging Face's ImageFolder


@dataclasses.dataclass(frozen=True)
class SourceFile:
    """A file to read; `label` is its path below the fixed part of the glob, and stays when the source is moved."""

    path: str
    label: str


def find_files(config: SourceConfig) -> list[SourceFile]:
    """Files of a source, sorted by label.

    Raises DataError when the path names nothing, or nothing but empty files.
    """
    where = f"source '{config.name}': path '{config.path}'"
    if "://" in config.path:
        raise DataError(f"{where} is a URL; copy or mount the data and give the local path")
    path = os.path.expanduser(config.path)
    if config.kind == "folder":
        if os.path.isdir(path):
            found = [file for name in MANIFESTS if os.path.isfile(file := os.path.join(path, name))]
            if not found:
                raise DataError(
                    f"{where} has no {' or '.join(MANIFESTS)}: write one line per image, docs/tokenize.md has the fields"
                )
            path = found[0]
        elif os.path.exists(path) and not path.lower().endswith((".jsonl", ".jsonl.gz")):
            raise DataError(f"{where} is neither a folder nor a .jsonl manifest")
    if os.path.isdir(path):
        raise DataError(f"{where} is a folder: name the files, for example '{os.path.join(config.path, '*')}'")
    try:
        paths = [path] if os.path.isfile(path) else [p for p in glob.glob(path, recursive=True) if os.path.isfile(p)]
    except (OSError, ValueError) as error:
        raise DataError(f"{where} cannot be searched: {error}") from error
    if not paths:
        raise DataError(f"{where} matches no file")
    if all(os.path.getsize(p) == 0 for p in paths):
        raise DataError(f"{where} holds only empty files")
    base = os.path.dirname(path) if len(paths) == 1 and paths[0] == path else fixed_part(path)
    files = [SourceFile(p, os.path.relpath(p, base or ".").replace(os.sep, "/")) for p in paths]
    return sorted(files, key=lambda file: file.label)


def media_root(config: SourceConfig, file: SourceFile) -> str:
    """Folder below which a file's records name other files."""
    return os.path.expanduser(config.media_dir) or os.path.dirname(file.path) or "."


def json_records(config: SourceConfig, files: list[SourceFile], vocab: VocabConfig) -> Iterator[Record | Reject]:
    """Records of jsonl or jsonl.gz files, one a line; blank lines do not count."""
    for file in files:
        root = media_root(config, file)
        found = False
        for index, line in enumerate(_lines(file)):
            place = f"{file.label}/{index}"
            if isinstance(line, str):
                found = True
                yield Reject(config.name, place, line)
            elif line.strip():
                found = True
                yield _json_record(config, line, place, root, vocab)
        if not found:
            yield Reject(config.name, file.label, "file has no records")


def first_fields(file: SourceFile) -> list[str]:
    """Names of the fields of the first line; empty where that holds no record."""
    try:
        record = json.loads(next((line for line in _lines(file) if isinstance(line, bytes) and line.strip()), b"null"))
    except (ValueError, RecursionError):
        return []
    return list(record) if isinstance(record, dict) else []


def is_gzip(file: SourceFile) -> bool:
    """Whether the name says that it is compressed."""
    return file.path.lower().endswith(".gz")


def check_is_lines(file: SourceFile) -> None:
    """Raise DataError for a file that is one JSON array and is not named as lines.

    In a .jsonl file a line that begins with `[` is one bad record, which must not cost the others.
    """
    if file.path.lower().endswith((".jsonl", ".jsonl.gz")):
        return
    try:
        with _open(file) as stream:
            first = stream.read(64).removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    except (OSError, EOFError, zlib.error):
        return  # a reject when the file's turn comes
    if first == b"[":
        raise DataError(f"{file.path} is one JSON array, not lines: convert it with  jq -c '.[]' IN > OUT.jsonl")


def count_lines(files: list[SourceFile], limit: int = 1 << 30) -> int | None:
    """Lines of plain files, or None when they are compressed or together larger than `limit` bytes."""
    if any(is_gzip(file) for file in files) or sum(os.path.getsize(f.path) for f in files) > limit:
        return None
    count = 0
    for file in files:
        with open(file.path, "rb") as stream:
            last = b"\n"
            while chunk := stream.read(1 << 20):
                count += chunk.count(b"\n")
                last = chunk
            count += not last.endswith(b"\n")
    return count


def _json_record(config: SourceConfig, line: bytes, place: str, root: str, vocab: VocabConfig) -> Record | Reject:
    try:
        record = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return Reject(config.name, place, f"line is not UTF-8: {error.reason} at byte {error.start}")
    except json.JSONDecodeError as error:
        return Reject(
            config.name, place, f"line is not valid JSON: {error.msg} at character {error.pos}: {brief(line, 60)}"
        )
    except (ValueError, RecursionError) as error:
        return Reject(config.name, place, f"line is not usable JSON: {error}")
    if not isinstance(record, dict):
        return Record(place, None, None, lambda: record_segments(record, root, vocab, config.ignore_fields))
    own = dict(zip(in_known_case(record, ("id", "split")), record.values(), strict=True))
    return Record(
        place, own.get("id"), own.get("split"), lambda: record_segments(record, root, vocab, config.ignore_fields)
    )


def _lines(file: SourceFile) -> Iterator[bytes | str]:
    """Lines of a file as bytes; a str is the reason why something in place of a line cannot be read."""
    try:
        with _open(file) as stream:
            line = stream.readline(MAX_RECORD_BYTES).removeprefix(b"\xef\xbb\xbf")
            if line.startswith((b"\xff\xfe", b"\xfe\xff")):
                yield "file is UTF-16: convert it to UTF-8"
                return
            while line:
                if len(line) == MAX_RECORD_BYTES and not line.endswith(b"\n"):
                    yield f"line exceeds {MAX_RECORD_BYTES} bytes"
                    while line and not line.endswith(b"\n"):
                        line = stream.readline(1 << 20)
                else:
                    yield line
                line = stream.readline(MAX_RECORD_BYTES)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        yield f"gzip file is truncated or damaged from here on: {error}"
    except OSError as error:
        yield f"file cannot be read: {error.strerror or error}"


def _open(file: SourceFile) -> io.BufferedIOBase:
    return gzip.open(file.path, "rb") if is_gzip(file) else open(file.path, "rb")


def fixed_part(pattern: str) -> str:
    """The leading folders of a glob that hold no wildcard."""
    parts = pattern.split(os.sep)
    plain = [re.sub(r"\[([*?\[])\]", r"\1", part) for part in parts]  # what `glob.escape` makes of a folder is its name
    wild = (i for i, part in enumerate(parts[:-1]) if glob.has_magic(part) and glob.escape(plain[i]) != part)
    fixed = next(wild, len(parts) - 1)
    return os.sep.join(plain[:fixed]) or (os.sep if pattern.startswith(os.sep) else "")
