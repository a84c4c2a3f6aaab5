"""The run directory: one run at a time, whole files, and no silent change of config."""

import dataclasses
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys

import jax
import pytest

from chameleon_jax import workdir
from chameleon_jax.configs import (
    CheckpointConfig,
    DataConfig,
    OptimConfig,
    PretrainConfig,
    StoreConfig,
    TrainConfig,
    TransformerConfig,
)
from chameleon_jax.errors import CheckpointError, WorkdirError
from chameleon_jax.files import atomic_write
from chameleon_jax.models.params import sharding_table
from chameleon_jax.models.transformer import param_specs
from chameleon_jax.parallel.mesh import TRAINING, make_mesh
from chameleon_jax.workdir import check_resume, open_workdir, require_run, write_run_files

HOLD = """
import sys, time
from chameleon_jax.workdir import open_workdir
with open_workdir(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def make_config(**train) -> PretrainConfig:
    model = TransformerConfig(
        vocab_size=512, d_model=32, n_layers=2, n_heads=2, n_kv_heads=2, head_dim=16, d_ff=64, max_seq_len=64
    )
    data = DataConfig(stores=(StoreConfig(path="store"),), seq_len=64)
    optim = train.pop("optim", OptimConfig())
    return PretrainConfig(
        model=model, data=data, train=TrainConfig(**{"steps": 10, "batch_size": 4, **train}), optim=optim
    )


def test_a_second_run_is_refused_while_the_first_lives_and_let_in_after_kill_9(tmp_path):
    path = tmp_path / "deep" / "run"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        with (
            pytest.raises(WorkdirError, match=f"is in use by process {holder.pid} on host .+; .*another --workdir"),
            open_workdir(path),
        ):
            pass
        with open_workdir(path, process_index=1):  # the other processes of one run do not take the lock
            pass
        holder.send_signal(signal.SIGKILL)
    with open_workdir(path) as opened:
        assert opened == path
        assert json.loads((path / ".lock").read_text())["pid"] == os.getpid()


def test_a_run_that_has_saved_nothing_is_no_release(tmp_path):
    with open_workdir(tmp_path):
        write_run_files(tmp_path, make_config())
    with pytest.raises(
        CheckpointError, match=r"is a training run that has saved nothing yet: run experiments.pretrain"
    ):
        require_run(tmp_path)


def test_the_same_process_cannot_open_a_workdir_twice_at_a_time_but_can_in_turn(tmp_path):
    for _ in range(2):
        with open_workdir(tmp_path), pytest.raises(WorkdirError, match="in use"), open_workdir(tmp_path):
            pass


def test_a_lock_file_of_nonsense_is_no_hindrance(tmp_path):
    (tmp_path / ".lock").write_text("?" * 1000)
    with open_workdir(tmp_path):
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()


def test_a_workdir_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkdirError, match="cannot be made or written"), open_workdir(tmp_path / "file"):
        pass


def test_an_atomic_write_replaces_the_whole_file_and_leaves_nothing_else(tmp_path):
    atomic_write(tmp_path / "f", "long old content")
    atomic_write(tmp_path / "f", b"new")
    assert (tmp_path / "f").read_bytes() == b"new"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_a_failed_atomic_write_leaves_the_target_and_no_rubbish(tmp_path):
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError):
        atomic_write(tmp_path / "taken", "x")
    assert [p.name for p in tmp_path.iterdir()] == ["taken"]


def _write_for_ever(path, ready):
    while True:
        for character in "ab":
            atomic_write(path, character * 100_000)
            ready.set()


def test_a_reader_never_sees_half_a_file_even_after_kill_9(tmp_path):
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    writer = context.Process(target=_write_for_ever, args=(tmp_path / "f", ready))
    writer.start()
    assert ready.wait(60)
    for _ in range(200):
        text = (tmp_path / "f").read_text()
        assert text in ("a" * 100_000, "b" * 100_000)
    writer.kill()
    writer.join()
    assert (tmp_path / "f").read_text() in ("a" * 100_000, "b" * 100_000)


def test_run_files_tell_what_the_run_was(tmp_path):
    config = make_config()
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    table = sharding_table(param_specs(config.model), mesh, TRAINING)
    write_run_files(tmp_path, config, {"config.gin": "A.b = 1\n", "operative_config.gin": "A.b = 1\n"}, table)
    assert PretrainConfig.from_dict(json.loads((tmp_path / "config.json").read_text())) == config
    versions = json.loads((tmp_path / "versions.json").read_text())
    assert versions["jax"] == jax.__version__ and versions["python"] and "git_commit" in versions
    table = (tmp_path / "sharding.txt").read_text()
    assert "mesh: data 1, fsdp 1, tensor 1" in table
    assert re.search(r"^embed +float32\[512, 32\] +V D .* 65,536$", table, re.MULTILINE)
    assert (tmp_path / "config.gin").read_text() == (tmp_path / "operative_config.gin").read_text() == "A.b = 1\n"


def test_the_same_config_resumes_and_free_fields_may_change():
    config = make_config()
    check_resume(config.to_dict(), config)
    changed = make_config(log_every=3)
    changed = PretrainConfig(
        model=TransformerConfig(**{**vars(config.model), "remat": "full"}),
        data=DataConfig(**{**vars(config.data), "prefetch": 5, "eval_stores": (StoreConfig(path="held_out"),)}),
        train=changed.train,
        checkpoint=CheckpointConfig(keep=7),
    )
    check_resume(config.to_dict(), changed)


def test_a_change_of_anything_else_is_refused_in_one_line_with_both_values():
    with pytest.raises(CheckpointError) as caught:
        check_resume(make_config().to_dict(), make_config(batch_size=8, seed=3))
    message = str(caught.value)
    assert "train.batch_size was 4 and is 8" in message and "train.seed was 0 and is 3" in message
    assert "\n" not in message


def test_a_run_can_be_made_longer_where_its_past_did_not_depend_on_its_length():
    def config(steps, stage=1, **optim):
        made = make_config(steps=steps, optim=OptimConfig(**optim))
        stores = (*made.data.stores, StoreConfig(path="later", stage=stage))
        return dataclasses.replace(made, data=dataclasses.replace(made.data, stores=stores))

    def resume(then, now, **settings):
        check_resume(config(then, **settings).to_dict(), config(now, **settings))

    resume(100, 200, schedule="constant", warmup_steps=5)
    resume(50_000, 80_000, schedule="constant")  # the warm-up of both is 4,000
    for reason, settings in {
        r"cannot become one of 200: the learning rate decays \(cosine\) to 0": {"schedule": "cosine"},
        r"warm-up would be 20 steps and not 10; set OptimConfig.warmup_steps=10": {"schedule": "constant"},
        r"the second stage of the data begins at a fraction": {"schedule": "constant", "warmup_steps": 5, "stage": 2},
    }.items():
        with pytest.raises(CheckpointError, match=reason):
            resume(100, 200, **settings)
    with pytest.raises(CheckpointError, match=r"train.steps was 200 and is 100"):
        resume(200, 100, schedule="constant", warmup_steps=5)


def test_a_field_that_is_newer_than_the_checkpoint_counts_as_its_default():
    saved = make_config().to_dict()
    del saved["loss"]["z_loss"]
    check_resume(saved, make_config())


@pytest.mark.parametrize("mark", ["checkpoints", "plan.json", "vocab.json"])
def test_workdirs_of_other_kinds_are_refused(tmp_path, mark):
    """Files of two kinds in one folder would be taken for one another's."""
    (tmp_path / mark).mkdir()
    of = {workdir.RUN: "checkpoints", workdir.STORE: "plan.json", workdir.BUNDLE: "vocab.json"}
    for kind, own in of.items():
        if own == mark:
            workdir.require_kind(tmp_path, kind)
            continue
        with pytest.raises(WorkdirError, match=rf"\(it holds {mark}\), not {kind}: choose another --workdir"):
            workdir.require_kind(tmp_path, kind)
    workdir.require_kind(tmp_path / "new", workdir.RUN)


def test_a_folder_of_gin_files_names_where_its_run_will_be(tmp_path):
    (tmp_path / "run.gin").touch()
    with pytest.raises(CheckpointError, match=f"its run is {tmp_path}/model once the commands"):
        workdir.require_run(tmp_path)
