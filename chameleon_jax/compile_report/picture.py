"""A report as a picture: where the memory, the time and the bytes on the wire of one call go."""

from __future__ import annotations

import math
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

from chameleon_jax.compile_report.chips import GIB
from chameleon_jax.compile_report.console import gib
from chameleon_jax.compile_report.report import Report

_ROWS = 10


def draw(report: Report, path: Path) -> None:
    """Write a PNG of bars: memory, time by cause, and bytes sent by cause."""
    figure, axes = pyplot.subplots(1, 3, figsize=(17, 5.2), layout="constrained")
    mesh = " x ".join(f"{axis} {size}" for axis, size in report.program.mesh.shape.items())
    figure.suptitle(f"{report.program.unit}, {report.devices} x {report.chip.name}, {mesh}")
    _memory(report, axes[0])
    _time(report, axes[1])
    sent = {name: size / GIB for name, size in report.wire_by("cause").items()}
    _bars(axes[2], sent, f"sent by a device: {gib(report.wire_bytes)}", "GiB", "#4878a8")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _memory(report: Report, axis: pyplot.Axes) -> None:
    bars = {"arguments": report.memory.arguments}
    bars |= {f"{one.shape} {one.cause}": one.bytes for one in report.alive[: _ROWS - 3]}
    known = sum(one.bytes for one in report.alive[: _ROWS - 3])
    bars |= {"other temporaries": max(0, report.memory.temporaries - known), "code": report.memory.code}
    limit = "" if report.chip.hbm is None else f" of {report.chip.hbm / GIB:.0f} GiB"
    title = f"memory of a device: {gib(report.memory.peak)}{limit}"
    _bars(axis, {name: size / GIB for name, size in bars.items()}, title, "GiB", "#a86048")


def _time(report: Report, axis: pyplot.Axes) -> None:
    found = report.seconds
    if math.isnan(found.total):
        axis.text(0.5, 0.5, "no estimate of the time", ha="center")
        axis.set_axis_off()
        return
    bars = {name: 1e3 * cycles / report.chip.clock for name, cycles in report.cost.cycles_by_cause().items()}
    bars = dict(list(bars.items())[: _ROWS - 2])
    bars["waiting for the wire"] = 1e3 * found.wire_waiting
    bars = dict(sorted(bars.items(), key=lambda item: -item[1]))
    title = f"estimated time: {1e3 * found.total:.0f} ms, {report.share_of_peak(found.total):.0%} of the peak"
    _bars(axis, bars, title, "ms", "#5a8a5a")


def _bars(axis: pyplot.Axes, values: dict[str, float], title: str, unit: str, colour: str) -> None:
    if unit == "GiB" and max(values.values(), default=1) < 0.1:
        values, unit = {name: 1024 * value for name, value in values.items()}, "MiB"
    names = list(values)[:_ROWS][::-1]
    axis.barh(range(len(names)), [values[name] for name in names], color=colour)
    axis.set_yticks(range(len(names)), [name if len(name) <= 42 else name[:39] + "..." for name in names], fontsize=8)
    axis.bar_label(axis.containers[0], fmt="%.3g", fontsize=8, padding=2)
    axis.set_title(title, fontsize=10)
    axis.set_xlabel(unit)
    axis.margins(x=0.15)
    axis.spines[["top", "right"]].set_visible(False)
