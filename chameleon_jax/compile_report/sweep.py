"""Which mesh and remat policy to take: formulas rule out or rank most, a few are compiled, the fastest that fits is named."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import typing
from collections.abc import Iterator, Sequence

import jax

from chameleon_jax.compile_report.chips import Chip, chip_of
from chameleon_jax.compile_report.console import gib, table
from chameleon_jax.compile_report.programs import pretrain_task, program
from chameleon_jax.compile_report.report import Report, TooLarge, compile_report
from chameleon_jax.configs import EngineConfig, MeshConfig, PretrainConfig, TransformerConfig
from chameleon_jax.errors import ConfigError
from chameleon_jax.models import params, transformer
from chameleon_jax.parallel.mesh import check_fits, make_mesh
from chameleon_jax.training import memory
from chameleon_jax.training.task import Recipe


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sweep:
    """What was compiled, the best first; what does not fit comes last."""

    tried: list[tuple[PretrainConfig, Report]]
    left_out: int  # meshes that the model and the batch can be divided over, but that looked slower, or too large

    @property
    def best(self) -> tuple[PretrainConfig, Report] | None:
        config, report = self.tried[0]
        return (config, report) if report.fits is not False else None


def sweep(config: PretrainConfig, devices: Sequence[jax.Device], count: int) -> Sweep:
    """Compile the training step of the `count` most promising meshes, each with its policy. Raises ConfigError if there is none."""
    meshes = sorted(_meshes(config, devices), key=lambda mesh: _wire_seconds(config, mesh, chip_of(devices[0])))
    if not meshes:
        raise ConfigError(
            f"no mesh of {len(devices)} devices divides the model and {config.train.batch_size} rows: change TrainConfig.batch_size"
        )
    tried = []
    for mesh in meshes:
        if len(tried) == count:
            break
        candidate = _candidate(dataclasses.replace(config, mesh=mesh), devices)
        if candidate is None:
            continue
        with contextlib.suppress(TooLarge):
            tried.append((candidate, compile_report(program(candidate, "train", devices, EngineConfig()))))
    if not tried:
        raise ConfigError(
            f"none of {len(meshes)} meshes should fit into the memory of a device: lower TrainConfig.batch_size, or take more "
            "devices"
        )
    tried.sort(key=lambda pair: _merit(pair[1]))
    return Sweep(tried=tried, left_out=len(meshes) - len(tried))


def _merit(report: Report) -> tuple[bool, float, int]:
    """Less is better. Where the time is not known, what is sent decides."""
    seconds = report.seconds.total
    return report.fits is False, 0.0 if math.isnan(seconds) else seconds, report.wire_bytes


def text(found: Sweep) -> str:
    """A line for each mesh that was compiled, and the flags of the best."""
    rows = []
    for config, report in found.tried:
        seconds = report.seconds.total
        time = (
            "time unknown"
            if math.isnan(seconds)
            else f"{1e3 * seconds:.0f} ms, {report.share_of_peak(seconds):.1%} of the peak"
        )
        fits = {None: "", True: "", False: ", DOES NOT FIT"}[report.fits]
        rows.append((time, f"{_flags(config)}: {gib(report.memory.peak)}{fits}, {gib(report.wire_bytes)} sent"))
    lines = [table(f"compiled {len(found.tried)} meshes; {found.left_out} others look slower or too large", rows)]
    if found.best:
        lines.append("the fastest that fits: " + " ".join(f"--gin.{flag}" for flag in _flags(found.best[0]).split()))
    return "\n".join(lines) + "\n"


def _flags(config: PretrainConfig) -> str:
    mesh = config.mesh
    axes = " ".join(f"MeshConfig.{axis}={getattr(mesh, axis)}" for axis in ("data", "fsdp", "tensor"))
    return f"{axes} TransformerConfig.remat='{config.model.remat}'"


def _meshes(config: PretrainConfig, devices: Sequence[jax.Device]) -> Iterator[MeshConfig]:
    """All over which the heads, the widths and the rows can be divided."""
    count = len(devices)
    sizes = [size for size in range(1, count + 1) if count % size == 0]
    for tensor in sizes:
        for fsdp in sizes:
            if count % (tensor * fsdp):
                continue
            mesh = dataclasses.replace(config.mesh, data=count // (tensor * fsdp), fsdp=fsdp, tensor=tensor)
            try:
                made = make_mesh(mesh, list(devices))
                check_fits(config.model, config.train.batch_size, config.train.microbatches, made)
            except (ConfigError, NotImplementedError):  # the second of axes that no part of the torus has
                continue
            yield mesh


def _wire_seconds(config: PretrainConfig, mesh: MeshConfig, chip: Chip) -> float:
    """What a step would send if nothing were wasted: parameters over fsdp three times, activations of a layer over tensor four
    times, twice as much each, and gradients over data.
    """
    model, train = config.model, config.train
    whole = params.count(transformer.param_specs(model))
    tokens = train.batch_size * config.data.seq_len / (mesh.data * mesh.fsdp)
    share = {axis: (getattr(mesh, axis) - 1) / getattr(mesh, axis) for axis in ("data", "fsdp", "tensor")}
    sent = 3 * 2 * whole / mesh.tensor * share["fsdp"] * train.microbatches
    sent += 2 * 4 * whole / (mesh.fsdp * mesh.tensor) * share["data"]
    sent += 2 * 4 * model.n_layers * tokens * model.d_model * 2 * share["tensor"]
    return sent / (chip.links * chip.link_bytes) if chip.links else sent


def _candidate(config: PretrainConfig, devices: Sequence[jax.Device]) -> PretrainConfig | None:
    """With the policy that keeps most among those that should fit; None where none should."""
    mesh, limit = make_mesh(config.mesh, list(devices)), chip_of(devices[0]).hbm
    found = []
    for policy in typing.get_args(typing.get_type_hints(TransformerConfig)["remat"]):
        changed = dataclasses.replace(config, model=dataclasses.replace(config.model, remat=policy))
        task, _ = pretrain_task(changed)
        found.append((memory.estimate(Recipe.of(task, task.config, {}), mesh).total, changed))
    fitting = [pair for pair in found if limit is None or pair[0] <= limit]
    if not fitting:
        return None
    return max(fitting, key=lambda pair: pair[0])[1]
