"""The parts of a block that are functions of one tensor: norms, rotary positions, feed-forward, dropout.

Norms and rotations are computed in fp32 whatever the compute dtype, with one rounding at the end.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from chameleon_jax.models import quantize
from chameleon_jax.models.quantize import Int8Matrix
from chameleon_jax.parallel.mesh import ShardingRules, constrain
from chameleon_jax.parallel.shards import summed, whole

QK_NORM_EPS = 1e-5  # fixed in the released models, independent of the RMSNorm epsilon


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def embed(
    table: Float[Array, "V D"], tokens: Int[Array, "B T"], dtype: str, rules: ShardingRules
) -> Float[Array, "B T D"]:
    """The tokens' rows of the table, cast to `dtype`; the gradient of the table is summed in fp32.

    Differentiated as written, the gradient would be summed in `dtype`, and a bfloat16 sum stops growing at some 256 times its
    terms: the row of an id that fills half of a batch came out 68 % too small.
    """
    # Gathering rows from a table that is split along D would make XLA move the whole activation. It travels in `dtype`.
    return constrain(whole(table.astype(dtype), "V D", rules)[tokens], "B t D", rules)


def _embed_forward(table, tokens, dtype, rules):
    return embed(table, tokens, dtype, rules), (table, tokens)


def _embed_backward(dtype, rules, residuals, gradient):
    table, tokens = residuals
    total = jnp.zeros((table.shape[0], gradient.shape[-1]), jnp.float32).at[tokens].add(gradient.astype(jnp.float32))
    return summed(total, "V D", rules).astype(table.dtype), None


embed.defvjp(_embed_forward, _embed_backward)


@jax.custom_vjp
def place(x: Float[Array, "B T D"], vectors: Float[Array, "B P D"], index: Int[Array, "B T"]) -> Float[Array, "B T D"]:
    """`vectors[b, index[b, t]]` where the index is not negative, x elsewhere; the gradient of the vectors is summed in fp32."""
    taken = jax.vmap(lambda row, at: row[at])(vectors, jnp.maximum(index, 0))
    return jnp.where(index[..., None] >= 0, taken.astype(x.dtype), x)


def _place_forward(x, vectors, index):
    # An empty slice stands for the shape and dtype of the vectors.
    return place(x, vectors, index), (index, vectors[..., :0])


def _place_backward(residuals, gradient):
    index, like_vectors = residuals
    count = like_vectors.shape[1]
    put = jax.vmap(lambda row, at, part: row.at[at].add(part, mode="drop"))
    total = jnp.zeros((*like_vectors.shape[:2], gradient.shape[-1]), jnp.float32)
    total = put(total, jnp.where(index >= 0, index, count), gradient.astype(jnp.float32))
    return jnp.where(index[..., None] >= 0, 0, gradient), total.astype(like_vectors.dtype), None


place.defvjp(_place_forward, _place_backward)


def by_modality(
    function: Callable[[Any], Array], parameters: Any, modality: Int[Array, "B T"] | None
) -> Float[Array, "B T *rest"]:
    """`function(parameters)`; with `modality`, each position's own entry of the parameters' first axis, and 0 for none of them.

    For elementwise functions: a fused pass computes all entries at hardly any cost, and the gradient is a masked sum in fp32.
    """
    if modality is None:
        return function(parameters)
    out = 0.0
    for m in range(len(jax.tree.leaves(parameters)[0])):
        made = function(jax.tree.map(lambda leaf: leaf[m], parameters))  # noqa: B023
        out = jnp.where(like(modality == m, made), made, out)
    return out


def like(mask: Array, array: Array) -> Array:
    """The mask with axes of size 1 up to the dimensions of `array`."""
    return mask.reshape(*mask.shape, *[1] * (array.ndim - mask.ndim))


def rms_norm(
    x: Float[Array, "... D"],
    scale: Float[Array, "D"] | Float[Array, "E D"],
    eps: float,
    *,
    round_early: bool = False,
    modality: Int[Array, "B T"] | None = None,
) -> Float[Array, "... D"]:
    """RMSNorm (Zhang & Sennrich 2019), with Chameleon's single rounding: x in fp32 times scale in fp32, then one cast.

    `round_early` casts before the scale as well, as the Hugging Face port does. With `modality`, scales are by modality.
    """
    wide = x.astype(jnp.float32)
    normed = wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + eps)
    dtype = x.dtype if round_early else jnp.float32
    normed = normed.astype(dtype)
    return by_modality(lambda scale: normed * scale.astype(dtype), scale, modality).astype(x.dtype)


def qk_norm(
    x: Float[Array, "B T N H"],
    scale: Float[Array, "*E g H"],
    bias: Float[Array, "*E g H"],
    *,
    round_early: bool = False,
    modality: Int[Array, "B T"] | None = None,
) -> Float[Array, "B T N H"]:
    """LayerNorm over the head size with scale and bias, shared by the N/g heads of a group; by modality if that is given.

    Chameleon, section 2.3.1; facebookresearch/chameleon `inference/transformer.py`: a true LayerNorm, before RoPE, eps 1e-5.
    `round_early` casts before scale and bias as well, as the Hugging Face port does.
    """
    wide = x.astype(jnp.float32).reshape(*x.shape[:2], scale.shape[-2], -1, x.shape[-1])
    centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
    normed = centred * jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + QK_NORM_EPS)
    affine_dtype = x.dtype if round_early else jnp.float32
    normed = normed.astype(affine_dtype)

    def affine(parameters: tuple[Float[Array, "g H"], Float[Array, "g H"]]) -> Float[Array, "B T g r H"]:
        scale, bias = (parameter[:, None].astype(affine_dtype) for parameter in parameters)
        return normed * scale + bias

    return by_modality(affine, (scale, bias), modality).astype(x.dtype).reshape(x.shape)


def rotary_angles(
    positions: Int[Array, "B T"], head_dim: int, theta: float
) -> tuple[Float[Array, "B T H/2"], Float[Array, "B T H/2"]]:
    """cos and sin of position * theta^(-2i/H), fp32 (RoFormer, Su et al. 2021)."""
    frequencies = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    angles = positions.astype(jnp.float32)[..., None] * frequencies
    # Behind a barrier: fused into the rotations, XLA would compute every angle anew for each layer and head.
    return jax.lax.optimization_barrier((jnp.cos(angles), jnp.sin(angles)))


def apply_rotary(
    x: Float[Array, "B T N H"], cos: Float[Array, "B T H/2"], sin: Float[Array, "B T H/2"]
) -> Float[Array, "B T N H"]:
    """Rotate the pairs (i, i + H/2): the half-split layout; conversion permutes weights of the interleaved one."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos[:, :, None, :], sin[:, :, None, :]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


