"""What a compiled program sends between devices: every collective with its bytes, its cause and how often it runs.

Bytes on the wire are what one device sends by a ring (Thakur et al. 2005): (n - 1) / n of the whole array for a gather, a
reduce-scatter and an exchange of all with all, twice that for an all-reduce, all of it for a permutation. A collective that is
started and ended apart is counted once.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator

from chameleon_jax.compile_report.cause import Causes
from chameleon_jax.compile_report.hlo import Computation, Instruction, Module, Run

KINDS = (
    "all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute",
    "collective-broadcast",
)  # fmt: skip
_GROUPS = re.compile(r"replica_groups=(?:\{\{([\d,]*)\}|\[(\d+),(\d+)\]|mesh\[([^\]]*)\] *\{([^}]*)\})")
_TORUS = re.compile(r"active_dims:([01]+)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collective:
    """One instruction. `bytes` is the whole array, gathered or to be reduced; `wire_bytes` what a device sends; both a run.

    `is_gather` marks an all-reduce of shards padded with zeros: a gather that is written so, at twice its bytes.
    """

    kind: str
    dtype: str
    shapes: str
    group: int  # devices that take part in one of it
    times: int  # in one call of the program
    bytes: int
    dimensions: int  # of the torus along which it goes; 0 where the compiler does not say
    overlaps: bool  # started and ended apart, so that the device computes meanwhile
    is_gather: bool
    cause: str

    @property
    def wire_bytes(self) -> int:
        share = (self.group - 1) / self.group
        return round(
            self.bytes
            * {"all-reduce": 2 * share, "collective-permute": 1, "collective-broadcast": 1}.get(self.kind, share)
        )

    @property
    def total(self) -> int:
        """Bytes that a device sends in one call of the program."""
        return self.times * self.wire_bytes


def collectives(module: Module, causes: Causes) -> list[Collective]:
    """All of a program, the largest first."""
    found = []
    for run in module.runs():
        seen: set[int] = set()  # starts, steps and ends of one gather that is fused with computation bear one channel
        for instruction in run.computation.instructions.values():
            for inner, fused in _within(module, instruction):
                if inner.channel is not None and inner.channel in seen:
                    continue
                if (made := _collective(module, causes, run, instruction, inner, fused)) is not None:
                    found.append(made)
                    seen.add(inner.channel or -1)
    return sorted(found, key=lambda one: -one.total)


def _within(module: Module, instruction: Instruction) -> Iterator[tuple[Instruction, bool]]:
    """The instruction, or those that are fused into it."""
    yield instruction, False
    if instruction.opcode == "fusion":
        for name in instruction.called.values():
            if name in module.computations:
                yield from ((inner, True) for inner in module.inside(module.computations[name]))


def _collective(
    module: Module, causes: Causes, run: Run, outer: Instruction, inner: Instruction, fused: bool
) -> Collective | None:
    kind = inner.opcode.removesuffix("-start")
    if kind not in KINDS:
        return None
    group = _group(inner, module.devices)
    shapes = inner.shapes
    if inner.opcode.endswith("-start") and kind in ("all-gather", "collective-permute"):
        arrays = [shape for shape in shapes if shape.dtype != "u32" or shape.sizes]  # contexts of a permutation
        shapes = tuple(arrays[len(arrays) // 2 :])  # operands, then results
    if not shapes:
        return None
    size = sum(shape.bytes for shape in shapes) * (group if kind == "reduce-scatter" else 1)
    return Collective(
        kind=kind,
        dtype=max(shapes, key=lambda shape: shape.bytes).dtype,
        shapes=", ".join(map(str, sorted(shapes, key=lambda shape: -shape.bytes)[:3])),
        group=group,
        times=run.times,
        bytes=size,
        dimensions=found[1].count("1") if (found := _TORUS.search(inner.attributes)) else 0,
        overlaps=fused or inner.opcode.endswith("-start"),
        is_gather=kind == "all-reduce" and not fused and _is_padded(module, run.computation, inner),
        cause=causes.of(run.computation, outer if fused else inner),
    )


def _group(instruction: Instruction, devices: int) -> int:
    """Devices in one group, as `{{0,1},{2,3}}`, `[2,4]<=[8]` (2 groups of 4) or `mesh['x'=2,'y'=4] {'y'}`; without any, all."""
    if instruction.opcode.startswith("collective-permute") or not (found := _GROUPS.search(instruction.attributes)):
        return devices
    listed, _, size, sizes, axes = found.groups()
    if size:
        return int(size)
    if sizes is None:
        return len([number for number in listed.split(",") if number]) or devices
    known = {name: int(parts) for name, parts in re.findall(r"'([^']+)'=(\d+)", sizes)}
    # Part of an axis is written 'x':(1)4, four parts of it.
    return math.prod(
        int(part) if part else known[name] for name, part in re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", axes)
    )


def _is_padded(module: Module, computation: Computation, instruction: Instruction) -> bool:
    """Whether what is summed is shards put into zeros."""
    largest = max(range(len(instruction.shapes)), key=lambda i: instruction.shapes[i].bytes)
    name = instruction.operands[largest] if largest < len(instruction.operands) else ""
    for _ in range(6):
        made = computation.instructions.get(name)
        if made is None:
            return False
        if made.opcode in ("copy-done", "copy-start", "copy", "bitcast", "convert") and made.operands:
            name = made.operands[0]
            continue
        inner = [made] if made.opcode != "fusion" else list(module.inside(module.computations[made.called["calls"]]))
        opcodes = {one.opcode for one in inner}
        return bool(opcodes & {"dynamic-update-slice", "pad"}) and not opcodes & {
            "dot",
            "convolution",
            "scatter",
            "reduce",
        }
    return False
