"""A report as a person reads it in a terminal."""

from __future__ import annotations

import math
from collections.abc import Iterable

from chameleon_jax.compile_report.chips import GIB
from chameleon_jax.compile_report.report import Report

_ROWS = 8  # of each list


def text(report: Report) -> str:
    """The whole report, a paragraph a subject."""
    return "\n\n".join([_head(report), _memory(report), _alive(report), _wire(report), _time(report)]) + "\n"


def _head(report: Report) -> str:
    mesh = ", ".join(f"{axis} {size}" for axis, size in report.program.mesh.shape.items())
    lines = [
        f"{report.program.unit} on {report.devices} x {report.chip.name} ({mesh})",
        f"compiled in {report.compile_seconds:.0f} s, {report.compile_cpu_seconds:.0f} s of CPU time",
    ]
    return "\n".join([*lines, *(f"note: {note}" for note in report.program.notes)])


def _memory(report: Report) -> str:
    memory = report.memory
    rows = [
        ("arguments", memory.arguments), ("temporaries", memory.temporaries), ("outputs", memory.outputs),
        ("outputs in place of arguments", -memory.aliased), ("code", memory.code), ("peak", memory.peak),
    ]  # fmt: skip
    fits = {None: "", True: "fits", False: "DOES NOT FIT"}[report.fits]
    limit = "" if report.chip.hbm is None else f"  of {gib(report.chip.hbm)}: {fits}"
    lines = [f"  {name:30} {gib(size):>11}" for name, size in rows]
    return "\n".join(["memory of a device", *lines[:-1], lines[-1] + limit])


def _alive(report: Report) -> str:
    if not report.alive:
        return "alive at the peak: the compiler does not say (not on this platform, or the program came from the cache)"
    rows = [(gib(one.bytes), one.shape, one.cause) for one in report.alive[:_ROWS]]
    total = gib(sum(one.bytes for one in report.alive))
    return table(f"largest temporaries alive at the peak, {total} in all by the compiler's live ranges", rows)


def _wire(report: Report) -> str:
    total, whole = report.wire_bytes, report.program.parameter_bytes
    if not report.collectives:
        return "nothing is sent between devices"
    times = f", {total / whole:.2f} times the parameters in the compute dtype ({gib(whole)})"
    head = f"sent by a device: {gib(total)}{times}"
    kinds = [(gib(size), name) for name, size in report.wire_by("kind").items()]
    causes = [(gib(size), name) for name, size in report.wire_by("cause").items()]
    return table(head, kinds[:_ROWS]) + "\n" + table("  by cause", causes[:_ROWS])


def _time(report: Report) -> str:
    found = report.seconds
    rows = [
        ("matrix units", found.matrix), ("other computing, and memory", found.other), ("kernels, at their peak", found.kernels),
        ("waiting for the wire", found.wire_waiting), ("wire beside computing", found.wire_hidden), ("all together", found.total),
        ("to read the arguments once", report.memory.arguments / report.chip.hbm_rate if report.program.kind == "decode" else 0),
    ]  # fmt: skip
    flops = (
        f"operations of a device: {report.cost.flops:.3g} compiled, {report.model_flops:.3g} by the model's own count"
    )
    if math.isnan(found.total):
        return flops + f"\nno estimate of the time: the compiler for {report.chip.name} tells no cycles"
    lines = [f"  {name:30} {_ms(seconds):>11}" for name, seconds in rows if seconds or name == "all together"]
    shares = [
        f"share of the peak ({report.chip.peak_flops / 1e12:.0f} TFLOP/s): {report.share_of_peak(found.total):.1%}, without the "
        f"wire {report.share_of_peak(found.computing):.1%}; most of the time goes to: {report.bound}"
    ]
    if report.unknown_loops:
        names = ", ".join(dict.fromkeys(report.unknown_loops))
        shares.append(f"counted as one turn each, for they end where the data say: the loops of {names}")
    causes = [(_ms(cycles / report.chip.clock), name) for name, cycles in report.cost.cycles_by_cause().items()]
    return "\n".join(
        [flops, "estimated time of a call", *lines, *shares, table("  computing by cause", causes[:_ROWS])]
    )


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.1f} ms" if seconds >= 0.01 else f"{1e3 * seconds:.3f} ms"


def gib(size: float) -> str:
    """Bytes, in GiB, MiB or KiB."""
    if abs(size) >= 0.1 * GIB:
        return f"{size / GIB:.2f} GiB"
    return f"{size / 2**20:.1f} MiB" if abs(size) >= 0.1 * 2**20 else f"{size / 2**10:.1f} KiB"


def table(head: str, rows: Iterable[tuple[str, ...]]) -> str:
    """Rows of which the first column is right-aligned, below a head."""
    rows = list(rows)
    first = max((len(row[0]) for row in rows), default=0)
    return "\n".join([head, *(f"  {row[0]:>{first}}  {'  '.join(row[1:])}".rstrip() for row in rows)])
