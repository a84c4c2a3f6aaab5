"""Softmax attention by its definition, with all scores at once and automatic differentiation."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from chameleon_jax.models.attention.mask import HIDDEN_LOGIT, SAVED_NAME, AttentionOutput, MaskSpec
from chameleon_jax.parallel.mesh import ShardingRules, platform

TPU_ROWS = 8  # of a tile


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
    """See `registry.attention`; holds scores [B N T S] in fp32."""
    del chunk, rules
    if query.shape[1] == 1 and platform() == "tpu":
        return _one_query(query, key, value, mask, max_logit)
    batch, length, heads, head_dim = query.shape
    visible = mask.block(0, length, key.shape[2])
    query = query.reshape(batch, length, key.shape[1], -1, head_dim) * head_dim**-0.5
    logits = jnp.einsum("btkgh,bksh->bkgts", query, key, preferred_element_type=jnp.float32)
    logits = jnp.where(visible[:, None, None], logits, HIDDEN_LOGIT)
    weights = jax.nn.softmax(logits, axis=-1).astype(value.dtype)
    # In this order of letters and no other: XLA's CPU backend has no product of bfloat16 to float32 that writes "btkgh" itself.
    values = jnp.einsum("bkgts,bksh->bkgth", weights, value, preferred_element_type=jnp.float32)
    values = jnp.moveaxis(values, 3, 1)
    values = checkpoint_name(values.astype(value.dtype).reshape(batch, length, heads, head_dim), SAVED_NAME)
    return AttentionOutput(values=values, max_logit=jax.lax.stop_gradient(jnp.max(logits)) if max_logit else None)


def _one_query(
    query: Float[Array, "B 1 N H"],
    key: Float[Array, "B K S H"],
    value: Float[Array, "B K S H"],
    mask: MaskSpec,
    max_logit: bool,
) -> AttentionOutput:
    """The same for one query a row on TPUs, as products of as many rows as a tile has, of which some are nothing.

    A product of fewer rows XLA turns into elementwise work over the whole cache, at some twenty times the cost.
    """
    batch, _, heads, head_dim = query.shape
    query = query.reshape(batch, key.shape[1], -1, head_dim) * head_dim**-0.5
    groups = query.shape[2]
    # To the end, not for the first product alone: the second would be elementwise then.
    query = jnp.pad(query, ((0, 0), (0, 0), (0, -groups % TPU_ROWS), (0, 0)))
    logits = jnp.einsum("bkgh,bksh->bkgs", query, key, preferred_element_type=jnp.float32)
    logits = jnp.where(mask.block(0, 1, key.shape[2])[:, None], logits, HIDDEN_LOGIT)
    weights = jax.nn.softmax(logits, axis=-1).astype(value.dtype)
    values = jnp.einsum("bkgs,bksh->bkgh", weights, value, preferred_element_type=jnp.float32).astype(value.dtype)
    largest = jax.lax.stop_gradient(jnp.max(logits[:, :, :groups])) if max_logit else None
    return AttentionOutput(values=values[:, :, :groups].reshape(batch, 1, heads, head_dim), max_logit=largest)
