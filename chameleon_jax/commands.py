"""The commands: where they and the gin files lie, in a clone and installed, and `chameleon NAME`, which runs one.

`chameleon pretrain ...` and `python -m experiments.pretrain ...` are the same. Messages, docs and examples write the second, and
`as_called` turns it into the first for those who typed that. Commands are run by their file: another package that is named
`experiments` hides them from `python -m` alone.
"""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import itertools
import re
import runpy
import shlex
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

from chameleon_jax.errors import did_you_mean

_PACKAGE = Path(__file__).resolve().parent
EXPERIMENTS = _PACKAGE.parent / "experiments"
# The folder that holds gin_configs/: installed it is inside the package, in a clone beside it.
GIN_ROOT = _PACKAGE if (_PACKAGE / "gin_configs").is_dir() else _PACKAGE.parent

PROGRAM = "chameleon"
_PACKAGE_MODULE = f"python -m {_PACKAGE.name}"
_MODULE = "python -m experiments."
# In the order in which one meets them; a command that is not here comes last.
_GROUPS = {
    "See it work": ("quickstart", "three_modalities", "actions"),
    "Your own data": ("new", "train_tokenizer", "extend_tokenizer", "tokenize"),
    "A model": ("pretrain", "convert"),
    "Use it": ("generate", "serve"),
    "Look closer": ("inspect", "evaluate", "compile_only"),
    "Data of the examples": ("digits", "digit_pairs", "spoken_digits", "grid_world", "emoji"),
}
_WIDTH, _INDENT = 120, 20


def names() -> list[str]:
    """All commands, in the order of `chameleon --help`."""
    found = {path.stem for path in EXPERIMENTS.glob("[a-z]*.py")}
    ordered = [name for group in _GROUPS.values() for name in group if name in found]
    return [*ordered, *sorted(found.difference(ordered))]


def run(name: str, argv: Sequence[str]) -> None:
    """Run a command in this process, as if it had been typed. It ends by SystemExit where it does from a shell."""
    own, sys.argv = sys.argv, [name, *argv]
    try:
        runpy.run_path(str(EXPERIMENTS / f"{name}.py"), run_name="__main__")
    finally:
        sys.argv = own


def typed(name: str, argv: Sequence[str]) -> str:
    """The command as it is typed into a shell, in the way in which this process was called."""
    return as_called(f"{_MODULE}{name} {shlex.join(argv)}")


def as_called(text: str) -> str:
    """`python -m experiments.NAME` in a text as `chameleon NAME`, or with `python -m chameleon_jax`, where that was called."""
    called = _called()
    return text.replace(_MODULE, f"{called} ") if called else text


def takes(config: str) -> str | None:
    """The command whose config is of this class, by its name; None where there is none."""
    is_taken = re.compile(rf"\bcli\.run\(main, {config}, ")
    return next((n for n in names() if is_taken.search((EXPERIMENTS / f"{n}.py").read_text(encoding="utf-8"))), None)


def _called() -> str:
    """What stands before the name of a command, as this process was called; empty where it is a module of `experiments`."""
    if any(Path(part).name == PROGRAM for part in sys.orig_argv[:2]):  # the interpreter and the script
        return PROGRAM
    return _PACKAGE_MODULE if ("-m", _PACKAGE.name) in itertools.pairwise(sys.orig_argv) else ""


def main() -> None:
    """`chameleon NAME FLAGS`: the console script."""
    name, *rest = sys.argv[1:] or ["--help"]
    if name in ("--help", "-h"):
        print(_help())
    elif name == "--version":
        print(importlib.metadata.version("chameleon-jax"))
    elif name in names():
        run(name, rest)
    else:
        print(
            f"error: '{name}' is no command{did_you_mean(name, names())}; `{_called() or PROGRAM} --help` lists them",
            file=sys.stderr,
        )
        sys.exit(2)


def _help() -> str:
    grouped = {name: title for title, group in _GROUPS.items() for name in group}
    program = _called() or PROGRAM
    lines, title = (
        [f"Usage: {program} COMMAND FLAGS; {program} COMMAND --help shows the flags of one, with examples."],
        "",
    )
    for name in names():
        if grouped.get(name, "More") != title:
            title = grouped.get(name, "More")
            lines += ["", f"{title}:"]
        hanging = {"initial_indent": f"  {name:{_INDENT - 2}}", "subsequent_indent": " " * _INDENT}
        lines += textwrap.wrap(_summary(name), _WIDTH, break_on_hyphens=False, **hanging)
    start = f"{program} quickstart --workdir=runs/quickstart"
    lines += ["", f"Begin with `{start}`: two to three minutes on a CPU.", _where()]
    return "\n".join(lines)


def _summary(name: str) -> str:
    """The first line of the command's docstring, read without running it."""
    return ast.get_docstring(ast.parse((EXPERIMENTS / f"{name}.py").read_text(encoding="utf-8"))).partition("\n")[0]


def _where() -> str:
    """What else starts a command, and where the gin files are; or which package keeps `python -m` from it."""
    found = importlib.util.find_spec("experiments")
    ours = found is not None and EXPERIMENTS in map(Path.resolve, map(Path, found.submodule_search_locations or ()))
    text = f"Gin files: {GIN_ROOT / 'gin_configs'}; --gin_file=gin_configs/... finds them from any folder."
    if ours or found is None:
        return text
    where = found.origin or next(iter(found.submodule_search_locations))
    return f"{text}\n`{_MODULE}NAME` is another package here ({where}): use `{_called() or PROGRAM} NAME`."
