"""A command ends with what it did, where it lies, and the next command in full."""

import pytest

from chameleon_jax import summary

RUNS = "gin_configs/runs"


def test_the_next_command_has_what_its_run_file_requires(tmp_path):
    given = ["DATA=my data", "VQTrainConfig.steps=5"]
    known = {"TOKENIZER": tmp_path}
    flags = summary.following([f"{RUNS}/emoji_tokenizer.gin"], given, ("_tokenizer.gin", "_tokenize.gin"), known)
    assert flags == [f"--gin_file={RUNS}/emoji_tokenize.gin", "--gin.DATA=my data", f"--gin.TOKENIZER={tmp_path}"]
    digits = [f"{RUNS}/digits_tokenize.gin"]
    stores = {"TRAIN": tmp_path / "train", "HELDOUT": tmp_path / "heldout"}
    flags = summary.following(digits, ["SEED=3", "MANIFEST=a.jsonl"], ("_tokenize.gin", ".gin"), stores)
    assert flags[1:] == [f"--gin.TRAIN={tmp_path}/train", f"--gin.HELDOUT={tmp_path}/heldout", "--gin.SEED=3"]


@pytest.mark.parametrize(
    ("file", "known"),
    [(f"{RUNS}/digits_tokenize.gin", {"TRAIN": "x"}), ("mine/other_tokenize.gin", {}), ("mine.gin", {}), (None, {})],
    ids=["something is not known", "no sibling", "another name", "no file"],
)
def test_a_command_that_cannot_be_told_in_full_is_not_told(file, known):
    assert summary.following([file] if file else [], [], ("_tokenize.gin", ".gin"), known) is None


def test_a_summary_can_be_pasted_and_a_demonstration_leaves_the_next_command_out(capsys):
    def shown():
        summary.show(185, {"runs/a b": "a tokenizer"}, {"PSNR": "20 dB"}, [("inspect", ["runs/a b"]), ("serve", [])])
        return capsys.readouterr().out.splitlines()

    told = [
        "done in 3m05s",
        "  wrote  runs/a b: a tokenizer",
        "  PSNR   20 dB",
        "  next   python -m experiments.inspect 'runs/a b'",
        "         python -m experiments.serve",
    ]
    assert [line.rstrip() for line in shown()] == told
    with summary.led():
        assert shown() == told[:3]
    assert len(shown()) == 5
