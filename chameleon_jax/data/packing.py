"""Which documents share a row: the pack plan.

The plan is a pure function of span lengths and a seed, made before training, so row r is the same on any number
of hosts. Pieces are placed longest first, each into the row that it fills best (best-fit decreasing; for language models see
Ding et al. 2024, "Fewer Truncations Improve Language Modeling"), with rows looked up by their free space: n log n for the sort
and constant time for each piece.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import json
import zipfile
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from chameleon_jax.data import store_format as layout
from chameleon_jax.data.permutation import derive_seed, permutation
from chameleon_jax.data.store import SpanTable, TokenStore
from chameleon_jax.errors import StoreError

ALGORITHM = "best-fit-decreasing-1"  # a changed plan for equal input needs a new name
_ARRAYS = ("row_offsets", "documents", "starts", "lengths")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class PackPlan:
    """Rows of pieces. Row r holds the pieces `row_offsets[r] : row_offsets[r + 1]`, one after the other.

    A piece is the ids `start : start + length` of a document; almost always the whole of it.
    """

    seq_len: int
    row_offsets: Int[np.ndarray, " rows_plus_1"]  # int64
    documents: Int[np.ndarray, " pieces"]  # int64
    starts: Int[np.ndarray, " pieces"]  # int32
    lengths: Int[np.ndarray, " pieces"]  # int32
    rejected_documents: int  # with a span longer than seq_len that may not be cut
    rejected_tokens: int

    @property
    def rows(self) -> int:
        return len(self.row_offsets) - 1

    @property
    def fill(self) -> float:
        """Fraction of row positions that hold a token."""
        return float(self.lengths.sum(dtype=np.int64)) / max(1, self.rows * self.seq_len)

    @functools.cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits over every number of the plan."""
        digest = hashlib.sha256(f"{ALGORITHM} {self.seq_len} {self.rejected_documents} {self.rejected_tokens}".encode())
        for name in _ARRAYS:
            digest.update(np.ascontiguousarray(getattr(self, name)))
        return digest.hexdigest()[:16]


def plan(spans: SpanTable, may_cut: Sequence[bool], *, seq_len: int, max_segments_per_row: int, seed: int) -> PackPlan:
    """Place every document into rows of `seq_len` tokens.

    A document that is longer than a row is split between spans, each piece as long as fits. `may_cut` says by row of the
    modality table which spans may be cut where one alone is longer than a row; a document with another span so long is left out
    and counted. `seed` decides which documents of equal length meet, and the order of rows.
    """
    totals = np.concatenate([[0], np.cumsum(spans.lengths, dtype=np.int64)])
    lengths = np.diff(totals[spans.offsets])
    too_wide = ~np.asarray(may_cut)[spans.modalities] & (spans.lengths > seq_len)
    owners = np.searchsorted(spans.offsets, np.flatnonzero(too_wide), side="right") - 1
    rejected = np.zeros(len(lengths), bool)
    rejected[owners] = True
    whole = np.flatnonzero((lengths <= seq_len) & (lengths > 0) & ~rejected)
    pieces = [(np.asarray(whole), np.zeros(len(whole), np.int64), lengths[whole])]
    long = np.flatnonzero((lengths > seq_len) & ~rejected)
    split = [(d, *piece) for d in long.tolist() for piece in _split(_spans_of(spans, may_cut, d), seq_len)]
    if split:
        pieces.append(tuple(np.asarray(split, np.int64).T))
    documents, starts, sizes = (np.concatenate(parts) for parts in zip(*pieces, strict=True))

    shuffled = permutation(len(sizes), derive_seed("pieces", seed))
    order = shuffled[np.argsort(-sizes[shuffled], kind="stable")]
    rows = _best_fit(sizes[order], seq_len, max_segments_per_row)
    count = int(rows.max()) + 1 if len(rows) else 0
    rank = permutation(count, derive_seed("rows", seed))[rows]
    by_row = np.argsort(rank, kind="stable")
    chosen = order[by_row]
    return PackPlan(
        seq_len=seq_len,
        row_offsets=np.concatenate([[0], np.cumsum(np.bincount(rank, minlength=count))]).astype(np.int64),
        documents=documents[chosen].astype(np.int64),
        starts=starts[chosen].astype(np.int32),
        lengths=sizes[chosen].astype(np.int32),
        rejected_documents=int(rejected.sum()),
        rejected_tokens=int(lengths[rejected].sum()),
    )


