"""Attention of packed rows on TPUs, by the fused kernels of `jax.experimental.pallas.ops.tpu.splash_attention`.

Scores stay on the chip in both directions, and blocks above the diagonal are skipped. XLA cannot divide such a kernel, so every
device is given its own rows and heads (`jax.shard_map`) as the sharding rules lay them.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import (
    BlockSizes,
    CausalMask,
    MultiHeadMask,
    SegmentIds,
    make_splash_mha_single_device,
)
from jaxtyping import Array, Float

from chameleon_jax.models.attention.chunked import largest_logit
from chameleon_jax.models.attention.mask import SAVED_NAME, AttentionOutput, MaskSpec
from chameleon_jax.parallel.mesh import ShardingRules, each_device

LENGTH_MULTIPLE = 128  # of T: the lanes of a vector register
QUERY_BLOCK, KEY_BLOCK = 512, 1024  # at most; scores of one block are 2 MB in float32


def attend(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B K T H"],
    value: Float[Array, "B K T H"],
    mask: MaskSpec,
    *,
    chunk: int,
    max_logit: bool,
    rules: ShardingRules,
    interpret: bool = False,
) -> AttentionOutput:
    """See `registry.attention`; `interpret` runs the kernels step by step on any platform, for tests.

    A kernel shows no logit, and its log sums only bound the largest one, which is therefore found by products of its own
    (`chunk` queries a block), where it is asked for.
    """

    def local(query, key, value, segments):
        kernel = _kernel(query.shape[1], query.shape[2], interpret)
        return jax.vmap(kernel)(query, key, value, SegmentIds(q=segments, kv=segments))

    scaled = jnp.moveaxis(query, 1, 2) * query.shape[-1] ** -0.5
    run = each_device(local, ("B N T H", "B K T H", "B K T H", "B T"), "B N T H", rules)
    values = jnp.moveaxis(run(scaled, key, value, mask.key_segments), 1, 2)
    found = largest_logit(query, key, mask, chunk) if max_logit else None
    return AttentionOutput(values=values, max_logit=found)


def _kernel(heads: int, length: int, interpret: bool):
    """[N T H], [K T H], [K T H] -> [N T H]; what the backward pass needs bears the name that rematerialisation keeps."""
    queries, keys = (_largest_divisor(length, limit) for limit in (QUERY_BLOCK, KEY_BLOCK))
    compute = min(keys, QUERY_BLOCK)
    sizes = BlockSizes(
        block_q=queries,
        block_kv=keys,
        block_kv_compute=compute,
        block_q_dkv=queries,
        block_kv_dkv=keys,
        block_kv_dkv_compute=compute,
        use_fused_bwd_kernel=True,
    )
    causal = MultiHeadMask([CausalMask((length, length))] * heads)
    make = functools.partial(make_splash_mha_single_device, block_sizes=sizes, interpret=interpret)
    return make(causal, residual_checkpoint_name=SAVED_NAME)


def _largest_divisor(length: int, limit: int) -> int:
    """The largest multiple of 128, by doubling, that divides `length` and is at most `limit`."""
    size = LENGTH_MULTIPLE
    while size * 2 <= limit and length % (size * 2) == 0:
        size *= 2
    return size
