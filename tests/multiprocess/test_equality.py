"""However many processes there are: the same batches, the same losses, and checkpoints that any other number restores."""

import dataclasses
import json
import shutil
import socket
import time

import numpy as np
import pytest

from chameleon_jax.checkpoints.restore import restore_subtree, saved_metadata
from chameleon_jax.configs import (
    CheckpointConfig,
    DataConfig,
    InitConfig,
    MeshConfig,
    OptimConfig,
    PretrainConfig,
    StoreConfig,
    TrainConfig,
    TransformerConfig,
)  # fmt: skip
from tests.multiprocess.conftest import WORKER

COUNTS = (1, 2, 4)  # processes, of 8 devices together
MESHES = {"data": (8, 1, 1), "all": (2, 2, 2), "tensor": (1, 2, 4), "fsdp": (1, 8, 1)}
STEPS, SAVED = 20, 8  # of the runs that are compared; of the run that is saved at 4 and 8

pytestmark = pytest.mark.slow


def make_config(store, held_out, mesh, steps):
    data, fsdp, tensor = MESHES[mesh]
    return PretrainConfig(
        model=TransformerConfig(
            vocab_size=360, d_model=32, n_layers=2, n_heads=4, n_kv_heads=4, head_dim=8, d_ff=48, max_seq_len=64, dropout=0.1,
            compute_dtype="float32",
        ),
        data=DataConfig(stores=(StoreConfig(path=store),), eval_stores=(StoreConfig(path=held_out),), seq_len=64),
        train=TrainConfig(steps=steps, batch_size=8, log_every=1, eval_every=steps, eval_batches=2, peak_flops=1e12),
        optim=OptimConfig(learning_rate=1e-2, warmup_steps=2),
        checkpoint=CheckpointConfig(every_steps=4 if steps == SAVED else steps),
        mesh=MeshConfig(data=data, fsdp=fsdp, tensor=tensor),
    )  # fmt: skip


def log(workdir, prefix=""):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line[f"{prefix}loss"] for line in lines if f"{prefix}loss" in line}


