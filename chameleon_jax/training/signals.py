"""A polite stop: the first SIGTERM or SIGINT asks the loop to end after its step, a second SIGINT ends it at once.

A handler only sets a flag. The loop looks at the flag between steps, saves once, and exits with EXIT_STOPPED, which
schedulers can tell from success and from failure ("stopped by a signal, run me again to go on").
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType
from typing import Any, Self

EXIT_STOPPED = 75  # EX_TEMPFAIL of sysexits.h: stopped by a signal and saved; the same command resumes

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(Exception):
    """Ended by a signal with everything saved, below a caller that returns EXIT_STOPPED."""


class StopRequest:
    """Context manager; `requested` turns true when a signal asks to stop. Old handlers come back at the end.

    It knows of this process alone: where several processes train together, a loop must stop on
    `parallel.agreement.StopAgreement`, for one that stops alone leaves the others hanging in a collective.
    Outside the main thread, where Python allows no handlers, it is never requested by a signal.
    """

    def __init__(self) -> None:
        self.requested = False
        self._old: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                # None: a handler that Python did not install and could not put back.
                if signal.getsignal(number) is not None:
                    self._old[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)
        self._old.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not self.requested:
            self.requested = True
            again = "; Ctrl-C again to stop at once" if number == signal.SIGINT else ""
            # os.write: a handler may interrupt a print that holds the stream's lock.
            text = f"{signal.Signals(number).name}: stopping after this step and saving{again}\n"
            os.write(sys.__stderr__.fileno() if sys.__stderr__ is not None else 2, text.encode())
