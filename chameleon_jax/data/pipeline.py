"""The tokenising run: sources in, token store out, with any number of interruptions between.

Shard k is made of the records `k * documents_per_shard` onwards of all sources one after the other, rejected ones
counted, and of nothing else. So a run that was killed starts again at the first shard without a commit, and ends with the same
bytes as a run that was not.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import dataclasses
import fcntl
import itertools
import json
import os
import pathlib
import time
from collections.abc import Iterator
from typing import Any

from chameleon_jax.configs import TokenizeConfig, VocabConfig
from chameleon_jax.data import store_format as layout
from chameleon_jax.data.shard_tokens import tokenize_records
from chameleon_jax.data.sources import Reject, by_reason, estimate_records, read_documents, require_apart_from
from chameleon_jax.data.sources import fingerprint as data_fingerprint
from chameleon_jax.data.store import TokenStore
from chameleon_jax.data.store_writer import ShardInput, StoreIdentity, StoreWriter
from chameleon_jax.errors import ConfigError, DataError, StoreError, WorkdirError
from chameleon_jax.files import new_folder
from chameleon_jax.progress import progress
from chameleon_jax.tokenizers.bundle import TokenizerBundle
from chameleon_jax.tokenizers.documents import Document
from chameleon_jax.workdir import PLAN, STORE, TOKENIZER, require_kind

# Fields that change no byte of the store; the tokenizer counts by its fingerprint, not by its place.
_FREE_FIELDS = ("tokenizer", "max_reject_fraction")
_FEWEST_RECORDS = 100  # before a fraction of rejects means anything
_ABORTED = "aborted.jsonl"
_QUIET_SECONDS = 2.0  # that the data are looked through without a word


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizeReport:
    """What a finished store holds, and how much of it this run made."""

    output: str
    documents: int
    tokens: int
    tokens_by_modality: dict[str, int]
    spans_by_modality: dict[str, int]
    records: int
    rejects: int
    shards: int
    shards_found: int  # committed by earlier runs
    seconds: float
    text_alone: dict[str, int]  # by source, the documents of this run, where all of them hold text and nothing else


def tokenize(config: TokenizeConfig, output: str | os.PathLike) -> TokenizeReport:
    """Tokenise all sources into the store `output`, going on where an earlier run of the same plan stopped.

    Raises StoreError when the directory holds another plan, with the differences, or shards of data that have changed since;
    DataError when more than `max_reject_fraction` of the records are unusable, or none is usable; ConfigError when `max_spans`
    names a modality that the tokenizer lacks, or `image_input` asks for patches that it lacks; WorkdirError when another run is
    writing there, or it lies among the data.
    """
    started = time.monotonic()
    output = pathlib.Path(output)
    require_kind(output, STORE)
    require_apart_from(output, config.sources)
    bundle = TokenizerBundle.load(config.tokenizer)
    bundle.check()
    for name in config.max_spans:
        bundle.vocab_config.row(name)
    if config.image_input == "patches" and bundle.vocab.perceived is None:
        raise ConfigError(
            f"image_input is 'patches', but {config.tokenizer} has no modality with codec 'patches': add such a row to its table, "
            "or leave image_input as 'codes'"
        )
    estimates = [estimate_records(source) for source in config.sources]  # and finds a missing path before any work
    fingerprint = bundle.fingerprint()  # once: it is a hash of every weight of the codecs
    with _only_writer(output):
        with progress("Checking the data", total=None, unit="files", quiet=_QUIET_SECONDS) as bar:
            data = {source.name: data_fingerprint(source, bar.advance) for source in config.sources}
        _keep_plan(config, fingerprint, data, output)
        _keep_tokenizer(bundle, fingerprint, output)
        identity = StoreIdentity(
            vocab_config=bundle.vocab_config,
            bundle_fingerprint=fingerprint,
        )
        writer = StoreWriter(output, identity)
        found, counts = writer.committed(), _Contents()
        if not _is_whole(output):
            (output / layout.MANIFEST).unlink(missing_ok=True)
            (output / layout.REJECTS / _ABORTED).unlink(missing_ok=True)
            total = None if None in estimates else sum(estimates)
            _write_shards(config, bundle, writer, found, total, _RejectLimit(config, output), counts)
            writer.finish()
        _remember_data(data, output)
        store = TokenStore.open(output)
    keys = ("documents", "tokens", "records", "rejects", "shards")
    return TokenizeReport(
        output=str(output),
        shards_found=len(found),
        seconds=time.monotonic() - started,
        text_alone=counts.text_alone(bundle.vocab_config),
        **{key: store.manifest[key] for key in keys},
        **{key: store.by_modality(key) for key in ("tokens_by_modality", "spans_by_modality")},
    )


def _write_shards(
    config: TokenizeConfig,
    bundle: TokenizerBundle,
    writer: StoreWriter,
    found: dict[int, dict[str, Any]],
    total: int | None,
    limit: _RejectLimit,
    counts: _Contents,
) -> None:
    done = sum(commit["input"]["records"] for commit in found.values())
    place, last, stream = _Place(0, 0), "", None
    with (
        progress("Tokenising", total=total, unit="documents", done=done) as bar,
        concurrent.futures.ThreadPoolExecutor(max_workers=os.cpu_count()) as pool,
    ):

        def on_record(rejected: Reject | None) -> None:
            limit.count(rejected)
            bar.advance(1, note=limit.note())

        for shard in itertools.count():
            if shard in found:
                source = found[shard]["input"]
                place, last, stream = _Place(source["next_source"], source["next_record"]), source["last"], None
                limit.add(source["records"], found[shard]["rejects"])
                continue
            stream = stream or _records(config, bundle.vocab_config, place, last)
            counted = _Counted(itertools.islice(stream, config.documents_per_shard), counts)
            content = tokenize_records(counted, bundle, config, pool, on_record)
            if not counted.count:
                break
            given = ShardInput(
                records=counted.count,
                first=counted.first,
                last=counted.last,
                next_source=counted.next.source,
                next_record=counted.next.record,
            )
            writer.commit(shard, content.documents, given, [dataclasses.asdict(reject) for reject in content.rejects])
            limit.committed()
    limit.check(at_end=True)


# --- the stream of records -------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Place:
    """The next record to read: number of the source, number of the record in it."""

    source: int
    record: int


def _records(
    config: TokenizeConfig, vocab: VocabConfig, place: _Place, last: str
) -> Iterator[tuple[Document | Reject, _Place]]:
    """Records from `place` on, each with the place behind it.

    `last` names the record before `place`; it is read again, and must be what it was when its shard was made.
    """
    for number in range(place.source, len(config.sources)):
        start = place.record if number == place.source else 0
        overlap = 1 if start and last else 0
        records = read_documents(config.sources[number], start - overlap, vocab=vocab)
        for count, record in enumerate(records, start - overlap):
            if overlap:
                if _name(record) != last:
                    raise _changed(config, number, last, _name(record))
                overlap = 0
                continue
            yield record, _Place(number, count + 1)
        if overlap:
            raise _changed(config, number, last, "nothing")


def _changed(config: TokenizeConfig, number: int, last: str, now: str) -> StoreError:
    return StoreError(
        f"source '{config.sources[number].name}' changed since this store was begun: where {last} was there is {now} now; "
        "restore the source or tokenise into another directory"
    )


def _name(record: Document | Reject) -> str:
    return f"{record.source}/{record.record}" if isinstance(record, Reject) else record.id


class _Counted:
    """Passes records on and remembers what a commit says of its input."""

    def __init__(self, stream: Iterator[tuple[Document | Reject, _Place]], contents: _Contents):
        self._stream, self._contents = stream, contents
        self.count, self.first, self.last, self.next = 0, "", "", _Place(0, 0)

    def __iter__(self) -> Iterator[Document | Reject]:
        for record, place in self._stream:
            self.next = place
            self.count += 1
            self.last = _name(record)
            self.first = self.first or self.last
            self._contents.add(record)
            yield record


class _Contents:
    """What the documents of each source hold: a source whose pictures are all lost looks like one of text."""

    def __init__(self):
        self._documents: collections.Counter[str] = collections.Counter()
        self._modalities: dict[str, set[str]] = collections.defaultdict(set)

    def add(self, record: Document | Reject) -> None:
        if isinstance(record, Document):
            self._documents[record.source] += 1
            self._modalities[record.source].update(segment.modality for segment in record.segments)

    def text_alone(self, vocab: VocabConfig) -> dict[str, int]:
        """Documents of each source without anything but text; none where the table has nothing but text."""
        if len(vocab.modalities) == 1:
            return {}
        return {s: n for s, n in self._documents.items() if self._modalities[s] <= {vocab.text.name}}


# --- rejects ---------------------------------------------------------------------------------------------------------


class _RejectLimit:
    """Counts rejects over all runs, and stops the run when they are too many."""

    def __init__(self, config: TokenizeConfig, output: pathlib.Path):
        self._fraction, self._output = config.max_reject_fraction, output
        self._records = self._rejects = 0
        self._new: list[Reject] = []

    def add(self, records: int, rejects: int) -> None:
        self._records, self._rejects = self._records + records, self._rejects + rejects

    def count(self, rejected: Reject | None) -> None:
        self.add(1, 0 if rejected is None else 1)
        if rejected is not None:
            self._new.append(rejected)
            self.check(at_end=False)

    def committed(self) -> None:
        """The rejects so far lie beside their shards."""
        self._new.clear()

    def note(self) -> str:
        return f"{self._rejects:,} rejected" if self._rejects else ""

    def check(self, *, at_end: bool) -> None:
        """Raise DataError past the limit; rejects that belong to no shard yet then lie in rejects/aborted.jsonl."""
        if self._records == 0 and at_end:
            raise DataError("the sources hold no records: nothing to tokenise")
        too_many = self._rejects > self._fraction * self._records
        if (too_many and (at_end or self._records >= _FEWEST_RECORDS)) or (at_end and self._rejects == self._records):
            folder = self._output / layout.REJECTS
            lines = [json.dumps(dataclasses.asdict(r), ensure_ascii=True, sort_keys=True) + "\n" for r in self._new]
            if lines:
                layout.write_atomically(folder / _ABORTED, "".join(lines).encode())
            raise DataError(
                f"{self._rejects} of {self._records} records were rejected, max_reject_fraction is {self._fraction:g}: "
                f"{self._reasons()}; see {folder}, then mend the sources and use "
                "another --workdir, or raise TokenizeConfig.max_reject_fraction"
            )

    def _reasons(self) -> str:
        """The three most frequent reasons, each with its first record; numbers and names in them do not make a new reason."""
        found = []
        for path in sorted((self._output / layout.REJECTS).glob("[0-9]*.jsonl")):
            found += [Reject(**json.loads(line)) for line in path.read_text().splitlines()]
        kinds = [(len(alike), alike[0]) for alike in by_reason([*found, *self._new])[:3]]
        return "; ".join(f"{count} x {one.reason[:120]} ('{one.record}' of '{one.source}')" for count, one in kinds)


# --- one plan, one writer --------------------------------------------------------------------------------------------


def _keep_plan(config: TokenizeConfig, fingerprint: str, data: dict[str, str | None], output: pathlib.Path) -> None:
    """Freeze the plan in a new directory; in an old one refuse another plan, and other data once there are shards of them."""
    wanted = config.to_dict()
    for field in _FREE_FIELDS:
        del wanted[field]
    path = output / PLAN
    has_shards = any((output / layout.COMMITS).glob("*.json"))
    if not path.exists():
        if has_shards:
            raise StoreError(
                f"{path} is missing beside committed shards: restore it or tokenise into another directory"
            )
        content = {"config": wanted, "config_hash": config.hash(), "bundle_fingerprint": fingerprint, "data": data}
        layout.write_json(path, {"format_version": layout.FORMAT_VERSION, **content})
        return
    kept = layout.read_json(path, "tokenise into another directory")
    then = kept["config"]
    # A field that is newer than the store counts as its default.
    with contextlib.suppress(ConfigError, KeyError, TypeError):
        free = {field: value for field, value in config.to_dict().items() if field in _FREE_FIELDS}
        then = TokenizeConfig.from_dict(free | then).to_dict()
    changes = [
        f"{field} was {before!r}, is {now!r}"
        for field, (now, before) in config.diff(then).items()
        if field not in _FREE_FIELDS
    ]
    if kept["bundle_fingerprint"] != fingerprint:
        changes.append(f"tokenizer bundle was {kept['bundle_fingerprint']}, is {fingerprint}")
    if changes:
        raise StoreError(
            f"{output} was begun with another plan ({'; '.join(changes)}): restore it or tokenise into another directory"
        )
    known = kept.get("data", data)  # of a store from before this was kept, see _remember_data
    if changed := [f"'{name}'" for name, now in data.items() if known.get(name) != now]:
        if has_shards:
            raise StoreError(
                f"the data of source {', '.join(changed)} have changed since {output} was written: restore them, or use another "
                "--workdir for what they are now"
            )
        layout.write_json(path, {**kept, "data": data})


def _remember_data(data: dict[str, str | None], output: pathlib.Path) -> None:
    """Add the data to the plan of a whole store from before they were kept.

    Not sooner: going on with such a store is what tells whether they are those that it was begun with.
    """
    kept = layout.read_json(output / PLAN, "tokenise into another directory")
    if "data" not in kept:
        layout.write_json(output / PLAN, {**kept, "data": data})


def _keep_tokenizer(bundle: TokenizerBundle, fingerprint: str, output: pathlib.Path) -> None:
    """A copy of what made the ids goes with them: without it nobody can read a store back.

    Raises StoreError where another one lies there.
    """
    kept = output / TOKENIZER
    if kept.exists():
        theirs = TokenizerBundle.load(kept).fingerprint()
        if theirs != fingerprint:
            raise StoreError(
                f"{kept} is tokenizer {theirs}, not {fingerprint}, which makes these ids: delete it or choose another --workdir"
            )
    else:
        with new_folder(kept) as unfinished:
            bundle.save(unfinished)


def _is_whole(output: pathlib.Path) -> bool:
    try:
        TokenStore.open(output)
    except StoreError:
        return False
    return True


@contextlib.contextmanager
def _only_writer(output: pathlib.Path) -> Iterator[None]:
    """Hold the directory's lock; the kernel lets go of it when the process ends, however it ends."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        lock = (output / layout.LOCK).open("a")
    except OSError as error:
        raise WorkdirError(f"{output} cannot be written ({error.strerror}): choose another directory") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise WorkdirError(
                f"{output}: another run is tokenising into this directory: wait for it or stop it"
            ) from error
        yield
