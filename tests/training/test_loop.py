"""The real loop on a real store: it learns, stops and resumes to the same bits, and refuses what does not belong to it."""

import dataclasses
import json
import os
import shutil
import signal
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chameleon_jax.checkpoints.restore import restore_subtree
from chameleon_jax.configs import (
    CheckpointConfig,
    DataConfig,
    OptimConfig,
    PretrainConfig,
    RunConfig,
    StoreConfig,
    TrainConfig,
    TransformerConfig,
)
from chameleon_jax.data.loader import Loader
from chameleon_jax.errors import CheckpointError, ConfigError, TrainingError, WorkdirError
from chameleon_jax.models import params
from chameleon_jax.parallel.mesh import TRAINING
from chameleon_jax.training import loop, telemetry
from chameleon_jax.training import state as state_lib
from chameleon_jax.training import step as step_lib
from chameleon_jax.training.loop import Rollback, pretrain
from chameleon_jax.training.losses import LossSums
from chameleon_jax.training.samples import Samples
from chameleon_jax.training.signals import EXIT_STOPPED
from chameleon_jax.training.task import Evaluator
from chameleon_jax.workdir import open_workdir

STEPS = 12


@pytest.fixture(scope="module")
def config(build_store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("stores")
    train, held_out = (
        build_store(folder / name, count=80, seed=seed).path for seed, name in enumerate(("train", "heldout"))
    )
    return PretrainConfig(
        model=TransformerConfig(
            vocab_size=360, d_model=32, n_layers=2, n_heads=2, n_kv_heads=1, head_dim=16, d_ff=48, max_seq_len=64, dropout=0.1,
            compute_dtype="float32",
        ),
        data=DataConfig(stores=(StoreConfig(path=train),), eval_stores=(StoreConfig(path=held_out),), seq_len=64),
        train=TrainConfig(steps=STEPS, batch_size=8, log_every=1, eval_every=STEPS, eval_batches=1, peak_flops=1e12),
        optim=OptimConfig(learning_rate=1e-2, warmup_steps=2),
        checkpoint=CheckpointConfig(every_steps=4),
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole_run(config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole")
    assert pretrain(config, str(workdir)) == 0
    return workdir


def read_metrics(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def trained(workdir):
    """Every number that training itself makes, without the clock's."""
    timed = {"tokens_per_second", "mfu", "data_wait_fraction", "step_seconds", "eta_seconds"}
    return [{k: v for k, v in line.items() if k not in timed} for line in read_metrics(workdir)]


def test_every_step_is_logged_with_its_losses_and_norms_and_the_loss_falls(whole_run):
    lines = [line for line in read_metrics(whole_run) if "loss" in line]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    for line in lines:
        for name in ("loss/text", "loss/image", "perplexity/image", "accuracy/text", "log_z/image", "norm/gradient", "norm/update",
                     "norm/parameters", "output_rms", "max_attention_logit", "logit_max", "learning_rate"):  # fmt: skip
            assert np.isfinite(line[name]), name
        assert len(line["layers/residual_rms"]) == 2
    assert lines[0]["perplexity/text"] == pytest.approx(np.exp(lines[0]["loss/text"]))
    assert lines[0]["loss"] == pytest.approx(np.log(360), abs=0.1)  # an untrained model knows nothing
    assert lines[-1]["loss"] < lines[0]["loss"] - 0.2
    assert lines[-1]["tokens_seen/image"] > lines[0]["tokens_seen/image"] > 0
    assert {"tokens_per_second", "mfu", "data_wait_fraction", "eta_seconds"} <= set(lines[-1])


def test_held_out_loss_is_logged_and_run_files_are_written(whole_run, config):
    evaluated = [line for line in read_metrics(whole_run) if "eval/loss" in line]
    assert [line["step"] for line in evaluated] == [STEPS]
    assert {"config.json", "versions.json", "sharding.txt"} <= {p.name for p in whole_run.iterdir()}
    assert PretrainConfig.from_dict(json.loads((whole_run / "config.json").read_text())) == config
    assert list((whole_run / "tensorboard").iterdir())


def stop_after(workdir, step):
    """Send this process a SIGTERM as soon as `step` is logged."""

    def watch():
        while (
            not (workdir / "metrics.jsonl").exists() or len((workdir / "metrics.jsonl").read_text().splitlines()) < step
        ):
            time.sleep(0.005)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


def draw_noise(weights, step):
    """A sampler that makes programs, transfers and random numbers of its own."""
    noise = jax.random.bits(jax.random.key(step), (8, 8, 3), np.uint8)
    return Samples(page=np.asarray(noise), words=f"{float(jnp.sum(weights['embed'])):.3f}")


def test_a_stopped_run_saves_exits_75_and_goes_on_to_the_same_bits_with_samples_or_without(config, whole_run, tmp_path):
    watcher = stop_after(tmp_path, 5)
    assert pretrain(config, str(tmp_path)) == EXIT_STOPPED
    watcher.join()
    stopped_at = max(line["step"] for line in read_metrics(tmp_path))
    assert 5 <= stopped_at < STEPS
    assert restore_subtree(tmp_path / "checkpoints", "step").step == stopped_at
    # A crash may have logged steps that were never saved, and half a line: both must go.
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": stopped_at + 1, "loss": -1.0}) + '\n{"step": 9')
    sampled = dataclasses.replace(config, train=dataclasses.replace(config.train, sample_every=7))
    assert pretrain(sampled, str(tmp_path), sampler=draw_noise) == 0
    pages = sorted(page.name for page in (tmp_path / "samples").iterdir())
    assert pages == ([] if stopped_at >= 7 else ["0000007.png"]) + [f"{STEPS:07d}.png"]
    assert trained(tmp_path) == trained(whole_run)
    mine, theirs = (restore_subtree(w / "checkpoints", "params").state for w in (tmp_path, whole_run))
    jax.tree.map(np.testing.assert_array_equal, mine, theirs)


def test_whatever_fails_while_samples_are_made_costs_the_page_alone_and_comes_after_the_save(
    config, monkeypatch, tmp_path
):
    short = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=2, sample_every=1))
    short = dataclasses.replace(short, checkpoint=CheckpointConfig(every_steps=1))
    came, save = [], loop.Checkpointer.save
    monkeypatch.setattr(
        loop.Checkpointer, "save", lambda self, step, *rest: came.append(step) or save(self, step, *rest)
    )

    def fail(weights, step):
        came.append(f"sample {step}")
        raise KeyError("a mistake in the sampler")

    assert pretrain(short, str(tmp_path), sampler=fail) == 0
    assert came == [1, "sample 1", 2, "sample 2"]
    assert restore_subtree(tmp_path / "checkpoints", "step").step == 2 and not (tmp_path / "samples").exists()


def test_a_finished_run_has_nothing_to_do(config, whole_run):
    before = (whole_run / "metrics.jsonl").read_text()
    assert pretrain(config, str(whole_run)) == 0
    assert (whole_run / "metrics.jsonl").read_text() == before


def test_a_second_run_on_the_same_workdir_is_refused(config, tmp_path):
    with open_workdir(tmp_path), pytest.raises(WorkdirError, match="is in use by process"):
        pretrain(config, str(tmp_path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optim": OptimConfig(learning_rate=1e-3, warmup_steps=2)}, "optim.learning_rate"),
        ({"train": TrainConfig(steps=STEPS, batch_size=16)}, "train.batch_size"),
        ({"data": {"seq_len": 32}}, "data.seq_len"),
        ({"model": {"d_model": 64}}, "model.d_model"),
    ],
)
def test_resuming_with_another_config_is_refused_with_the_field(config, whole_run, change, message):
    changed = {k: dataclasses.replace(getattr(config, k), **v) if isinstance(v, dict) else v for k, v in change.items()}
    with pytest.raises(CheckpointError, match=message):
        pretrain(dataclasses.replace(config, **changed), str(whole_run))


def test_resuming_on_other_data_is_refused(config, whole_run, make_store):
    path = config.data.stores[0].path
    other = make_store("other", count=81, seed=9).path
    os.rename(path, path + ".away")
    os.symlink(other, path)
    try:
        with pytest.raises(CheckpointError, match="the data changed"):
            pretrain(config, str(whole_run))
    finally:
        os.unlink(path)
        os.rename(path + ".away", path)


def test_a_vocabulary_that_the_model_lacks_is_refused_before_compiling(config, tmp_path):
    small = dataclasses.replace(config, model=dataclasses.replace(config.model, vocab_size=359))
    with pytest.raises(ConfigError, match=r"model\.vocab_size 359 is smaller than the 360 ids"):
        pretrain(small, str(tmp_path))


def test_a_loss_that_is_not_finite_stops_a_run_that_may_not_skip(config, tmp_path, monkeypatch):
    broken = dataclasses.replace(config, optim=OptimConfig(learning_rate=1e-2, skip_nonfinite=False))
    create = state_lib.create

    def poisoned(weights, recipe):
        made = create(weights, recipe)
        return made.replace(params=made.params | {"norm": made.params["norm"].at[0].set(np.nan)})

    monkeypatch.setattr(state_lib, "create", poisoned)
    with pytest.raises(TrainingError, match="step 1: loss or gradient is not finite"):
        pretrain(broken, str(tmp_path))
    assert read_metrics(tmp_path)[0]["step"] == 1  # flushed before the stop


@pytest.mark.slow
def test_a_finished_run_is_made_longer_with_the_bits_of_one_that_was_planned_so(config, tmp_path):
    def run(workdir, steps):
        train = dataclasses.replace(config.train, steps=steps, eval_every=100)
        optim = dataclasses.replace(config.optim, schedule="constant")
        assert pretrain(dataclasses.replace(config, train=train, optim=optim), str(tmp_path / workdir)) == 0
        return trained(tmp_path / workdir)

    run("grown", 3)
    grown, whole = run("grown", 5), run("whole", 5)
    assert [line for line in grown if "loss" in line] == [line for line in whole if "loss" in line]


def test_the_step_is_traced_once_in_the_whole_loop(config, tmp_path, monkeypatch):
    traces = []
    train_step = step_lib.train_step
    monkeypatch.setattr(
        step_lib, "train_step", lambda *args, statistics: traces.append(1) or train_step(*args, statistics=statistics)
    )
    short = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=6))
    watcher = stop_after(tmp_path, 3)
    pretrain(short, str(tmp_path))
    watcher.join()
    assert len(traces) == 1
    pretrain(short, str(tmp_path))  # restored from the checkpoint, if it was stopped in time
    assert len(traces) <= 2


