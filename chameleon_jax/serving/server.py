"""The process: where it listens, clocks of connections, and an end that lets answers finish.

It listens before the model is loaded and compiled, which may take minutes: who asks how it does is told, requests wait.
SIGTERM is not an error. No new connection is taken, streams get `drain_seconds` to end and are told if they are
cut, and the exit code is 0.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence

import uvicorn
from absl import logging
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from chameleon_jax.configs import ServeConfig
from chameleon_jax.errors import ConfigError
from chameleon_jax.serving.errors import ApiError
from chameleon_jax.serving.limits import is_loopback
from chameleon_jax.serving.service import Service

_HEADER_SECONDS = 30.0  # that a connection may be open without a whole request
_GRACE_SECONDS = 5.0  # for those that were told to stop


def check_access(config: ServeConfig, api_key: str | None, insecure: bool) -> None:
    """Raise ConfigError for a server that everybody on the network could use."""
    if api_key is not None and not (api_key.isascii() and api_key.isprintable() and api_key == api_key.strip() != ""):
        raise ConfigError("the API key is empty or has characters that a header cannot hold")
    if "*" in config.cors_origin and api_key is None:
        raise ConfigError(
            "cors_origin=* lets every web page use this server: set CHAMELEON_API_KEY (or --api_key), or name the pages"
        )
    if not is_loopback(config.host) and api_key is None and not insecure:
        raise ConfigError(
            f"host {config.host} can be reached from other machines: set CHAMELEON_API_KEY (or --api_key), or say --insecure"
        )


def bind(config: ServeConfig) -> socket.socket:
    """A socket that listens: from now on clients wait and are not refused. Raises ConfigError when the address cannot be had."""
    try:
        family, *_, address = socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM)[0]
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen()
    except OSError as error:
        another = f"; another with --port={config.port + 1 if config.port < 65535 else 8000}"
        hint = another if error.errno == errno.EADDRINUSE else ""
        raise ConfigError(f"cannot listen on {config.host}:{config.port}: {error.strerror or error}{hint}") from error
    return sock


class Protocol(H11Protocol):
    """uvicorn's, with a clock for the headers of a request and a way to drop a client that does not read."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.app_state = {**self.app_state, "abort": self._abort}
        self._clock: asyncio.TimerHandle | None = None
        self.access_log = False  # `limits.Guard` writes a line, without what a client put behind the path

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self._wait_for_request()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._clock is not None:
            self._clock.cancel()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._wait_for_request()

    def send_400_response(self, msg: str) -> None:
        """As uvicorn's, in the form of all other errors."""
        body = json.dumps(ApiError(400, msg, code="invalid_http").body()).encode()
        head = f"HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        self.transport.write(head.encode() + b"Connection: close\r\n\r\n" + body)
        self.transport.close()

    def _wait_for_request(self) -> None:
        if self._clock is not None:
            self._clock.cancel()
        self._clock = self.loop.call_later(_HEADER_SECONDS, self._close_unused)

    def _close_unused(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self._abort()

    def _abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()


class Server(uvicorn.Server):
    """uvicorn's, which after a signal drains and returns instead of dying of the signal."""

    def __init__(self, services: Sequence[Service], app: ASGIApp):
        config = services[0].config
        super().__init__(
            uvicorn.Config(
                app,
                http=Protocol,
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_graceful_shutdown=int(config.drain_seconds + _GRACE_SECONDS),
            )
        )
        self._services = services

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        def stop(number: int, frame) -> None:
            self.handle_exit(number, frame)

        try:
            before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # not in the main thread: a test, whose signals are not ours
            before = {}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        stats = [service.stats() for service in self._services]
        seconds = self._services[0].config.drain_seconds
        running, queued = sum(own.running for own in stats), sum(own.queued for own in stats)
        logging.info("stopping: %d running and %d waiting have %g s to finish", running, queued, seconds)
        for service in self._services:
            service.draining = True
            # Where nothing is compiled yet, nothing can finish.
            asyncio.get_running_loop().call_later(seconds if service.engine else 0, service.stop_streams)
        await super().shutdown(sockets)


def serve(services: Sequence[Service], app: ASGIApp, sock: socket.socket, start: Callable[[], None]) -> None:
    """Until a signal comes and all is drained. `start` loads, compiles and opens the models, in a thread beside the server.

    Raises what `start` raises.
    """
    host, port = sock.getsockname()[:2]
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    server = Server(services, app)
    names = ", ".join(service.model_name for service in services)
    failures: list[BaseException] = []

    def begin() -> None:
        try:
            start()
            if not server.should_exit:
                logging.info("serving %s on %s", names, url)
        except BaseException as error:  # whatever it is, it ends the process
            failures.append(error)
            server.should_exit = True

    starting = threading.Thread(target=begin, name="start", daemon=True)
    starting.start()
    logging.info("listening on %s; %s will answer when loaded and compiled", url, names)
    server.run(sockets=[sock])
    if failures:
        raise failures[0]
    if starting.is_alive():
        # A compilation cannot be interrupted, Python would wait for it or crash, and nothing is lost with it.
        logging.flush()
        os._exit(0)
