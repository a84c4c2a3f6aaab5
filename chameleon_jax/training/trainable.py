"""What of the parameters is trained: all, those of some paths, and of the vocabulary's rows all or some.

The optimizer is given the trained part alone, so nothing frozen has a moment or weight decay. A parameter that is frozen whole has
no gradient either; where some rows are trained the gradient of all is made, and then cut.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from chameleon_jax.checkpoints.manifest import named_leaves, nest
from chameleon_jax.configs import TrainableConfig
from chameleon_jax.errors import ConfigError, did_you_mean
from chameleon_jax.models.params import ParamSpec

Tree = Any  # nested dict
Range = tuple[int, int]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trainable:
    """A split of the parameters: `paths` are trained, of leaves with a vocabulary axis only the ids in `rows` (empty: all)."""

    specs: Tree
    paths: frozenset[str]
    rows: tuple[Range, ...]

    def select(self, params: Tree) -> Tree:
        """The trained part: the same nesting with the trained leaves only, cut to the chosen rows."""
        leaves = named_leaves(params)
        return nest({path: self._cut(leaves[path], self._axis(path)) for path in leaves if path in self.paths})

    def merge(self, params: Tree, selected: Tree) -> Tree:
        """`params` with the trained part replaced by `selected`."""
        leaves, parts = named_leaves(params), named_leaves(selected)
        return nest(leaves | {path: self._paste(leaves[path], part, self._axis(path)) for path, part in parts.items()})

    def with_all_rows(self) -> Trainable:
        """The split in which the same parameters are trained whole."""
        return dataclasses.replace(self, rows=())

    def selected_specs(self) -> Tree:
        """ParamSpecs of the trained part. Chosen rows lie on every device of the axis that the vocabulary is split over."""
        return nest(
            {path: self._cut_spec(spec, self._axis(path)) for path, spec in self._named.items() if path in self.paths}
        )

    @functools.cached_property
    def _named(self) -> dict[str, ParamSpec]:
        return named_leaves(self.specs)

    def _axis(self, path: str) -> int | None:
        """The axis of a leaf that only chosen rows are trained of; None where all is."""
        letters = self._named[path].axes.split()
        return letters.index("V") if self.rows and "V" in letters else None

    def _cut_spec(self, spec: ParamSpec, axis: int | None) -> ParamSpec:
        if axis is None:
            return spec
        count = sum(stop - start for start, stop in self.rows)
        shape = (*spec.shape[:axis], count, *spec.shape[axis + 1 :])
        return dataclasses.replace(
            spec, shape=shape, axes=spec.axes.replace("V", "R"), inputs=spec.inputs.replace("V", "R")
        )

    def _cut(self, leaf: jax.Array, axis: int | None) -> jax.Array:
        if axis is None:
            return leaf
        parts = [jax.lax.slice_in_dim(leaf, start, stop, axis=axis) for start, stop in self.rows]
        return jnp.concatenate(parts, axis=axis)

    def _paste(self, leaf: jax.Array, part: jax.Array, axis: int | None) -> jax.Array:
        if axis is None:
            return part
        # A scatter by constant ids: every device writes its own rows, where slice updates would gather the vocabulary first.
        ids = np.concatenate([np.arange(start, stop) for start, stop in self.rows])
        return leaf.at[(slice(None),) * axis + (ids,)].set(part, unique_indices=True, indices_are_sorted=True)


def choose(config: TrainableConfig, specs: Tree, row_names: Mapping[str, Range]) -> Trainable:
    """The split that `config` asks for of parameters with these specs; `row_names` are the id ranges that rows can be named by.

    Raises ConfigError for a pattern that no parameter matches, an unknown name of rows, and rows without a parameter that has any.
    """
    known = named_leaves(specs)
    paths: set[str] = set()
    for pattern in config.parameters:
        matched = fnmatch.filter(known, pattern)
        if not matched:
            raise ConfigError(
                f"TrainableConfig.parameters: no parameter matches '{pattern}'{did_you_mean(pattern, known)}"
            )
        paths.update(matched)
    rows = []
    for name in config.rows:
        if name not in row_names:
            raise ConfigError(
                f"TrainableConfig.rows: no rows of the vocabulary are called '{name}'{did_you_mean(name, row_names)}; "
                f"there are {', '.join(row_names)}"
            )
        rows.append(row_names[name])
    if rows and not any("V" in known[path].axes.split() for path in paths):
        raise ConfigError(
            "TrainableConfig.rows are given, but no trained parameter has rows of the vocabulary: add 'head' or 'embed' to "
            "TrainableConfig.parameters"
        )
    return Trainable(specs=specs, paths=frozenset(paths), rows=_disjoint(rows))


def _disjoint(rows: list[Range]) -> tuple[Range, ...]:
    """The ranges in order, those that touch or overlap joined."""
    joined: list[Range] = []
    for start, stop in sorted(rows):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(joined[-1][1], stop))
        else:
            joined.append((start, stop))
    return tuple(joined)