def test_steps_that_are_not_logged_are_a_second_program_without_statistics(config, tmp_path, monkeypatch):
    traces = []
    train_step = step_lib.train_step
    monkeypatch.setattr(
        step_lib,
        "train_step",
        lambda *args, statistics: traces.append(statistics) or train_step(*args, statistics=statistics),
    )
    train = dataclasses.replace(config.train, steps=6, log_every=3)
    assert pretrain(dataclasses.replace(config, train=train), str(tmp_path)) == 0
    assert sorted(traces) == [False, True]
    assert [line["step"] for line in read_metrics(tmp_path) if "layers/q_rms" in line] == [1, 3, 6]


def test_a_run_in_bfloat16_with_microbatches_goes_on_to_the_same_bits(config, tmp_path):
    narrow = dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, compute_dtype="bfloat16"),
        train=dataclasses.replace(config.train, batch_size=16, microbatches=2, log_every=5),
    )
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert pretrain(narrow, str(whole)) == 0
    watcher = stop_after(stopped, 1)
    assert pretrain(narrow, str(stopped)) == EXIT_STOPPED
    watcher.join()
    assert pretrain(narrow, str(stopped)) == 0
    mine, theirs = (restore_subtree(w / "checkpoints", "params").state for w in (stopped, whole))
    jax.tree.map(np.testing.assert_array_equal, mine, theirs)
    losses = [line["loss"] for line in read_metrics(whole) if "loss" in line]
    assert losses[-1] < losses[0] - 0.2


