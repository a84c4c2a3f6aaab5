"""A progress bar with rate and time left on a terminal, and a plain line every few seconds anywhere else."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator

PLAIN_SECONDS = 10.0  # between lines where there is no terminal


class Bar:
    """Counts work done; `advance` is all that callers need."""

    def __init__(self, title: str, total: int | None, unit: str, done: int):
        self._title, self._total, self._unit = title, total, unit
        self._start_count = self._count = done
        self._start = self._last_line = time.monotonic()
        self._note = ""
        self._rich = self._task = None
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[info]}"),
            )
            self._rich = Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True))
            self._rich.start()
            self._task = self._rich.add_task(title, total=total, completed=done, info="")

    def advance(self, amount: int = 1, note: str = "") -> None:
        self._count += amount
        self._note = note or self._note
        if self._rich is not None:
            info = " ".join(part for part in (self._rate_text(), self._note) if part)
            self._rich.update(self._task, completed=self._count, info=info)
        elif time.monotonic() - self._last_line >= PLAIN_SECONDS:
            self._print_line()

    def _rate(self) -> float:
        return (self._count - self._start_count) / max(time.monotonic() - self._start, 1e-9)

    def _rate_text(self) -> str:
        return f"{self._rate():,.1f} {self._unit}/s"

    def _print_line(self) -> None:
        self._last_line = time.monotonic()
        total = f"/{self._total:,}" if self._total is not None else ""
        left = ""
        if self._total is not None and self._rate() > 0:
            left = f", {format_seconds((self._total - self._count) / self._rate())} left"
        note = f", {self._note}" if self._note else ""
        print(
            f"{self._title}: {self._count:,}{total} {self._unit}, {self._rate_text()}{left}{note}",
            file=sys.stderr,
            flush=True,
        )

    def close(self) -> None:
        if self._rich is not None:
            self._rich.stop()
        else:
            self._print_line()


@contextlib.contextmanager
def progress(title: str, *, total: int | None, unit: str = "items", done: int = 0) -> Iterator[Bar]:
    """Show progress while the block runs; `done` items were finished by an earlier, interrupted run."""
    bar = Bar(title, total, unit, done)
    try:
        yield bar
    finally:
        bar.close()


def format_seconds(seconds: float) -> str:
    """Seconds as `1h02m`, `3m05s` or `12s`."""
    seconds = max(0, round(seconds))
    if seconds >= 3600:
        return f"{seconds // 3600}h{seconds % 3600 // 60:02d}m"
    return f"{seconds // 60}m{seconds % 60:02d}s" if seconds >= 60 else f"{seconds}s"
