"""Every shipped run file builds, with its macros filled in, and uses all that it binds."""

import re
from pathlib import Path

import pytest

from chameleon_jax import gin_utils
from chameleon_jax.configs import (
    CaptionEvalConfig,
    InitConfig,
    PretrainConfig,
    TokenizeConfig,
    TrainTokenizerConfig,
    TransformerConfig,
)
from chameleon_jax.convert.releases import RELEASES
from chameleon_jax.errors import ConfigError

ROOT = Path(__file__).parents[1]
MODELS = ROOT / "gin_configs" / "models"
RUNS = sorted((ROOT / "gin_configs" / "runs").glob("*.gin"))


def root_of(text: str) -> type:
    named = {cls for cls in (TrainTokenizerConfig, TokenizeConfig, CaptionEvalConfig) if f"{cls.__name__}." in text}
    return named.pop() if named else PretrainConfig


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_every_run_file_builds(path):
    text = path.read_text()
    if included := re.search(r"^include '(.*/runs/.*)'", text, re.MULTILINE):
        text += (ROOT / included[1]).read_text()
    required = [line.split()[0] for line in text.splitlines() if "%gin.REQUIRED" in line]
    config = gin_utils.load(root_of(text), [str(path)], [f"{name}=somewhere" for name in required]).config
    assert type(config).from_dict(config.to_dict()) == config


@pytest.mark.parametrize("name", RELEASES)
def test_the_file_of_a_release_is_its_preset(name):
    path = MODELS / f"{name.replace('-', '_')}.gin"
    assert gin_utils.load(TransformerConfig, [str(path)]).config == RELEASES[name].model


def test_every_model_file_has_a_release():
    assert {path.stem.replace("_", "-") for path in MODELS.glob("*.gin")} == set(RELEASES)


def test_a_run_file_is_found_with_its_includes_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert gin_utils.load(PretrainConfig, [str(ROOT / "gin_configs/runs/smoke.gin")]).config.train.steps == 40
    assert gin_utils.load(PretrainConfig, ["gin_configs/runs/smoke.gin"]).config.train.steps == 40


def test_a_file_of_ones_own_includes_ours_and_hides_one_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.gin").write_text("include 'gin_configs/runs/smoke.gin'\nTrainConfig.steps = 7\n")
    assert gin_utils.load(PretrainConfig, ["mine.gin"]).config.train.steps == 7
    (tmp_path / "gin_configs/runs").mkdir(parents=True)
    smoke = (ROOT / "gin_configs/runs/smoke.gin").read_text().replace("steps = 40", "steps = 30")
    (tmp_path / "gin_configs/runs/smoke.gin").write_text(smoke)
    assert gin_utils.load(PretrainConfig, ["gin_configs/runs/smoke.gin"]).config.train.steps == 30


def test_a_run_file_of_ours_that_does_not_exist_is_told_the_nearest(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"does not exist \(did you mean 'gin_configs/runs/smoke.gin'\?\)"):
        gin_utils.load(PretrainConfig, ["gin_configs/runs/smoek.gin"])


def test_a_run_file_can_say_where_to_start_from():
    bindings = ["PretrainConfig.init_from = @InitConfig()", "InitConfig.workdir = 'runs/chameleon-7b'"]
    config = gin_utils.load(PretrainConfig, [str(ROOT / "gin_configs/runs/smoke.gin")], bindings).config
    assert config.init_from == InitConfig(workdir="runs/chameleon-7b")
    assert PretrainConfig.from_dict(config.to_dict()) == config


def test_a_run_file_of_another_command_names_the_command():
    told = "PretrainConfig.train is not set: the gin file binds TrainTokenizerConfig, which .*experiments.train_tokenizer takes"
    with pytest.raises(ConfigError, match=told):
        gin_utils.load(PretrainConfig, [str(ROOT / "gin_configs/runs/digits_tokenizer.gin")], ["DATA=x"])