def test_a_rollback_goes_on_from_an_earlier_step_with_later_batches(config, whole_run, tmp_path):
    """Back to step 4, passing over 3 batches: steps 5 to 12 see batches 7 to 14, at the rates of steps 5 to 12."""
    shutil.copytree(whole_run, tmp_path / "run")
    assert pretrain(config, str(tmp_path / "run"), rollback=Rollback(step=4, skip_batches=3)) == 0
    ours, before = (
        {line["step"]: line for line in trained(w) if "loss" in line} for w in (tmp_path / "run", whole_run)
    )
    assert list(ours) == list(range(1, STEPS + 1))  # each step once, the discarded ones are gone from the log
    for step in range(1, STEPS + 1):
        assert ours[step]["learning_rate"] == before[step]["learning_rate"]
        assert (ours[step]["loss"] == before[step]["loss"]) == (step <= 4)
    state = restore_subtree(tmp_path / "run" / "checkpoints", "position")
    assert int(state.state) == STEPS + 3
    seen = sum(ours[STEPS][f"tokens_seen/{name}"] for name in ("text", "image"))
    loader = Loader(config.data, config.train.batch_size, STEPS)
    batches = [*range(4), *range(7, 15)]
    assert seen == sum(int(loader.host_batch(k).loss_weights.sum()) for k in batches)


