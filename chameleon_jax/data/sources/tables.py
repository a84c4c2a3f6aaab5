"""Tables as text: CSV and TSV files, a record a row, columns as the fields of a jsonl record.

An empty cell is an absent field, for a table has no other way to say that a row has no picture or no words.
"""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from collections.abc import Iterator
from typing import TextIO

from chameleon_jax.configs import SourceConfig, VocabConfig
from chameleon_jax.data.sources.fields import in_known_case
from chameleon_jax.data.sources.files import SourceFile, is_gzip, media_root
from chameleon_jax.data.sources.records import MAX_FILE_BYTES, Record, Reject, brief
from chameleon_jax.data.sources.schemas import known_fields, record_segments

_USUAL = "image, file_name, text, caption and others (docs/tokenize.md)"
_DELIMITERS = ",;\t|"


def table_records(config: SourceConfig, files: list[SourceFile], vocab: VocabConfig) -> Iterator[Record | Reject]:
    """Records of .csv or .tsv files, plain or .gz, whose first line names the columns; blank lines do not count.

    Fields are separated by the one of `,`, `;`, tab and `|` that the first line has most of.
    """
    csv.field_size_limit(MAX_FILE_BYTES // 3 * 4 + 64)  # a cell may hold a picture as a data: URL
    known = known_fields(vocab)
    for file in files:
        names, index = [], 0
        for row in _rows(file):
            if isinstance(row, list) and not names:
                names = in_known_case([name.strip() for name in row], known)
                if problem := _problem(names, known):
                    yield Reject(config.name, file.label, problem)
                    break
                continue
            place, index = f"{file.label}/{index}", index + 1
            if isinstance(row, str):
                yield Reject(config.name, place, row)
            elif len(row) != len(names):
                yield Reject(config.name, place, f"row has {len(row)} cells, the first line {len(names)}")
            else:
                yield _record(config, place, dict(zip(names, row, strict=True)), media_root(config, file), vocab)
        else:
            if not index:
                yield Reject(config.name, file.label, "file has no records")


def _problem(names: list[str], known: tuple[str, ...]) -> str:
    """Why these are no names of columns; empty if they are."""
    if any("\udc80" <= character <= "\udcff" for name in names for character in name):
        return "first line is not UTF-8"
    if len(set(names)) != len(names):
        return f"first line names a column twice: {brief(names)}"
    if not any(name in known for name in names):
        return f"first line names no known column; found: {brief(', '.join(names), 120)}; known are {_USUAL}"
    return ""


def _record(config: SourceConfig, place: str, row: dict[str, str], root: str, vocab: VocabConfig) -> Record | Reject:
    record = {name: cell for name, cell in row.items() if cell.strip()}
    if any("\udc80" <= character <= "\udcff" for cell in record.values() for character in cell):
        return Reject(config.name, place, "row is not UTF-8")
    return Record(
        place, record.get("id"), record.get("split"), lambda: record_segments(record, root, vocab, config.ignore_fields)
    )


def _rows(file: SourceFile) -> Iterator[list[str] | str]:
    """Rows of cells, the names of the columns first; a str is the reason why something in place of a row cannot be read."""
    try:
        with _open(file) as stream:
            first = stream.readline()
            if first.startswith(("\udcff\udcfe", "\udcfe\udcff")):
                yield "file is UTF-16: convert it to UTF-8"
                return
            stream.seek(0)
            delimiter = "\t" if ".tsv" in file.path[-7:].lower() else max(_DELIMITERS, key=first.count)
            rows = csv.reader(stream, delimiter=delimiter, strict=True)
            while True:
                begin = rows.line_num + 1
                try:
                    row = next(rows)
                except StopIteration:
                    return
                except csv.Error as error:
                    quote = "" if begin == rows.line_num else f"; a quote that opens in line {begin} may not be closed"
                    yield f"row ending in line {rows.line_num} is not valid CSV: {error}{quote}"
                    continue
                if any(cell.strip() for cell in row):
                    yield row
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        yield f"gzip file is truncated or damaged from here on: {error}"
    except OSError as error:
        yield f"file cannot be read: {error.strerror or error}"


def _open(file: SourceFile) -> TextIO:
    """The text with bytes that are not UTF-8 as lone surrogates, so that one bad row costs no other."""
    opened = gzip.open if is_gzip(file) else open
    return io.TextIOWrapper(opened(file.path, "rb"), encoding="utf-8-sig", errors="surrogateescape", newline="")


def column_names(file: SourceFile) -> list[str]:
    """What the first line calls the columns, as it stands there; empty where that cannot be read."""
    row = next(_rows(file), "")
    return [name.strip() for name in row] if isinstance(row, list) else []
