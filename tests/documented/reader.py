"""The process in which documented commands run one after the other, so that imports and compiled programs are shared.

A command comes from `shim.py` with the standard files of the shell that typed it. Its row of the table says what is added to it,
and whether it needs a process of its own: then the shim is told to become that process.

    python -m tests.documented.reader SOCKET LOG PORT
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import runpy
import shlex
import socket
import sys
import tempfile
import time
import traceback
from pathlib import Path

from tests.documented import table

REAL = {"python": sys.executable, "python3": sys.executable}


def answer(request: dict, log: Path, port: str) -> dict:
    """Run what is asked for, with the standard files as they are now; returns what the shim does with it."""
    if "snippet" in request:
        return {"code": _guarded(lambda: _snippet(request))}
    program, *argv = request["typed"]
    try:
        row = table.reduced(program, argv)
    except LookupError as unknown:
        print(f"error: {unknown}", file=sys.stderr)
        return {"code": 2}
    argv = _smaller(row, argv, port)
    begin, code = time.monotonic(), 0
    if row.run == "here":
        if row.typed:
            _type(row.typed)
        code = _guarded(lambda: _command(program, argv))
    _note(log, shlex.join(request["typed"]), shlex.join([program, *argv]), row.run, code, begin)
    if row.run in ("process", "server"):
        if program == "chameleon":
            argv = ["-m", "chameleon_jax", *argv]
        return {"exec": [sys.executable, *argv], "environment": row.environment}
    return {"code": code}


def _note(log: Path, typed: str, run: str, how: str, code: int, begin: float) -> None:
    seconds = round(time.monotonic() - begin, 2)
    with open(log, "a", encoding="utf-8") as file:
        file.write(json.dumps({"typed": typed, "run": run, "as": how, "code": code, "seconds": seconds}) + "\n")


def _smaller(row: table.Row, argv: list[str], port: str) -> list[str]:
    return [*(arg for arg in argv if not row.drops(arg)), *shlex.split(row.add.format(port=port))]


def _guarded(call) -> int:
    try:
        call()
        return 0
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1


def _type(text: str) -> None:
    """What comes on standard input."""
    with tempfile.TemporaryFile("w+") as file:
        file.write(text)
        file.seek(0)
        os.dup2(file.fileno(), 0)


def _command(program: str, argv: list[str]) -> None:
    """As `python -m MODULE` or the console script runs it."""
    from chameleon_jax import commands

    own = sys.argv, sys.orig_argv
    module, rest = ("chameleon_jax", argv) if program == "chameleon" else (argv[1], argv[2:])
    sys.argv = [program if program == "chameleon" else module, *rest]
    sys.orig_argv = [program, *argv]
    try:
        if module == "chameleon_jax":
            commands.main()
        else:
            runpy.run_path(str(commands.EXPERIMENTS / f"{module.removeprefix('experiments.')}.py"), run_name="__main__")
    finally:
        sys.argv, sys.orig_argv = own


_names: dict[str, dict] = {}  # of the snippets of a page, which go on from each other


def _snippet(request: dict) -> None:
    names = _names.setdefault(request["page"], {})
    exec(compile(request["snippet"], request["page"], "exec"), names)


def serve(path: str, log: Path, port: str) -> None:
    """Answer one request after the other until the socket's file is gone."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen()
        while True:
            connection, _ = listening.accept()
            with connection:
                length, files, *_ = socket.recv_fds(connection, 4, 3)
                with connection.makefile("rb") as incoming:
                    request = json.loads(incoming.read(int.from_bytes(length, "big")))
                with _standard_files(files), contextlib.chdir(request["folder"]):
                    said = answer(request, log, port)
                connection.sendall(json.dumps(said).encode() + b"\n")


@contextlib.contextmanager
def _standard_files(files: list[int]):
    """Have input, output and errors go to these descriptors, which are closed."""
    kept = [os.dup(number) for number in range(3)]
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    sys.stdin = os.fdopen(0, closefd=False)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, file in enumerate(kept):
            os.dup2(file, number)
            os.close(file)


def reduce_commands(log: Path, port: str) -> None:
    """The commands that a demonstration runs are made small as those that are typed."""
    from chameleon_jax import commands

    run = commands.run

    def smaller(name: str, argv: list[str]) -> None:
        row = table.reduced("chameleon", [name, *argv])
        less = _smaller(row, list(argv), port)
        begin = time.monotonic()
        try:
            run(name, less)
        finally:
            _note(log, shlex.join([name, *argv]), shlex.join([name, *less]), "here", 0, begin)

    commands.run = smaller


def reduce_constants() -> None:
    """Sizes that no flag sets: `module:NAME`, or `module:function.keyword` where it is a default."""
    for place, value in table.CONSTANTS.items():
        module, _, name = place.partition(":")
        function, _, keyword = name.partition(".")
        found = importlib.import_module(module)
        if keyword:
            assert keyword in getattr(found, function).__kwdefaults__
            getattr(found, function).__kwdefaults__[keyword] = value
        else:
            assert hasattr(found, name)
            setattr(found, name, value)


if __name__ == "__main__":
    reduce_constants()
    reduce_commands(Path(sys.argv[2]), sys.argv[3])
    serve(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
