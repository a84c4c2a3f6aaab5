"""The summary of a training run: its newest checkpoint, its last losses, and the commands that use it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from chameleon_jax import summary
from chameleon_jax.configs import PretrainConfig
from chameleon_jax.evaluation.records import first_text
from chameleon_jax.training.samples import FOLDER as SAMPLES
from chameleon_jax.training.telemetry import METRICS_FILE
from chameleon_jax.workdir import CHECKPOINTS


def show(config: PretrainConfig, workdir: Path, seconds: float) -> None:
    """Print it, of a run that has come to its last step. The prompt of the next command is a text of the training store."""
    step = max(int(path.name) for path in (workdir / CHECKPOINTS).iterdir() if path.name.isdigit())
    wrote = {str(workdir / CHECKPOINTS / str(step)): "weights and state", str(workdir / METRICS_FILE): "all figures"}
    if (workdir / SAMPLES).is_dir():
        wrote[str(workdir / SAMPLES)] = "what the model made on the way"
    lines = [json.loads(line) for line in (workdir / METRICS_FILE).read_text().splitlines()]
    prompt = first_text(Path(config.data.stores[0].path))
    generate = [f"--workdir={workdir}", f"--prompt={prompt}", f"--out={workdir / 'out'}"]
    summary.show(seconds, wrote, dict(_losses(lines)), [("generate", generate), ("serve", [f"--workdir={workdir}"])])


def _losses(lines: list[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    for name, key in (("loss", "loss"), ("held-out", "eval/loss")):
        last = next((line for line in reversed(lines) if key in line), None)
        if last is not None:
            parts = (f"{k.removeprefix(f'{key}/')} {v:.3f}" for k, v in last.items() if k.startswith(f"{key}/"))
            yield name, f"{last[key]:.4f} ({', '.join(parts)}) at step {last['step']:,}"
