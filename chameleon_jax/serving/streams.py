"""Answers while they are made: server-sent events, and waiting that ends when the client leaves."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable
from typing import TypeVar

from starlette.types import Receive, Scope, Send

from chameleon_jax.errors import ChameleonError
from chameleon_jax.serving.errors import ApiError
from chameleon_jax.serving.limits import ClientGone
from chameleon_jax.serving.replies import END, KEEP_ALIVE, event

_KEEP_ALIVE_SECONDS = 10.0

T = TypeVar("T")


async def until_gone(receive: Receive, work: Awaitable[T]) -> T:
    """The result of the work, which is cancelled when the client leaves: then ClientGone. The body must have been read."""
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGone
        return working.result()
    finally:
        await _stop(working, leaving)


class EventStream:
    """An ASGI answer of events. Ends them with `data: [DONE]`, an error on the way as an error object before it."""

    def __init__(self, events: AsyncIterator[bytes]):
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = {
            "content-type": "text/event-stream; charset=utf-8",
            "cache-control": "no-store",
            "x-accel-buffering": "no",  # proxies that gather would hold the stream back
        }
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": 200, "headers": raw})
        await until_gone(receive, self._send_all(send))

    async def _send_all(self, send: Send) -> None:
        async def write(data: bytes, more: bool = True) -> None:
            await send({"type": "http.response.body", "body": data, "more_body": more})

        try:
            async for data in _with_keep_alive(self._events):
                await write(data)
        except ApiError as error:
            await write(event(error.body()))
        except ChameleonError as error:  # of the engine: the request was fine
            await write(event(ApiError(500, str(error)).body()))
        await write(END, more=False)


async def _with_keep_alive(events: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The events, and comments while none comes: proxies keep the connection, and a client that is gone is noticed."""
    coming = None
    try:
        while True:
            coming = coming or asyncio.ensure_future(anext(events, None))
            done, _ = await asyncio.wait((coming,), timeout=_KEEP_ALIVE_SECONDS)
            if not done:
                yield KEEP_ALIVE
                continue
            data, coming = coming.result(), None
            if data is None:
                return
            yield data
    finally:
        if coming is not None:
            await _stop(coming)
        await events.aclose()


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _stop(*tasks: asyncio.Future) -> None:
    """Cancel and wait, so that what they hold is let go before the answer counts as done."""
    for task in tasks:
        task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.gather(*tasks, return_exceptions=True)
