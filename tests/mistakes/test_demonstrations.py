"""Mistakes at the demonstrations and the commands that make their data: they fail before anything is trained."""

import pytest

from tests.mistakes.runner import Mistake, check, file_of, rows

WHOLE = ("quickstart", "actions", "three_modalities")
DATA = ("digits", "grid_world")


def at(commands, wrong, flags, says, spoil=None):
    """The same mistake at each of several commands."""
    return [Mistake(wrong, f"{command} {flags}", says, spoil) for command in commands]


DEMONSTRATIONS = [
    *at((*WHOLE, *DATA, "emoji"), "no workdir", "", ("--workdir is required",)),
    *at((*WHOLE, *DATA, "emoji"), "a misspelt workdir", "--wordir=x", ("'--wordir' is no flag",)),
    *at((*WHOLE, *DATA), "a seed below zero", "--workdir={here}/w --seed=-1", ("--seed must be at least 0, got -1",)),
    *at((*WHOLE, *DATA), "a seed in words", "--workdir={here}/w --seed=one", ("--seed=one: not a whole number",)),
    *at((*WHOLE, *DATA, "emoji"), "gin where there is none", "--workdir={here}/w --gin.X.y=1", ("--gin.X.y=1",)),
    *at(WHOLE, "steps below one", "--workdir={here}/w --steps=-5", ("--steps must be at least 1, got -5",)),
    *at(WHOLE, "a file for a workdir", "--workdir={text}", ("notes.txt",)),
    *at(WHOLE, "a place where nothing is written", "--workdir=/proc/x", ("/proc/x",)),
    *at(
        WHOLE,
        "another seed's workdir",
        "--workdir={here} --seed=1",
        ("was made with --seed=0",),
        file_of("flags.json", '{"seed": 0}'),
    ),
    *at(
        WHOLE, "a damaged note of the flags", "--workdir={here}", ("flags.json is damaged",), file_of("flags.json", "x")
    ),
    *at(("digits", "grid_world"), "a file for a workdir", "--workdir={text}", ("notes.txt",)),
    *at(
        ("quickstart",),
        "an input that is none",
        "--workdir={here}/w --image_input=patchs",
        ("did you mean 'patches'?",),
    ),
    *at(
        ("quickstart",),
        "codec steps below one",
        "--workdir={here}/w --codec_steps=0",
        ("--codec_steps must be at least 1",),
    ),
    *at(
        ("emoji",), "phrasings in words", "--workdir={here}/w --phrasings=all", ("--phrasings=all: not a whole number",)
    ),
    *at(
        ("emoji",),
        "an archive that is none",
        "--workdir={here}/w --archives={here}",
        ("emoji-datasource-google-16.0.0.tgz is damaged", "delete it and run again"),
        file_of("emoji-datasource-google-16.0.0.tgz", "x"),
    ),
]


@rows(DEMONSTRATIONS)
def test_demonstrations(mistake, places, tmp_path, capfd):
    if mistake.typed.startswith("three_modalities"):
        pytest.importorskip("espeakng_loader")
    check(mistake, places, tmp_path, capfd)
