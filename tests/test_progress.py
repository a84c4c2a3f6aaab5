"""What a progress line promises: the time that is left at the speed of now, without what was compiled first."""

import re

import pytest

from chameleon_jax import progress


@pytest.fixture
def clock(monkeypatch):
    """clock(seconds) lets time pass."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])

    def passes(seconds):
        now[0] += seconds

    return passes


def test_the_time_left_leaves_out_what_the_first_step_compiled(clock, capsys):
    with progress.progress("Training", total=101, unit="steps") as bar:
        clock(60)
        bar.advance()  # compiled
        assert bar.seconds_left() is None and "starting" in capsys.readouterr().err
        for _ in range(10):
            clock(2)
            bar.advance()
        assert bar.rate() == pytest.approx(0.5)
        assert bar.seconds_left() == pytest.approx(180)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "Training: 6/101 steps, 0.5 steps/s, 3m10s left"
    assert lines[-1] == "Training: 11 steps in 1m20s"


def test_the_rate_is_that_of_the_last_half_minute_and_of_ten_steps_at_least(clock):
    with progress.progress("Reading", total=None) as bar:
        for _ in range(100):
            clock(1)
            bar.advance(5)
        for _ in range(40):
            clock(1)
            bar.advance(1)
        assert bar.rate() == pytest.approx(1, rel=0.2) and bar.seconds_left() is None
        for _ in range(10):
            clock(60)
            bar.advance(30)
        assert bar.rate() == pytest.approx(0.5)


def test_steps_that_follow_each_other_fast_cost_no_memory_and_are_counted(clock):
    with progress.progress("Reading", total=10_000, done=1000) as bar:
        for _ in range(8000):
            clock(0.001)
            bar.advance()
        assert bar.rate() == pytest.approx(1000, rel=0.05) and bar.seconds_left() == pytest.approx(1, rel=0.05)
        assert len(bar._marks) < 400


def test_a_resumed_run_says_what_it_did_itself(clock, capsys):
    with progress.progress("Reading", total=10, unit="documents", done=4) as bar:
        clock(3)
        bar.advance(6, note="2 rejected")
    assert re.search(r"^Reading: 6 documents in 3s, 2 rejected$", capsys.readouterr().err, re.M)


def test_nothing_is_said_of_what_takes_no_time(clock, capsys):
    for seconds, told in ((1, ""), (4, "Checking: 1 files in 4s\n")):
        with progress.progress("Checking", total=None, unit="files", quiet=2.0) as bar:
            clock(seconds)
            bar.advance()
        assert capsys.readouterr().err == told
