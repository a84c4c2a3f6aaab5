"""What a run file leaves open follows from the token stores and the length of the run."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from chameleon_jax.configs import (
    DataConfig,
    InitConfig,
    OptimConfig,
    PretrainConfig,
    StoreConfig,
    TrainConfig,
    TransformerConfig,
)
from chameleon_jax.errors import ConfigError, StoreError
from chameleon_jax.models import transformer
from chameleon_jax.training.loop import pretrain
from chameleon_jax.training.optim import learning_rate
from chameleon_jax.training.pretraining import complete
from chameleon_jax.vocab import Vocab

MODEL = TransformerConfig(
    d_model=16, n_layers=1, n_heads=2, n_kv_heads=2, head_dim=8, d_ff=16, max_seq_len=64, compute_dtype="float32"
)


@pytest.fixture
def config(make_store):
    return PretrainConfig(
        model=MODEL,
        data=DataConfig(stores=(StoreConfig(path=str(make_store("store").path)),), seq_len=64),
        train=TrainConfig(steps=3, batch_size=8, log_every=1),
    )


def ids_of(config):
    return Vocab.from_config(complete_vocab(config)).size


def complete_vocab(config):
    from chameleon_jax.data.store import read_vocab

    return read_vocab(config.data.stores[0].path)


def test_the_size_of_the_vocabulary_is_that_of_the_stores(config, tmp_path):
    size = complete(config).model.vocab_size
    assert size % 128 == 0 and size - 128 < ids_of(config) <= size
    explicit = dataclasses.replace(config, model=dataclasses.replace(MODEL, vocab_size=4000))
    assert complete(explicit) is explicit
    assert pretrain(config, str(tmp_path / "run")) == 0
    assert json.loads((tmp_path / "run" / "config.json").read_text())["model"]["vocab_size"] == size
    longer = dataclasses.replace(config, optim=OptimConfig())
    assert pretrain(longer, str(tmp_path / "run")) == 0  # the same config: nothing to do


def test_it_is_not_less_than_that_of_the_weights_to_start_from(config, tmp_path):
    wide = dataclasses.replace(config, model=dataclasses.replace(MODEL, vocab_size=1000))
    assert pretrain(wide, str(tmp_path / "source")) == 0
    begun = dataclasses.replace(config, init_from=InitConfig(workdir=str(tmp_path / "source")))
    assert complete(begun).model.vocab_size == 1000
    assert complete(dataclasses.replace(begun, init_from=InitConfig(workdir="none"))).model.vocab_size < 1000


def test_a_run_keeps_its_size_when_the_weights_that_it_started_from_are_gone(config, tmp_path):
    wide = dataclasses.replace(config, model=dataclasses.replace(MODEL, vocab_size=1000))
    assert pretrain(wide, str(tmp_path / "source")) == 0
    begun = dataclasses.replace(config, init_from=InitConfig(workdir=str(tmp_path / "source")))
    assert pretrain(begun, str(tmp_path / "run")) == 0
    shutil.rmtree(tmp_path / "source")
    assert complete(begun, tmp_path / "run").model.vocab_size == 1000
    assert pretrain(begun, str(tmp_path / "run")) == 0


def test_without_stores_it_has_to_be_said(tmp_path):
    with pytest.raises(ConfigError, match="vocab_size is 0: it has to be set"):
        transformer.param_specs(MODEL)
    gone = PretrainConfig(
        model=MODEL,
        data=DataConfig(stores=(StoreConfig(path=str(tmp_path)),), seq_len=64),
        train=TrainConfig(steps=1, batch_size=8),
    )
    with pytest.raises(StoreError):
        complete(gone)


def test_too_many_rows_and_a_long_warm_up_are_warned_about(config, tmp_path, caplog):
    wasteful = dataclasses.replace(
        config, model=dataclasses.replace(MODEL, vocab_size=4096), optim=OptimConfig(warmup_steps=4000)
    )
    with caplog.at_level("WARNING"):
        assert pretrain(wasteful, str(tmp_path / "run")) == 0
    spare = 2 * (4096 - ids_of(config)) * 16
    assert f"4,096 for {ids_of(config):,} ids of the token stores: {spare:,} parameters" in caplog.text
    assert "warmup_steps is 4000 of 3 steps" in caplog.text


def test_a_short_run_warms_up_for_a_tenth_of_it():
    assert [OptimConfig().warmup_of(steps) for steps in (5, 300, 40_000, 1_000_000)] == [0, 30, 4000, 4000]
    assert OptimConfig(warmup_steps=7).warmup_of(300) == 7
    default, explicit = (learning_rate(OptimConfig(warmup_steps=warmup), 300) for warmup in (None, 30))
    np.testing.assert_array_equal(default(np.arange(300)), explicit(np.arange(300)))
