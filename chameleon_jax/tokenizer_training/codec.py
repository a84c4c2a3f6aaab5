"""Trains the image codec on pictures held in memory; batch k is a function of (seed, k)."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt8

from chameleon_jax.configs import VQConfig, VQTrainConfig
from chameleon_jax.errors import DataError
from chameleon_jax.tokenizer_training import codec_step, loop
from chameleon_jax.tokenizer_training.codec_step import CodecState
from chameleon_jax.tokenizer_training.loop import CodecTask, Trained
from chameleon_jax.tokenizers.vqgan import Codec

_INITIAL_IMAGES = 256  # pictures whose latents the first codebook is drawn from


def train_codec(
    images: UInt8[np.ndarray, "N R R 3"],
    config: VQConfig,
    train: VQTrainConfig,
    workdir: str | os.PathLike,
    evaluate: Callable[[Codec], dict[str, float]] | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Trained[CodecState]:
    """`loop.train` on pictures held in memory; `evaluate` gives named numbers of a codec every `train.eval_every` steps.

    Raises DataError for pictures of another size, and what `loop.train` raises.
    """
    if len(images) == 0 or images.shape[1:] != (config.resolution, config.resolution, config.in_channels):
        wanted = (config.resolution, config.resolution, config.in_channels)
        raise DataError(f"{len(images)} pictures of shape {images.shape[1:]}: the codec needs at least one of {wanted}")
    first = dataclasses.replace(train, batch_size=min(_INITIAL_IMAGES, 4 * len(images)))
    create = jax.jit(codec_step.create, static_argnums=(1, 2))
    task = CodecTask(
        name="image codec",
        unit="images",
        config=config,
        train=train,
        data=images,
        batch=lambda step: training_batch(images, train, step),
        create=lambda: create(to_pixels(training_batch(images, first, 0)), config, train),
        step=lambda state, batch: jitted_step(state, batch, config, train),
        note=lambda metrics: f"l1 {metrics['l1']:.4f} l2 {metrics['l2']:.5f}",
        save_every=train.eval_every,
        evaluate=lambda state: evaluate(codec_of(state, config)) if evaluate else {},
    )
    return loop.train(task, Path(workdir), stop)


def codec_of(state: CodecState, config: VQConfig) -> Codec:
    """The codec that a state of its training holds, on the host."""
    return Codec(params=jax.device_get(state.params), config=config)


def training_batch(
    images: UInt8[np.ndarray, "N R R 3"], train: VQTrainConfig, step: int
) -> UInt8[np.ndarray, "B R R 3"]:
    """Batch `step`: the next pictures of a stream of seeded permutations, then flips and shifts of its own seed."""
    positions = np.arange(step * train.batch_size, (step + 1) * train.batch_size)
    epochs, offsets = np.divmod(positions, len(images))
    rows = [
        _permutation(len(images), train.seed, int(epoch))[offset] for epoch, offset in zip(epochs, offsets, strict=True)
    ]
    batch = images[np.asarray(rows)]
    if not train.flip and not train.jitter:
        return batch
    generator = np.random.default_rng((train.seed, step, 1))
    if train.flip:
        flipped = generator.random(len(batch)) < 0.5
        batch = np.where(flipped[:, None, None, None], batch[:, :, ::-1], batch)
    if train.jitter:
        reach, side = train.jitter, batch.shape[1]
        padded = np.pad(batch, ((0, 0), (reach, reach), (reach, reach), (0, 0)), mode="edge")
        shifts = generator.integers(0, 2 * reach + 1, (len(batch), 2))
        batch = np.stack([p[y : y + side, x : x + side] for p, (y, x) in zip(padded, shifts, strict=True)])
    return batch


def to_pixels(images: UInt8[Array, "*B H W 3"]) -> Array:
    """8-bit levels to float32 in [-1, 1]."""
    return jnp.asarray(images, jnp.float32) / 127.5 - 1.0


@functools.partial(jax.jit, static_argnums=(2, 3), donate_argnums=0)
def jitted_step(state: CodecState, images: UInt8[Array, "B R R 3"], config: VQConfig, train: VQTrainConfig):
    """`codec_step.train_step` on 8-bit pictures; the state's memory is used again."""
    return codec_step.train_step(state, to_pixels(images), config, train)


@functools.lru_cache(maxsize=2)
def _permutation(count: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(count)
