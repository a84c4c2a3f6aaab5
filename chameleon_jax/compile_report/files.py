"""What a report leaves in a folder, and the one line for a program that is too large."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

from chameleon_jax.compile_report.console import gib
from chameleon_jax.compile_report.report import Report
from chameleon_jax.configs import PretrainConfig
from chameleon_jax.errors import ConfigError


def write(report: Report, folder: Path, gin_text: str) -> None:
    """`report.json`, the program (`program.txt`), the gin text of the run, and `report.png` where matplotlib is installed."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_text(json.dumps(report.to_dict(), indent=1) + "\n")
    (folder / "operative_config.gin").write_text(gin_text)
    (folder / "program.txt").write_text(report.text)
    wrote = [folder / "report.json"]
    if importlib.util.find_spec("matplotlib") is None:
        print("no picture: matplotlib is not installed (pip install 'chameleon-jax[notebook]')")
    else:
        from chameleon_jax.compile_report import picture

        picture.draw(report, folder / "report.png")
        wrote.append(folder / "report.png")
    print("wrote " + " and ".join(map(str, wrote)))


def refuse_what_does_not_fit(report: Report, config: PretrainConfig) -> None:
    """Raise ConfigError, naming the largest array and the settings that would help, where the peak exceeds the device's memory."""
    if report.fits is not False:
        return
    memory, chip = report.memory, report.chip
    text = f"{report.program.unit} needs {gib(memory.peak)} of a device and {chip.name} has {gib(chip.hbm)}: "
    if memory.arguments > memory.temporaries:
        text += (
            f"{gib(memory.arguments)} are arguments; divide them over more devices (MeshConfig.fsdp, MeshConfig.tensor)"
        )
        raise ConfigError(text if report.program.kind == "train" else text + ", or lower --slots or --context")
    largest = report.alive[0] if report.alive else None
    text += f"{gib(memory.temporaries)} are temporaries"
    text += f", the largest {largest.shape} ({gib(largest.bytes)}, {largest.cause}); " if largest else "; "
    raise ConfigError(text + " or ".join(_remedies(report, config)))


def _remedies(report: Report, config: PretrainConfig) -> list[str]:
    if report.program.kind != "train":
        return ["lower --slots, --context or --prompt", "raise MeshConfig.tensor"]
    parts = report.program.mesh.shape["data"] * report.program.mesh.shape["fsdp"]
    found = []
    if config.model.remat != "full":
        found.append("set TransformerConfig.remat='full'")
    if config.train.batch_size // config.train.microbatches > parts:
        found.append(f"raise TrainConfig.microbatches ({config.train.microbatches})")
    if report.alive and "losses.py" in report.alive[0].cause:
        found.append(f"lower LossConfig.chunk ({config.loss.chunk:,})")
    return found or [f"lower DataConfig.seq_len ({config.data.seq_len})", "raise MeshConfig.tensor"]
