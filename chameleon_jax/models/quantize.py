"""Weights in eight bits: each column of a matrix as int8 with one scale, for engines that are bound by reading them.

A quantised matrix is another kind of leaf in the same tree, and `layers.linear` is the only place that knows it.
Rounding is to nearest by the largest value of a column (absmax); embeddings, norms and biases stay as they are. Weight-only, as
LLM.int8() without its outliers (Dettmers et al. 2022, section 2).
"""

from __future__ import annotations

import functools

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int8

from chameleon_jax.models.params import ParamSpec

_BLOCK_ROWS = 64  # of a thousand or two outputs each: 256 to 512 KB in fp32


@flax.struct.dataclass
class Int8Matrix:
    """values * scale is the matrix; `scale` has its output axes."""

    values: Int8[Array, "*inputs *outputs"]
    scale: Float[Array, "*outputs"]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape


def product(x: Float[Array, "R I"], matrix: Int8Matrix) -> Float[Array, "R O"]:
    """x @ matrix with all its input axes, and all its output axes, as one; fp32 whatever the dtype of x.

    The eight bits are widened where they are used: widened whole, or ahead of a loop over tokens, they would be read as slowly as
    the matrix that they stand for.
    """
    values = matrix.values.reshape(x.shape[1], -1)
    # Blocks are cut along the inputs, which a mesh may have divided: there the plain product lets every device use its own part.
    divided = jax.sharding.get_abstract_mesh().size > 1
    by_platform = functools.partial(jax.lax.platform_dependent, cpu=_product_by_blocks, default=_product)
    out = (_product if divided else by_platform)(x, values)
    # The scale belongs to an output: after the product it touches one number a row, not one a weight.
    return out * matrix.scale.reshape(-1)


def _product(x: Array, values: Array) -> Array:
    # The barrier ties the matrix to x, so that no pass takes the widening out of a loop over tokens.
    x, values = jax.lax.optimization_barrier((x, values))
    return _dot(x, values.astype(x.dtype))


def _dot(x: Array, matrix: Array) -> Array:
    return jnp.dot(x, matrix, preferred_element_type=jnp.float32)


def _product_by_blocks(x: Array, values: Array) -> Array:
    """Blocks of rows that stay in a core's cache while they are widened and used: on CPUs, XLA fuses no cast into a product."""
    block = min(_BLOCK_ROWS, x.shape[1])
    count = x.shape[1] // block

    def add(start: Array | int, rows: int, total: Array) -> Array:
        part = jax.lax.dynamic_slice_in_dim(values, start, rows).astype(x.dtype)
        return total + _dot(jax.lax.dynamic_slice_in_dim(x, start, rows, axis=1), part)

    total = jnp.zeros((x.shape[0], values.shape[1]), jnp.float32)
    total = jax.lax.fori_loop(0, count, lambda i, total: add(i * block, block, total), total)
    rest = x.shape[1] - count * block
    return add(count * block, rest, total) if rest else total


def quantize_parameter(leaf: Array, spec: ParamSpec) -> Array | Int8Matrix:
    """The parameter as Int8Matrix, if it is a matrix that activations are multiplied by; otherwise as it is."""
    return _quantized(leaf, spec.input_axes) if spec.role in ("matrix", "head") else leaf


@functools.partial(jax.jit, static_argnames="axes")
def _quantized(leaf: Array, axes: tuple[int, ...]) -> Int8Matrix:
    wide = leaf.astype(jnp.float32)
    scale = jnp.maximum(jnp.max(jnp.abs(wide), axis=axes) / 127, jnp.finfo(jnp.float32).tiny)
    return Int8Matrix(values=jnp.round(wide / jnp.expand_dims(scale, axes)).astype(jnp.int8), scale=scale)
