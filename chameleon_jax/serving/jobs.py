"""From the engine to the event loop: submit requests, await their ids, and give up.

The engine's thread hands each piece to the loop and goes on; no thread waits for a request. A piece then waits in a queue for its
reader, who may be as slow as its client: the queue needs no limit of its own, for an output has no more ids than its slot. Whoever
stops reading, at the end, by an error or by cancellation, cancels what still runs, so that no slot is kept by a request that nobody
waits for.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
from collections.abc import AsyncIterator, Sequence

import numpy as np

from chameleon_jax.errors import ChameleonError, GenerationError
from chameleon_jax.generation.engine import Engine, RequestHandle
from chameleon_jax.generation.logprobs import Logprobs
from chameleon_jax.generation.requests import EngineStopped, Generated, QueueFull, Request
from chameleon_jax.serving.errors import ApiError, bad_request, too_many


@dataclasses.dataclass(frozen=True)
class NewIds:
    """Ids that came, and their log-probabilities if the request asks for them."""

    ids: np.ndarray
    logprobs: Logprobs | None = None


class Jobs:
    """A few requests of one client, all submitted or none, to be done in `seconds`. For use in the event loop alone.

    Raises ApiError: 429 when the queue is full, 400 for a request that cannot be served, 503 when the engine has stopped.
    """

    def __init__(self, engine: Engine, requests: Sequence[Request], seconds: float):
        self._loop = asyncio.get_running_loop()
        self._deadline = self._loop.time() + seconds
        self._failure: ApiError | None = None
        self._queue: asyncio.Queue[tuple[int, NewIds | Generated | Exception]] = asyncio.Queue()
        self._handles: list[RequestHandle] = []
        try:
            for number, request in enumerate(requests):
                on_ids = functools.partial(self._post_ids, number)
                self._handles.append(engine.submit(request, on_ids, functools.partial(self._post, number)))
        except Exception as error:
            self.cancel()
            if isinstance(error, ChameleonError):
                raise _refusal(error) from None
            raise

    async def pieces(self) -> AsyncIterator[tuple[int, NewIds | Generated]]:
        """(number of the request, new ids), and at its end (number, Generated), until all have ended.

        Raises ApiError when time is up, GenerationError when the engine failed.
        """
        left = len(self._handles)
        while left:
            if self._failure is not None:  # told before what a slow reader has left waiting
                raise self._failure
            try:
                async with asyncio.timeout_at(self._deadline):
                    await asyncio.sleep(0)  # where pieces wait, `get` alone would never look at the time
                    number, item = await self._queue.get()
            except TimeoutError:
                raise ApiError(408, "the request took too long and was stopped", code="timeout") from None
            if isinstance(item, Exception):
                raise item
            left -= isinstance(item, Generated)
            yield number, item

    def fail(self, error: ApiError) -> None:
        """Let the reader of `pieces` have this error next."""
        self._failure = error
        self._queue.put_nowait((0, error))

    def cancel(self, number: int | None = None) -> None:
        """Free the slot of one request, or of all; nothing happens to those that have ended."""
        for handle in self._handles if number is None else [self._handles[number]]:
            handle.cancel()

    def _post_ids(self, number: int, ids: np.ndarray, logprobs: Logprobs | None = None) -> None:
        self._post(number, NewIds(ids, logprobs))

    def _post(self, number: int, item: NewIds | Generated | GenerationError) -> None:
        """In the engine's thread. Raises RuntimeError when the loop is closed; the engine then cancels the request."""
        self._loop.call_soon_threadsafe(self._queue.put_nowait, (number, item))


def _refusal(error: ChameleonError) -> ApiError:
    if isinstance(error, QueueFull):
        return too_many(str(error), error.retry_after)
    if isinstance(error, EngineStopped):
        return ApiError(503, str(error), code="engine_stopped")
    return bad_request(str(error))
