"""Attention behind a mask specification.

The one idea: callers say which keys a query may see as a `MaskSpec`, never as an array, and a backend lowers it or raises. Both
backends here take every MaskSpec: `reference` holds all scores at once, `chunked` only those of one block of queries, and skips
the keys that no query of the block can see.
"""

from __future__ import annotations

import functools

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

MAX_BLOCKS = 32  # the chunked backend is unrolled; longer rows get longer blocks


@flax.struct.dataclass
class MaskSpec:
    """Query t sees key s if they are of one segment and s <= query_slots[t].

    `query_slots` are the key slots of the queries; None says that query t sits at key slot t (and T == S). Padding is segment 0
    and sees padding, so no softmax is empty.
    """

    query_segments: Int[Array, "B T"]
    key_segments: Int[Array, "B S"]
    query_slots: Int[Array, "B T"] | None = None

    def block(self, start: int, stop: int, keys: int) -> Bool[Array, "B t s"]:
        """The dense mask of queries start..stop and the first `keys` keys."""
        same = self.query_segments[:, start:stop, None] == self.key_segments[:, None, :keys]
        if self.query_slots is None:
            causal = jnp.arange(start, stop)[:, None] >= jnp.arange(keys)[None, :]
        else:
            causal = self.query_slots[:, start:stop, None] >= jnp.arange(keys)[None, None, :]
        return same & causal


@flax.struct.dataclass
class AttentionOutput:
    """values [B T N H] and the largest visible attention logit (fp32, no gradient)."""

    values: Float[Array, "B T N H"]
    max_logit: Float[Array, ""]


def attention(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S K H"],
    value: Float[Array, "B S K H"],
    mask: MaskSpec,
    *,
    backend: str,
    chunk: int,
) -> AttentionOutput:
    """Softmax attention with scale 1/sqrt(H); query head n uses key/value head n // (N/K).

    Softmax in fp32. `backend`: reference | chunked | auto (chunked when there are more queries than `chunk`).
    """
    length = query.shape[1]
    if backend == "auto":
        backend = "chunked" if length > chunk else "reference"
    if backend == "reference":
        return _attend(query, key, value, mask.block(0, length, key.shape[1]))
    if backend != "chunked":
        raise ValueError(f"unknown attention backend {backend!r}")
    chunk = max(chunk, -(-length // MAX_BLOCKS))
    outputs = []
    # The block's scores are recomputed in the backward pass: only one block of them exists at a time.
    attend = jax.checkpoint(_attend, policy=jax.checkpoint_policies.nothing_saveable)
    for start in range(0, length, chunk):
        stop = min(start + chunk, length)
        keys = key.shape[1] if mask.query_slots is not None else stop
        outputs.append(attend(query[:, start:stop], key[:, :keys], value[:, :keys], mask.block(start, stop, keys)))
    return AttentionOutput(
        values=jnp.concatenate([o.values for o in outputs], axis=1),
        max_logit=functools.reduce(jnp.maximum, [o.max_logit for o in outputs]),
    )


def _attend(query: Array, key: Array, value: Array, visible: Array) -> AttentionOutput:
    batch, length, heads, head_dim = query.shape
    groups = heads // key.shape[2]
    query = query.reshape(batch, length, key.shape[2], groups, head_dim) * head_dim**-0.5
    logits = jnp.einsum("btkgh,bskh->bkgts", query, key, preferred_element_type=jnp.float32)
    logits = jnp.where(visible[:, None, None], logits, jnp.finfo(jnp.float32).min)
    row_max = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    weights = jnp.exp(logits - row_max)
    # Dividing after the value product touches T x H numbers instead of T x S.
    total = jnp.sum(weights, axis=-1)
    values = jnp.einsum("bkgts,bskh->btkgh", weights.astype(value.dtype), value, preferred_element_type=jnp.float32)
    values = values / jnp.moveaxis(total, -1, 1)[..., None]
    return AttentionOutput(
        values=values.astype(value.dtype).reshape(batch, length, heads, head_dim), max_logit=jnp.max(row_max)
    )
