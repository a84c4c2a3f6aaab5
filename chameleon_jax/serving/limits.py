"""What is refused before a request is read, and how long a client may take.

Every limit is enforced while bytes move. A body is counted as it comes, whatever its header says of it, and both
directions have a clock.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import time
import traceback
from urllib.parse import urlsplit

from absl import logging
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from chameleon_jax.configs import ServeConfig
from chameleon_jax.serving.errors import ApiError
from chameleon_jax.serving.metrics import Metrics

OPEN_PATHS = ("/", "/health")  # and the page's files: all that works without the key


class ClientGone(Exception):
    """The client left, or took too long to accept its answer: there is nobody to tell."""


def is_loopback(host: str) -> bool:
    """Whether nobody but this machine reaches a server on this host."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


async def read_body(request: Request, config: ServeConfig) -> bytes:
    """The JSON body. Raises ApiError: 415 for another type, 413 for one too long, 408 for one that does not come."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # a web page can send other types anywhere without asking
        raise ApiError(415, f"content-type is '{kind[:80]}', send application/json", code="unsupported_media_type")
    too_long = ApiError(
        413, f"the body is larger than the {config.max_body_bytes} bytes that are taken", code="body_too_large"
    )
    said = request.headers.get("content-length", "0")
    if said.isascii() and said.isdecimal() and (len(said) > 15 or int(said) > config.max_body_bytes):
        raise too_long
    chunks, size = [], 0
    try:
        async with asyncio.timeout(config.body_seconds):
            async for chunk in request.stream():
                size += len(chunk)
                if size > config.max_body_bytes:
                    raise too_long
                chunks.append(chunk)
    except TimeoutError:
        raise ApiError(408, "the body did not come in time", code="timeout") from None
    except ClientDisconnect:
        raise ClientGone from None
    return b"".join(chunks)


class Guard:
    """Around all routes: key, origin, clocks, the log line and the count of every answer. Bodies are never logged."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        config: ServeConfig,
        metrics: Metrics,
        api_key: str | None,
        check_host: bool,
        public: frozenset[str],
        paths: frozenset[str],
    ):
        """`public` are the paths that need no key; `paths`, all that have a name in metrics and log."""
        self._app, self._config, self._metrics = app, config, metrics
        self._key = api_key.encode() if api_key else None
        self._check_host, self._public, self._paths = check_host, public, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.monotonic(), 0
        cors = self._cors_headers(Request(scope))

        async def timed_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", []), (b"x-content-type-options", b"nosniff"), *cors]
            try:
                async with asyncio.timeout(self._config.idle_seconds):
                    await send(message)
            except TimeoutError:
                raise ClientGone from None

        try:
            self._check(Request(scope))
            if cors and scope["method"] == "OPTIONS":
                await Response(status_code=204, headers=_preflight(Request(scope)))(scope, receive, timed_send)
            else:
                await self._app(scope, receive, timed_send)
        except ApiError as error:
            await error.response()(scope, receive, timed_send)
        except ClientGone:
            self._metrics.disconnects.inc()
            _abort(scope)
        except Exception as error:  # its words may hold a client's; its place does not
            logging.error(
                "%s in %s\n%s", type(error).__name__, scope["path"], "".join(traceback.format_tb(error.__traceback__))
            )
            if status:
                _abort(scope)
            else:
                await ApiError(500, "the server failed; its log says where").response()(scope, receive, timed_send)
        finally:
            path = scope["path"] if scope["path"] in self._paths else "other"  # clients make up as many as they like
            seconds = time.monotonic() - started
            self._metrics.responses.labels(path, str(status)).inc()
            self._metrics.seconds.labels(path).observe(seconds)
            logging.info("%s %s %d %.2f s", scope["method"], path, status, seconds)

    def _is_allowed(self, origin: str | None) -> bool:
        return origin is not None and not {origin, "*"}.isdisjoint(self._config.cors_origin)

    def _cors_headers(self, request: Request) -> list[tuple[bytes, bytes]]:
        """By which a browser lets a page of an allowed origin read the answer."""
        origin = request.headers.get("origin")
        if not self._is_allowed(origin):
            return []
        allowed = {
            "access-control-allow-origin": origin,
            "access-control-expose-headers": "retry-after",
            "vary": "origin",
        }
        return [(name.encode(), value.encode("latin-1", "replace")) for name, value in allowed.items()]

    def _check(self, request: Request) -> None:
        host = request.headers.get("host", "")
        if self._check_host and not is_loopback(_host_name(host)):
            raise ApiError(403, "this server answers to localhost only; start it with a key to reach it by name")
        origin = request.headers.get("origin")
        if origin is not None and origin.partition("://")[2] != host and not self._is_allowed(origin):
            raise ApiError(403, "requests of pages of other sites are not answered", code="origin")
        if request.method == "OPTIONS" and self._is_allowed(origin):  # a browser asks before it sends the key
            return
        if self._key is None or request.scope["path"] in self._public:
            return
        given = request.headers.get("authorization", "")
        scheme, _, key = given.partition(" ")
        # compare_digest takes as long for a wrong key as for the right one.
        if not (hmac.compare_digest(key.strip().encode("utf-8", "replace"), self._key) and scheme.lower() == "bearer"):
            message = "the API key is wrong" if given else "send the API key: Authorization: Bearer KEY"
            raise ApiError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})


def _preflight(request: Request) -> dict[str, str]:
    """All headers that a client wants to send may come: no cookie is ever read."""
    wanted = request.headers.get("access-control-request-headers", "authorization, content-type")
    return {
        "access-control-allow-methods": "GET, POST",
        "access-control-allow-headers": wanted,
        "access-control-max-age": "600",
    }


def _host_name(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _abort(scope: Scope) -> None:
    """Drop the connection, and with it what the client has not read."""
    if abort := scope.get("state", {}).get("abort"):
        abort()
