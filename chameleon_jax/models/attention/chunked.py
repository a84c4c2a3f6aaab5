"""Attention one block of queries at a time, with FlashAttention's backward pass, in plain matrix products.

Only the scores of one block exist at one time, and keys that no query of a block can see are skipped.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from chameleon_jax.models.attention.mask import HIDDEN_LOGIT, SAVED_NAME, AttentionOutput, MaskSpec
from chameleon_jax.parallel.mesh import ShardingRules

MAX_BLOCKS = 32  # the blocks are unrolled; longer rows get longer blocks


def attend(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B K S H"],
    value: Float[Array, "B K S H"],
    mask: MaskSpec,
    *,
    chunk: int,
    max_logit: bool,
    rules: ShardingRules,
) -> AttentionOutput:
    """See `registry.attention`; `chunk` queries a block."""
    del rules  # XLA divides plain products by itself
    values, log_totals, largest = _blockwise(
        _folded(query, key), key, value, mask, _block_length(query.shape[1], chunk)
    )
    del log_totals
    values = jnp.moveaxis(values, 3, 1).reshape(query.shape)
    return AttentionOutput(values=values, max_logit=jax.lax.stop_gradient(largest) if max_logit else None)


def largest_logit(
    query: Float[Array, "B T N H"], key: Float[Array, "B K S H"], mask: MaskSpec, chunk: int
) -> Float[Array, ""]:
    """The largest visible logit alone, without a gradient, for backends that do not show their logits."""
    chunk = _block_length(query.shape[1], chunk)
    query, key = jax.lax.stop_gradient((_folded(query, key), key))
    blocks = _blocks(query, key, mask, chunk)
    maxima = [jnp.max(_block_logits(query, key, mask, start, stop, keys)) for start, stop, keys in blocks]
    return functools.reduce(jnp.maximum, maxima)


def _folded(query: Float[Array, "B T N H"], key: Float[Array, "B K S H"]) -> Float[Array, "B K G T H"]:
    """Scaled queries; the G heads of a key/value head become its rows, so that all is plain matrix products."""
    batch, length, _, head_dim = query.shape
    query = query.reshape(batch, length, key.shape[1], -1, head_dim) * head_dim**-0.5
    return jnp.moveaxis(query, 1, 3)


def _block_length(length: int, chunk: int) -> int:
    return max(chunk, -(-length // MAX_BLOCKS))


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _blockwise(
    query: Float[Array, "B K G T H"],
    key: Float[Array, "B K S H"],
    value: Float[Array, "B K S H"],
    mask: MaskSpec,
    chunk: int,
) -> tuple[Float[Array, "B K G T H"], Float[Array, "B K G T"], Float[Array, ""]]:
    """(values, log of the sum of exp(logits), largest logit), one block of queries at a time."""
    parts = []
    for start, stop, keys in _blocks(query, key, mask, chunk):
        logits = _block_logits(query, key, mask, start, stop, keys)
        row_max = jnp.max(logits, axis=-1)
        weights = jnp.exp(logits - row_max[..., None])
        # Dividing after the value product touches T x H numbers instead of T x S.
        total = jnp.sum(weights, axis=-1)
        values = _product("brs,bsh->brh", weights.astype(value.dtype), value[:, :, :keys]) / total[..., None]
        parts.append((values.astype(value.dtype), row_max + jnp.log(total), jnp.max(row_max)))
    values, log_totals, max_logits = zip(*parts, strict=True)
    return (
        jnp.concatenate(values, axis=3),
        jnp.concatenate(log_totals, axis=3),
        functools.reduce(jnp.maximum, max_logits),
    )


def _blockwise_forward(query, key, value, mask, chunk):
    values, log_totals, max_logit = _blockwise(query, key, value, mask, chunk)
    # Under rematerialisation these two are what is worth keeping: with them the backward pass needs no softmax of its own.
    values, log_totals = checkpoint_name(values, SAVED_NAME), checkpoint_name(log_totals, SAVED_NAME)
    return (values, log_totals, max_logit), (query, key, value, mask, values, log_totals)


def _blockwise_backward(chunk, residuals, cotangents):
    """FlashAttention's backward pass (Dao et al. 2022, appendix B.2): probabilities come again from the saved log sums."""
    query, key, value, mask, values, log_totals = residuals
    d_values = cotangents[0].astype(value.dtype)
    overlap = jnp.sum(d_values.astype(jnp.float32) * values.astype(jnp.float32), axis=-1)
    d_query = []
    d_key, d_value = jnp.zeros(key.shape, jnp.float32), jnp.zeros(value.shape, jnp.float32)
    for start, stop, keys in _blocks(query, key, mask, chunk):
        rows = (..., slice(start, stop))
        logits = _block_logits(query, key, mask, start, stop, keys)
        weights = jnp.exp(logits - log_totals[rows][..., None])
        d_out = d_values[:, :, :, start:stop]
        d_weights = _product("brh,bsh->brs", d_out, value[:, :, :keys])
        d_logits = (weights * (d_weights - overlap[rows][..., None])).astype(key.dtype)
        d_query.append(_product("brs,bsh->brh", d_logits, key[:, :, :keys]).astype(query.dtype))
        # The order "h s" leaves the T x S matrix as it lies; only T x H ones are transposed.
        d_key = d_key.at[:, :, :keys].add(_transposed_product(query[:, :, :, start:stop], d_logits))
        d_value = d_value.at[:, :, :keys].add(_transposed_product(d_out, weights.astype(value.dtype)))
    return jnp.concatenate(d_query, axis=3), d_key.astype(key.dtype), d_value.astype(value.dtype), None


_blockwise.defvjp(_blockwise_forward, _blockwise_backward)


def _blocks(query: Array, key: Array, mask: MaskSpec, chunk: int) -> list[tuple[int, int, int]]:
    """(first query, one past the last, keys that they can see) of every block."""
    length, slots = query.shape[3], key.shape[2]
    stops = [min(start + chunk, length) for start in range(0, length, chunk)]
    return [(i * chunk, stop, stop if mask.query_slots is None else slots) for i, stop in enumerate(stops)]


def _block_logits(
    query: Array, key: Array, mask: MaskSpec, start: int, stop: int, keys: int
) -> Float[Array, "B K G t s"]:
    logits = _product("brh,bsh->brs", query[:, :, :, start:stop], key[:, :, :keys])
    return jnp.where(mask.block(start, stop, keys)[:, None, None], logits, HIDDEN_LOGIT)


def _product(
    equation: str, left: Float[Array, "B K G t x"], right: Float[Array, "B K y z"]
) -> Float[Array, "B K G t w"]:
    """A batched matrix product in fp32 over b = (B K) and r = (G t)."""
    batch, kv_heads, groups, length, width = left.shape
    left = left.reshape(batch, kv_heads, groups * length, width)
    equation = equation.replace("b", "bk")
    out = jnp.einsum(equation, left, right, preferred_element_type=jnp.float32)
    return out.reshape(batch, kv_heads, groups, length, out.shape[-1])


def _transposed_product(rows: Float[Array, "B K G t H"], weights: Float[Array, "B K G t s"]) -> Float[Array, "B K s H"]:
    """sum over (G t) of weights^T rows, fp32."""
    rows, weights = (x.reshape(*x.shape[:2], -1, x.shape[-1]) for x in (rows, weights))
    return jnp.moveaxis(jnp.einsum("bkrh,bkrs->bkhs", rows, weights, preferred_element_type=jnp.float32), 2, 3)
