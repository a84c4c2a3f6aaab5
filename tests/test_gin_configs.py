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


def test_a_run_file_can_say_where_to_start_from():
    bindings = ["PretrainConfig.init_from = @InitConfig()", "InitConfig.workdir = 'runs/chameleon-7b'"]
    config = gin_utils.load(PretrainConfig, [str(ROOT / "gin_configs/runs/smoke.gin")], bindings).config
    assert config.init_from == InitConfig(workdir="runs/chameleon-7b")
    assert PretrainConfig.from_dict(config.to_dict()) == config
