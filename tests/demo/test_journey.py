"""Demonstrations run their commands in one process, refuse bad flags before the first, and say how often something was right."""

import sys

import pytest

from chameleon_jax.demo import journey
from chameleon_jax.demo.journey import Command
from chameleon_jax.demo.proportions import Proportion
from chameleon_jax.errors import ChameleonError, ConfigError


def test_a_command_gets_its_flags_and_leaves_the_arguments_as_they_were(tmp_path, capsys):
    before = list(sys.argv)
    journey.run(1, 6, Command("digits", "digits", ("--seed=3", f"--workdir={tmp_path / 'a b'}")))
    assert sys.argv == before
    assert (tmp_path / "a b" / "heldout.jsonl").exists()
    assert f"$ python -m experiments.digits --seed=3 '--workdir={tmp_path / 'a b'}'" in capsys.readouterr().out


def test_a_command_that_fails_ends_the_journey_with_one_line_more(tmp_path, capsys):
    before = list(sys.argv)
    with pytest.raises(ChameleonError, match="step 3 ended with exit code 2; its own message is above"):
        journey.run(3, 6, Command("digits", "digits", ("--seed=-1", f"--workdir={tmp_path}")))
    assert sys.argv == before
    assert capsys.readouterr().err == "error: --seed must be at least 0, got -1\n"


def test_a_command_whose_last_file_is_there_is_not_run_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(journey.commands, "run", lambda *_, **__: pytest.fail("the command was run"))
    (tmp_path / "vocab.json").touch()
    journey.follow([Command("a tokenizer", "train_tokenizer", (), tmp_path / "vocab.json")], "the end")
    assert "[2/2] the end" in capsys.readouterr().out


def test_a_workdir_keeps_its_flags(tmp_path):
    with pytest.raises(ConfigError, match="--steps must be at least 1, got 0"):
        journey.claim(tmp_path / "new", chosen={"seed": 1}, steps=0)
    assert not (tmp_path / "new").exists()
    journey.claim(tmp_path / "new", chosen={"seed": 1, "kind": "a"}, steps=None)
    journey.claim(tmp_path / "new", chosen={"seed": 1, "kind": "a"}, steps=5)
    with pytest.raises(ConfigError, match="was made with --seed=1: use it, or another --workdir"):
        journey.claim(tmp_path / "new", chosen={"seed": 2, "kind": "a"}, steps=5)
    with pytest.raises(ConfigError, match="was made with --kind=a: use it"):
        journey.claim(tmp_path / "new", chosen={"seed": 1, "kind": "b"})
    with pytest.raises(ConfigError, match="--seed must be at least 0, got -1"):
        journey.claim(tmp_path / "other", chosen={"seed": -1})


@pytest.mark.parametrize("code", [75, 130])
def test_a_command_that_was_stopped_is_no_error(code, monkeypatch, capsys):
    def stopped(*_, **__):
        raise SystemExit(code)

    monkeypatch.setattr(journey.commands, "run", stopped)
    with pytest.raises(SystemExit) as ended:
        journey.follow([Command("a tokenizer", "train_tokenizer", ())], "the end")
    assert ended.value.code == code and capsys.readouterr().out.endswith("stopped; run the same command to go on\n")


def test_intervals_are_wilsons():
    # By hand, of 8 of 10 with z = 1.959964: (p + z2/2n +- z sqrt(pq/n + z2/4n2)) / (1 + z2/n).
    low, high = Proportion.of([True] * 8 + [False] * 2).interval
    assert (round(low, 4), round(high, 4)) == (0.4902, 0.9433)
    assert str(Proportion(0, 10)) == "0.0% of 10 (0.0% to 27.8%)"
