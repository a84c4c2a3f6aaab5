"""Cross-entropy with z-loss over a large vocabulary, in sums and weights per modality.

The logits of all tokens never exist at one time. A chunk of tokens is multiplied with the head, its loss summed and,
when a gradient is wanted, its gradient taken at once by the closed form softmax - one-hot, so the backward pass recomputes nothing.
Sums leave here; whoever has the whole global batch divides, once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from chameleon_jax.configs import LossConfig
from chameleon_jax.parallel.mesh import TRAINING, batch_shards, constrain
from chameleon_jax.parallel.shards import summed, whole


@flax.struct.dataclass
class LossSums:
    """Sums over tokens, by row `m` of the modality table; `objective` alone has a gradient.

    objective = sum_m modality_weight[m] * sum_t weight_t * (nll_t + z_loss * log(Z_t)^2), normaliser = sum_m modality_weight[m] *
    weight[m]; the training loss is their quotient over the global batch.
    """

    objective: Float[Array, ""]
    normaliser: Float[Array, ""]
    weight: Float[Array, "m"]
    nll: Float[Array, "m"]
    correct: Float[Array, "m"]
    log_z: Float[Array, "m"]
    z_loss: Float[Array, "m"]
    logit_max: Float[Array, ""]

    def __add__(self, other: LossSums) -> LossSums:
        added = jax.tree.map(jnp.add, self, other)
        return added.replace(logit_max=jnp.maximum(self.logit_max, other.logit_max))

    def joined(self) -> LossSums:
        """The sums of the whole from those of its parts along the first axis."""
        return jax.tree.map(lambda parts: jnp.sum(parts, axis=0), self).replace(logit_max=jnp.max(self.logit_max))


@dataclasses.dataclass(frozen=True)
class _LossConstants:
    """Hashable constants of the custom gradient."""

    z_loss: float
    modality_weights: tuple[float, ...]


def cross_entropy(
    hidden: Float[Array, "B T D"],
    head: Float[Array, "D V"],
    targets: Int[Array, "B T"],
    weights: Float[Array, "B T"],
    modality: Int[Array, "B T"],
    modality_weights: Sequence[float],
    config: LossConfig,
) -> LossSums:
    """Loss sums of a batch; at most `config.chunk` tokens have logits on a device at a time. `modality_weights` are by row.

    Logits, log Z and softmax are fp32; the products run in the dtype of `hidden`. z-loss: Chowdhery et al. 2022 (PaLM), section 5;
    Chameleon, section 2.3.2. The closed-form gradient with z-loss is that of google-research/t5x `losses.py`.
    """
    settings = _LossConstants(config.z_loss, tuple(modality_weights))
    rows = -(-hidden.shape[0] // batch_shards(TRAINING))
    length = hidden.shape[1]
    block = _largest_divisor(length, max(1, config.chunk // rows))
    hidden = constrain(hidden, "B T D", TRAINING)
    return _summed(hidden, head, targets, weights, modality, settings, block)


def cross_entropy_plain(
    hidden: Float[Array, "B T D"],
    head: Float[Array, "D V"],
    targets: Int[Array, "B T"],
    weights: Float[Array, "B T"],
    modality: Int[Array, "B T"],
    modality_weights: Sequence[float],
    config: LossConfig,
) -> LossSums:
    """The definition, with all logits at once and automatic differentiation: the reference for tests and benchmarks."""
    settings = _LossConstants(config.z_loss, tuple(modality_weights))
    logits = jnp.einsum("btd,dv->btv", hidden, head.astype(hidden.dtype), preferred_element_type=jnp.float32)
    return _sums(_log_z(logits), logits, targets, weights, modality, settings)


def _log_z(logits: Float[Array, "... V"]) -> Float[Array, "..."]:
    return jax.nn.logsumexp(logits, axis=-1)


def _sums(
    log_z: Array, logits: Array, targets: Array, weights: Array, modality: Array, settings: _LossConstants
) -> LossSums:
    """Definition of every sum, from fp32 logits [..., V] and their log Z."""
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    nll, z_loss = log_z - chosen, settings.z_loss * jnp.square(log_z)
    modality_weight = jnp.asarray(settings.modality_weights, jnp.float32)[modality]

    def by_modality(values: Array) -> Array:
        values = jax.lax.stop_gradient(values) * weights
        return jnp.stack(
            [jnp.sum(jnp.where(modality == m, values, 0.0)) for m in range(len(settings.modality_weights))]
        )

    real = weights > 0
    best = jax.lax.stop_gradient(jnp.max(logits, axis=-1))
    return LossSums(
        objective=jnp.sum(modality_weight * weights * (nll + z_loss)),
        normaliser=jnp.sum(modality_weight * weights),
        weight=by_modality(jnp.ones_like(weights)),
        nll=by_modality(nll),
        correct=by_modality((chosen >= best).astype(jnp.float32)),
        log_z=by_modality(log_z),
        z_loss=by_modality(z_loss),
        logit_max=jnp.max(jnp.where(real, best, -jnp.inf)),
    )


def _blocks(x: Array, block: int) -> Array:
    """[B, T, ...] -> [T/block, B, block, ...]; the batch stays whole, so its sharding does too."""
    return jnp.moveaxis(x.reshape(x.shape[0], x.shape[1] // block, block, *x.shape[2:]), 1, 0)


def _largest_divisor(length: int, at_most: int) -> int:
    return next(d for d in range(min(length, at_most), 0, -1) if length % d == 0)


def _product(left: Float[Array, "i j"], right: Float[Array, "j k"]) -> Float[Array, "i k"]:
    return jnp.matmul(left, right, preferred_element_type=jnp.float32)


def _rows(x: Float[Array, "B T X"]) -> Float[Array, "BT X"]:
    """Tokens in one dimension (`models.layers.linear` says why)."""
    return x.reshape(-1, x.shape[-1])


def _chunk_logits(hidden: Array, head: Array) -> Array:
    return constrain(_product(_rows(hidden), head).reshape(*hidden.shape[:2], -1), "B T V", TRAINING)


def _whole_head(hidden: Float[Array, "B T D"], head: Float[Array, "D V"]) -> Float[Array, "D V"]:
    """The head in the dtype of the products, brought together once for all chunks."""
    return whole(head.astype(hidden.dtype), "D V", TRAINING)


def _zero_sums(settings: _LossConstants) -> LossSums:
    zero, each = jnp.zeros(()), jnp.zeros(len(settings.modality_weights))
    return LossSums(zero, zero, each, each, each, each, each, jnp.asarray(-jnp.inf))


def _value(hidden, head, targets, weights, modality, settings, block) -> LossSums:
    head = _whole_head(hidden, head)

    def step(sums: LossSums, chunk: tuple) -> tuple[LossSums, None]:
        logits = _chunk_logits(chunk[0], head)
        return sums + _sums(_log_z(logits), logits, *chunk[1:], settings), None

    chunks = tuple(_blocks(x, block) for x in (hidden, targets, weights, modality))
    return jax.lax.scan(step, _zero_sums(settings), chunks)[0]


_summed = jax.custom_vjp(_value, nondiff_argnums=(5, 6))


def _value_and_gradient(hidden, head, targets, weights, modality, settings, block):
    """Forward pass under differentiation: the sums, and the gradients of `objective` as residuals."""
    narrow_head = _whole_head(hidden, head)
    modality_weights = jnp.asarray(settings.modality_weights, jnp.float32)

    def step(carry, chunk):
        sums, d_head = carry
        h, t, w, m = chunk
        logits = _chunk_logits(h, narrow_head)
        log_z = _log_z(logits)
        sums = sums + _sums(log_z, logits, t, w, m, settings)
        # d(nll + z log^2 Z)/d logits = softmax (1 + 2 z log Z) - one_hot
        scale = modality_weights[m] * w
        slope = scale * (1 + 2 * settings.z_loss * log_z)
        hit = jnp.arange(logits.shape[-1]) == t[..., None]
        d_logits = jnp.exp(logits - log_z[..., None]) * slope[..., None] - jnp.where(hit, scale[..., None], 0.0)
        d_logits = _rows(d_logits.astype(h.dtype))
        d_hidden = _product(d_logits, narrow_head.T).astype(h.dtype).reshape(h.shape)
        d_head = d_head + _product(_rows(h).T, d_logits)
        return (sums, d_head), d_hidden

    chunks = tuple(_blocks(x, block) for x in (hidden, targets, weights, modality))
    start = (_zero_sums(settings), jnp.zeros(narrow_head.shape, jnp.float32))
    (sums, d_head), d_hidden = jax.lax.scan(step, start, chunks)
    d_hidden = jnp.moveaxis(d_hidden, 0, 1).reshape(hidden.shape)
    # Once, in float32, and before the backward pass of the layers: what is kept until the optimizer is a part.
    return sums, (d_hidden, summed(d_head, "D V", TRAINING).astype(head.dtype))


def _apply_gradient(settings, block, residuals, cotangent: LossSums):
    d_hidden, d_head = residuals
    scale = cotangent.objective
    return (d_hidden * scale.astype(d_hidden.dtype), d_head * scale.astype(d_head.dtype), None, None, None)


_summed.defvjp(_value_and_gradient, _apply_gradient)
