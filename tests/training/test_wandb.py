"""A W&B run is started where somebody asks for one, and is that of its workdir."""

import sys
import types

import pytest

from chameleon_jax.training.telemetry import MetricWriter


@pytest.fixture
def started(monkeypatch):
    """What `wandb.init` was given, in order. The service is not there in tests, and its library is an extra."""
    calls = []
    run = types.SimpleNamespace(log=lambda *_, **__: None, finish=lambda: None)
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=lambda **given: calls.append(given) or run))
    for name in ("WANDB_PROJECT", "WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    return calls


def write(folder, step):
    folder.mkdir(parents=True, exist_ok=True)
    writer = MetricWriter(folder, resume_step=step, run_config={"a": 1})
    writer.write(step + 1, {"loss": 1.0})
    writer.close()


def test_nothing_is_started_unasked(started, tmp_path, monkeypatch):
    write(tmp_path / "model", 0)
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    monkeypatch.setenv("WANDB_MODE", "disabled")
    write(tmp_path / "model", 0)
    assert started == [] and not (tmp_path / "model" / "wandb_id").exists()


def test_a_workdir_has_a_run_of_its_own_and_goes_on_with_it(started, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    for folder, step in (("a/model", 0), ("b/model", 0), ("a/model", 1)):
        write(tmp_path / folder, step)
    first, other, again = started
    assert first["id"] == again["id"] != other["id"]
    assert [call["name"] for call in started] == ["a/model", "b/model", "a/model"]
    assert {(call["project"], call["mode"], call["resume"]) for call in started} == {("mine", "offline", "allow")}


def test_a_run_goes_on_without_the_service(started, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    monkeypatch.setitem(sys.modules, "wandb", None)  # not installed
    write(tmp_path / "model", 0)
    assert '"loss": 1.0' in (tmp_path / "model" / "metrics.jsonl").read_text()
