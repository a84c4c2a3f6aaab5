"""One optimiser step of the image codec: losses, the codebook's own update, and restarts of dead codes.

The one idea: the objective is a dictionary of named terms times a dictionary of weights; a perceptual or adversarial term is one
more entry of `reconstruction_terms`. The codebook follows either the running mean of the latents that chose each code (van den Oord
et al. 2017, appendix A.1; Razavi et al. 2019) or the gradient of the codebook loss (van den Oord et al. 2017, eq. 3).
"""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float, Int

from chameleon_jax.configs import VQConfig, VQTrainConfig
from chameleon_jax.tokenizers import vqgan


@flax.struct.dataclass
class CodecState:
    """Everything that a step changes. `step` is the number of batches consumed, and with the config it names the next batch.

    `counts` [C] and `sums` [C D] are the decayed number and sum of the latents that chose each code; `idle` [C] is the number of
    steps since a code was last chosen.
    """

    step: Int[Array, ""]
    params: dict[str, Any]
    opt_state: Any
    counts: Float[Array, "C"]
    sums: Float[Array, "C D"]
    idle: Int[Array, "C"]


def optimizer(config: VQTrainConfig) -> optax.GradientTransformation:
    """AdamW with clipping; the learning rate warms up linearly and falls to 0 by a cosine."""
    warmup = min(config.warmup_steps, config.steps - 1)
    schedule = optax.warmup_cosine_decay_schedule(0.0, config.learning_rate, warmup, config.steps)
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(schedule, b1=0.9, b2=0.99, weight_decay=config.weight_decay),
    )


def create(images: Float[Array, "B H W 3"], config: VQConfig, train: VQTrainConfig) -> CodecState:
    """The state before the first step; the codebook is drawn from the fresh encoder's latents of `images`."""
    key_params, key_rows, key_noise = jax.random.split(jax.random.key(train.seed), 3)
    params = vqgan.init(key_params, config)
    latents = vqgan.encode_latents(params, images, config).reshape(-1, config.embed_dim)
    rows = jax.random.choice(key_rows, latents.shape[0], (config.codes,), replace=latents.shape[0] < config.codes)
    # No two codes are equal.
    noise = jax.random.normal(key_noise, (config.codes, config.embed_dim)) * latents.std() * 1e-2
    codebook = latents[rows] + noise
    params = params | {"quantize": {"embedding": codebook}}
    return CodecState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer(train).init(_trained(params, train)),
        counts=jnp.ones(config.codes),
        sums=codebook,
        idle=jnp.zeros(config.codes, jnp.int32),
    )


def train_step(
    state: CodecState, images: Float[Array, "B H W 3"], config: VQConfig, train: VQTrainConfig
) -> tuple[CodecState, dict[str, Array]]:
    """One step on pixels in [-1, 1]. Returns the new state and scalars: the objective, its terms, and the codes of the batch."""
    key_dropout, key_restart = jax.random.split(jax.random.fold_in(jax.random.key(train.seed), state.step))
    frozen_book = vqgan.codebook(state.params)

    def objective(trained: dict[str, Any]):
        params = {"quantize": {"embedding": frozen_book}} | trained
        encoder_key, decoder_key = jax.random.split(key_dropout)
        latents = vqgan.encode_latents(params, images, config, dropout_key=encoder_key)
        book = vqgan.codebook(params)
        codes = lax.stop_gradient(vqgan.nearest_codes(latents, book))
        chosen = book[codes]
        straight_through = latents + lax.stop_gradient(chosen - latents)
        output = vqgan.decode_latents(params, straight_through, config, dropout_key=decoder_key)
        terms = reconstruction_terms(images, output)
        terms["commitment"] = jnp.mean((latents - lax.stop_gradient(chosen)) ** 2)
        terms["codebook"] = jnp.mean((lax.stop_gradient(latents) - chosen) ** 2)
        total = sum(weight * terms[name] for name, weight in term_weights(train).items())
        return total, (terms, latents, codes)

    trained = _trained(state.params, train)
    (total, (terms, latents, codes)), gradients = jax.value_and_grad(objective, has_aux=True)(trained)
    updates, opt_state = optimizer(train).update(gradients, state.opt_state, trained)
    params = state.params | optax.apply_updates(trained, updates)
    state = state.replace(step=state.step + 1, params=params, opt_state=opt_state)
    state, used = _update_codebook(state, latents.reshape(-1, config.embed_dim), codes.reshape(-1), key_restart, train)
    return state, {"objective": total, **terms, "gradient_norm": optax.tree.norm(gradients), "batch_codes": used}


def reconstruction_terms(images: Float[Array, "B H W 3"], output: Float[Array, "B H W 3"]) -> dict[str, Array]:
    """Named means of how far the output is from the images; perceptual and adversarial terms belong here."""
    return {"l1": jnp.mean(jnp.abs(output - images)), "l2": jnp.mean((output - images) ** 2)}


def term_weights(train: VQTrainConfig) -> dict[str, float]:
    """Weight of each term in the objective; what is absent is only reported."""
    weights = {"l1": train.l1_weight, "l2": train.l2_weight, "commitment": train.commitment_weight}
    return weights | ({"codebook": 1.0} if train.codebook == "gradient" else {})


def _trained(params: dict[str, Any], train: VQTrainConfig) -> dict[str, Any]:
    """What the optimiser sees: all but a codebook that is a running mean."""
    return {name: part for name, part in params.items() if name != "quantize" or train.codebook == "gradient"}


def _update_codebook(
    state: CodecState, latents: Float[Array, "N D"], codes: Int[Array, "N"], key: Array, train: VQTrainConfig
) -> tuple[CodecState, Int[Array, ""]]:
    """Running means, then restarts. Returns the state and how many codes the batch chose."""
    size = state.counts.shape[0]
    chosen = jax.ops.segment_sum(jnp.ones(codes.shape), codes, size)
    counts = train.ema_decay * state.counts + (1 - train.ema_decay) * chosen
    sums = train.ema_decay * state.sums + (1 - train.ema_decay) * jax.ops.segment_sum(latents, codes, size)
    book = vqgan.codebook(state.params)
    if train.codebook == "ema":
        book = sums / jnp.maximum(counts, 1e-6)[:, None]
    idle = jnp.where(chosen > 0, 0, state.idle + 1)
    if train.dead_code_steps:
        # The dead move to latents that the codebook serves badly, each to another one: drawn without replacement in proportion to
        # the squared error, by the Gumbel trick.
        error = jnp.sum((latents - vqgan.codebook(state.params)[codes]) ** 2, axis=1)
        scores = jnp.log(error + 1e-12) + jax.random.gumbel(key, error.shape)
        candidates = latents[lax.top_k(scores, min(size, latents.shape[0]))[1]]
        dead = idle >= train.dead_code_steps
        rank = jnp.cumsum(dead) - 1
        restart = dead & (rank < candidates.shape[0])
        fresh = candidates[jnp.clip(rank, 0, candidates.shape[0] - 1)]
        book = jnp.where(restart[:, None], fresh, book)
        sums = jnp.where(restart[:, None], fresh, sums)
        counts = jnp.where(restart, 1.0, counts)
        idle = jnp.where(restart, 0, idle)
    params = state.params | {"quantize": {"embedding": book}}
    return state.replace(params=params, counts=counts, sums=sums, idle=idle), jnp.sum(chosen > 0)
