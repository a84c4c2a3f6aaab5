"""The loop that every codec is trained by: steps, log lines, evaluations, saves, and a stop that loses nothing.

Batch k and the randomness of step k are functions of (seed, k), so the state is all it takes to go on with the same bits. Each save
replaces the last one whole.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from chameleon_jax.configs import SoundConfig, SoundTrainConfig, VQConfig, VQTrainConfig
from chameleon_jax.errors import CheckpointError
from chameleon_jax.files import atomic_write
from chameleon_jax.progress import progress
from chameleon_jax.training.signals import Stopped
from chameleon_jax.training.telemetry import MetricWriter

STATE_FILE = "codec_state.safetensors"
# Fields of a training config that may change between a run and its resumption: they decide no number of the codec.
_RHYTHM = ("log_every", "eval_every", "eval_images", "save_every", "memory_gb")
_CHANGES = 6  # that a message names
State = TypeVar("State")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CodecTask(Generic[State]):
    """What differs between codecs. A state is a pytree of arrays with the number of finished steps in `step`."""

    name: str  # as in "image codec"
    unit: str  # of its items, as in "images"
    config: VQConfig | SoundConfig
    train: VQTrainConfig | SoundTrainConfig
    data: np.ndarray  # [N ...], of which `batch` takes
    batch: Callable[[int], np.ndarray]
    create: Callable[[], State]
    step: Callable[[State, np.ndarray], tuple[State, dict[str, jax.Array]]]
    note: Callable[[dict[str, float]], str]  # of the bar, from a step's metrics
    save_every: int
    evaluate: Callable[[State], dict[str, float]] = lambda state: {}  # numbers of the log, at every save


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trained(Generic[State]):
    """The state at the end, and what this command did; `steps`, `seconds` and `items_per_second` leave out what was resumed."""

    state: State
    steps: int
    seconds: float
    items_per_second: float


def train(task: CodecTask[State], folder: Path, stop: Callable[[], bool] = lambda: False) -> Trained[State]:
    """Train to `task.train.steps`, logging to `folder/metrics.jsonl`; the same call goes on from the last save.

    `stop` is asked after each step. Raises Stopped once everything is saved where it says so before the end, CheckpointError for a
    saved state that is damaged, of another config or of other data.
    """
    folder.mkdir(parents=True, exist_ok=True)
    steps, every = task.train.steps, task.train.log_every
    identity = _identity(task)
    state = _restore(folder, task, identity)
    if state is None:
        state = task.create()
    started = int(state.step)
    run_config = {"codec": task.config.to_dict(), "train": task.train.to_dict()}
    writer = MetricWriter(folder, resume_step=started, run_config=run_config)
    begin = time.monotonic()
    try:
        with progress(f"Training the {task.name}", total=steps, unit="steps", done=started) as bar:
            for done in range(started + 1, steps + 1):
                if stop():
                    _save(folder, state, identity)
                    logging.info("stopped at step %d of %d, saved; run the same command to go on", done - 1, steps)
                    raise Stopped
                state, metrics = task.step(state, task.batch(done - 1))
                note = ""
                if done % every == 0 or done == steps:
                    logged = {name: float(value) for name, value in jax.device_get(metrics).items()}
                    rate = (done - started) * task.train.batch_size / (time.monotonic() - begin)
                    writer.write(done, {**logged, f"{task.unit}_per_second": rate})
                    note = task.note(logged)
                if done % task.save_every == 0 or done == steps:
                    if found := task.evaluate(state):
                        writer.write(done, {f"eval/{name}": value for name, value in found.items()})
                        numbers = ", ".join(f"{name} {value:.4g}" for name, value in found.items())
                        logging.info("step %d: %s", done, numbers)
                    _save(folder, state, identity)
                bar.advance(1, note=note)
    finally:
        writer.close()
    seconds = time.monotonic() - begin
    rate = (steps - started) * task.train.batch_size / max(seconds, 1e-9)
    return Trained(state=state, steps=steps - started, seconds=seconds, items_per_second=rate)


def _identity(task: CodecTask) -> dict[str, str]:
    """Hashes of all that decides the numbers, and `settings`, which says what the first of them was made of."""
    train = {name: value for name, value in task.train.to_dict().items() if name not in _RHYTHM}
    config = f"{task.config.hash()} {sorted(train.items())}"
    data = hashlib.sha256(str(task.data.shape).encode())
    data.update(np.ascontiguousarray(task.data))
    settings = json.dumps({"codec": task.config.to_dict(), "train": task.train.to_dict()})
    return {"config": hashlib.sha256(config.encode()).hexdigest(), "data": data.hexdigest(), "settings": settings}


def _changes(task: CodecTask, settings: str | None) -> list[str]:
    """`VQTrainConfig.steps was 1500, is 62` for each setting that is not what it was; empty for a file that does not hold them."""
    then = json.loads(settings) if settings else {}
    found = []
    for config, saved in ((task.config, then.get("codec")), (task.train, then.get("train"))):
        for field, (now, before) in (config.diff(saved) if saved else {}).items():
            if field not in _RHYTHM:
                found.append(f"{type(config).__name__}.{field} was {before!r}, is {now!r}")
    return found[:_CHANGES] + ([f"and {len(found) - _CHANGES} more"] if len(found) > _CHANGES else [])


def _save(folder: Path, state: Any, identity: dict[str, str]) -> None:
    from safetensors.numpy import save as to_bytes

    leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(state))
    tensors = {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}
    atomic_write(folder / STATE_FILE, to_bytes(tensors, metadata=identity))


def _restore(folder: Path, task: CodecTask[State], identity: dict[str, str]) -> State | None:
    """The saved state, or None where there is none."""
    from safetensors import SafetensorError, safe_open

    path = folder / STATE_FILE
    if not path.exists():
        return None
    try:
        with safe_open(path, "numpy") as file:
            saved = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is damaged ({error}): delete it to train from the beginning") from error
    if saved.get("config") != identity["config"]:
        changes = ", ".join(_changes(task, saved.get("settings")))
        raise CheckpointError(
            f"{path} was written with other settings of the codec or its training{changes and f' ({changes})'}: restore them, take "
            "another workdir, or delete the file to train from the beginning"
        )
    if saved.get("data") != identity["data"]:
        raise CheckpointError(
            f"the {task.unit} changed since {path} was written: use the same sources, or another workdir"
        )
    abstract = jax.eval_shape(task.create)
    return jax.tree_util.tree_map_with_path(lambda path, _: jnp.asarray(tensors[jax.tree_util.keystr(path)]), abstract)
