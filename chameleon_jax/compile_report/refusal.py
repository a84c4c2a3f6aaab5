"""The one line for a program that is too large: what is too much, and which settings would help."""

from __future__ import annotations

from collections.abc import Sequence

from chameleon_jax.compile_report.console import gib
from chameleon_jax.compile_report.memory import Alive
from chameleon_jax.compile_report.programs import Program
from chameleon_jax.compile_report.report import Report
from chameleon_jax.errors import ConfigError


def check(report: Report) -> None:
    """Raise ConfigError where the peak exceeds the device's memory. Compilers may refuse sooner; see `of_compiler`."""
    if report.fits is not False:
        return
    memory, chip = report.memory, report.chip
    text = f"{report.program.unit} needs {gib(memory.peak)} of a device and {chip.name} has {gib(chip.hbm)}: "
    if memory.arguments > memory.temporaries:
        text += (
            f"{gib(memory.arguments)} are arguments; divide them over more devices (MeshConfig.fsdp, MeshConfig.tensor)"
        )
        raise ConfigError(text if report.program.kind == "train" else text + ", or lower --slots or --context")
    raise ConfigError(f"{text}{gib(memory.temporaries)} are temporaries{_rest(report.program, report.alive)}")


def of_compiler(program: Program, told: str, alive: Sequence[Alive]) -> ConfigError:
    """The error for what a compiler says of a program that it could not place."""
    words = " ".join(told.split()).removeprefix("RESOURCE_EXHAUSTED: ").rstrip(".")
    return ConfigError(f"{program.unit} does not fit: {words}{_rest(program, alive)}")


def _rest(program: Program, alive: Sequence[Alive]) -> str:
    largest = f", the largest {alive[0].shape} ({gib(alive[0].bytes)}, {alive[0].cause})" if alive else ""
    return f"{largest}; {' or '.join(_remedies(program, alive))}"


def _remedies(program: Program, alive: Sequence[Alive]) -> list[str]:
    config, mesh = program.config, program.mesh.shape
    if program.kind != "train":
        return ["lower --slots, --context or --prompt", "raise MeshConfig.tensor"]
    found = []
    if mesh["data"] > 1:
        found.append(f"divide parameters too (MeshConfig.fsdp, in place of data={mesh['data']})")
    if config.model.remat != "full":
        found.append("set TransformerConfig.remat='full'")
    if config.train.batch_size // config.train.microbatches > mesh["data"] * mesh["fsdp"]:
        found.append(f"raise TrainConfig.microbatches ({config.train.microbatches})")
    if alive and "losses.py" in alive[0].cause:
        found.append(f"lower LossConfig.chunk ({config.loss.chunk:,})")
    return found or [f"lower DataConfig.seq_len ({config.data.seq_len})", "raise MeshConfig.tensor"]
