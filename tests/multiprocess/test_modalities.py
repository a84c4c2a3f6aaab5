"""Perceived pictures and untied layers in bfloat16: two processes on a mesh train as one does, and what they saved one restores."""

import dataclasses
import json

import numpy as np
import pytest

from chameleon_jax.checkpoints.restore import saved_metadata
from chameleon_jax.configs import CheckpointConfig, MeshConfig, TrainConfig
from tests.test_perceived_pictures import MODEL, root, run_config  # noqa: F401

STEPS, SAVED = 8, 4

pytestmark = pytest.mark.slow


def losses(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


@pytest.fixture(scope="module")
def config(root):  # noqa: F811
    model = dataclasses.replace(
        MODEL, untied=("mlp", "norms", "attention"), modalities=3, compute_dtype="bfloat16", dropout=0.1
    )
    return dataclasses.replace(
        run_config(root, model),
        train=TrainConfig(steps=STEPS, batch_size=8, log_every=1),
        mesh=MeshConfig(data=2, fsdp=2, tensor=2),
        checkpoint=CheckpointConfig(every_steps=SAVED),
    )


def test_batches_with_pictures_are_identical_to_those_of_one_process(config, work):
    (alone,) = work(1, [("batches", config, "")])[0]
    parts = [result[0] for result in work(2, [("batches", config, "")])]
    assert set(parts[0]) | set(parts[1]) == set(alone) and len(alone) == STEPS * 8
    for part in parts:
        assert all(digests == alone[row] and len(digests) == 1 for row, digests in part.items())


def test_two_processes_train_as_one_does_and_another_mesh_goes_on(config, work, tmp_path):
    for count in (1, 2):
        assert all(result == [0] for result in work(count, [("train", config, tmp_path / f"by{count}")]))
    alone, together = (losses(tmp_path / f"by{count}") for count in (1, 2))
    assert list(alone) == list(together) == list(range(1, STEPS + 1))
    np.testing.assert_allclose(list(together.values()), list(alone.values()), rtol=0, atol=5e-3)
    assert alone[STEPS] < alone[1] - 0.1  # it learns
    # One process rolls the run of two back to its first save, on a mesh of other sizes.
    elsewhere = dataclasses.replace(config, mesh=MeshConfig(data=1, fsdp=8))
    assert work(1, [("roll_back", elsewhere, tmp_path / "by2")]) == [[0]]
    assert saved_metadata(tmp_path / "by2" / "checkpoints" / str(STEPS))["config"]["mesh"] == elsewhere.mesh.to_dict()
    again = losses(tmp_path / "by2")
    assert list(again) == list(range(1, STEPS + 1))
    np.testing.assert_allclose(list(again.values()), list(together.values()), rtol=0, atol=5e-3)
