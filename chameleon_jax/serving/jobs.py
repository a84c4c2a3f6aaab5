"""From the engine's threads to the event loop: submit requests, await their ids, and give up.

The one idea: an engine's stream is read by a thread of its own, which hands pieces to the loop. Whoever stops reading, at the end,
by an error or by cancellation, cancels what still runs, so that no slot is kept by a request that nobody waits for.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence

import numpy as np

from chameleon_jax.errors import ChameleonError
from chameleon_jax.generation.requests import Engine, EngineStopped, Generated, QueueFull, Request, Stream
from chameleon_jax.serving.errors import ApiError, bad_request, too_many


class Jobs:
    """A few requests of one client. Iterating gives (number of the request, new ids), and at its end (number, Generated)."""

    def __init__(self, streams: Sequence[Stream], deadline: float):
        self._streams, self._deadline = streams, deadline
        self._loop = asyncio.get_running_loop()
        self._failure: ApiError | None = None
        self._queue: asyncio.Queue[tuple[int, np.ndarray | Generated | BaseException]] = asyncio.Queue()
        for i, stream in enumerate(streams):
            threading.Thread(target=self._pump, args=(i, stream), name="stream", daemon=True).start()

    @classmethod
    async def start(cls, engine: Engine, requests: Sequence[Request], seconds: float) -> Jobs:
        """Submit all or none, to be done in `seconds`.

        Raises ApiError: 429 when the queue is full, 400 for a request that cannot be served.
        """
        loop = asyncio.get_running_loop()
        submitted = loop.run_in_executor(None, _submit, engine, requests)
        try:
            streams = await asyncio.shield(submitted)
        except asyncio.CancelledError:  # the client left, while a thread that cannot be stopped is submitting
            submitted.add_done_callback(lambda done: done.exception() or _cancel(done.result()))
            raise
        except QueueFull as error:
            raise too_many(str(error), error.retry_after) from None
        except EngineStopped as error:
            raise ApiError(503, str(error), code="engine_stopped") from None
        except ChameleonError as error:
            raise bad_request(str(error)) from None
        return cls(streams, loop.time() + seconds)

    async def pieces(self) -> AsyncIterator[tuple[int, np.ndarray | Generated]]:
        """Until all have ended. Raises ApiError when time is up, GenerationError when the engine failed."""
        left = len(self._streams)
        while left:
            if self._failure is not None:  # told before what a slow reader has left waiting
                raise self._failure
            try:
                async with asyncio.timeout_at(self._deadline):
                    await asyncio.sleep(0)  # where pieces wait, `get` alone would never look at the time
                    number, item = await self._queue.get()
            except TimeoutError:
                raise ApiError(408, "the request took too long and was stopped", code="timeout") from None
            if isinstance(item, BaseException):
                raise item
            left -= isinstance(item, Generated)
            yield number, item

    def fail(self, error: ApiError) -> None:
        """Let the reader of `pieces` have this error next."""
        self._failure = error
        self._queue.put_nowait((0, error))

    def cancel(self, number: int | None = None) -> None:
        """Free the slot of one request, or of all; nothing happens to those that have ended."""
        _cancel(self._streams if number is None else [self._streams[number]])

    def _pump(self, number: int, stream: Stream) -> None:
        try:
            for ids in stream:
                self._post(number, np.asarray(ids))
            self._post(number, stream.result())
        except Exception as error:  # the loop's side tells it
            self._post(number, error)

    def _post(self, number: int, item: np.ndarray | Generated | Exception) -> None:
        try:
            self._loop.call_soon_threadsafe(self._queue.put_nowait, (number, item))
        except RuntimeError:  # the loop is closed: the server is gone
            self._streams[number].cancel()


def _submit(engine: Engine, requests: Sequence[Request]) -> list[Stream]:
    streams: list[Stream] = []
    try:
        for request in requests:
            streams.append(engine.submit(request))
    except BaseException:
        _cancel(streams)
        raise
    return streams


def _cancel(streams: Sequence[Stream]) -> None:
    for stream in streams:
        stream.cancel()
