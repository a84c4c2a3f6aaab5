"""Records of any container to documents with ids of their own, counted so that reading can start anywhere."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from chameleon_jax.configs import SourceConfig, VocabConfig, text_and_image
from chameleon_jax.data.sources import columns, files, huggingface, tables, tars, trees
from chameleon_jax.data.sources.records import Record, Reject, brief
from chameleon_jax.errors import DataError, did_you_mean
from chameleon_jax.tokenizers.documents import Document, valid_text

_MAX_ID_CHARACTERS = 512


def read_documents(
    config: SourceConfig, start: int = 0, *, vocab: VocabConfig | None = None
) -> Iterator[Document | Reject]:
    """Documents and rejects of a source, in an order that stays; the first `start` of them are passed over unloaded.

    Ids are `<source>/<id>` for records with an `id` of their own, else `<source>/<file>/<index>`, and unique in the source.
    `vocab` names the modalities that fields of records fill, by default text and image. Records of another split than
    `config.split` do not count.

    Raises DataError at once, before the first document, for a path that is missing, empty or not of this kind; and at the
    end when `config.split` matched no record at all.
    """
    return _documents(config, _records(config, vocab or text_and_image()), start)


def estimate_records(config: SourceConfig) -> int | None:
    """About how many documents and rejects `read_documents` will give, or None where counting would mean reading.

    Raises DataError as `read_documents` does.
    """
    if config.kind == "tfds":
        return len(columns.TfdsSource(config, text_and_image()))
    if config.kind in trees.KINDS:
        return trees.count(config)
    if config.kind == "huggingface":
        found = huggingface.find_streams(config)
        return None if config.split else huggingface.count_saved(found)
    found = files.find_files(config)
    if config.split or config.kind == "webdataset":
        return None
    if config.kind == "parquet":
        return columns.count_rows(found)
    lines = files.count_lines(found)
    return lines - len(found) if config.kind == "csv" and lines is not None else lines


def field_names(config: SourceConfig) -> list[str]:
    """Columns of the first table, or fields of the first record of lines; empty for other kinds, and where that cannot be read."""
    if config.kind == "csv":
        return tables.column_names(files.find_files(config)[0])
    if config.kind == "parquet":
        return columns.column_names(files.find_files(config)[0])
    if config.kind in ("jsonl", "folder"):
        return files.first_fields(files.find_files(config)[0])
    return []


def _records(config: SourceConfig, vocab: VocabConfig) -> Iterator[Record | Reject]:
    if config.kind == "tfds":
        return columns.TfdsSource(config, vocab).records()
    if config.kind in trees.KINDS:
        return trees.tree_records(config, vocab)
    if config.kind == "huggingface":
        return huggingface.saved_records(config, huggingface.find_streams(config), vocab)
    found = files.find_files(config)
    if config.kind == "webdataset":
        if config.split:
            raise DataError(
                f"source '{config.name}': tars have no splits; choose files by the path instead of split '{config.split}'"
            )
        return tars.tar_records(config, found, vocab)
    if config.kind == "parquet":
        return columns.parquet_records(config, found, vocab)
    if config.kind == "csv":
        return tables.table_records(config, found, vocab)
    files.check_is_lines(found[0])
    return files.json_records(config, found, vocab)


def _documents(config: SourceConfig, records: Iterator[Record | Reject], start: int) -> Iterator[Document | Reject]:
    by_field = config.split if config.kind != "tfds" else ""
    identities = _Identities(config.name)
    count = 0
    other_splits: set[str] = set()
    for record in records:
        if isinstance(record, Record) and by_field and record.split != by_field:
            if isinstance(record.split, str) and len(other_splits) < 16:
                other_splits.add(record.split)
            continue
        result = _identify(identities, record)
        count += 1
        if count <= start:
            continue
        yield _load(config, record, result) if isinstance(result, str) else result
    if count == 0 and by_field:
        known = sorted(other_splits)
        raise DataError(
            f"source '{config.name}': no record has split '{by_field}'{did_you_mean(by_field, known)}; "
            f"splits found: {', '.join(known) or 'none'}"
        )


def _identify(identities: _Identities, record: Record | Reject) -> str | Reject:
    """A record's document id, or the reject that it is."""
    if isinstance(record, Reject):
        return Reject(record.source, valid_text(record.record), valid_text(record.reason))
    try:
        return identities.give(record)
    except DataError as error:
        return Reject(identities.source, valid_text(record.place), str(error))


def _load(config: SourceConfig, record: Record, document_id: str) -> Document | Reject:
    try:
        return Document(document_id, config.name, record.load())
    except DataError as error:
        return Reject(config.name, valid_text(record.place), str(error))


class _Identities:
    """Gives ids and remembers those that records brought, about 70 bytes for each."""

    def __init__(self, source: str):
        self.source = source
        self._seen: set[int] = set()
        self._files: set[str] = set()  # whose records got ids from their places

    def give(self, record: Record) -> str:
        """The id of a record; raises DataError when its own id is unusable or was there before."""
        own = record.own_id
        if own is None:
            place = valid_text(record.place)
            self._files.add(place.rpartition("/")[0])
            if self._seen and _digest(place) in self._seen:
                raise DataError(f"an earlier record has the id {brief(place)}, which is this record's place")
            return f"{self.source}/{place}"
        if isinstance(own, bool) or not isinstance(own, (str, int)) or own == "":
            raise DataError(f"field 'id' must be a string or an integer: {brief(own)}")
        own = valid_text(own) if isinstance(own, str) else brief(own, _MAX_ID_CHARACTERS + 1)
        if len(own) > _MAX_ID_CHARACTERS:
            raise DataError(f"field 'id' has more than {_MAX_ID_CHARACTERS} characters")
        if _digest(own) in self._seen or own.rpartition("/")[0] in self._files:
            raise DataError(f"id {brief(own)} was used by an earlier record")
        self._seen.add(_digest(own))
        return f"{self.source}/{own}"


def _digest(own_id: str) -> int:
    return int.from_bytes(hashlib.blake2b(own_id.encode(), digest_size=8).digest(), "big")
