"""Trains the sound codec on waveforms held in memory; batch k is a function of (seed, k).

The codebook follows the running means of `codebook.py`.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, Float

from chameleon_jax.configs import SoundConfig, SoundTrainConfig
from chameleon_jax.errors import DataError
from chameleon_jax.tokenizer_training import codebook, codec_step, loop
from chameleon_jax.tokenizer_training.codebook import Usage
from chameleon_jax.tokenizer_training.loop import CodecTask, Trained
from chameleon_jax.tokenizers import sound
from chameleon_jax.tokenizers.quantizer import nearest_codes
from chameleon_jax.tokenizers.sound import SoundCodec

_INITIAL_SOUNDS = 256  # whose latents the first codebook is drawn from
_BAND = 8  # frequencies of a band of the envelope: 200 Hz at 8,000 samples a second and a hop of 80


@flax.struct.dataclass
class SoundState:
    """Everything that a step changes."""

    step: Array
    params: dict[str, Any]
    opt_state: Any
    usage: Usage


def train_sound(
    waveforms: Float[np.ndarray, "N samples"],
    config: SoundConfig,
    train: SoundTrainConfig,
    workdir: str | os.PathLike,
    stop: Callable[[], bool] = lambda: False,
) -> Trained[SoundState]:
    """`loop.train` on prepared waveforms. Raises DataError for none or some of another length, and what `loop.train` raises."""
    require_sounds(waveforms, config, "to train on")
    waveforms = np.asarray(waveforms, np.float32)
    task = CodecTask(
        name="sound codec",
        unit="sounds",
        config=config,
        train=train,
        data=waveforms,
        batch=lambda step: training_batch(waveforms, train, step),
        create=lambda: create(waveforms[_order(len(waveforms), train.seed, 0)[:_INITIAL_SOUNDS]], config, train),
        step=lambda state, batch: jitted_step(state, batch, config, train),
        note=lambda metrics: f"l1 {metrics['l1']:.4f} codes {metrics['batch_codes']:.0f}",
        save_every=train.save_every,
    )
    return loop.train(task, Path(workdir), stop)


def require_sounds(waveforms: np.ndarray, config: SoundConfig, what: str) -> None:
    """Raise DataError unless these are sounds of the codec's length, at least one."""
    if len(waveforms) == 0 or waveforms.shape[1:] != (config.samples,):
        raise DataError(
            f"{len(waveforms)} sounds {what} of shape {waveforms.shape[1:]}: needs some of {config.samples} samples"
        )


def codec_of(state: SoundState, config: SoundConfig) -> SoundCodec:
    """The codec that a state of its training holds, on the host."""
    return SoundCodec(params=jax.device_get(state.params), config=config)


def training_batch(
    waveforms: Float[np.ndarray, "N samples"], train: SoundTrainConfig, step: int
) -> Float[np.ndarray, "B samples"]:
    """Batch `step`: the next sounds of a stream of seeded permutations, moved in time by up to `train.jitter` samples."""
    positions = np.arange(step * train.batch_size, (step + 1) * train.batch_size)
    epochs, offsets = np.divmod(positions, len(waveforms))
    rows = [_order(len(waveforms), train.seed, int(e))[offset] for e, offset in zip(epochs, offsets, strict=True)]
    batch, reach = waveforms[np.asarray(rows)], train.jitter
    if not reach:
        return batch
    samples = batch.shape[1]
    padded = np.pad(batch, ((0, 0), (reach, reach)))
    starts = np.random.default_rng((train.seed, step, 1)).integers(0, 2 * reach + 1, len(batch))
    return np.stack([sound[start : start + samples] for sound, start in zip(padded, starts, strict=True)])


@functools.partial(jax.jit, static_argnums=(1, 2))
def create(waveforms: Float[Array, "N samples"], config: SoundConfig, train: SoundTrainConfig) -> SoundState:
    """The state before the first step; the codebook is drawn from the fresh encoder's latents of `waveforms`."""
    key_params, key_rows, key_noise = jax.random.split(jax.random.key(train.seed), 3)
    params = sound.init(key_params, config)
    latents = sound.encode_latents(params, sound.features(waveforms, config), config).reshape(-1, config.embed_dim)
    book = codebook.draw(key_rows, key_noise, latents, config.codes)
    trained = {name: part for name, part in params.items() if name != "quantize"}
    return SoundState(
        step=jnp.zeros((), jnp.int32),
        params=params | {"quantize": {"embedding": book}},
        opt_state=codec_step.optimizer(train).init(trained),
        usage=codebook.fresh_usage(book),
    )


@functools.partial(jax.jit, static_argnums=(2, 3), donate_argnums=0)
def jitted_step(
    state: SoundState, waveforms: Float[Array, "B samples"], config: SoundConfig, train: SoundTrainConfig
) -> tuple[SoundState, dict[str, Array]]:
    """One step; returns the new state and scalars: the objective, its terms, and the number of codes in the batch."""
    wanted = sound.features(waveforms, config)
    book = sound.codebook(state.params)

    def objective(trained: dict[str, Any]):
        latents = sound.encode_latents(trained, wanted, config)
        codes = lax.stop_gradient(nearest_codes(latents, book))
        chosen = book[codes]
        straight_through = latents + lax.stop_gradient(chosen - latents)
        output = sound.decode_latents(trained, straight_through, config)
        terms = {
            "l1": jnp.mean(jnp.abs(output - wanted)),
            "l2": jnp.mean((output - wanted) ** 2),
            "envelope": jnp.mean((spectral_envelope(output) - spectral_envelope(wanted)) ** 2),
            "commitment": jnp.mean((latents - chosen) ** 2),
        }
        total = terms["l1"] + terms["l2"]
        total += train.envelope_weight * terms["envelope"] + train.commitment_weight * terms["commitment"]
        return total, (terms, latents, codes)

    trained = {name: part for name, part in state.params.items() if name != "quantize"}
    (total, (terms, latents, codes)), gradients = jax.value_and_grad(objective, has_aux=True)(trained)
    updates, opt_state = codec_step.optimizer(train).update(gradients, state.opt_state, trained)
    book, usage, used = codebook.update(
        book,
        state.usage,
        latents.reshape(-1, config.embed_dim),
        codes.reshape(-1),
        jax.random.fold_in(jax.random.key(train.seed), state.step),
        decay=train.ema_decay,
        dead_after=train.dead_code_steps,
    )
    params = optax.apply_updates(trained, updates) | {"quantize": {"embedding": book}}
    after = SoundState(step=state.step + 1, params=params, opt_state=opt_state, usage=usage)
    return after, {"objective": total, **terms, "batch_codes": used}


def spectral_envelope(features: Float[Array, "B frames bins"]) -> Float[Array, "B frames bands"]:
    """Running means over neighbouring frequencies, which blur the harmonics of a voice and keep what tells its vowels apart."""
    sums = jnp.cumsum(jnp.pad(features, ((0, 0), (0, 0), (1, 0))), axis=-1)
    return (sums[..., _BAND:] - sums[..., :-_BAND]) / _BAND


@functools.lru_cache(maxsize=2)
def _order(count: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(count)
