"""Attention of packed rows on GPUs, by the fused kernels of `jax.experimental.pallas.ops.gpu.attention`, which Triton compiles.

Scores stay on the chip in both directions. cuDNN, through `jax.nn.dot_product_attention`, knows segments only as a mask of T x T.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax.experimental.pallas.ops.gpu.attention import BlockSizes, mha
from jaxtyping import Array, Float

from chameleon_jax.models.attention.chunked import largest_logit
from chameleon_jax.models.attention.mask import AttentionOutput, MaskSpec
from chameleon_jax.parallel.mesh import ShardingRules, each_device

LENGTH_MULTIPLE = 128  # of T: the queries of a block


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

    Keys and values are repeated for the heads that share them, which the kernels do not know. Their log sums have no name, so under
    rematerialisation the forward kernel runs again. The largest logit is found as `splash.attend` does.
    """

    def local(query, key, value, segments):
        groups = query.shape[2] // key.shape[1]
        key, value = (jnp.repeat(jnp.moveaxis(x, 1, 2), groups, axis=2) for x in (key, value))
        scale = query.shape[-1] ** -0.5
        return mha(query, key, value, segments, scale, True, BlockSizes.get_default(), interpret=interpret)

    run = each_device(local, ("B T N H", "B K T H", "B K T H", "B T"), "B T N H", rules)
    found = largest_logit(query, key, mask, chunk) if max_logit else None
    return AttentionOutput(values=run(query, key, value, mask.key_segments), max_logit=found)
