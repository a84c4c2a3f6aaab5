"""A compiled program's text (optimised HLO) as computations of instructions, and how often each computation runs in one call.

Only what a report needs is read: names, opcodes, result shapes, operands, called computations, trip counts of loops, the compiler's
own cycle estimates, and the source line and operation that an instruction comes from. Text of the CPU, GPU and TPU compilers is
accepted alike; what is not recognised is passed over.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping

BITS = {
    "pred": 8, "s2": 2, "u2": 2, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "s32": 32, "u32": 32, "s64": 64,
    "u64": 64, "bf16": 16, "f16": 16, "f32": 32, "f64": 64, "c64": 64, "c128": 128, "f4e2m1fn": 4,
}  # fmt: skip

PACKAGE = "chameleon_jax/"  # lines of which say where an instruction comes from, rather than of libraries
_HERE = "chameleon_jax/compile_report/"  # it only asks for the program
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) (?:\(.*\) -> .*)?\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
_SHAPE = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,<= ]*)\]")
_CALLED = re.compile(r"\b(calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"\bbranch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_OPERATION = re.compile(r'op_name="((?:[^"\\]|\\.)*)"')
_SOURCE = re.compile(r'source_file="([^"]*)"(?:.*?source_line=(\d+))?')
_FRAME = re.compile(r"stack_frame_id=(\d+)")
_CHANNEL = re.compile(r"channel_id=(\d+)")


@dataclasses.dataclass(frozen=True)
class Shape:
    """One array of a result."""

    dtype: str
    sizes: tuple[int, ...]

    @property
    def bytes(self) -> int:
        bits = BITS.get(self.dtype, 8 if self.dtype.startswith("f8") else 0)  # tokens and opaque values take no room
        return math.prod(self.sizes) * bits // 8

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.sizes))}]"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Instruction:
    """One line of a computation. `attributes` is the text behind the operands."""

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    attributes: str
    is_root: bool

    @property
    def bytes(self) -> int:
        """Of all results."""
        return sum(shape.bytes for shape in self.shapes)

    @functools.cached_property
    def called(self) -> dict[str, str]:
        """Computations by their part: `calls`, `to_apply`, `body`, `condition`, or the number of a branch."""
        found = dict(_CALLED.findall(self.attributes))
        if branches := _BRANCHES.search(self.attributes):
            found |= {str(i): name.strip().lstrip("%") for i, name in enumerate(branches[1].split(","))}
        return found

    @functools.cached_property
    def cycles(self) -> int:
        """The TPU compiler's estimate, 0 where it makes none."""
        return int(found[1]) if (found := _CYCLES.search(self.attributes)) else 0

    @property
    def value(self) -> int | None:
        """Of an integer constant."""
        found = re.match(r"^(-?\d+)\)", self.attributes) if self.opcode == "constant" else None
        return int(found[1]) if found else None

    @property
    def index(self) -> int | None:
        """Which element of a tuple it takes."""
        found = re.search(r"\bindex=(\d+)", self.attributes) if self.opcode == "get-tuple-element" else None
        return int(found[1]) if found else None

    @property
    def channel(self) -> int | None:
        return int(found[1]) if (found := _CHANNEL.search(self.attributes)) else None

    @functools.cached_property
    def operation(self) -> str:
        """Path of the JAX operation, as in `jit(step)/jvp()/while/body/dot_general`; empty where the compiler names none."""
        return found[1] if (found := _OPERATION.search(self.attributes)) else ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Computation:
    name: str
    instructions: Mapping[str, Instruction]

    @property
    def root(self) -> Instruction | None:
        return next((found for found in self.instructions.values() if found.is_root), None)


@dataclasses.dataclass(frozen=True)
class Run:
    """A computation whose instructions the device runs one by one, and how many times it does in one call of the program."""

    computation: Computation
    times: int


