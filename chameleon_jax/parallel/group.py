"""The processes of one run: a roll call, values from all to all, and a line about one that dies.

Process 0 listens and every other process keeps one TCP connection to it. Before JAX is told of the others, each says who it is,
so that a process that is missing, doubled or wrongly addressed is an error of one line. Afterwards the kernel closes the
connection of a process the moment it ends, however it ends, and that of a machine that is silent (power or network lost) after
25 s: a connection that is closed without a goodbye is a death. Python threads notice it while the main thread hangs in a
collective, and end the process, since no collective will complete any more.

Messages are lines of JSON.
"""

from __future__ import annotations

import contextlib
import dataclasses
import ipaddress
import json
import os
import selectors
import socket
import sys
import threading
import time
from typing import Any, NoReturn

from absl import logging

from chameleon_jax.errors import ProcessError

EXIT_PEER_DIED = 1
_GRACE_SECONDS = 3.0  # after an error of another process, for the same error to be reported here
_SILENT_SECONDS = 25  # after which the kernel gives up a connection
_LONGEST_LINE = 64 << 20


@dataclasses.dataclass(frozen=True)
class Member:
    """One process as the others know it."""

    process: int
    host: str
    pid: int

    def __str__(self) -> str:
        return f"process {self.process} (host {self.host}, pid {self.pid})"


class _Line:
    """A connection that carries lines of JSON; several threads may send, one receives."""

    def __init__(self, connection: socket.socket):
        self.socket = connection
        self.early: list[dict[str, Any]] = []  # messages that came together with the first
        self._buffer = bytearray()
        self._lock = threading.Lock()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # A machine that loses power closes nothing: the kernel asks after 10 s of silence, and gives up 15 s later. While data
        # is on its way it does not ask: TCP_USER_TIMEOUT (in ms) limits how long the other end may leave it unacknowledged.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        limits = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": _SILENT_SECONDS * 1000}
        for option, value in limits.items():
            if hasattr(socket, option):
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)

    def send(self, message: dict[str, Any]) -> None:
        """Raises ProcessError for a message that the other end would not take."""
        line = json.dumps(message).encode() + b"\n"
        if len(line) > _LONGEST_LINE:
            raise ProcessError(
                f"{message.get('what', 'a message')}: {len(line) / 2**20:.0f} MiB are too much to send to another process "
                f"(at most {_LONGEST_LINE / 2**20:.0f} MiB); share less, or through a file"
            )
        with self._lock, contextlib.suppress(OSError):  # whether the other end lives is seen by receiving
            self.socket.sendall(line)

    def receive(self) -> list[dict[str, Any]] | None:
        """Whole messages that have arrived (waits for some bytes); None when the connection is closed or makes no sense."""
        try:
            data = self.socket.recv(1 << 16)
        except TimeoutError:
            raise
        except OSError:
            data = b""
        if not data:
            return None
        self._buffer += data
        if len(self._buffer) > _LONGEST_LINE + len(data):  # what we send is never that long
            return None
        if b"\n" not in data:  # only what is new is searched: a long message comes in many parts
            return []
        *lines, self._buffer = self._buffer.split(b"\n")
        try:
            messages = [json.loads(line) for line in lines]
        except (ValueError, RecursionError):
            return None
        return messages if all(isinstance(message, dict) for message in messages) else None

    def first(self, deadline: float) -> dict[str, Any] | None:
        """One message, awaited until `deadline` (time.monotonic); None when the connection is closed or makes no sense.

        What came together with it is `early`, which the receiver must look at before it waits for more.
        """
        messages: list[dict[str, Any]] | None = []
        while messages == []:
            self.socket.settimeout(max(0.01, deadline - time.monotonic()))
            messages = self.receive()
        self.socket.settimeout(None)
        if messages is None:
            return None
        message, *self.early = messages
        return message

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.socket.close()