def linear(
    x: Float[Array, "B T *inputs"], kernel: Float[Array, "*inputs *outputs"] | Int8Matrix
) -> Float[Array, "B T *outputs"]:
    """Contract all feature dimensions of `x` with the first ones of `kernel`, which is cast to the dtype of `x`.

    Written as one product of two matrices: with the tokens in one dimension XLA's CPU backend takes the operands of the weight
    gradient as they lie; with two it transposes them in memory first, which costs as much as the product.
    """
    inputs = x.ndim - 2
    width = math.prod(kernel.shape[:inputs])
    rows = x.reshape(-1, width)
    if isinstance(kernel, Int8Matrix):
        product = quantize.product(rows, kernel).astype(x.dtype)
    else:
        product = rows @ kernel.astype(x.dtype).reshape(width, -1)
    return product.reshape(*x.shape[:2], *kernel.shape[inputs:])


Product = Callable[[Array, Any, str], Array]  # (x, kernel, letters of one matrix) -> x times it


def swiglu(
    x: Float[Array, "B T D"], params: dict[str, Any], rules: ShardingRules, product: Product
) -> Float[Array, "B T D"]:
    """down(silu(gate x) * (up x)) (Shazeer 2020)."""
    hidden = jax.nn.silu(product(x, params["gate"], "D F")) * product(x, params["up"], "D F")
    return product(constrain(hidden, "B T F", rules), params["down"], "F D")


def dropout(x: Float[Array, "..."], rate: float, key: jax.Array | None) -> Float[Array, "..."]:
    """Inverted dropout; no key or rate 0 is the identity. `key` is one, or one for each entry of the first axis."""
    if key is None or rate == 0.0:
        return x
    draw = functools.partial(jax.random.bernoulli, p=1.0 - rate, shape=x.shape[key.ndim :])
    keep = jax.vmap(draw)(key) if key.ndim else draw(key)
    return jnp.where(keep, x / (1.0 - rate), 0).astype(x.dtype)
