"""A folder that `new` made says how far it is and what to type next; a run without a save says so too."""

import shlex

import pytest

from chameleon_jax.configs import (
    CheckpointConfig,
    DataConfig,
    PretrainConfig,
    StoreConfig,
    TrainConfig,
    TransformerConfig,
)
from chameleon_jax.errors import CheckpointError
from chameleon_jax.evaluation import inspection
from chameleon_jax.own_data import proposal, sizes, stages
from chameleon_jax.workdir import open_workdir, write_run_files
from tests.mistakes.runner import run
from tests.own_data.test_proposal import CPU
from tests.own_data_forms import records, write_csv


@pytest.fixture
def folder(tmp_path):
    found = proposal.look(proposal.source_of_flags(str(write_csv(tmp_path / "data", records(12))), "", None))
    chosen = sizes.choose(found, CPU, 1.0)
    made = tmp_path / "a run"
    proposal.write(proposal.Proposal(found=found, machine=CPU, sizes=chosen, folder=made), overwrite=False, shown=1)
    return made


def state(folder):
    """The words for tokenizer, store and model, and the command that is next."""
    _, _, *table, _, following = stages.lines(folder)
    return [line[14:38].strip() for line in table], shlex.split(following.removeprefix("next: python -m "))


def test_each_stage_is_told_and_the_next_command(folder):
    assert stages.is_new_folder(folder) and not stages.is_new_folder(folder.parent)
    words, following = state(folder)
    assert words == ["not there yet"] * 3
    assert following[0] == "experiments.train_tokenizer" and following[2] == f"--workdir={folder / 'tokenizer'}"
    (folder / "tokenizer").mkdir()
    assert state(folder)[0][0] == "begun"
    (folder / "tokenizer" / "vocab.json").touch()
    (folder / "store" / "train").mkdir(parents=True)
    (folder / "store" / "train" / "plan.json").touch()
    words, following = state(folder)
    assert words == ["there", "begun", "not there yet"] and following[0] == "experiments.tokenize"
    (folder / "store" / "train" / "manifest.json").touch()
    assert state(folder)[1][0] == "experiments.pretrain"
    (folder / "model" / "checkpoints" / "120").mkdir(parents=True)
    (folder / "model" / "config.json").write_text('{"train": {"steps": 1200}}')
    words, following = state(folder)  # one that was stopped goes on
    assert words[2] == "at step 120 of 1,200" and following[0] == "experiments.pretrain"
    (folder / "model" / "checkpoints" / "1200").mkdir()
    words, following = state(folder)
    assert words[2] == "saved at step 1,200" and following == ["experiments.inspect", str(folder / "model")]


def test_inspect_shows_it(folder, capfd):
    code, out, err = run(f"inspect {shlex.quote(str(folder))}", folder, capfd)
    assert not code and "next: python -m experiments.train_tokenizer" in out, err


def test_a_run_that_has_saved_nothing_or_lost_it_is_told_with_the_command_that_goes_on(make_store, tmp_path, capsys):
    config = PretrainConfig(
        model=TransformerConfig(d_model=16, n_layers=1, n_heads=2, n_kv_heads=1, head_dim=8, d_ff=24, vocab_size=0),
        data=DataConfig(stores=(StoreConfig(path=str(make_store().path)),), seq_len=64),
        train=TrainConfig(steps=200, batch_size=8),
        checkpoint=CheckpointConfig(every_steps=40),
    )
    workdir = tmp_path / "begun"
    with open_workdir(workdir):
        write_run_files(workdir, config, {"config.gin": ""})
        inspection.print_path(str(workdir), verify=False)
    said = capsys.readouterr().out
    assert "layers/attn/wq" in said and "nothing is saved yet: wait for the first save" in said
    assert f"python -m experiments.pretrain --gin_file={workdir}/config.gin --workdir={workdir}" in said
    for step, told in ((40, "nothing is saved yet"), (80, "step 80 is logged, but no checkpoint is there any more")):
        (workdir / "metrics.jsonl").write_text(f'{{"step": {step}, "loss": 1.0}}\n')
        inspection.print_path(str(workdir), verify=False)
        assert told in capsys.readouterr().out
        with pytest.raises(CheckpointError, match=r"no checkpoint to verify in .*begun/checkpoints"):
            inspection.print_path(str(workdir), verify=True)
        assert told in capsys.readouterr().out
