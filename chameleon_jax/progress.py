"""A progress bar with rate and time left on a terminal, and a plain line every few seconds anywhere else.

Both are of the last half minute, and of nothing before the first piece of work was done: that is when programs are compiled.
"""

from __future__ import annotations

import collections
import contextlib
import sys
import time
from collections.abc import Iterator

PLAIN_SECONDS = 10.0  # between lines where there is no terminal
RATE_SECONDS = 30.0  # that the rate looks back, if there are enough marks in them
_FEWEST_MARKS = 10
_MARK_SECONDS = 0.1  # between two marks at least


class Bar:
    """Counts work done; `advance` is all that callers need."""

    def __init__(self, title: str, total: int | None, unit: str, done: int, quiet: float):
        self._title, self._total, self._unit, self._quiet = title, total, unit, quiet
        self._start_count = self._count = done
        self._start = self._last_line = time.monotonic()
        self._marks: collections.deque[tuple[float, int]] = collections.deque()  # when how much was done
        self._note = ""
        self._rich = self._task = None
        if not quiet:
            self._draw()

    def _draw(self) -> None:
        if not sys.stderr.isatty():
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[info]}"),
        )
        self._rich = Progress(*columns, console=Console(stderr=True))
        self._rich.start()
        self._task = self._rich.add_task(self._title, total=self._total, completed=self._count, info="")

    def advance(self, amount: int = 1, note: str = "") -> None:
        self._count += amount
        self._note = note or self._note
        self._mark(time.monotonic())
        if self._quiet and time.monotonic() - self._start >= self._quiet:
            self._quiet = 0.0
            self._draw()
        if self._rich is not None:
            self._rich.update(self._task, completed=self._count, info=self._speed_text())
        elif time.monotonic() - self._last_line >= PLAIN_SECONDS:
            self._last_line = time.monotonic()
            total = f"/{self._total:,}" if self._total is not None else ""
            self._print(f"{self._title}: {self._count:,}{total} {self._unit}, {self._speed_text()}")

    def rate(self) -> float | None:
        """Work a second; None until there are two marks."""
        if len(self._marks) < 2:
            return None
        (begin, before), (end, after) = self._marks[0], self._marks[-1]
        return (after - before) / max(end - begin, 1e-9)

    def seconds_left(self) -> float | None:
        """None where the total or the rate is not known."""
        rate = self.rate()
        return (self._total - self._count) / rate if self._total is not None and rate else None

    def close(self) -> None:
        """Say how much was done in which time."""
        if self._rich is not None:
            self._rich.stop()
        done, seconds = self._count - self._start_count, time.monotonic() - self._start
        if seconds < self._quiet:
            return
        note = f", {self._note}" if self._note else ""
        self._print(f"{self._title}: {done:,} {self._unit} in {format_seconds(seconds)}{note}")

    def _mark(self, now: float) -> None:
        """Remember the moment; the first is the end of the first piece of work, so what was compiled for it does not count."""
        if len(self._marks) >= 2 and now - self._marks[-2][0] < _MARK_SECONDS:
            self._marks.pop()
        self._marks.append((now, self._count))
        while len(self._marks) > _FEWEST_MARKS and now - self._marks[1][0] > RATE_SECONDS:
            self._marks.popleft()

    def _speed_text(self) -> str:
        rate, left = self.rate(), self.seconds_left()
        parts = ["" if rate is None else f"{rate:,.1f} {self._unit}/s"]
        parts += ["" if left is None else f"{format_seconds(left)} left", self._note]
        return ", ".join(part for part in parts if part) or "starting"

    def _print(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)


@contextlib.contextmanager
def progress(title: str, *, total: int | None, unit: str = "items", done: int = 0, quiet: float = 0.0) -> Iterator[Bar]:
    """Show progress while the block runs; `done` items were finished by an earlier, interrupted run.

    Nothing is shown of a block that takes less than `quiet` seconds, nor in these.
    """
    bar = Bar(title, total, unit, done, quiet)
    try:
        yield bar
    finally:
        bar.close()


def printable(text: str) -> str:
    """Text of others, as of data or of a model, for a terminal: no character of it can command one.

    Line breaks show as ⏎, others without a shape as ·.
    """
    return "".join(c if c.isprintable() else "⏎" if c == "\n" else "·" for c in text)


def count(number: int, noun: str) -> str:
    """`1 record`, `1,200 records`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def format_seconds(seconds: float) -> str:
    """Seconds as `1h02m`, `3m05s` or `12s`."""
    seconds = max(0, round(seconds))
    if seconds >= 3600:
        return f"{seconds // 3600}h{seconds % 3600 // 60:02d}m"
    return f"{seconds // 60}m{seconds % 60:02d}s" if seconds >= 60 else f"{seconds}s"
