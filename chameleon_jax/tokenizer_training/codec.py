"""Trains the image codec on pictures held in memory, and goes on where it was stopped.

Batch k is a function of (seed, k), so a saved state is all it takes to resume. Each save replaces the last one whole.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jaxtyping import Array, UInt8

from chameleon_jax.configs import VQConfig, VQTrainConfig
from chameleon_jax.errors import CheckpointError, DataError
from chameleon_jax.files import atomic_write
from chameleon_jax.progress import progress
from chameleon_jax.tokenizer_training import codec_step
from chameleon_jax.tokenizer_training.codec_step import CodecState
from chameleon_jax.tokenizers.vqgan import Codec
from chameleon_jax.training.telemetry import MetricWriter

STATE_FILE = "codec_state.safetensors"
_INITIAL_IMAGES = 256  # pictures whose latents the first codebook is drawn from


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainedCodec:
    """The codec at the end, and what this command did; `steps` and `seconds` leave out what was resumed."""

    codec: Codec
    steps: int
    seconds: float
    images_per_second: float


def train_codec(
    images: UInt8[np.ndarray, "N R R 3"],
    config: VQConfig,
    train: VQTrainConfig,
    workdir: str | os.PathLike,
    evaluate: Callable[[Codec], dict[str, float]] | None = None,
) -> TrainedCodec:
    """Train to `train.steps`, logging to `workdir/metrics.jsonl` and saving the state every `train.eval_every` steps.

    `evaluate` gives named numbers of a codec; they are logged as `eval/NAME`. The same call resumes from the last save.

    Raises DataError for pictures of another size, CheckpointError for a saved state that is damaged or of another config.
    """
    if len(images) == 0 or images.shape[1:] != (config.resolution, config.resolution, config.in_channels):
        wanted = (config.resolution, config.resolution, config.in_channels)
        raise DataError(f"{len(images)} pictures of shape {images.shape[1:]}: the codec needs at least one of {wanted}")
    folder = Path(workdir)
    folder.mkdir(parents=True, exist_ok=True)
    state = restore(folder, config, train)
    if state is None:
        first = training_batch(images, dataclasses.replace(train, batch_size=min(_INITIAL_IMAGES, 4 * len(images))), 0)
        state = jax.jit(codec_step.create, static_argnums=(1, 2))(to_pixels(first), config, train)
    started = int(state.step)
    writer = MetricWriter(folder, resume_step=started, run_config={"vq": config.to_dict(), "vq_train": train.to_dict()})
    begin = time.monotonic()
    try:
        with progress("Training the image codec", total=train.steps, unit="steps", done=started) as bar:
            for step in range(started, train.steps):
                batch = training_batch(images, train, step)
                state, metrics = jitted_step(state, batch, config, train)
                done = step + 1
                note = ""
                if done % train.log_every == 0 or done == train.steps:
                    logged = {name: float(value) for name, value in jax.device_get(metrics).items()}
                    seen = (done - started) * train.batch_size
                    writer.write(done, {**logged, "images_per_second": seen / (time.monotonic() - begin)})
                    note = f"l1 {logged['l1']:.4f} l2 {logged['l2']:.5f}"
                if done % train.eval_every == 0 or done == train.steps:
                    if evaluate is not None:
                        found = evaluate(Codec(params=jax.device_get(state.params), config=config))
                        writer.write(done, {f"eval/{name}": value for name, value in found.items()})
                        logging.info(
                            "step %d: %s", done, ", ".join(f"{name} {value:.4g}" for name, value in found.items())
                        )
                    save(folder, state, config, train)
                bar.advance(1, note=note)
    finally:
        writer.close()
    seconds = time.monotonic() - begin
    steps = train.steps - started
    codec = Codec(params=jax.device_get(state.params), config=config)
    return TrainedCodec(
        codec=codec, steps=steps, seconds=seconds, images_per_second=steps * train.batch_size / max(seconds, 1e-9)
    )


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


def save(folder: Path, state: CodecState, config: VQConfig, train: VQTrainConfig) -> None:
    """Replace the saved state by this one, whole or not at all."""
    from safetensors.numpy import save as to_bytes

    leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(state))
    tensors = {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}
    atomic_write(folder / STATE_FILE, to_bytes(tensors, metadata={"config": _identity(config, train)}))


def restore(folder: Path, config: VQConfig, train: VQTrainConfig) -> CodecState | None:
    """The saved state, or None where there is none. Raises CheckpointError when it is damaged or of another config."""
    from safetensors import SafetensorError, safe_open

    path = folder / STATE_FILE
    if not path.exists():
        return None
    try:
        with safe_open(path, "numpy") as file:
            identity = (file.metadata() or {}).get("config")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is damaged ({error}): delete it to train from the beginning") from error
    if identity != _identity(config, train):
        raise CheckpointError(
            f"{path} was written with other vq or vq_train settings: restore them or take another workdir"
        )
    images = jnp.zeros((1, config.resolution, config.resolution, config.in_channels))
    abstract = jax.eval_shape(functools.partial(codec_step.create, config=config, train=train), images)
    return jax.tree_util.tree_map_with_path(lambda path, _: jnp.asarray(tensors[jax.tree_util.keystr(path)]), abstract)


def _identity(config: VQConfig, train: VQTrainConfig) -> str:
    """Hash of all that decides the numbers; rhythm of logs and evaluations may change between a run and its resumption."""
    rhythm: dict[str, Any] = {"log_every": 1, "eval_every": 1, "eval_images": 1}
    return config.hash() + dataclasses.replace(train, **rhythm).hash()


@functools.lru_cache(maxsize=2)
def _permutation(count: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(count)
