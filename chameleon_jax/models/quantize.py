"""Weights in eight bits: each column of a matrix as int8 with one scale, for engines that are bound by reading them.

The one idea: a quantised matrix is another kind of leaf in the same tree, and `layers.linear` is the only place that knows.
Rounding is to nearest by the largest value of a column (absmax); embeddings, norms and biases stay as they are. Weight-only, as
LLM.int8() without its outliers (Dettmers et al. 2022, section 2).
"""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int8

# How many of a matrix's axes, the layer's left out, are inputs.
_INPUT_AXES = {"wq": 1, "wk": 1, "wv": 1, "wo": 2, "gate": 1, "up": 1, "down": 1, "head": 1}


@flax.struct.dataclass
class Int8Matrix:
    """values * scale is the matrix; `scale` has its output axes."""

    values: Int8[Array, "*inputs *outputs"]
    scale: Float[Array, "*outputs"]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape


def quantize(params: dict[str, Any]) -> dict[str, Any]:
    """The parameters with every matrix but the embedding as Int8Matrix."""

    def convert(path: tuple, leaf: Array) -> Array | Int8Matrix:
        name = path[-1].key
        if name not in _INPUT_AXES:
            return leaf
        first = 1 if path[0].key == "layers" else 0
        axes = tuple(range(first, first + _INPUT_AXES[name]))
        wide = leaf.astype(jnp.float32)
        scale = jnp.maximum(jnp.max(jnp.abs(wide), axis=axes) / 127, jnp.finfo(jnp.float32).tiny)
        values = jnp.round(wide / jnp.expand_dims(scale, axes)).astype(jnp.int8)
        return Int8Matrix(values=values, scale=scale)

    return jax.tree_util.tree_map_with_path(convert, params)
