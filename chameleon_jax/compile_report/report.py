"""The report of one compiled program: memory, operations, what crosses the wire, and an estimate of its time, as one dataclass."""

from __future__ import annotations

import collections
import dataclasses
import math
import resource
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import jax

from chameleon_jax.compile_report.cause import Causes
from chameleon_jax.compile_report.chips import Chip, chip_of
from chameleon_jax.compile_report.collectives import Collective, collectives
from chameleon_jax.compile_report.cost import Cost, cost
from chameleon_jax.compile_report.hlo import Module
from chameleon_jax.compile_report.memory import Alive, Memory, alive_at_peak, memory_of
from chameleon_jax.compile_report.programs import Program


@dataclasses.dataclass(frozen=True, kw_only=True)
class Seconds:
    """Of one call, estimated: cycles over the clock, wire bytes over the links that a collective can use. NaN where not known.

    `kernels` is a bound from below: operations over the peak. What is started and ended apart is taken to cost nothing as long as
    there is computation to hide it; the rest of the wire waits.
    """

    matrix: float
    other: float
    kernels: float
    wire_waiting: float
    wire_hidden: float

    @property
    def computing(self) -> float:
        return self.matrix + self.other + self.kernels

    @property
    def total(self) -> float:
        return self.wire_waiting + max(self.computing, self.wire_hidden)


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)  # it holds a program of megabytes
class Report:
    """Everything is of one device and one call, but for `program`'s own counts."""

    program: Program
    chip: Chip
    memory: Memory
    alive: list[Alive]
    collectives: list[Collective]
    cost: Cost
    unknown_loops: list[str]
    compile_cpu_seconds: float
    compile_seconds: float
    text: str  # of the compiled program

    @property
    def devices(self) -> int:
        return self.program.mesh.size

    @property
    def fits(self) -> bool | None:
        return None if self.chip.hbm is None else self.memory.peak <= self.chip.hbm

    @property
    def model_flops(self) -> float:
        """The model's own count, on one device."""
        return self.program.flops / self.devices

    @property
    def wire_bytes(self) -> int:
        return sum(one.total for one in self.collectives)

    @property
    def seconds(self) -> Seconds:
        chip = self.chip
        cycle = 1 / chip.clock if chip.clock else math.nan
        wire = {False: 0.0, True: 0.0}
        for one in self.collectives:
            links = min(chip.links, 2 * one.dimensions or (chip.links if one.group == self.devices else 2))
            if one.kind == "collective-permute":
                links = min(chip.links, 2)  # one each, but they come in pairs of both directions
            wire[one.overlaps] += one.total / (links * chip.link_bytes) if chip.links else math.nan
        return Seconds(
            matrix=self.cost.cycles(matrix=True) * cycle,
            other=self.cost.cycles(matrix=False) * cycle,
            kernels=self.cost.kernel_flops / chip.peak_flops,
            wire_waiting=wire[False],
            wire_hidden=wire[True],
        )

    def share_of_peak(self, seconds: float) -> float:
        """Model flops over those of the peak in so much time."""
        return self.model_flops / (seconds * self.chip.peak_flops) if seconds else math.nan

    @property
    def bound(self) -> str:
        """The resource that takes most of the time."""
        found = self.seconds
        if math.isnan(found.total):
            return "unknown"
        wire = found.wire_waiting + max(0.0, found.wire_hidden - found.computing)
        parts = {"matrix units": found.matrix + found.kernels, "vector units and memory": found.other, "wire": wire}
        return max(parts, key=parts.__getitem__)

    def wire_by(self, key: str) -> dict[str, int]:
        """Bytes sent, by `kind` with dtype (gathers that are written as all-reduce apart) or by `cause`; the largest first."""
        sums: collections.Counter[str] = collections.Counter()
        for one in self.collectives:
            kind = f"{one.kind}{' as gather' if one.is_gather else ''} {one.dtype}"
            sums[kind if key == "kind" else one.cause] += one.total
        return dict(sums.most_common())

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and strings for JSON; what is not known is null."""
        found = self.seconds
        text = {
            "program": self.program.kind,
            "unit": self.program.unit,
            "notes": list(self.program.notes),
            "chip": dataclasses.asdict(self.chip),
            "devices": self.devices,
            "mesh": dict(self.program.mesh.shape),
            "memory": dataclasses.asdict(self.memory) | {"peak": self.memory.peak, "fits": self.fits},
            "alive_at_peak": [dataclasses.asdict(one) for one in self.alive],
            "flops": {"model": self.model_flops, "compiled": self.cost.flops, "kernels": self.cost.kernel_flops},
            "cycles": {
                "matrix": self.cost.cycles(matrix=True),
                "other": self.cost.cycles(matrix=False),
                "by_cause": self.cost.cycles_by_cause(),
            },
            "wire": {
                "bytes": self.wire_bytes,
                "parameter_bytes": self.program.parameter_bytes,
                "by_kind": self.wire_by("kind"),
                "by_cause": self.wire_by("cause"),
                "collectives": [
                    dataclasses.asdict(one) | {"wire_bytes": one.wire_bytes, "total": one.total}
                    for one in self.collectives
                ],
            },
            "estimate": dataclasses.asdict(found)
            | {
                "seconds": found.total,
                "share_of_peak": self.share_of_peak(found.total),
                "share_of_peak_without_wire": self.share_of_peak(found.computing),
                "bound": self.bound,
            },
            "unknown_loops": self.unknown_loops,
            "compile": {"cpu_seconds": self.compile_cpu_seconds, "seconds": self.compile_seconds},
        }
        return _without_nan(text)


def compile_report(program: Program) -> Report:
    """Compile, and read off what came out. Takes as long as compiling takes: seconds for a small model, minutes for 7B."""
    begin, cpu = time.monotonic(), _cpu_seconds()
    lowered = program.lower()
    device = program.mesh.devices.flat[0]
    with tempfile.TemporaryDirectory() as folder:
        dumped = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True} if device.platform == "tpu" else None
        with warnings.catch_warnings():
            # What was compiled without hardware is kept in the cache, but can not be loaded without it.
            warnings.filterwarnings("ignore", "Error reading persistent compilation cache entry")
            try:
                compiled = lowered.compile(compiler_options=dumped)
            except jax.errors.JaxRuntimeError as error:
                if not str(error).startswith("RESOURCE_EXHAUSTED"):
                    raise
                raise TooLarge(str(error), _dumped_alive(Path(folder))) from None
        seconds, cpu = time.monotonic() - begin, _cpu_seconds() - cpu
        text = compiled.as_text()
        module = Module(text)
        causes = Causes(module)
        alive = alive_at_peak(Path(folder), module, causes)
    return Report(
        program=program,
        chip=chip_of(device),
        memory=memory_of(compiled),
        alive=alive,
        collectives=collectives(module, causes),
        cost=cost(module, causes),
        unknown_loops=module.unknown_loops,
        compile_cpu_seconds=cpu,
        compile_seconds=seconds,
        text=text,
    )


class TooLarge(Exception):
    """A compiler could not place a program in the memory of its device: its words, and what is alive at the peak, if it says."""

    def __init__(self, told: str, alive: list[Alive]):
        super().__init__(told)
        self.alive = alive


def _dumped_alive(folder: Path) -> list[Alive]:
    """What is alive at the peak of a program that was dumped before the compiler gave up."""
    texts = sorted(folder.glob("*after_optimizations*buffer_assignment.txt"), key=lambda file: -file.stat().st_size)
    if not texts:
        return []
    module = Module(texts[0].read_text())
    return alive_at_peak(folder, module, Causes(module))


def _cpu_seconds() -> float:
    """Of all threads of this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
