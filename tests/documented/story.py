"""A reader who follows pages: each in a folder of its own, with a shell, one process for all commands, and one server at a time."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from tests.documented import given, table
from tests.documented.blocks import ROOT, Block

PROGRAMS = ("python", "python3", "chameleon", "pip", "gcloud", "srun")
_WAIT = 180  # seconds for a server to be ready
_BACKGROUND = re.compile(r"(?<!&)&(?=[ \t]*(?:#.*)?$)", re.M)
_PRINTED = re.compile(r"^(python -m experiments\.[^#\n]*)$", re.M)
_NEXT = re.compile(r"^(?:  (?:next)?|go on with) +((?:python -m experiments\.|chameleon )[^#\n]*)$", re.M)


def waiting(text: str) -> str:
    """The lines of a shell, which then waits for each command in the background and ends with the code of one that failed.

    A bare `wait` ends with 0, whatever came of them.
    """
    kept = _BACKGROUND.sub("& background+=($!)", text)
    return f'{kept}\nfor job in "${{background[@]}}"; do wait "$job"; done'


class Story:
    """The homes of some pages below `root`. `close` ends the processes."""

    def __init__(self, root: Path):
        self.root, self.log = root, root / "log.jsonl"
        self._short = tempfile.mkdtemp(prefix="doc")  # a socket's path has few letters
        with socket.create_server(("127.0.0.1", 0)) as free, socket.create_server(("127.0.0.1", 0)) as other:
            self.port, self._coordinator = free.getsockname()[1], other.getsockname()[1]
        self._socket = str(Path(self._short) / "reader")
        (root / "bin").mkdir(parents=True)
        for program in PROGRAMS:
            file = root / "bin" / program
            source = (Path(__file__).parent / "shim.py").read_text()
            file.write_text(f"#!{sys.executable} -SE\n{source}")
            file.chmod(0o755)
        self._clean = {k: v for k, v in os.environ.items() if k not in ("CHAMELEON_API_KEY", "PYTEST_CURRENT_TEST")}
        self._clean |= {"PYTHONPATH": str(ROOT), "NO_COLOR": "1"}
        command = [sys.executable, "-m", "tests.documented.reader", self._socket, str(self.log), str(self.port)]
        self._reader = subprocess.Popen(command, cwd=ROOT, env=self._clean)
        self._server: subprocess.Popen | None = None
        self._done: dict[tuple[str, str], bool] = {}
        self._homes: dict[str, Path] = {}

    def home(self, page: str) -> Path:
        """The folder of a page, with what its reader has."""
        if page not in self._homes:
            home = self._homes[page] = self.root / page.replace("/", "_")
            home.mkdir()
            for path, make in table.GIVEN.get(page, {}).items():
                (home / path).parent.mkdir(parents=True, exist_ok=True)
                if isinstance(make, given.Of):
                    (home / path).symlink_to(self.home(make.page) / path)
                else:
                    make(home / path)
        return self._homes[page]

    def follow(self, block: Block) -> None:
        """Run a block as it stands, and the commands that it is told to go on with; AssertionError with its output if one fails."""
        home = self.home(block.page)
        if server := table.of_block(table.SERVERS, block):
            self._serve(server, home)
        if block.kind == "python":
            return self._snippet(block, home)
        text = block.text
        if block.kind == "text":
            file, text = table.of_block(table.USED, block)
            (home / file).parent.mkdir(parents=True, exist_ok=True)
            (home / file).write_text(block.text)
        said = self._shell(text, home)
        told_next = _NEXT.findall(said) if block.page.endswith(".md") else []
        for told in told_next + (_PRINTED.findall(said) if block.page in table.PRINTED else []):
            if " serve " not in told.replace(".", " ") and (home, told) not in self._done:
                self._shell(told, home)
        for promise in table.of_block(table.PROMISED, block) or ():
            assert any(home.glob(promise)), f"{block} promises {promise}, which is not there"

    def _shell(self, text: str, home: Path) -> str:
        if (home, text) in self._done:
            return ""
        self._done[home, text] = True
        before = len(self.ran())
        lines, server = text.strip(), None
        if re.search(r"(experiments\.|chameleon )serve ", lines):
            *others, last = lines.splitlines()
            lines, server = "\n".join(others), last
        said = self._bash(lines, home) if lines else ""
        if server:
            self._serve(server, home)
        failed = [entry for entry in self.ran()[before:] if entry["code"]]
        assert not failed, f"{failed[0]['run']}\nended with {failed[0]['code']}:\n{said}"
        return said

    def _bash(self, text: str, home: Path) -> str:
        # An answer of the server that is an error is one of the block.
        curl = 'curl() { command curl -sS --fail-with-body "$@"; }'
        text = f"set -eo pipefail\n{curl}\n{waiting(self._ported(text))}"
        done = subprocess.run(
            ["bash", "-c", text], cwd=home, env=self._environment(), text=True, timeout=300,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
        )  # fmt: skip
        with open(self.root / "transcript.txt", "a") as file:
            file.write(f"{home.name}$ {text}\n{done.stdout}\n")
        assert done.returncode == 0, f"exit code {done.returncode}:\n{done.stdout[-6000:]}"
        return done.stdout

    def _serve(self, text: str, home: Path) -> None:
        """Start it, and wait until it serves; the one before is ended as by Ctrl-C."""
        self._end_server()
        with open(self.root / "server.log", "w") as said:
            process = self._server = subprocess.Popen(
                ["bash", "-c", f"exec env {text}"], cwd=home, env=self._environment(), stdout=said, stderr=said
            )
        end = time.monotonic() + _WAIT
        while True:
            told = (self.root / "server.log").read_text()
            assert process.poll() is None and time.monotonic() < end, f"{text} does not serve:\n{told[-4000:]}"
            if re.search(r"^\S+ \S+ serving ", told, re.M):
                break
            time.sleep(0.2)
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=30) as reply:
            assert json.load(reply)["status"] == "ok"

    def _end_server(self) -> None:
        if self._server is not None:
            self._server.send_signal(signal.SIGTERM)
            code, self._server = self._server.wait(60), None
            assert code == 0, (self.root / "server.log").read_text()[-4000:]

    def _snippet(self, block: Block, home: Path) -> None:
        code = self._ported(block.text)
        for old, new in (table.of_block(table.SNIPPETS, block) or {}).items():
            assert old in code
            code = code.replace(old, new)
        request = {"snippet": code, "page": block.page, "folder": str(home)}
        devices = table.of_block(table.DEVICES, block)
        if devices:  # more than the reader has
            flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
            command = [sys.executable, "-c", request["snippet"]]
            done = subprocess.run(
                command, cwd=home, env=self._clean | {"XLA_FLAGS": flags}, capture_output=True, text=True
            )
            assert done.returncode == 0, done.stderr
            return
        with open(self.root / "snippet.log", "w+") as said, socket.socket(socket.AF_UNIX) as reader:
            self._connect(reader)
            asked = json.dumps(request).encode()
            socket.send_fds(reader, [len(asked).to_bytes(4, "big")], [said.fileno()] * 3)
            reader.sendall(asked)
            answer = json.loads(reader.makefile().readline() or '{"code": 1}')
            said.seek(0)
            assert answer["code"] == 0, said.read()[-6000:]

    def _connect(self, reader: socket.socket) -> None:
        self._listening()
        reader.connect(self._socket)

    def _listening(self) -> None:
        end = time.monotonic() + 60
        while not Path(self._socket).exists():
            assert self._reader.poll() is None and time.monotonic() < end, "the reader did not start"
            time.sleep(0.05)

    def _environment(self) -> dict[str, str]:
        self._listening()
        return self._clean | {"PATH": f"{self.root / 'bin'}:{os.environ['PATH']}", "SHIM_SOCKET": self._socket}

    def _ported(self, text: str) -> str:
        """Servers and coordinators of a test are not at the documented ports, which may be in use."""
        return text.replace(":8000", f":{self.port}").replace("localhost:3456", f"localhost:{self._coordinator}")

    def ran(self) -> list[dict]:
        """What the reader was asked for: `typed`, `run`, `as`, `code`, `seconds` of each command."""
        return [json.loads(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []

    def close(self) -> None:
        try:
            self._end_server()
        finally:
            self._reader.kill()
            self._reader.wait()
            shutil.rmtree(self._short)
