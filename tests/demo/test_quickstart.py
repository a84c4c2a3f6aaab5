"""The quickstart's seed reaches every config, and bad flags are refused before the first command."""

from pathlib import Path

import pytest

from chameleon_jax import gin_utils
from chameleon_jax.configs import PretrainConfig, TokenizeConfig, TrainTokenizerConfig
from chameleon_jax.demo import journey
from experiments import quickstart as entry

RUNS = Path(__file__).parents[2] / "gin_configs" / "runs"


def _seeds(bindings: list[str], name: str) -> dict[str, int]:
    pretrain = gin_utils.load(
        PretrainConfig, [str(RUNS / f"{name}.gin")], ["TRAIN='train'", "HELDOUT='heldout'", *bindings]
    )
    tokenize = gin_utils.load(
        TokenizeConfig, [str(RUNS / f"{name}_tokenize.gin")], ["MANIFEST='m.jsonl'", "TOKENIZER='t'", *bindings]
    )
    tokenizer = gin_utils.load(TrainTokenizerConfig, [str(RUNS / f"{name}_tokenizer.gin")], ["DATA='data'", *bindings])
    return {
        "weights": pretrain.config.train.seed,
        "order": pretrain.config.data.seed,
        "coin": tokenize.config.seed,
        "codec": tokenizer.config.vq_train.seed,
    }


@pytest.mark.parametrize("name", ["digits", "digits_patches"])
def test_one_macro_seeds_codec_coin_weights_and_order(name):
    assert set(_seeds(["SEED=7"], name).values()) == {7}
    assert set(_seeds([], name).values()) == {0}


@pytest.mark.parametrize("flag", ["--seed=-1", "--steps=0", "--codec_steps=-5"])
def test_a_bad_number_is_one_line_before_the_first_command(flag, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["quickstart", f"--workdir={tmp_path}", flag])
    monkeypatch.setattr(journey.commands, "run", lambda *_, **__: pytest.fail("a command was started"))
    with pytest.raises(SystemExit) as ended:
        entry.cli.run(entry.main, None, entry.__doc__, add_flags=entry._flags)
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert flag.split("=")[0] in line and flag.split("=")[1] in line


@pytest.mark.parametrize(
    ("flags", "made"), [(["--seed=1"], "--seed=0"), (["--image_input=patches"], "--image_input=codes")]
)
def test_a_workdir_of_other_flags_is_refused_before_anything_is_written(flags, made, tmp_path, monkeypatch, capsys):
    (tmp_path / "flags.json").write_text('{"seed": 0, "image_input": "codes"}')
    monkeypatch.setattr("sys.argv", ["quickstart", f"--workdir={tmp_path}", *flags])
    monkeypatch.setattr(journey.commands, "run", lambda *_, **__: pytest.fail("a command was started"))
    with pytest.raises(SystemExit) as ended:
        entry.cli.run(entry.main, None, entry.__doc__, add_flags=entry._flags)
    assert ended.value.code == 2
    assert f"was made with {made}: use it, or another --workdir" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["flags.json"]
