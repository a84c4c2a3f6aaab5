"""Batches as a function of the step.

`host_batch(k)` needs nothing but k. The mixture says which rows, the pack plan which pieces of which documents,
the store which ids; then all rows of a batch are laid out at once with NumPy. Processes differ only in the rows they take.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Int

from chameleon_jax.configs import DataConfig, StoreConfig
from chameleon_jax.data.batch import Batch
from chameleon_jax.data.mixture import Mixture, RowSource
from chameleon_jax.data.packing import PackPlan, load_or_plan
from chameleon_jax.data.permutation import derive_seed, permutation
from chameleon_jax.data.store import BlockCache, SpanTable, TokenStore
from chameleon_jax.errors import ConfigError, StoreError
from chameleon_jax.vocab import Vocab


@dataclasses.dataclass(frozen=True, kw_only=True)
class PackedStore:
    """A store and its pack plan."""

    config: StoreConfig
    store: TokenStore
    plan: PackPlan


class Loader:
    """Training and evaluation batches of one process.

    `rows` are the numbers of the rows of every global batch that this process makes, in the order in which it gets them
    (`parallel.batches.local_rows`); all by default. Raises ConfigError for a row that is not in the batch, StoreError when a store
    is damaged or the stores were made with different tokenizers.
    """

    def __init__(self, config: DataConfig, batch_size: int, steps: int, rows: Sequence[int] | None = None):
        self._config, self._batch_size, self._steps = config, batch_size, steps
        self._rows = np.arange(batch_size) if rows is None else np.asarray(rows, np.int64)
        if ((self._rows < 0) | (self._rows >= batch_size)).any():
            raise ConfigError(f"rows {self._rows.tolist()} are not all in 0..{batch_size - 1}, the rows of a batch")
        cache, opened = BlockCache(config.cache_bytes), {}
        for store in config.stores + config.eval_stores:
            key = os.path.realpath(store.path)
            opened[key] = opened.get(key) or TokenStore.open(store.path, cache=cache)
        _check_same_tokens(list(opened.values()))
        self.stores = self._packed(config.stores, opened)
        self.eval_stores = self._packed(config.eval_stores, opened)
        self.vocab_config = self.stores[0].store.vocab_config
        self.bundle_fingerprint = self.stores[0].store.bundle_fingerprint
        self._vocab = Vocab.from_config(self.vocab_config)
        self._most_pictures = max(_most_pictures(packed) for packed in (*self.stores, *self.eval_stores))
        # Of a perceived picture of the run, height and width; None where there is none.
        self.picture_size = next((s.picture_size for s in opened.values() if s.picture_size), None)
        self.stage2_step = int(config.stage2_start * steps)
        self._mixture = Mixture(
            [RowSource(rows=s.plan.rows, weight=s.config.weight, stage=s.config.stage) for s in self.stores],
            seed=config.seed,
            stage2_begin=self.stage2_step * batch_size,
            stage1_weight_in_stage2=config.stage1_weight_in_stage2,
        )

    def host_batch(self, step: int) -> Batch:
        """This process's rows of batch `step`, NumPy [rows, seq_len]; the same however it is reached."""
        if step < 0:
            raise ValueError(f"batches are numbered from 0, not {step}")
        return self._assemble(self.stores, *self._mixture.rows(step * self._batch_size + self._rows))

    def batches(self, start_step: int = 0, stop: int | None = None) -> Iterator[Batch]:
        """Batches `start_step..stop-1` (to the end of the run by default), made ahead in a thread.

        An error met in the thread is raised here, at the batch that it belongs to.
        """
        import grain

        steps = grain.MapDataset.range(start_step, self._steps if stop is None else stop).map(self.host_batch)
        options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=self._config.prefetch)
        return iter(steps.to_iter_dataset(options))

    def eval_batches(self, count: int) -> list[Batch]:
        """Up to `count` fixed batches of held-out rows, none twice; empty when no eval store is configured.

        Rows of all eval stores are shuffled together once, so stores count by their size. Rows missing in the last batch are
        padding with weight 0.
        """
        if not self.eval_stores:
            return []
        sizes = [packed.plan.rows for packed in self.eval_stores]
        sources = np.repeat(np.arange(len(sizes)), sizes)
        rows = np.concatenate([np.arange(size) for size in sizes])
        order = permutation(len(rows), derive_seed("eval", self._config.seed))
        batches = []
        for begin in range(0, min(len(rows), count * self._batch_size), self._batch_size):
            chosen = begin + self._rows
            places = np.flatnonzero(chosen < len(rows))
            mine = order[chosen[places]]
            batches.append(self._assemble(self.eval_stores, sources[mine], rows[mine], places))
        return batches

    def fingerprint(self) -> str:
        """16 hexadecimal digits over all that decides the content of the training stream, batch size and steps apart."""
        config = self._config
        content = {
            "stores": [
                [s.store.fingerprint(), s.plan.fingerprint, s.config.weight, s.config.stage] for s in self.stores
            ],
            "tokenizers": [self._vocab.fingerprint(), self.bundle_fingerprint],
            "stages": [config.stage2_start, config.stage1_weight_in_stage2],
            "loss_weights": _loss_weights(self.stores[0].store),
            "seq_len": config.seq_len,
            "seed": config.seed,
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    def _packed(self, configs: tuple[StoreConfig, ...], opened: dict[str, TokenStore]) -> list[PackedStore]:
        settings = {"seq_len": self._config.seq_len, "max_segments_per_row": self._config.max_segments_per_row}
        stores = [opened[os.path.realpath(config.path)] for config in configs]
        return [
            PackedStore(config=config, store=store, plan=load_or_plan(store, seed=self._config.seed, **settings))
            for config, store in zip(configs, stores, strict=True)
        ]

    def _assemble(
        self,
        packed: list[PackedStore],
        sources: Int[np.ndarray, " n"],
        rows: Int[np.ndarray, " n"],
        places: Int[np.ndarray, " n"] | None = None,
    ) -> Batch:
        """Lay these rows of these sources at `places` of the batch (in order by default); the other places are padding."""
        shape = (self._most_pictures, *self.picture_size) if self._most_pictures else None
        canvas = _Canvas(len(self._rows), self._config.seq_len, self._vocab.pad, shape)
        places = np.arange(len(rows)) if places is None else places
        for number in np.unique(sources):
            here = sources == number
            canvas.lay(packed[number], places[here], rows[here])
        return canvas.batch(self._vocab)


class _Canvas:
    """Rows under construction: ids, document numbers, positions and loss roles of tokens, before the shift to targets.

    `pictures` is how many perceived ones a row has room for, their height and their width; None for none.
    """

    def __init__(self, rows: int, seq_len: int, pad: int, pictures: tuple[int, int, int] | None):
        self._seq_len, self._pad = seq_len, pad
        self._tokens = np.full((rows, seq_len), pad, np.int32)
        self._segments = np.zeros((rows, seq_len), np.int32)
        self._positions = np.zeros((rows, seq_len), np.int32)
        self._loss = np.zeros((rows, seq_len), bool)
        self._pictures = None if pictures is None else np.zeros((rows, *pictures, 3), np.uint8)

    def lay(self, packed: PackedStore, places: Int[np.ndarray, " n"], rows: Int[np.ndarray, " n"]) -> None:
        """Put rows of a plan into the rows `places` of the canvas."""
        plan = packed.plan
        begins, counts = plan.row_offsets[rows], np.diff(plan.row_offsets)[rows]
        pieces = _ranges(begins, counts)
        documents, starts, lengths = plan.documents[pieces], plan.starts[pieces].astype(np.int64), plan.lengths[pieces]
        number_in_row = np.arange(len(pieces)) - np.repeat(np.cumsum(counts) - counts, counts)
        flat_begins = np.cumsum(lengths, dtype=np.int64) - lengths
        row_begins = np.repeat(flat_begins[np.cumsum(counts) - counts], counts)
        targets = np.repeat(places, counts) * self._seq_len + flat_begins - row_begins
        positions = np.arange(lengths.sum(dtype=np.int64)) - np.repeat(flat_begins, lengths)
        at = positions + np.repeat(targets, lengths)
        self._tokens.reshape(-1)[at] = packed.store.read_pieces(documents, starts, lengths)
        self._segments.reshape(-1)[at] = np.repeat(number_in_row + 1, lengths)
        self._positions.reshape(-1)[at] = positions
        self._loss.reshape(-1)[at] = _loss_roles(packed.store.span_table, documents, starts, lengths)
        if self._pictures is not None:
            first, held = packed.store.pictures_of(documents, starts, lengths)
            of_rows = np.add.reduceat(held, np.cumsum(counts) - counts)  # every row has a piece
            if held.any():
                slots = _ranges(np.zeros_like(of_rows), of_rows)
                self._pictures[np.repeat(places, of_rows), slots] = packed.store.read_pictures(_ranges(first, held))

    def batch(self, vocab: Vocab) -> Batch:
        """Shift tokens to targets; a target exists where the next position belongs to the same document."""
        same = np.zeros(self._tokens.shape, bool)
        same[:, :-1] = (self._segments[:, 1:] == self._segments[:, :-1]) & (self._segments[:, 1:] > 0)
        targets = np.where(same, np.roll(self._tokens, -1, axis=1), np.int32(self._pad))
        weights = (same & np.roll(self._loss, -1, axis=1)).astype(np.float32)
        return Batch(
            tokens=self._tokens,
            targets=targets,
            loss_weights=weights,
            segment_ids=self._segments,
            positions=self._positions,
            modality=vocab.modality_of(targets).astype(np.int32),
            input_modality=vocab.modality_of(self._tokens).astype(np.int32),
            pictures=self._pictures,
        )


def _most_pictures(packed: PackedStore) -> int:
    """The most perceived pictures that a row of the plan holds."""
    plan = packed.plan
    if packed.store.picture_size is None:
        return 0
    _, held = packed.store.pictures_of(plan.documents, plan.starts.astype(np.int64), plan.lengths)
    return int(np.diff(np.concatenate([[0], np.cumsum(held)])[plan.row_offsets]).max())


def _loss_roles(
    spans: SpanTable, documents: Int[np.ndarray, " p"], starts: Int[np.ndarray, " p"], lengths: Int[np.ndarray, " p"]
) -> Bool[np.ndarray, " total"]:
    """Whether each token of each piece is to be learned: spans cut to the pieces, then written out."""
    counts = spans.offsets[documents + 1] - spans.offsets[documents]
    chosen = _ranges(spans.offsets[documents], counts)
    sizes = spans.lengths[chosen].astype(np.int64)
    ends = np.cumsum(sizes)
    before = np.concatenate([[0], ends])[np.cumsum(counts) - counts]
    ends -= np.repeat(before, counts)
    low, high = np.repeat(starts, counts), np.repeat(starts + lengths, counts)
    kept = np.minimum(ends, high) - np.maximum(ends - sizes, low)
    return np.repeat(spans.loss[chosen], np.maximum(kept, 0))


def _ranges(begins: Int[np.ndarray, " n"], counts: Int[np.ndarray, " n"]) -> Int[np.ndarray, " total"]:
    """`begin, begin + 1, ...` (count of them) for every pair, one after the other."""
    ends = np.cumsum(counts)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(begins - (ends - counts), counts)


def _check_same_tokens(stores: list[TokenStore]) -> None:
    first = stores[0]
    for store in stores[1:]:
        for what, mine, theirs in (
            ("vocab_fingerprint", first.vocab.fingerprint(), store.vocab.fingerprint()),
            ("bundle_fingerprint", first.bundle_fingerprint, store.bundle_fingerprint),
        ):
            if mine != theirs:
                raise StoreError(
                    f"{first.path} and {store.path} were made with different tokenizers ({what} {mine} and {theirs}): "
                    "tokenise both with the same bundle"
                )
        if _loss_weights(first) != _loss_weights(store):
            raise StoreError(
                f"{first.path} and {store.path} weigh modalities differently in the loss ({_loss_weights(first)} and "
                f"{_loss_weights(store)}): make their tables agree"
            )


def _loss_weights(store: TokenStore) -> list[float]:
    """Of each modality, where a run does not say otherwise."""
    return [row.loss_weight for row in store.vocab_config.modalities]