@pytest.fixture(scope="module")
def configs(build_store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("stores")
    paths = [build_store(folder / name, count=80, seed=seed).path for seed, name in enumerate(("train", "held"))]
    return {mesh: make_config(*paths, mesh, SAVED if mesh == "fsdp" else STEPS) for mesh in MESHES}


@pytest.fixture(scope="module")
def runs(configs, work, tmp_path_factory):
    """By count of processes: the folder with a workdir a mesh, and the hashes of batches a mesh."""
    found = {}
    for count in COUNTS:
        folder = tmp_path_factory.mktemp(f"by{count}")
        jobs = [("train", config, folder / mesh) for mesh, config in configs.items()]
        jobs += [("batches", config, "") for config in configs.values()]
        results = work(count, jobs)
        assert all(code == 0 for result in results for code in result[: len(configs)])
        found[count] = folder, [result[len(configs) :] for result in results]
    return found


@pytest.mark.parametrize("count", COUNTS[1:])
def test_batches_are_identical_to_those_of_one_process(runs, count):
    (alone,) = runs[1][1]
    for mesh, expected in enumerate(alone):
        parts = [process[mesh] for process in runs[count][1]]
        assert set().union(*parts) == set(expected)  # no row is missing
        for part in parts:
            for row, digests in part.items():
                assert digests == expected[row] and len(digests) == 1  # replicas, too, are equal


@pytest.mark.parametrize("mesh", ["data", "all", "tensor"])
@pytest.mark.parametrize("count", COUNTS[1:])
def test_losses_are_those_of_one_process(runs, count, mesh):
    for prefix in ("", "eval/"):
        expected, found = (log(runs[n][0] / mesh, prefix) for n in (1, count))
        assert list(found) == list(expected) == (list(range(1, STEPS + 1)) if not prefix else [STEPS])
        np.testing.assert_allclose(list(found.values()), list(expected.values()), rtol=0, atol=1e-6)


@pytest.mark.parametrize("count", COUNTS)
def test_what_one_count_saved_another_restores_on_another_mesh_and_a_flipped_byte_is_named(
    runs, configs, work, tmp_path, count
):
    saved_by = [other for other in COUNTS if other != count]
    going_on = dataclasses.replace(configs["tensor"], train=configs["fsdp"].train)
    jobs = []
    for other in saved_by:
        for copy in ("resumed", "damaged"):
            shutil.copytree(runs[other][0] / "fsdp", tmp_path / f"{copy}{other}")
        flip_a_byte_of_the_embedding(tmp_path / f"damaged{other}" / "checkpoints")
        jobs.append(("roll_back", going_on, tmp_path / f"resumed{other}"))
        jobs += [("restore", config, tmp_path / f"damaged{other}") for config in (going_on, configs["fsdp"])]
    results = work(count, jobs)
    for place, other in enumerate(saved_by):
        for result in results:
            code, *restored = result[place * 3 : place * 3 + 3]
            assert code == 0
            for error, good_step in restored:
                assert "leaf 'params/embed'" in error and "does not match its checksum" in error
                assert good_step == 4
        again = saved_metadata(tmp_path / f"resumed{other}" / "checkpoints" / str(SAVED))
        assert again["config"]["mesh"] == going_on.mesh.to_dict()  # step 8 is not the one that was saved there before
        expected, found = log(runs[other][0] / "fsdp"), log(tmp_path / f"resumed{other}")
        assert list(found) == list(range(1, SAVED + 1))
        np.testing.assert_allclose(list(found.values()), list(expected.values()), rtol=1e-5)


def flip_a_byte_of_the_embedding(checkpoints):
    """In step 8, at a place that only the raw values of this leaf can have."""
    embed = np.asarray(restore_subtree(checkpoints / "8").state["embed"])
    needle = embed[123, :4].tobytes()
    (victim,) = [p for p in (checkpoints / "8").rglob("*") if p.is_file() and needle in p.read_bytes()]
    content = bytearray(victim.read_bytes())
    content[content.index(needle)] ^= 1
    victim.write_bytes(content)


def test_two_processes_start_from_weights_in_bfloat16_as_one_does(configs, work, tmp_path):
    """From a run of one process on another mesh: the held-out loss before the first step, and the losses of the steps after."""
    source = configs["fsdp"]
    work(1, [("train", source, tmp_path / "source")])
    begun = dataclasses.replace(
        configs["all"],
        init_from=InitConfig(workdir=str(tmp_path / "source")),
        model=dataclasses.replace(source.model, compute_dtype="bfloat16"),
        train=dataclasses.replace(source.train, steps=4, eval_every=4, microbatches=2, batch_size=16),
    )
    for count in (1, 2):
        assert all(result == [0] for result in work(count, [("train", begun, tmp_path / f"by{count}")]))
    for prefix in ("", "eval/"):
        alone, together = (log(tmp_path / f"by{count}", prefix) for count in (1, 2))
        assert list(together) == list(alone) == ([1, 2, 3, 4] if not prefix else [0, 4])
        np.testing.assert_allclose(list(together.values()), list(alone.values()), rtol=0, atol=2e-3)
    untrained = log(tmp_path / "source")[1]
    assert log(tmp_path / "by2", "eval/")[0] < untrained - 0.1  # what was learned came along


def test_a_signal_to_one_process_stops_all_after_the_same_step(configs, start, ended, by_hand, tmp_path):
    long = dataclasses.replace(
        configs["all"], train=dataclasses.replace(configs["all"].train, steps=2000, eval_every=2000)
    )
    file, workdir = tmp_path / "jobs", tmp_path / "run"
    file.write_text(json.dumps([{"do": "train", "config": long.to_dict(), "workdir": str(workdir)}]))
    processes = start([[WORKER, f"--jobs={file}", *flags] for flags in by_hand(2)])
    while not (workdir / "metrics.jsonl").exists() or len(log(workdir)) < 3:
        assert all(process.poll() is None for process in processes)
        time.sleep(0.1)
    processes[1].terminate()
    outputs = ended(processes)
    assert [json.loads(file.with_suffix(f".result-{p}").read_text()) for p in (0, 1)] == [[75], [75]], outputs
    assert restore_subtree(workdir / "checkpoints", "step").step == max(log(workdir)) < 2000


def test_a_process_that_is_killed_in_a_save_is_named(configs, start, ended, by_hand, tmp_path):
    """Not the disk, though it is a joint operation of saving that fails in the other process."""
    file = tmp_path / "jobs"
    file.write_text(
        json.dumps([{"do": "die_in_a_save", "config": configs["fsdp"].to_dict(), "workdir": str(tmp_path / "run")}])
    )
    processes = start([[WORKER, f"--jobs={file}", *flags] for flags in by_hand(2)])
    (code, output), (killed, _) = ended(processes)
    assert (code, killed) == (1, -9)
    assert f"error: process 1 (host {socket.gethostname()}, pid {processes[1].pid}) ended without a word" in output
