"""Reads a token store: documents as ids and spans, at random, with every byte checked.

Small tables (where a document begins, its spans) are held in memory for all documents, tokens are read in chunks
of 16,384 that are checked by crc32c and kept decoded, least recently used dropped first; so are the pixels of perceived pictures.
`store_format` draws the layout.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import os
import pathlib
import threading
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Int, UInt8

from chameleon_jax.configs import VocabConfig
from chameleon_jax.data import store_format as layout
from chameleon_jax.data.store_writer import data_fingerprint, read_commits
from chameleon_jax.errors import ConfigError, StoreError
from chameleon_jax.tokenizers.bundle import TokenizerBundle
from chameleon_jax.tokenizers.documents import Span
from chameleon_jax.vocab import Vocab
from chameleon_jax.workdir import PLAN, TOKENIZER, VOCAB

Block = tuple[str, int, int]  # a chunk: name of the array, shard, number of the chunk
DEFAULT_CACHE_BYTES = 256 << 20
_SHARDS_AT_ONCE = 256  # small tables opened concurrently


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpanTable:
    """Spans of every document, without their tokens. The spans of document d are `offsets[d] : offsets[d + 1]`."""

    offsets: Int[np.ndarray, " documents_plus_1"]  # int64
    lengths: Int[np.ndarray, " spans"]  # int32
    modalities: Int[np.ndarray, " spans"]  # int8, row of the modality table
    loss: Bool[np.ndarray, " spans"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoreSummary:
    """What a person wants to know of a store."""

    path: str
    documents: int
    tokens: int
    tokens_by_modality: dict[str, int]
    spans_by_modality: dict[str, int]
    shards: int
    records: int
    rejects: int
    vocab_size: int
    vocab_fingerprint: str
    bundle_fingerprint: str
    fingerprint: str


class BlockCache:
    """Decoded chunks of one or more stores, least recently used dropped first, bounded in bytes."""

    def __init__(self, limit: int):
        self._limit, self._bytes = limit, 0
        self._blocks: collections.OrderedDict[tuple[int, Block], np.ndarray] = collections.OrderedDict()
        self._lock = threading.Lock()

    def get(self, store: object, wanted: set[Block]) -> tuple[dict[Block, np.ndarray], list[Block]]:
        """Chunks that are held, and the names of those that are not."""
        found, missing = {}, []
        with self._lock:
            for block in sorted(wanted):
                key = (id(store), block)
                if key in self._blocks:
                    self._blocks.move_to_end(key)
                    found[block] = self._blocks[key]
                else:
                    missing.append(block)
        return found, missing

    def put(self, store: object, blocks: dict[Block, np.ndarray]) -> None:
        """Take chunks in, and drop the least recently used beyond the limit."""
        with self._lock:
            for block, array in blocks.items():
                key = (id(store), block)
                if key not in self._blocks:
                    self._blocks[key] = array
                    self._bytes += array.nbytes
            while self._bytes > self._limit:
                self._bytes -= self._blocks.popitem(last=False)[1].nbytes


class TokenStore:
    """An opened store; safe to read from several threads. Make one with `TokenStore.open`."""

    @classmethod
    def open(cls, path: str | os.PathLike, *, cache: BlockCache | None = None) -> TokenStore:
        """Open a finished store.

        `cache` keeps decoded tokens in memory and may be shared by stores. Raises StoreError when the store is unfinished, of
        another format version, or its manifest and commits contradict each other; damage in the data is found when it is read.
        """
        return cls(pathlib.Path(path), cache or BlockCache(DEFAULT_CACHE_BYTES))

    def __init__(self, path: pathlib.Path, cache: BlockCache):
        self.path = path
        self.manifest = _read_manifest(path)
        commits = read_commits(path)
        for shard in range(max(len(commits), self.manifest["shards"])):
            if shard not in commits or shard >= self.manifest["shards"]:
                state = "is not committed" if shard not in commits else "is not in the manifest"
                raise StoreError(
                    f"{path}: shard {layout.shard_name(shard)} {state}: run experiments.tokenize again to mend the store"
                )
        if data_fingerprint(commits) != self.manifest["data"]:
            raise StoreError(
                f"{path}: commits and {layout.MANIFEST} contradict each other: run experiments.tokenize again"
            )
        self.vocab_config = _vocab_of(self.manifest, path)
        self.vocab = Vocab.from_config(self.vocab_config)
        self.bundle_fingerprint: str = self.manifest["bundle_fingerprint"]
        if self.manifest["format_version"] == 1:
            self._read_as_table()
        elif self.vocab.fingerprint() != self.manifest["vocab_fingerprint"]:
            raise StoreError(
                f"{path}: vocabulary {self.manifest['vocab_fingerprint']} is laid out as {self.vocab.fingerprint()} by this "
                "program: use a matching release or tokenise again"
            )
        self._commits = [commits[shard] for shard in range(self.manifest["shards"])]
        self._shard_documents = _starts(commit["documents"] for commit in self._commits)
        self._shard_tokens = _starts(commit["tokens"] for commit in self._commits)
        shapes = {shard: tuple(commit["pixels"]) for shard, commit in enumerate(self._commits) if "pixels" in commit}
        self._shard_pictures = _starts(shapes.get(shard, (0,))[0] for shard in range(len(self._commits)))
        # Of a perceived picture, height and width; None where there is none.
        self.picture_size: tuple[int, int] | None = next((shape[1:3] for shape in shapes.values()), None)
        self._cache = cache
        self._lock = threading.Lock()
        self._handles: dict[tuple[str, int], object] = {}

    @property
    def documents(self) -> int:
        return int(self._shard_documents[-1])

    @property
    def tokens(self) -> int:
        return int(self._shard_tokens[-1])

    def fingerprint(self) -> str:
        """16 hexadecimal digits over every byte of data and what the ids mean."""
        return self.manifest["data"]

    @functools.cached_property
    def lengths(self) -> Int[np.ndarray, " documents"]:
        """int64 number of tokens of every document."""
        return np.diff(self._tables[0])

    @property
    def span_table(self) -> SpanTable:
        return self._tables[1]

    @functools.cached_property
    def document_ids(self) -> Int[np.ndarray, " documents"]:
        """uint64 hash of every document's id, see `store_writer.document_hash`."""
        return np.concatenate([np.zeros(0, np.uint64), *self._read_all("document_ids")])

    def read(self, documents: Sequence[int]) -> list[Int[np.ndarray, " n"]]:
        """int32 ids of each document, in the order asked for.

        Raises StoreError naming the damaged shard, IndexError for a document that does not exist.
        """
        chosen = np.asarray(documents, np.int64)
        lengths = self.lengths[chosen]
        flat = self.read_pieces(chosen, np.zeros_like(chosen), lengths).astype(np.int32)
        return np.split(flat, np.cumsum(lengths)[:-1]) if len(chosen) else []

    def spans(self, documents: Sequence[int]) -> list[tuple[Span, ...]]:
        """Spans of each document, in the order asked for."""
        table = self.span_table
        return [
            tuple(
                Span(
                    modality=int(table.modalities[s]),
                    length=int(table.lengths[s]),
                    loss=bool(table.loss[s]),
                )
                for s in range(table.offsets[document], table.offsets[document + 1])
            )
            for document in documents
        ]

    def read_pieces(
        self,
        documents: Int[np.ndarray, " p"],
        starts: Int[np.ndarray, " p"],
        lengths: Int[np.ndarray, " p"],
    ) -> Int[np.ndarray, " total"]:
        """Ids of `document[start : start + length]` for every piece, one after the other, in the store's unsigned type.

        All chunks that are not in memory are read at the same time. Raises StoreError naming the damaged shard.
        """
        positions = self._tables[0][:-1][documents] + starts
        shards = np.searchsorted(self._shard_tokens, positions, side="right") - 1
        local = positions - self._shard_tokens[shards]
        ends = local + lengths
        first, last = local // layout.BLOCK_TOKENS, (ends - 1) // layout.BLOCK_TOKENS
        pieces = list(zip(shards.tolist(), first.tolist(), last.tolist(), local.tolist(), ends.tolist(), strict=True))
        wanted = {("tokens", shard, i) for shard, begin, end, _, _ in pieces for i in range(begin, end + 1)}
        blocks = self._blocks(wanted)
        parts = []
        for shard, begin, end, start, stop in pieces:
            for block in range(begin, end + 1):
                origin = block * layout.BLOCK_TOKENS
                parts.append(blocks["tokens", shard, block][max(start - origin, 0) : stop - origin])
        return np.concatenate(parts) if parts else np.zeros(0, self.vocab.store_dtype())

    def pictures_of(
        self,
        documents: Int[np.ndarray, " p"],
        starts: Int[np.ndarray, " p"],
        lengths: Int[np.ndarray, " p"],
    ) -> tuple[Int[np.ndarray, " p"], Int[np.ndarray, " p"]]:
        """Number of the first perceived picture of every piece, and how many pictures it holds.

        Pictures are counted over the whole store; no piece cuts one.
        """
        begins = self._tables[0][:-1][documents] + starts
        first, stop = np.searchsorted(self._picture_places, [begins, begins + lengths])
        return first, stop - first

    def pictures_in(self, document: int) -> list[UInt8[np.ndarray, "H W 3"]]:
        """Pixels of the perceived pictures of a document, in its order. Raises StoreError naming the damaged shard."""
        if not self.picture_size:
            return []
        begin, end = self._tables[0][document : document + 2]
        [first], [held] = self.pictures_of(np.array([document]), np.array([0]), np.array([end - begin]))
        return list(self.read_pictures(np.arange(first, first + held))) if held else []

    def read_pictures(self, numbers: Int[np.ndarray, " n"]) -> UInt8[np.ndarray, " n H W 3"]:
        """Pixels of perceived pictures by number (`pictures_of`). Raises StoreError naming the damaged shard."""
        shards = np.searchsorted(self._shard_pictures, numbers, side="right") - 1
        local = np.asarray(numbers) - self._shard_pictures[shards]
        length = layout.block_length("pixels", (0, *self.picture_size, 3))
        places = list(zip(shards.tolist(), (local // length).tolist(), (local % length).tolist(), strict=True))
        blocks = self._blocks({("pixels", shard, block) for shard, block, _ in places})
        return np.stack([blocks["pixels", shard, block][at] for shard, block, at in places])

    @functools.cached_property
    def _picture_places(self) -> Int[np.ndarray, " pictures"]:
        """The position in the store's ids at which the span of every perceived picture begins."""
        spans, modality = self.span_table, self.vocab.perceived
        begins = np.cumsum(spans.lengths, dtype=np.int64) - spans.lengths
        return begins[spans.modalities == self.vocab.row(modality.name)] if modality else begins[:0]

    def by_modality(self, key: str) -> dict[str, int]:
        """A count of the manifest, in the order of the table."""
        return {name: self.manifest[key][name] for name in self.vocab.names if name in self.manifest[key]}

    def summary(self) -> StoreSummary:
        """Totals and fingerprints, for `experiments.inspect`."""
        keys = ("documents", "tokens", "shards", "records", "rejects")
        return StoreSummary(
            path=str(self.path),
            vocab_size=self.vocab.size,
            vocab_fingerprint=self.vocab.fingerprint(),
            bundle_fingerprint=self.bundle_fingerprint,
            fingerprint=self.fingerprint(),
            **{key: self.manifest[key] for key in keys},
            **{key: self.by_modality(key) for key in ("tokens_by_modality", "spans_by_modality")},
        )

    def _read_as_table(self) -> None:
        """A store of format 1 knows text and images only, and its fingerprints are of another spelling of the same ids."""
        self.manifest["spans_by_modality"] = {"image": self.manifest["images"]}
        beside = self.path / TOKENIZER
        if (beside / VOCAB).is_file():
            self.bundle_fingerprint = TokenizerBundle.load(beside).fingerprint()

    # --- reading arrays ----------------------------------------------------------------------------------------------

    @functools.cached_property
    def _tables(self) -> tuple[Int[np.ndarray, " documents_plus_1"], SpanTable]:
        """Token starts of the documents (int64, counted over the whole store), and the span table."""
        offsets = self._read_all("offsets")
        starts = [np.zeros(1, np.int64)]
        span_starts = [np.zeros(1, np.int64)]
        span_base = 0
        for shard, table in enumerate(offsets):
            commit = self._commits[shard]
            steps = np.diff(table, axis=0)
            if (
                tuple(table[0]) != (0, 0)
                or tuple(table[-1]) != (commit["tokens"], commit["spans"])
                or (steps < 0).any()
            ):
                raise self._damaged(shard, "offsets do not fit the commit")
            starts.append(table[1:, 0] + self._shard_tokens[shard])
            span_starts.append(table[1:, 1] + span_base)
            span_base += commit["spans"]
        spans = np.concatenate([np.zeros((0, 3), np.int32), *self._read_all("spans")])
        table = SpanTable(
            offsets=np.concatenate(span_starts),
            lengths=np.ascontiguousarray(spans[:, 1]),
            modalities=spans[:, 0].astype(np.int8),
            loss=spans[:, 2].astype(bool),
        )
        return np.concatenate(starts), table

    def _spec(self, shard: int, name: str) -> dict:
        commit = self._commits[shard]
        shape, dtype = {
            "tokens": ((commit["tokens"],), np.dtype(commit["dtype"])),
            "offsets": ((commit["documents"] + 1, 2), np.dtype(np.int64)),
            "spans": ((commit["spans"], 3), np.dtype(np.int32)),
            "document_ids": ((commit["documents"],), np.dtype(np.uint64)),
            "pixels": (tuple(commit.get("pixels", ())), np.dtype(np.uint8)),
        }[name]
        return layout.array_spec(self.path / layout.SHARDS / layout.shard_name(shard), name, shape, dtype)

    def _read_all(self, name: str) -> list[np.ndarray]:
        """One small array of every shard."""
        import tensorstore

        arrays = []
        for begin in range(0, len(self._commits), _SHARDS_AT_ONCE):
            group = range(begin, min(begin + _SHARDS_AT_ONCE, len(self._commits)))
            opening = [tensorstore.open(self._spec(shard, name), open=True) for shard in group]
            reading = [self._result(shard, future).read() for shard, future in zip(group, opening, strict=True)]
            arrays += [self._result(shard, future) for shard, future in zip(group, reading, strict=True)]
        return arrays

    def _blocks(self, wanted: set[Block]) -> dict[Block, np.ndarray]:
        found, missing = self._cache.get(self, wanted)
        reading = []
        for name, shard, block in missing:
            array = self._array(name, shard)
            length = layout.block_length(name, array.shape)
            stop = min((block + 1) * length, array.shape[0])
            reading.append((shard, array[block * length : stop].read()))
        for block, (shard, future) in zip(missing, reading, strict=True):
            found[block] = self._result(shard, future)
        self._cache.put(self, {key: found[key] for key in missing})
        return found

    def _array(self, name: str, shard: int):
        """The opened array of a shard."""
        with self._lock:
            if (name, shard) not in self._handles:
                import tensorstore

                opening = tensorstore.open(self._spec(shard, name), open=True)
                self._handles[name, shard] = self._result(shard, opening)
            return self._handles[name, shard]

    def _result(self, shard: int, future):
        try:
            return future.result()
        except (ValueError, OSError, RuntimeError) as error:
            raise self._damaged(shard, str(error).splitlines()[0][:200]) from error

    def _damaged(self, shard: int, reason: str) -> StoreError:
        commit = self.path / layout.COMMITS / f"{layout.shard_name(shard)}.json"
        return StoreError(
            f"{self.path}: shard {layout.shard_name(shard)} is damaged or missing ({reason}): delete {commit} and run "
            "experiments.tokenize again to rebuild the shard"
        )


def read_vocab(path: str | os.PathLike) -> VocabConfig:
    """The modality table of a store, by its manifest alone. Raises StoreError as `TokenStore.open` does."""
    return _vocab_of(_read_manifest(pathlib.Path(path)), path)


def _read_manifest(path: pathlib.Path) -> dict[str, Any]:
    if not path.is_dir():
        raise StoreError(f"{path}: no such token store: give the directory that experiments.tokenize wrote")
    if not any((path / part).exists() for part in (PLAN, layout.MANIFEST, layout.SHARDS)):
        raise StoreError(f"{path} is no token store: give the directory that experiments.tokenize wrote")
    return layout.read_json(path / layout.MANIFEST, "run experiments.tokenize on this directory to finish the store")


def _vocab_of(manifest: dict[str, Any], path: str | os.PathLike) -> VocabConfig:
    try:
        return VocabConfig.from_dict(manifest["vocab"])
    except (ConfigError, TypeError) as error:
        raise StoreError(f"{path}/{layout.MANIFEST}: {error}: use a matching release") from error


def verify(path: str | os.PathLike) -> TokenStore:
    """Compare every file of every shard with its sha256, and open the store.

    Raises StoreError naming the first damaged file.
    """
    store = TokenStore.open(path)
    for shard, commit in enumerate(store._commits):
        for name, wanted in commit["files"].items():
            file = store.path / name
            if not file.is_file():
                raise store._damaged(shard, f"{name} is missing")
            if file.stat().st_size != wanted["bytes"]:
                raise store._damaged(
                    shard, f"{name} has {file.stat().st_size} bytes, the commit says {wanted['bytes']}"
                )
            if layout.sha256_file(file) != wanted["sha256"]:
                raise store._damaged(shard, f"{name} does not match its sha256")
    return store


def _starts(counts: Iterable[int]) -> Int[np.ndarray, " n_plus_1"]:
    """Where each part begins when parts of these sizes stand one after the other."""
    return np.concatenate([[0], np.cumsum(np.fromiter(counts, np.int64))]).astype(np.int64)