def load_or_plan(store: TokenStore, *, seq_len: int, max_segments_per_row: int, seed: int) -> PackPlan:
    """The plan of a store, from the copy beside it when that is whole and belongs to this data; otherwise made and kept.

    Raises StoreError when no document fits. A store that cannot be written to is fine: the plan is then made each time.
    """
    settings = {"seq_len": seq_len, "max_segments_per_row": max_segments_per_row, "seed": seed}
    may_cut = [row.may_cut for row in store.vocab_config.modalities]
    identity = json.dumps(
        {"algorithm": ALGORITHM, "store": store.fingerprint(), "may_cut": may_cut, **settings}, sort_keys=True
    )
    path = store.path / layout.PACKING / f"{seq_len}-{max_segments_per_row}-{seed}.npz"
    made = _load(path, identity)
    if made is None:
        made = plan(store.span_table, may_cut, **settings)
        if made.rows == 0:
            raise StoreError(
                f"{store.path}: no document fits a row: a span that may not be cut is longer than seq_len {seq_len}; raise seq_len"
            )
        _save(path, made, identity)
    return made


def _split(spans: list[tuple[int, bool]], seq_len: int) -> list[tuple[int, int]]:
    """(start, length) of the pieces of one document; `spans` are (length, may be cut)."""
    pieces, start, size = [], 0, 0
    for length, may_cut in spans:
        if size + length > seq_len and size and (not may_cut or length <= seq_len):
            pieces.append((start, size))
            start, size = start + size, 0
        size += length
        while size > seq_len:  # only a span longer than a row that may be cut gets here
            pieces.append((start, seq_len))
            start, size = start + seq_len, size - seq_len
    if size:
        pieces.append((start, size))
    return pieces


def _spans_of(spans: SpanTable, may_cut: Sequence[bool], document: int) -> list[tuple[int, bool]]:
    rows = slice(spans.offsets[document], spans.offsets[document + 1])
    return list(zip(spans.lengths[rows].tolist(), np.asarray(may_cut)[spans.modalities[rows]].tolist(), strict=True))


def _best_fit(sizes: Int[np.ndarray, " pieces"], seq_len: int, max_segments: int) -> Int[np.ndarray, " pieces"]:
    """Row number of each piece, placed in the order given into the open row with the least space that is enough."""
    open_rows: list[list[int]] = [[] for _ in range(seq_len + 1)]  # by free space
    # Bit f is set when a row with free space f is open: the lowest set bit at or above a size is the best fit.
    spaces = 0
    segments: list[int] = []
    placed = []
    for size in sizes.tolist():
        enough = spaces >> size
        if enough:
            free = size + (enough & -enough).bit_length() - 1
            row = open_rows[free].pop()
            if not open_rows[free]:
                spaces ^= 1 << free
        else:
            free, row = seq_len, len(segments)
            segments.append(0)
        segments[row] += 1
        if free > size and segments[row] < max_segments:
            open_rows[free - size].append(row)
            spaces |= 1 << (free - size)
        placed.append(row)
    return np.asarray(placed, np.int64)


def _save(path, made: PackPlan, identity: str) -> None:
    buffer = io.BytesIO()
    counts = np.asarray([made.seq_len, made.rejected_documents, made.rejected_tokens], np.int64)
    arrays = {name: getattr(made, name) for name in _ARRAYS}
    np.savez(buffer, identity=np.asarray(identity), fingerprint=np.asarray(made.fingerprint), counts=counts, **arrays)
    try:
        layout.write_atomically(path, buffer.getvalue())
    except OSError:  # a read-only store: nothing is lost but time
        return


def _load(path, identity: str) -> PackPlan | None:
    try:
        with np.load(path, allow_pickle=False) as file:
            if str(file["identity"]) != identity:
                return None
            seq_len, documents, tokens = file["counts"].tolist()
            made = PackPlan(
                seq_len=seq_len,
                rejected_documents=documents,
                rejected_tokens=tokens,
                **{name: file[name] for name in _ARRAYS},
            )
            return made if made.fingerprint == str(file["fingerprint"]) else None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, NotImplementedError):
        return None  # missing or damaged: it is made again
