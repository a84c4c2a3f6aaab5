"""Operations and cycles of a compiled program, with loops counted as often as they run.

Cycles are the TPU compiler's own estimate for each fusion, as it stands in the program; they hold reading and writing of memory
too. What the compiler makes no estimate for, as hand-written kernels, is counted apart (`kernels`), by its operations alone.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Iterator

from chameleon_jax.compile_report.cause import Causes
from chameleon_jax.compile_report.hlo import Computation, Instruction, Module

_WINDOW = re.compile(r"window=\{([^}]*)\}")
_LABELS = re.compile(r"dim_labels=(\w+)_(\w+)->(\w+)")
_KERNEL_FLOPS = re.compile(r'"cost_estimate":\{[^}]*"flops":"?(\d+)')
# Products of queries and keys, or of scores and values, in JAX's splash attention: forward, and all of backward in one kernel. It
# tells no operations; half of the scores exist under the causal mask.
_SPLASH = {"_fwd": 2, "_dkv": 5}
_KERNELS = ("tpu_custom_call", "triton_kernel_call", "__gpu$xla.gpu.triton", "mosaic_gpu_v2")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """What one instruction does in one call of the program, all its runs together."""

    name: str
    cause: str
    is_matrix: bool  # uses the matrix unit
    is_kernel: bool  # hand-written, of unknown cycles
    flops: float  # of its products
    cycles: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cost:
    """Sums over a program, on one device."""

    works: tuple[Work, ...]  # the longest first

    def cycles(self, *, matrix: bool) -> float:
        return sum(work.cycles for work in self.works if work.is_matrix == matrix)

    @property
    def flops(self) -> float:
        return sum(work.flops for work in self.works)

    @property
    def kernel_flops(self) -> float:
        return sum(work.flops for work in self.works if work.is_kernel)

    @property
    def kernels(self) -> int:
        return sum(work.is_kernel for work in self.works)

    def cycles_by_cause(self) -> dict[str, float]:
        """The most expensive first."""
        sums: collections.Counter[str] = collections.Counter()
        for work in self.works:
            sums[work.cause] += work.cycles
        return dict(sums.most_common())


def cost(module: Module, causes: Causes) -> Cost:
    works = []
    for run in module.runs():
        for instruction in run.computation.instructions.values():
            flops, matrix, kernel = 0.0, False, False
            for inner, computation in _parts(module, run.computation, instruction):
                own = _flops(inner, computation)
                is_kernel = inner.opcode == "custom-call" and any(name in inner.attributes for name in _KERNELS)
                flops, matrix, kernel = flops + own, matrix or own > 0 or is_kernel, kernel or is_kernel
            if flops or kernel or instruction.cycles:
                works.append(
                    Work(
                        name=instruction.name,
                        cause=causes.of(run.computation, instruction),
                        is_matrix=matrix,
                        is_kernel=kernel and not instruction.cycles,
                        flops=flops * run.times,
                        cycles=float(instruction.cycles * run.times),
                    )
                )
    return Cost(works=tuple(sorted(works, key=lambda work: (-work.cycles, -work.flops))))


def _parts(
    module: Module, computation: Computation, instruction: Instruction
) -> Iterator[tuple[Instruction, Computation]]:
    """What an instruction consists of; loops, branches and calls are computations that run by themselves."""
    if instruction.opcode in ("while", "conditional", "call", "async-start"):
        return
    yield instruction, computation
    if instruction.opcode == "fusion":
        inner = module.computations.get(instruction.called.get("calls", ""))
        for part in inner.instructions.values() if inner else ():
            yield from _parts(module, inner, part)


def _flops(instruction: Instruction, computation: Computation) -> float:
    """Two for each product that is added; 0 for what is no matrix product or convolution."""
    if instruction.opcode == "custom-call":
        found = _KERNEL_FLOPS.search(instruction.attributes)
        return float(found[1]) if found else _splash_flops(instruction, computation)
    if instruction.opcode not in ("dot", "convolution") or len(instruction.operands) != 2:
        return 0.0
    left, right = (computation.instructions.get(name) for name in instruction.operands)
    if left is None or right is None or not (left.shapes and right.shapes and instruction.shapes):
        return 0.0
    out = math.prod(instruction.shapes[0].sizes)
    if instruction.opcode == "dot":
        contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.attributes)
        sizes = [left.shapes[0].sizes[int(i)] for i in contracted[1].split(",") if i] if contracted else []
        return 2.0 * out * math.prod(sizes)
    return _convolution(instruction, left.shapes[0].sizes, right.shapes[0].sizes, out)


def _splash_flops(instruction: Instruction, computation: Computation) -> float:
    products = [
        count for part, count in _SPLASH.items() if instruction.name.startswith("splash_") and part in instruction.name
    ]
    operands = (computation.instructions.get(name) for name in instruction.operands)
    arrays = [one.shapes[0] for one in operands if one is not None and one.shapes]
    heads = [shape.sizes for shape in arrays if shape.dtype in ("bf16", "f32", "f16") and len(shape.sizes) >= 3]
    if not products or len(heads) < 2:
        return 0.0
    queries, keys = heads[:2]
    return products[0] * 2.0 * math.prod(queries) * keys[-2] / 2


def _convolution(instruction: Instruction, left: tuple[int, ...], right: tuple[int, ...], out: int) -> float:
    """The TPU compiler writes every product so; dimensions of a batch are windows that meet in one place alone."""
    labels = _LABELS.search(instruction.attributes)
    if labels is None:
        return 0.0
    inputs, kernel, output = labels.groups()
    total = 2.0 * out * right[kernel.index("i")]
    window = _WINDOW.search(instruction.attributes)
    fields = dict(part.split("=") for part in window[1].split()) if window else {}
    places = sorted(letter for letter in kernel if letter.isdigit())
    for n, letter in enumerate(places):

        def of(name: str, default: str, n: int = n) -> str:
            return fields[name].split("x")[n] if name in fields else default

        low = int(of("pad", "0_0").split("_")[0])
        met = _met(
            left[inputs.index(letter)], right[kernel.index(letter)], instruction.shapes[0].sizes[output.index(letter)],
            int(of("stride", "1")), low, int(of("lhs_dilate", "1")), int(of("rhs_dilate", "1")),
        )  # fmt: skip
        total *= met / instruction.shapes[0].sizes[output.index(letter)]
    return total


@functools.lru_cache(maxsize=1024)
def _met(size: int, window: int, outputs: int, stride: int, low: int, dilation: int, window_dilation: int) -> int:
    """Pairs of an output and a place of its window that meet an element, and not padding or a hole, along one dimension."""
    span = (size - 1) * dilation + 1
    count = 0
    for k in range(window):
        shift = k * window_dilation - low
        if stride == 1 and dilation == 1:
            count += max(0, min(outputs, span - shift) - max(0, -shift))
        else:
            count += sum(0 <= (at := o * stride + shift) < span and at % dilation == 0 for o in range(outputs))
    return count