def test_a_rollback_deletes_what_came_later_and_refuses_a_step_that_is_not_there(config, whole_run, tmp_path):
    shutil.copytree(whole_run, tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"there is no step 5 in .*saved: 4, 8, 12"):
        pretrain(config, str(tmp_path / "run"), rollback=Rollback(step=5))
    short = dataclasses.replace(config, checkpoint=CheckpointConfig(every_steps=100))
    assert pretrain(short, str(tmp_path / "run"), rollback=Rollback(step=4)) == 0
    assert sorted(int(p.name) for p in (tmp_path / "run" / "checkpoints").iterdir()) == [4, 12]
    assert trained(tmp_path / "run") == trained(whole_run)  # without skipped batches it is the same run


def test_a_rollback_that_is_repeated_after_a_stop_goes_on_and_a_plain_resumption_knows_of_it(
    config, whole_run, tmp_path, monkeypatch
):
    """Stopped before anything was saved, and again after a save: no step disappears, and the batches stay passed over."""
    copy, back = tmp_path / "run", Rollback(step=4, skip_batches=3)
    shutil.copytree(whole_run, copy)
    expected = tmp_path / "expected"
    shutil.copytree(whole_run, expected)
    assert pretrain(config, str(expected), rollback=back) == 0

    def die(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop, "to_global", die)  # in the first step after the rollback
        pretrain(config, str(copy), rollback=back)
    short = dataclasses.replace(config, checkpoint=CheckpointConfig(every_steps=6))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop.telemetry.Console, "line", lambda self, step, metrics: die() if step == 8 else "")
        pretrain(short, str(copy))  # without the flags
    assert pretrain(config, str(copy), rollback=back) == 0  # with them: goes on from step 6
    assert trained(copy) == trained(expected)


def test_what_is_saved_after_a_rollback_does_not_pass_over_batches_again(config, whole_run, tmp_path, monkeypatch):
    """The steps are deleted by hand and made anew: step 4 is another one now, and the record of the rollback stays."""
    copy = tmp_path / "run"
    shutil.copytree(whole_run, copy)
    assert pretrain(config, str(copy), rollback=Rollback(step=4, skip_batches=3)) == 0
    shutil.rmtree(copy / "checkpoints")

    def die_at_6(self, step, metrics):
        if step == 6:
            raise KeyboardInterrupt
        return ""

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop.telemetry.Console, "line", die_at_6)
        pretrain(config, str(copy))
    assert [path.name for path in (copy / "checkpoints").iterdir()] == ["4"]
    assert pretrain(config, str(copy)) == 0
    assert trained(copy) == trained(whole_run)


@pytest.fixture
def reads_are_guarded(monkeypatch):
    """Make `transfer_guard` hold for reads on a CPU too, where they copy nothing and JAX lets them pass.

    All but `np.asarray`, which takes the buffer of a CPU array without asking the array.
    """
    from jax._src.array import ArrayImpl
    from jax._src.lib import guard_lib

    read = ArrayImpl._value.fget

    def guarded(array):
        state = guard_lib.thread_local_state()
        if state.device_to_host == guard_lib.TransferGuardLevel.DISALLOW and not state.explicit_device_get:
            raise AssertionError("a device array was read implicitly")
        return read(array)

    monkeypatch.setattr(ArrayImpl, "_value", property(guarded))