class Group:
    """All processes of a run, after a roll call at `address` (HOST:PORT of process 0).

    The port is free again when this returns. Raises ProcessError within about `timeout` seconds when processes are missing (naming
    them), when two have one number, when they disagree about how many they are, and when `address` does not lead to process 0.
    """

    def __init__(self, address: str, process: int, processes: int, timeout: float):
        self.process, self.processes = process, processes
        self._address, self._timeout = address, timeout
        self._me = Member(process, socket.gethostname(), os.getpid())
        self._changed = threading.Condition()
        self._values: dict[int, dict[int, dict[str, Any]]] = {}
        self._answers: dict[int, dict[str, Any]] = {}
        self._shared = 0
        self._closing = threading.Event()
        self._lines: dict[int, _Line] = {}
        self.members = self._call_roll() if process == 0 else self._answer_roll()
        threading.Thread(target=self._watch, name="watch-processes", daemon=True).start()

    def share(self, value: Any, what: str, timeout: float = 3600.0) -> list[Any]:
        """The values (JSON) of all processes, in their order; all must call in the same order.

        `what` is said in errors. Raises ProcessError, naming the processes, when some do not come within `timeout` seconds.
        """
        number, self._shared = self._shared, self._shared + 1
        mine = {"kind": "value", "number": number, "what": what, "value": value}
        if self.process:
            self._lines[0].send(mine)
            with self._changed:
                if not self._changed.wait_for(lambda: number in self._answers, timeout + _GRACE_SECONDS):
                    raise ProcessError(f"{what}: waited {timeout:.0f} s for {self.members[0]}")
                answer = self._answers.pop(number)
        else:
            answer = self._collect(mine, timeout)
            for line in self._lines.values():
                line.send(answer)
        if "error" in answer:
            raise ProcessError(answer["error"])
        return answer["values"]

    def _collect(self, mine: dict[str, Any], timeout: float) -> dict[str, Any]:
        with self._changed:
            values = self._values.setdefault(mine["number"], {})
            values[0] = json.loads(json.dumps(mine))  # what others get, exactly
            complete = self._changed.wait_for(lambda: len(values) == self.processes, timeout)
            del self._values[mine["number"]]
        answer = {"kind": "values", "number": mine["number"], "what": mine["what"]}
        if not complete:
            absent = ", ".join(str(member) for member in self.members if member.process not in values)
            return answer | {"error": f"{mine['what']}: waited {timeout:.0f} s for {absent}"}
        for process in range(self.processes):
            if values[process]["what"] != mine["what"]:
                elsewhere = f"{self.members[process]} is at '{values[process]['what']}'"
                return answer | {"error": f"{elsewhere}, while process 0 is at '{mine['what']}'"}
        return answer | {"values": [values[process]["value"] for process in range(self.processes)]}

    def fail(self, text: str, code: int) -> None:
        """Tell the others that this process ends with an error; they end as well."""
        self._closing.set()
        ended = {"kind": "ended", "code": code, "text": f"{self._me} ended: {text}"}
        for line in self._lines.values():
            line.send(ended)

    def close(self) -> None:
        """Say goodbye: from here on the others may end without a word about it."""
        self._closing.set()
        for line in self._lines.values():
            line.send({"kind": "goodbye"})

    def _call_roll(self) -> list[Member]:
        """As process 0: wait for the others, check what they say, and welcome them."""
        host, port = _host_and_port(self._address)
        deadline = time.monotonic() + self._timeout
        with contextlib.suppress(OSError), _connect((host, port), timeout=1.0):
            raise ProcessError(
                f"{self._address} is in use: another process 0, or another run, listens there; "
                "give every process its own number, and every run its own port"
            )
        found = {0: self._me}
        try:
            with _listen(host, port) as server:
                self._let_in(server, found, deadline)
        except ProcessError as error:
            for line in self._lines.values():
                line.send({"kind": "refused", "error": str(error)})
            raise
        members = [found[process] for process in range(self.processes)]
        for line in self._lines.values():
            line.send({"kind": "welcome", "members": [dataclasses.astuple(member) for member in members]})
        return members

    def _let_in(self, server: socket.socket, found: dict[int, Member], deadline: float) -> None:
        """Until all are there. Whoever says nothing, or nothing of ours, holds nobody up."""
        server.settimeout(1.0)  # a connection may be gone before it is accepted
        with selectors.DefaultSelector() as selector:
            selector.register(server, selectors.EVENT_READ)
            while len(found) < self.processes:
                if time.monotonic() > deadline:
                    absent = [str(process) for process in range(self.processes) if process not in found]
                    raise ProcessError(
                        f"of {self.processes} processes, number {', '.join(absent)} did not come to {self._address} within "
                        f"{self._timeout:.0f} s; start them, or allow more time with --join_timeout"
                    )
                for key, _ in selector.select(max(0.01, deadline - time.monotonic())):
                    if key.fileobj is server:
                        with contextlib.suppress(OSError):
                            line = _Line(server.accept()[0])
                            selector.register(line.socket, selectors.EVENT_READ, line)
                    elif (messages := key.data.receive()) != []:
                        selector.unregister(key.fileobj)
                        self._admit(key.data, messages, found)
            for key in selector.get_map().values():
                if key.fileobj is not server:
                    key.data.close()

    def _admit(self, line: _Line, messages: list[dict[str, Any]] | None, found: dict[int, Member]) -> None:
        hello = _hello(messages[0]) if messages else None
        if hello is None:
            line.close()  # not one of ours
            return
        member, processes = hello
        line.early = messages[1:]
        other = found.get(member.process)
        self._lines[member.process if other is None else -1] = line
        if other is not None:
            raise ProcessError(f"{other} and {member} have the same number; give every process its own --process_id")
        if processes != self.processes:
            raise ProcessError(f"{member} was started as one of {processes} processes, process 0 of {self.processes}")
        found[member.process] = member

    def _answer_roll(self) -> list[Member]:
        """As any other process: find process 0, and wait until all are there."""
        deadline = time.monotonic() + self._timeout
        line = self._lines[0] = _Line(self._reach(deadline))
        line.send({"member": dataclasses.astuple(self._me), "processes": self.processes})
        try:
            answer = line.first(deadline + _GRACE_SECONDS)
        except TimeoutError:
            answer = None
        if answer is not None and "error" in answer:
            raise ProcessError(answer["error"])
        try:
            return [Member(*member) for member in answer["members"]]
        except (KeyError, TypeError):
            raise ProcessError(
                f"{self._address} did not welcome {self._me}: process 0 ended, or something else listens there"
            ) from None

    def _reach(self, deadline: float) -> socket.socket:
        address = _host_and_port(self._address)
        while True:
            try:
                return _connect(address, timeout=max(0.01, deadline - time.monotonic()))
            except OSError as error:
                if time.monotonic() > deadline:
                    raise ProcessError(
                        f"process 0 did not answer at {self._address} within {self._timeout:.0f} s ({error}); start it, "
                        "or correct --coordinator"
                    ) from None
            time.sleep(0.1)

    def _watch(self) -> None:
        """Receive for ever, in a thread; the end of a process is the end of this one."""
        with selectors.DefaultSelector() as selector:
            for process, line in self._lines.items():
                if self._hear(process, line.early):
                    selector.register(line.socket, selectors.EVENT_READ, process)
            while selector.get_map():
                for key, _ in selector.select():
                    if not self._hear(key.data, self._lines[key.data].receive()):
                        selector.unregister(key.fileobj)

    def _hear(self, process: int, messages: list[dict[str, Any]] | None) -> bool:
        """Whether that process may say more."""
        if messages is None:
            text = f"{self.members[process]} ended without a word at {time.strftime('%Y-%m-%d %H:%M:%S')}"
            self._end({"kind": "ended", "code": EXIT_PEER_DIED, "text": text}, grace=0.0)
            return False
        for message in messages:
            if message["kind"] == "goodbye":
                return False
            self._receive(process, message)
        return True

    def _receive(self, process: int, message: dict[str, Any]) -> None:
        if message["kind"] == "ended":
            self._end(message, grace=_GRACE_SECONDS)
        with self._changed:
            if message["kind"] == "value":
                self._values.setdefault(message["number"], {})[process] = message
            elif message["kind"] == "values":
                self._answers[message["number"]] = message
            self._changed.notify_all()

    def _end(self, message: dict[str, Any], grace: float) -> None:
        """Pass the news on and end this process, unless it is ending by itself."""
        for line in self._lines.values():
            line.send(message)
        if not self._closing.wait(grace):
            text = f"error: {message['text']}; run the same command on all processes to go on"
            leave(message["code"], text)


