"""One optimiser step of the image codec: its losses, then the codebook's own update (`codebook.py`).

The objective is a dictionary of named terms times a dictionary of weights; a perceptual or adversarial term is one
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
from chameleon_jax.tokenizer_training import codebook
from chameleon_jax.tokenizer_training.codebook import Usage
from chameleon_jax.tokenizers import quantizer, vqgan


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
    book = codebook.draw(key_rows, key_noise, latents, config.codes)
    params = params | {"quantize": {"embedding": book}}
    usage = codebook.fresh_usage(book)
    return CodecState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer(train).init(_trained(params, train)),
        counts=usage.counts,
        sums=usage.sums,
        idle=usage.idle,
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
        codes = lax.stop_gradient(quantizer.nearest_codes(latents, book))
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
    book, usage, used = codebook.update(
        vqgan.codebook(state.params),
        Usage(counts=state.counts, sums=state.sums, idle=state.idle),
        latents,
        codes,
        key,
        decay=train.ema_decay,
        dead_after=train.dead_code_steps,
        running_mean=train.codebook == "ema",
    )
    params = state.params | {"quantize": {"embedding": book}}
    return state.replace(params=params, counts=usage.counts, sums=usage.sums, idle=usage.idle), used
