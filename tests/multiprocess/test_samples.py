"""Samples and the summary of the real command: process 0 alone writes, and writes what one process does."""

import numpy as np
import pytest
from PIL import Image

from tests.evaluation.test_training_samples import make_store
from tests.tiny_run import make_run

pytestmark = pytest.mark.slow

PRETRAIN = (
    "-m",
    "experiments.pretrain",
    "--gin_file=gin_configs/runs/smoke.gin",
    "--gin.TransformerConfig.vocab_size=0",
    "--gin.TransformerConfig.n_layers=1",
    "--gin.TrainConfig.steps=4",
    "--gin.TrainConfig.eval_every=4",
    "--gin.TrainConfig.sample_every=3",
    "--gin.CheckpointConfig.every_steps=4",
    # Every process holds all parameters; divided over processes, no samples are made.
    "--gin.MeshConfig.data=-1",
    "--gin.MeshConfig.fsdp=1",
)


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    records = [{"text": "a red heart", "image": "red.png"}] * 12
    store = make_store(tmp_path_factory.mktemp("made") / "pairs", make_run().bundle, records)
    return [*PRETRAIN, f"--gin.TRAIN={store}", f"--gin.HELDOUT={store}"]


def names(workdir):
    """What lies in a run, without the numbers that names have of a process or a moment."""
    files = (path.relative_to(workdir) for path in workdir.rglob("*") if path.is_file())
    return {str(file) for file in files if file.parts[0] not in ("tensorboard", "checkpoints")}


def test_two_processes_write_the_samples_and_the_summary_of_one(flags, start, ended, by_hand, tmp_path):
    alone, together = tmp_path / "alone", tmp_path / "together"
    ((code, output),) = ended(start([[*flags, f"--workdir={alone}"]], 8))
    assert code == 0, output
    results = ended(start([[*flags, f"--workdir={together}", *own] for own in by_hand(2)]))
    assert [code for code, _ in results] == [0, 0], results
    assert names(together) == names(alone)
    pages = sorted(path.name for path in (alone / "samples").iterdir())
    assert pages == ["0000003.png", "0000004.png"]
    for page in pages:
        expected, found = (np.asarray(Image.open(run / "samples" / page)) for run in (alone, together))
        np.testing.assert_array_equal(found, expected)
    assert len(list((together / "tensorboard").iterdir())) == 1
    told = [text.partition("done in")[2] for text in (output, results[0][1])]
    assert "what the model made on the way" in told[1] and told[1].count("\n") == told[0].count("\n")
    assert "done in" not in results[1][1] and "samples" not in results[1][1]