def leave(code: int, text: str) -> NoReturn:
    """Print `text` and end at once. An orderly exit would wait for the other processes, which are not there any more."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
    os.write(2, f"{text}\n".encode())
    os._exit(code)


def _hello(message: dict[str, Any]) -> tuple[Member, int] | None:
    """Who says hello, and of how many processes it was started as one; None for what no process of ours would say."""
    match message:
        case {"member": [process, str(host), pid], "processes": processes}:
            if all(type(number) is int for number in (process, pid, processes)) and 0 < process < processes:
                return Member(process, host, pid), processes
    return None


def _connect(address: tuple[str, int], timeout: float) -> socket.socket:
    connection = socket.create_connection(address, timeout=timeout)
    # A port of this machine can connect to itself while nobody listens.
    if connection.getsockname() == connection.getpeername():
        connection.close()
        raise ConnectionRefusedError("nobody listens there")
    return connection


def _listen(host: str, port: int) -> socket.socket:
    """Listen on all addresses of this machine; on the loopback alone if that is what `host` is.

    Only names that mean the loopback everywhere count: many machines find their own name there, and others must reach them by it.
    """
    local = "127.0.0.1" if host == "localhost" else host
    try:
        if _is_loopback(local):
            return socket.create_server((local, port), family=_family(local), backlog=1024)
        if socket.has_dualstack_ipv6():
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024)
        return socket.create_server(("", port), backlog=1024)
    except OSError as error:
        raise ProcessError(f"process 0 cannot listen on port {port} ({error.strerror}); choose another port") from None


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _host_and_port(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ProcessError(f"--coordinator must be HOST:PORT of process 0, got '{address}'")
    return host.strip("[]"), int(port)


class Relay:
    """Forwards local connections to `address`, and keeps them open when the other end dies.

    JAX's client of the coordination service aborts the process, with a C++ stack and no name, as soon as its connection is closed.
    Through a relay it waits, and `Group` has the time to say who died. `address` of the relay is HOST:PORT.
    """

    def __init__(self, address: str):
        self._target = _host_and_port(address)
        self._server = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._server.getsockname()[1]}"
        threading.Thread(target=self._accept, name="relay", daemon=True).start()

    def _accept(self) -> None:
        while True:
            near, _ = self._server.accept()
            try:
                far = socket.create_connection(self._target, timeout=10.0)
            except OSError as error:  # JAX's client tries again
                logging.debug("relay: %s", error)
                near.close()
                continue
            far.settimeout(None)
            for end, copy in ((near, self._forth), (far, self._back)):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                threading.Thread(target=copy, args=(near, far), daemon=True).start()

    @staticmethod
    def _forth(near: socket.socket, far: socket.socket) -> None:
        """Until JAX's client hangs up; then both ends are closed. What it says to an end that died is lost."""
        with near, far:
            with contextlib.suppress(OSError):
                while data := near.recv(1 << 16):
                    with contextlib.suppress(OSError):
                        far.sendall(data)
            with contextlib.suppress(OSError):
                far.shutdown(socket.SHUT_RDWR)  # wakes `_back`, which closing would not

    @staticmethod
    def _back(near: socket.socket, far: socket.socket) -> None:
        """Until the other end closes, which JAX's client must not see: its connection stays open."""
        with contextlib.suppress(OSError):
            while data := far.recv(1 << 16):
                near.sendall(data)
