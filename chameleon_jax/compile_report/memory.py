"""Memory of a compiled program on one device, and what fills it at its fullest moment.

The sums are the executable's own. What is alive at the peak is read from the live ranges that the compiler writes beside its dumped
program; it leaves none where the program came from the cache, or with compilers that do not dump.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

from chameleon_jax.compile_report.cause import Causes
from chameleon_jax.compile_report.hlo import Module, Shape

_ALIVE = re.compile(r"^\s+([\w.\-]+)\{([\d,]*)\}: (\d+) bytes")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes. Aliased are outputs that take the place of arguments, as a donated state does."""

    arguments: int
    temporaries: int
    outputs: int
    aliased: int
    code: int

    @property
    def peak(self) -> int:
        return self.arguments + self.temporaries + self.outputs - self.aliased + self.code


@dataclasses.dataclass(frozen=True, kw_only=True)
class Alive:
    """An array that exists at the peak."""

    bytes: int
    shape: str
    cause: str
    name: str


def memory_of(compiled: Any) -> Memory:
    found = compiled.memory_analysis()
    return Memory(
        arguments=found.argument_size_in_bytes,
        temporaries=found.temp_size_in_bytes,
        outputs=found.output_size_in_bytes,
        aliased=found.alias_size_in_bytes,
        code=found.generated_code_size_in_bytes,
    )


def alive_at_peak(folder: Path, module: Module, causes: Causes) -> list[Alive]:
    """The largest first, arguments left out; empty where the compiler has dumped nothing into `folder`."""
    files = sorted(folder.glob("*live-range.txt"), key=lambda file: -file.stat().st_size)
    if not files:
        return []
    places = {
        one.name: (computation, one)
        for computation in module.computations.values()
        for one in computation.instructions.values()
    }
    alive, at_peak = [], False
    for line in files[0].read_text().splitlines():
        if line.strip().startswith("Live ranges at") and "(peak)" in line:
            at_peak = True
        elif at_peak and (found := _ALIVE.match(line)):
            if found[1] in places:
                computation, one = places[found[1]]
                if one.opcode == "parameter":
                    continue
                shape = _part(one.shapes, found[2], int(found[3]))
                alive.append(Alive(bytes=int(found[3]), shape=shape, cause=causes.of(computation, one), name=one.name))
        elif at_peak:
            break
    return sorted(alive, key=lambda one: -one.bytes)


def _part(shapes: tuple[Shape, ...], index: str, size: int) -> str:
    """The array of a result, by its index where that has one number, else by its size."""
    if index.isdigit() and int(index) < len(shapes):
        return str(shapes[int(index)])
    fitting = [shape for shape in shapes if shape.bytes <= size]
    return str(max(fitting or shapes, key=lambda shape: shape.bytes, default=""))
