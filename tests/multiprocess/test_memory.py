"""The check of memory of the real command: both processes end with its line."""

import pytest

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
)


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    records = [{"text": "a red heart", "image": "red.png"}] * 12
    store = make_store(tmp_path_factory.mktemp("made") / "pairs", make_run().bundle, records)
    return [*PRETRAIN, f"--gin.TRAIN={store}", f"--gin.HELDOUT={store}"]


def test_a_step_that_cannot_fit_ends_all_processes_in_one_line(flags, start, ended, by_hand, tmp_path):
    small = [*flags, "--gin.TrainConfig.memory_gb=0.001", f"--workdir={tmp_path / 'run'}"]
    for code, output in ended(start([[*small, *own] for own in by_hand(2)]), timeout=120):
        assert code == 2 and "Traceback" not in output
        (line,) = [line for line in output.splitlines() if line.startswith("error: ")]
        assert "a step needs about" in line and "TrainConfig.memory_gb" in line
    assert not (tmp_path / "run" / "samples").exists()