class Module:
    """A parsed program.

    `unknown_trips` stands for loops whose end only the data decide; `unknown_loops` are the lines of those that were met.
    """

    def __init__(self, text: str, unknown_trips: int = 1):
        self.computations: dict[str, Computation] = {}
        self.entry = ""
        self.unknown_loops: list[str] = []
        self._unknown_trips = unknown_trips
        lines = text.splitlines()
        head = lines[0] if lines else ""
        self.devices = math.prod(
            int(found[1])
            for key in ("num_partitions", "replica_count")
            if (found := re.search(rf"\b{key}=(\d+)", head))
        )
        self._frames = _Frames(lines)
        self._parse(lines)

    def _parse(self, lines: list[str]) -> None:
        name, body = "", {}
        for line in _joined(lines):
            if found := _COMPUTATION.match(line):
                name, body = found[2], {}
                self.entry = name if found[1] else self.entry
            elif line == "}":
                self.computations[name] = Computation(name=name, instructions=body)
                name = ""
            elif name and (found := _INSTRUCTION.match(line)):
                body[found[2]] = _instruction(line, found)

    def runs(self) -> list[Run]:
        """Entry, loop bodies and conditions, branches and called computations, each with how often it runs; not what is fused.

        All branches of a conditional are counted, as a bound from above.
        """
        times: collections.Counter[str] = collections.Counter()
        self.unknown_loops = []
        if self.entry:
            self._visit(self.entry, 1, times)
        return [Run(self.computations[name], count) for name, count in times.items()]

    def _visit(self, name: str, times: int, seen: collections.Counter[str]) -> None:
        seen[name] += times
        for instruction in self.computations[name].instructions.values():
            called = {part: other for part, other in instruction.called.items() if other in self.computations}
            if instruction.opcode == "while":
                trips = self.trips(instruction)
                if trips is None:
                    self.unknown_loops.append((self.source(instruction) or [instruction.name])[0])
                    trips = self._unknown_trips
                for part, other in called.items():
                    self._visit(other, times * (trips + (part == "condition")), seen)
            elif instruction.opcode == "conditional" or instruction.opcode in ("call", "async-start"):
                for other in called.values():
                    self._visit(other, times, seen)

    def trips(self, loop: Instruction) -> int | None:
        """How often a `while` runs: as the compiler says, or the one integer that its condition compares its counter with."""
        if found := _TRIPS.search(loop.attributes):
            return int(found[1])
        condition = self.computations.get(loop.called.get("condition", ""))
        if condition is None:
            return None
        inside = list(self.inside(condition))
        compared = [i for i in inside if i.opcode == "compare"]
        values = [i.value for i in inside if i.value is not None]
        if len(compared) != 1 or len(values) != 1 or "direction=LT" not in compared[0].attributes:
            return None
        if any(i.opcode in ("and", "or", "reduce") for i in inside):
            return None
        return -(-values[0] // self._increment(loop, condition))

    def _increment(self, loop: Instruction, condition: Computation) -> int:
        """What a turn adds to the counter: more than 1 where the compiler has unrolled the loop."""
        body = self.computations.get(loop.called.get("body", ""))
        reads = [i for i in condition.instructions.values() if i.index is not None]
        if body is None or body.root is None or len(reads) != 1 or reads[0].index >= len(body.root.operands):
            return 1
        name, added = body.root.operands[reads[0].index], 0
        while (one := body.instructions.get(name)) is not None:
            if one.opcode == "add" and len(one.operands) == 2:
                first, second = (body.instructions.get(operand) for operand in one.operands)
                if first is not None and first.value is not None:
                    first, second = second, first
                if first is None or second is None or second.value is None:
                    return 1
                name, added = first.name, added + second.value
            elif one.opcode in ("copy", "bitcast"):
                name = one.operands[0]
            else:
                return added if one.index == reads[0].index and added > 0 else 1
        return 1

    def inside(self, computation: Computation) -> Iterator[Instruction]:
        """Instructions of a computation and of all that is fused into it or called by it, loops aside."""
        for instruction in computation.instructions.values():
            yield instruction
            if instruction.opcode != "while":
                for other in instruction.called.values():
                    if other in self.computations:
                        yield from self.inside(self.computations[other])

    def source(self, instruction: Instruction) -> list[str]:
        """`file.py:line` of the Python of this project that made it, and of its caller, where the compiler tells them."""
        if found := _SOURCE.search(instruction.attributes):
            lines = [f"{found[1]}:{found[2] or 0}"]
        elif found := _FRAME.search(instruction.attributes):
            lines = self._frames.lines(int(found[1]))
        else:
            lines = []
        ours = dict.fromkeys(line.rpartition("/")[2] for line in lines if PACKAGE in line and _HERE not in line)
        return list(ours)[:2]


def _instruction(line: str, start: re.Match[str]) -> Instruction:
    rest = line[start.end() :]
    end = _closing(rest) if rest.startswith("(") else rest.index(" ")
    result, rest = rest[:end], rest[end:].lstrip()
    opcode, _, rest = rest.partition("(")
    end = _closing("(" + rest) - 2
    operands, attributes = rest[:end], rest[end + 1 :]
    if opcode in ("constant", "parameter"):  # their one operand is a value
        operands, attributes = "", rest
    return Instruction(
        name=start[2],
        opcode=opcode,
        shapes=tuple(shapes_of(result)),
        operands=tuple(re.findall(r"%([\w.\-]+)", operands)) or tuple(operands.split(", ") if operands else ()),
        attributes=attributes,
        is_root=bool(start[1]),
    )


def _joined(lines: list[str]) -> Iterator[str]:
    """Lines with those that a text inside an instruction was broken into, as the notes of a kernel, put together again."""
    whole, inside = "", False
    for line in lines:
        if inside and not line.startswith("  ") and line != "}":
            whole += line
            continue
        yield whole
        whole = line
        inside = (line.endswith("{") and bool(_COMPUTATION.match(line))) or (inside and line != "}")
    yield whole


def shapes_of(text: str) -> Iterator[Shape]:
    """The arrays of a type, as in `(f32[2,3]{1,0}, s32[])`."""
    for dtype, sizes in _SHAPE.findall(text):
        if dtype in BITS or dtype.startswith("f8") or dtype == "token":
            yield Shape(dtype, tuple(int(size.strip("<= ")) for size in sizes.split(",") if size))


def _closing(text: str) -> int:
    """Index behind the parenthesis that closes the first one."""
    depth = 0
    for i, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return i + 1
    return len(text)


class _Frames:
    """The tables of source lines that stand before the computations, where the compiler writes them."""

    def __init__(self, lines: list[str]):
        self._files: dict[int, str] = {}
        self._functions: dict[int, str] = {}
        self._places: dict[int, tuple[int, int, int]] = {}
        self._frames: dict[int, tuple[int, int]] = {}
        section = ""
        for line in lines:
            if line in ("FileNames", "FunctionNames", "FileLocations", "StackFrames"):
                section = line
            elif section and (found := re.match(r"^(\d+) (.*)$", line)):
                number, text = int(found[1]), found[2]
                fields = {key: int(value) for key, value in re.findall(r"(\w+)=(\d+)", text)}
                if section == "FileNames":
                    self._files[number] = text.strip('"')
                elif section == "FunctionNames":
                    self._functions[number] = text.strip('"')
                elif section == "FileLocations":
                    self._places[number] = (fields["file_name_id"], fields["line"], fields.get("function_name_id", 0))
                elif section == "StackFrames":
                    self._frames[number] = (fields["file_location_id"], fields.get("parent_frame_id", 0))
            elif line.endswith("{"):
                break

    def lines(self, frame: int) -> list[str]:
        """From the innermost frame on outwards; without lambdas on the way, which only pass a call on."""
        found = []
        while frame in self._frames:
            place, parent = self._frames[frame]
            file, line, function = self._places[place]
            if not (found and self._functions.get(function, "").endswith("<lambda>")):
                found.append(f"{self._files[file]}:{line}")
            frame = parent - 1  # printed with an offset of one: the outermost has 1
        return found
