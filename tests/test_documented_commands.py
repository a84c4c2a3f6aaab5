"""Every command of the pages and of --help is taken by its flags, gin files and config checks, up to the work itself."""

import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest

from chameleon_jax import cli
from chameleon_jax.commands import EXPERIMENTS

ROOT = Path(__file__).parents[1]
NOT_HERE = re.compile(
    r"\.\.\.|\$|--gin_file=(?!gin_configs/(?!runs/my_))"
)  # left open, of a loop, or with a gin file of the reader's


def documented():
    """(file, command, arguments) of each, without what is left open."""
    for file in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted(EXPERIMENTS.glob("[a-z]*.py"))):
        text = re.sub(r"\\+\n\s*", " ", file.read_text())
        for name, rest in re.findall(r"^ *(?:\w+=\S+ )?python -m experiments\.(\w+)( .*)$", text, re.M):
            arguments = re.split(r"\s#|\s{4,}", rest.strip())[0]
            if re.match(r"-|runs/", arguments) and not NOT_HERE.search(arguments):
                yield pytest.param(name, shlex.split(arguments), id=f"{file.name}-{name}-{arguments}")


@pytest.mark.parametrize(("name", "argv"), list(documented()))
def test_it_is_taken(name, argv, monkeypatch):
    run = cli.run
    monkeypatch.setattr(cli, "run", lambda main, config, doc, **more: run(lambda *_: 0, config, doc, **more))
    monkeypatch.setattr(sys, "argv", [name, *argv])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(EXPERIMENTS / f"{name}.py"), run_name="__main__")
    assert not ended.value.code


def test_most_commands_are_documented_so():
    named = {case.values[0] for case in documented()}
    assert named >= {"quickstart", "tokenize", "pretrain", "generate", "serve", "convert", "inspect"}
