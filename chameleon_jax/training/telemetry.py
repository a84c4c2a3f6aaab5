"""Turns step metrics into numbers with names, and writes them: JSONL always, TensorBoard, W&B on request, a console line.

Sums are divided here, on the host, after the step; a modality without tokens in a batch has no entry rather than a
NaN. `metrics.jsonl` holds one object a logged step and is cut back to the resumed step, so it never has a step twice.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import secrets
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh
from PIL import Image

from chameleon_jax.files import atomic_write, naming
from chameleon_jax.progress import format_seconds
from chameleon_jax.training.losses import LossSums
from chameleon_jax.training.samples import FOLDER as SAMPLES
from chameleon_jax.training.samples import Samples, Sound
from chameleon_jax.training.state import TOKEN_BASE_BITS
from chameleon_jax.training.step import StepMetrics
from chameleon_jax.training.task import Task

METRICS_FILE = "metrics.jsonl"
WANDB_ID = "wandb_id"  # file of a workdir

# Dense bf16 FLOP/s of one device as its vendor gives it, by `device_kind`.
_PEAK_FLOPS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
}


def loss_metrics(sums: LossSums, modalities: Sequence[str]) -> dict[str, float]:
    """Means over the batch: objective, and loss, perplexity, accuracy, log Z by modality. `sums` are on the host."""
    metrics = {"objective": _ratio(sums.objective, sums.normaliser)}
    metrics["loss"] = _ratio(np.sum(sums.nll), np.sum(sums.weight))
    for m, name in enumerate(modalities):
        if sums.weight[m] > 0:
            loss = _ratio(sums.nll[m], sums.weight[m])
            metrics[f"loss/{name}"] = loss
            metrics[f"perplexity/{name}"] = math.exp(min(loss, 80.0))
            metrics[f"accuracy/{name}"] = _ratio(sums.correct[m], sums.weight[m])
            metrics[f"log_z/{name}"] = _ratio(sums.log_z[m], sums.weight[m])
    metrics["z_loss"] = _ratio(np.sum(sums.z_loss), np.sum(sums.weight))
    metrics["logit_max"] = float(sums.logit_max)
    return metrics


def step_metrics(
    metrics: StepMetrics, losses: dict[str, float], modalities: Sequence[str]
) -> dict[str, float | list[float]]:
    """Everything that a step reports, by name: the `losses` that its task made of its sums, then the rest.

    Per-layer statistics are lists, and the last layer's output RMS has its own name. `metrics` are on the host.
    """
    out: dict[str, Any] = dict(losses)
    out["learning_rate"] = float(metrics.learning_rate)
    out["norm/gradient"] = float(metrics.gradient_norm)
    out["norm/update"] = float(metrics.update_norm)
    out["norm/parameters"] = float(metrics.parameter_norm)
    out["skipped_steps"] = int(metrics.skipped)
    for m, name in enumerate(modalities):
        high, low = metrics.tokens_seen[m]
        out[f"tokens_seen/{name}"] = (int(high) << TOKEN_BASE_BITS) + int(low)
    if metrics.statistics is not None:
        for name, values in metrics.statistics.items():
            out[f"layers/{name}"] = [float(v) for v in values]
        if "layers/residual_rms" in out:
            out["output_rms"] = out["layers/residual_rms"][-1]
        if "layers/max_attention_logit" in out:
            out["max_attention_logit"] = max(out["layers/max_attention_logit"])
    return out


def speed(task: Task, *, steps: int, left: int, seconds: float, waited: float, peak: float) -> dict[str, float]:
    """Speed over `steps` steps that took `seconds`, `waited` of them for data, and the time that the `left` steps will take.

    MFU = task.flops_per_step a second / (peak x devices).
    """
    step_seconds = seconds / steps
    return {
        "tokens_per_second": task.tokens_per_step / step_seconds,
        "mfu": task.flops_per_step / step_seconds / (peak * jax.device_count()),
        "data_wait_fraction": waited / seconds,
        "step_seconds": step_seconds,
        "eta_seconds": left * step_seconds,
    }


def peak_flops(device: jax.Device) -> float:
    """FLOP/s to compare with: the vendor's figure, or for an unknown device that of a large fp32 matrix product, measured now."""
    for kind, peak in _PEAK_FLOPS.items():
        if device.device_kind.startswith(kind):
            return peak
    size = 1024
    matrix = jax.device_put(np.ones((size, size), np.float32), device)
    multiply = jax.jit(lambda x: x @ x)
    best = math.inf
    with jax.set_mesh(Mesh(np.asarray([device]), ("alone",))):  # the caller's mesh may be of many devices
        jax.block_until_ready(multiply(matrix))
        for _ in range(5):
            start = time.perf_counter()
            jax.block_until_ready(multiply(matrix))
            best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


