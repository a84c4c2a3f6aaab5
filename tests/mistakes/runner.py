"""Runs one row of a table of mistakes as `python -m experiments.X ...` would run, in this process, and holds it to the rules.

The rules: exit code 2; one line on standard error that begins with `error:`, names the thing and says what to do; no traceback; and
every file that was there before is there with the same bytes.
"""

import contextlib
import dataclasses
import runpy
import shlex
import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.mistakes import world

LONGEST = 400  # characters of a line, paths included: more is not read


@dataclasses.dataclass(frozen=True)
class Mistake:
    """One row: what is wrong, what was typed, and what the line must hold.

    `typed` is the command line behind `python -m experiments.`; {names} are places of the world, {here} is a folder of this row
    alone. `spoil(here, places)` prepares that folder.
    """

    wrong: str
    typed: str
    says: tuple[str, ...]
    spoil: Callable | None = None


def check(mistake, places, here, capfd):
    if mistake.spoil:
        mistake.spoil(here, places)
    before = world.digests(places.root, here)
    code, out, err = run(mistake.typed.format(**vars(places), here=here), here, capfd)
    said = [line for line in err.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in err + out, err
    assert (code, len(said)) == (2, 1), f"exit code {code}\n{out}\n{err}"
    for text in mistake.says:
        assert text.format(**vars(places), here=here) in said[0], said[0]
    assert len(said[0].replace(str(here), "").replace(str(places.root), "")) <= LONGEST, said[0]
    assert err.splitlines()[-1] == said[0], err
    after = world.digests(places.root, here)
    lost = {path for path, digest in before.items() if after.get(path, "gone") != digest}
    assert not lost, lost


def run(typed, folder, capfd):
    """(exit code, standard output, standard error) of `python -m experiments.TYPED` in this folder."""
    command, *argv = shlex.split(typed)
    own = sys.argv
    capfd.readouterr()
    with contextlib.chdir(folder), warnings.catch_warnings(), pytest.raises(SystemExit) as stop:
        warnings.simplefilter("ignore", RuntimeWarning)  # of runpy: another test has imported the command
        sys.argv = [f"{command}.py", *argv]
        try:
            runpy.run_module(f"experiments.{command}", run_name="__main__", alter_sys=True)
        finally:
            sys.argv = own
    return stop.value.code, *capfd.readouterr()


def rows(mistakes):
    """A parametrize mark; the ids say what is wrong."""
    ids = [f"{m.typed.split()[0]}: {m.wrong}" for m in mistakes]
    assert len(set(ids)) == len(ids), "two rows with one name"
    return pytest.mark.parametrize("mistake", mistakes, ids=ids)


def copy_of(place, name, change=lambda folder: None):
    """Prepare {here}/NAME: a copy of a folder or file of the world, changed."""

    def spoil(here, places):
        source, target = Path(getattr(places, place)), here / name
        shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
        change(target)

    return spoil


def file_of(name, content):
    """Prepare {here}/NAME with this text or these bytes."""

    def spoil(here, places):
        path = here / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)

    return spoil
