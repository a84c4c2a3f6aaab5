"""Which row comes at which place of the training stream: shuffle, weighted mixture and two stages.

Row n of the stream is a pure function of n, built of Grain MapDatasets, so a batch is a range of n, and resuming or
adding hosts needs no state.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Int

from chameleon_jax.data.permutation import derive_seed, permutation
from chameleon_jax.errors import ConfigError


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowSource:
    """The packed rows of one store in the mixture."""

    rows: int
    weight: float
    stage: int


class RowStream:
    """Endless rows of one source; each epoch is another permutation of all of them. Grain reads it as a data source."""

    def __init__(self, rows: int, first: int, seed: int):
        self._rows, self._first = rows, first
        # Two epochs meet in a batch, hence two permutations are held.
        self._epoch = functools.lru_cache(maxsize=2)(lambda epoch: permutation(rows, derive_seed("epoch", seed, epoch)))

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: int) -> int:
        epoch, place = divmod(index, self._rows)
        return self._first + int(self._epoch(epoch)[place])


class Mixture:
    """Rows of several sources in two stages.

    Up to place `stage2_begin` of the stream the sources of stage 1 are mixed by weight. From there on all sources are, those of
    stage 1 with their weight times `stage1_weight_in_stage2` (Chameleon, section 2.2) and from the row on where they stopped.
    """

    def __init__(self, sources: Sequence[RowSource], *, seed: int, stage2_begin: int, stage1_weight_in_stage2: float):
        import grain

        self._first_rows = np.concatenate([[0], np.cumsum([source.rows for source in sources])]).astype(np.int64)
        streams = [
            grain.MapDataset.source(RowStream(source.rows, int(first), derive_seed("rows", seed, i)))
            for i, (source, first) in enumerate(zip(sources, self._first_rows[:-1], strict=True))
        ]
        first_stage = [i for i, source in enumerate(sources) if source.stage == 1]
        weights = [sources[i].weight for i in first_stage]
        self._stage1 = grain.MapDataset.mix([streams[i] for i in first_stage], weights)
        self._stage2, self._stage2_begin = self._stage1, sys.maxsize
        if any(source.stage == 2 for source in sources):
            used = dict(zip(first_stage, used_rows(weights, stage2_begin), strict=True))
            second = [i for i, source in enumerate(sources) if source.stage == 2 or stage1_weight_in_stage2 > 0]
            scale = {1: stage1_weight_in_stage2, 2: 1.0}
            self._stage2 = grain.MapDataset.mix(
                [streams[i][used.get(i, 0) :] for i in second],
                [sources[i].weight * scale[sources[i].stage] for i in second],
            )
            self._stage2_begin = stage2_begin
        elif stage1_weight_in_stage2 == 0:
            raise ConfigError(
                "DataConfig: stage1_weight_in_stage2 is 0 and no store has stage 2: nothing is left to train on"
            )

    def rows(self, places: Iterable[int]) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
        """Source number and row number in that source for each of these places of the stream."""
        border = self._stage2_begin
        numbers = [self._stage1[int(n)] if n < border else self._stage2[int(n) - border] for n in places]
        numbers = np.asarray(numbers, np.int64)
        sources = np.searchsorted(self._first_rows, numbers, side="right") - 1
        return sources, numbers - self._first_rows[sources]


def used_rows(weights: Sequence[float], count: int) -> list[int]:
    """How many elements of each dataset the first `count` elements of Grain's weighted mixture take."""
    import grain

    probe = grain.MapDataset.mix([grain.MapDataset.source(_Numbered(i)) for i in range(len(weights))], list(weights))
    used: dict[int, int] = {}
    for n in range(count - 1, -1, -1):  # the last element of a dataset says how many there were
        dataset, index = probe[n]
        used.setdefault(dataset, index + 1)
        if len(used) == len(weights):
            break
    return [used.get(i, 0) for i in range(len(weights))]


class _Numbered:
    """Endless (dataset number, index) pairs."""

    def __init__(self, number: int):
        self._number = number

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: int) -> tuple[int, int]:
        return self._number, index