def test_the_loop_reads_nothing_from_the_devices_implicitly(config, tmp_path, reads_are_guarded):
    train = dataclasses.replace(config.train, steps=5, log_every=2, eval_every=3)
    assert pretrain(dataclasses.replace(config, train=train), str(tmp_path)) == 0


@pytest.mark.parametrize(
    ("sin", "message"),
    [
        (lambda metrics: float(metrics.gradient_norm), "read implicitly"),
        (lambda metrics: metrics.gradient_norm + np.float32(1), "Disallowed host-to-device transfer"),
    ],
    ids=["to the host", "to the device"],
)
def test_an_implicit_transfer_in_the_loop_would_be_noticed(
    config, tmp_path, reads_are_guarded, monkeypatch, sin, message
):
    monkeypatch.setattr(telemetry, "step_metrics", lambda metrics, losses, modalities: losses)
    add = loop._Report.add
    monkeypatch.setattr(loop._Report, "add", lambda self, step, metrics: (sin(metrics), add(self, step, metrics)))
    with pytest.raises(Exception, match=message):
        pretrain(config, str(tmp_path))


@dataclasses.dataclass(frozen=True, kw_only=True)
class LineTask:
    """Another task for the same loop: y = slope . x + offset, from points that are a function of the position."""

    tokens_per_step = 16
    flops_per_step = 1e3
    modalities = ("points",)
    fingerprint = "points"
    metadata: dict = dataclasses.field(default_factory=dict)
    row_names: dict = dataclasses.field(default_factory=dict)

    def param_specs(self):
        slope = params.ParamSpec(shape=(4,), axes="H", role="bias", init="zeros")
        return {"slope": slope, "offset": params.ParamSpec(shape=(1,), axes="H", role="bias", init="zeros")}

    def open(self, workdir, mesh):
        return self

    def initial_params(self, data, mesh):
        specs = self.param_specs()
        return jax.device_put(params.initialise(jax.random.key(0), specs), params.shardings(specs, mesh, TRAINING))

    def keep(self, workdir):
        (workdir / "kept").touch()

    def batches(self, start, count):
        for position in range(start, start + count):
            x = np.random.default_rng(position).normal(size=(16, 4)).astype(np.float32)
            yield {"x": x, "y": (x @ np.array([1, -2, 3, 0.5], np.float32) + 0.25)[:, None]}

    def evaluators(self, recipe, data, mesh):
        return (
            Evaluator(
                name="size", every_steps=20, run=lambda weights: {"loss": float(jax.device_get(weights["offset"])[0])}
            ),
        )

    def loss(self, weights, batch, dropout_key, *, statistics):
        weights = params.gathered(weights, self.param_specs(), "float32", TRAINING)
        square = jnp.sum((batch["x"] @ weights["slope"] + weights["offset"] - batch["y"][:, 0]) ** 2)
        count = jnp.float32(len(batch["x"]))
        each = jnp.zeros(2).at[0].set(count)
        return LossSums(square, count, each, each * square / count, each, each, each, square), None

    def metrics(self, sums):
        return {"loss": float(sums.objective / sums.normaliser)}


def test_another_task_trains_in_the_same_loop(tmp_path):
    config = RunConfig(
        train=TrainConfig(steps=60, batch_size=16, log_every=20),
        optim=OptimConfig(learning_rate=0.3, warmup_steps=0, schedule="cosine", weight_decay=0.0),
    )
    assert loop.train(LineTask(), config, str(tmp_path)) == 0
    lines = read_metrics(tmp_path)
    assert [line["loss"] for line in lines if "loss" in line][-1] < 0.05
    assert [line["step"] for line in lines if "eval/loss" in line] == [20, 40, 60]
    assert lines[-1]["eval/loss"] == pytest.approx(0.25, abs=0.05)