class MetricWriter:
    """Writes metrics of process 0; on other processes every call does nothing."""

    def __init__(self, workdir: Path, *, resume_step: int, run_config: dict[str, Any]):
        self._active = jax.process_index() == 0
        self._tensorboard = self._wandb = None
        if not self._active:
            return
        self._workdir = workdir
        path = workdir / METRICS_FILE
        _keep_lines_up_to(path, resume_step)
        self._file = path.open("a")
        from tensorboardX import SummaryWriter

        self._tensorboard = SummaryWriter(str(workdir / "tensorboard"), purge_step=resume_step + 1)
        if os.environ.get("WANDB_PROJECT") and os.environ.get("WANDB_MODE") != "disabled":
            self._wandb = _start_wandb(workdir, run_config)

    def write(self, step: int, metrics: dict[str, Any]) -> None:
        """One line of metrics.jsonl, flushed, and the scalars to the others."""
        if not self._active:
            return
        with naming(self._file.name):
            self._file.write(json.dumps({"step": step, **metrics}) + "\n")
            self._file.flush()
        scalars = {k: v for k, v in metrics.items() if isinstance(v, (int, float))}
        for name, value in scalars.items():
            self._tensorboard.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(scalars, step=step)

    def write_samples(self, step: int, samples: Samples) -> Path | None:
        """The page and the sounds as files of the workdir, and all to TensorBoard. Returns the page's path."""
        if not self._active:
            return None
        folder, name = self._workdir / SAMPLES, f"{step:07d}"
        folder.mkdir(exist_ok=True)
        Image.fromarray(samples.page).save(folder / f"{name}.png")
        self._tensorboard.add_image("samples", samples.page, step, dataformats="HWC")
        self._tensorboard.add_text("samples", samples.words, step)
        for tag, sound in samples.sounds.items():
            (folder / f"{name}-{tag}.wav").write_bytes(sound.file)
            self._tensorboard.file_writer.add_summary(_audio_summary(f"samples/{tag}", sound), step)
        self._tensorboard.flush()
        return folder / f"{name}.png"

    def close(self) -> None:
        if self._active:
            self._file.close()
            self._tensorboard.close()
            if self._wandb is not None:
                self._wandb.finish()


def _audio_summary(tag: str, sound: Sound) -> Any:
    """A WAV file as TensorBoard plays it; the writer's own way would need libsndfile to make one."""
    from tensorboardX.proto.summary_pb2 import Summary

    audio = Summary.Audio(
        sample_rate=sound.rate,
        num_channels=1,
        length_frames=round(sound.rate * sound.seconds),
        encoded_audio_string=sound.file,
        content_type="audio/wav",
    )
    return Summary(value=[Summary.Value(tag=tag, audio=audio)])


def _start_wandb(workdir: Path, run_config: dict[str, Any]) -> Any:
    """The run of this workdir in the project that `WANDB_PROJECT` names; None, with a warning, where it cannot start.

    Its id is kept in the workdir: a resumed run goes on, and workdirs of one name are runs of their own. Without a login it is
    offline.
    """
    file = workdir / WANDB_ID
    if not file.exists():
        atomic_write(file, secrets.token_hex(8))
    try:
        import wandb

        mode = os.environ.get("WANDB_MODE") or ("online" if os.environ.get("WANDB_API_KEY") else "offline")
        return wandb.init(
            project=os.environ["WANDB_PROJECT"],
            id=file.read_text().strip(),
            name="/".join(workdir.resolve().parts[-2:]),
            resume="allow",
            dir=str(workdir),
            config=run_config,
            mode=mode,
        )
    except Exception as error:
        logging.warning("W&B could not start (%s); going on without it", error)
        return None


class Console:
    """The line that a person reads: loss by modality, speed, time left."""

    def __init__(self, steps: int):
        self._steps = steps

    def line(self, step: int, metrics: dict[str, Any]) -> str:
        parts = [f"step {step:>{len(str(self._steps))}}/{self._steps}", f"loss {metrics['loss']:.4f}"]
        by_modality = [f"{key.removeprefix('loss/')} {metrics[key]:.3f}" for key in metrics if key.startswith("loss/")]
        parts[-1] += f" ({', '.join(by_modality)})"
        parts.append(f"lr {metrics['learning_rate']:.2e}")
        parts.append(f"grad {metrics['norm/gradient']:.2f}")
        if "tokens_per_second" in metrics:
            parts.append(f"{metrics['tokens_per_second']:,.0f} tok/s")
            parts.append(f"MFU {metrics['mfu']:.1%}")
            parts.append(f"wait {metrics['data_wait_fraction']:.0%}")
        if metrics["skipped_steps"]:
            parts.append(f"skipped {metrics['skipped_steps']}")
        if "eta_seconds" in metrics:
            parts.append(f"{format_seconds(metrics['eta_seconds'])} left")
        return "  ".join(parts)


def _ratio(total: Any, weight: Any) -> float:
    return float(total) / float(weight) if weight > 0 else 0.0


def _keep_lines_up_to(path: Path, step: int) -> None:
    """Drop lines after `step`, all if it is 0, and a last line cut off by a crash: those will be written again."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        with contextlib.suppress(json.JSONDecodeError, KeyError, TypeError):
            if json.loads(line)["step"] <= step and step:
                kept.append(line + "\n")
    atomic_write(path, "".join(kept))
