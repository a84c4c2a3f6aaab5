"""Configs check their types and rules when they are made, and survive JSON."""

import dataclasses

import pytest

from chameleon_jax import configs
from chameleon_jax.configs import (
    DataConfig,
    MeshConfig,
    OptimConfig,
    PretrainConfig,
    StoreConfig,
    TransformerConfig,
    VQConfig,
    text_and_image,
)
from chameleon_jax.errors import ConfigError


def run_config(**changes) -> PretrainConfig:
    return PretrainConfig(
        model=TransformerConfig(),
        data=DataConfig(stores=[StoreConfig(path="a"), StoreConfig(path="b", weight=2, stage=2)]),
        train=configs.TrainConfig(steps=10, batch_size=4),
        **changes,
    )


def test_a_config_survives_json_and_stays_hashable():
    config = run_config()
    again = PretrainConfig.from_dict(config.to_dict())
    assert again == config
    assert hash(again) == hash(config)
    assert again.hash() == config.hash()


def test_diff_names_the_leaves_that_differ_with_both_values():
    other = run_config(optim=OptimConfig(learning_rate=3e-4))
    assert run_config().diff(other) == {"optim.learning_rate": (1e-4, 3e-4)}


def test_an_unknown_field_is_named_with_the_nearest():
    values = run_config().to_dict()
    values["model"]["d_modle"] = 3
    with pytest.raises(ConfigError, match=r"unknown field 'd_modle' \(did you mean 'd_model'\?\)"):
        PretrainConfig.from_dict(values)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TransformerConfig(d_model="512"), "expected int, got '512'"),
        (lambda: TransformerConfig(d_model=512.0), "expected int, got 512.0"),
        (lambda: TransformerConfig(d_model=True), "expected int, got True"),
        (lambda: TransformerConfig(qk_norm=1), "expected bool, got 1"),
        (lambda: TransformerConfig(norm_order="post"), "one of 'pre', 'swin'"),
        (lambda: TransformerConfig(dropout=float("nan")), "expected float, got nan"),
        (lambda: TransformerConfig(dropout=1.0), r"dropout must be in \[0, 1\)"),
        (lambda: TransformerConfig(n_heads=12, n_kv_heads=8), "n_heads 12 is not a multiple of n_kv_heads 8"),
        (lambda: TransformerConfig(n_kv_heads=8, n_heads=8, qk_norm_groups=3), "not a multiple of qk_norm_groups 3"),
        (lambda: TransformerConfig(head_dim=127), "head_dim must be even"),
        (lambda: TransformerConfig(n_layers=0), "n_layers must be at least 1"),
        (lambda: text_and_image(text_tokens=255), "at least 256"),
        (lambda: text_and_image(reserved=1), "reserved must be at least 2"),
        (lambda: VQConfig(resolution=500), "resolution 500 is not a multiple of the downsampling 16"),
        (lambda: VQConfig(channels=100), "not a multiple of norm_groups 32"),
        (lambda: DataConfig(stores=()), "stores is empty"),
        (lambda: DataConfig(stores=(StoreConfig(path="a", stage=2),)), "no store of stage 1"),
        (lambda: DataConfig(stores=("a",)), "expected tuple"),
        (lambda: StoreConfig(path=""), "path is empty"),
        (lambda: StoreConfig(path="a", weight=0.0), "weight must be positive"),
        (lambda: StoreConfig(path="a", stage=3), "one of 1, 2"),
        (lambda: MeshConfig(data=-1, fsdp=-1), "only one axis may be -1"),
        (lambda: MeshConfig(tensor=0), "axes must be positive or -1"),
        (lambda: OptimConfig(eps=0.0), "eps must be positive"),
        (lambda: OptimConfig(beta2=1.0), "betas must be in"),
        (lambda: configs.TrainConfig(steps=1, batch_size=4, microbatches=3), "4 is not a multiple of microbatches 3"),
        (lambda: configs.CheckpointConfig(keep=1), "keep must be at least 2"),
        (lambda: configs.SamplingConfig(temperature=-1.0), "temperature must be finite and >= 0"),
        (lambda: configs.SamplingConfig(top_p=0.0), r"top_p must be in \(0, 1\]"),
        (lambda: configs.GenerationConfig(max_spans={"image": 0}), "image must be at least 1 and below .*, got 0"),
        (lambda: configs.GenerationConfig(grids={"image": (4,)}), r"grid of 'image' must be .*, got \(4,\)"),
        (
            lambda: configs.LossConfig(weights={"image": -1.0}),
            "that of 'image' must be finite and not negative, got -1.0",
        ),
        (lambda: configs.SourceConfig(name="a/b", kind="folder", path="x"), "without '/'"),
        (lambda: configs.SourceConfig(name="a", kind="zip", path="x"), "expected one of 'tfds'"),
    ],
)
def test_wrong_values_are_refused_with_their_name(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_a_row_longer_than_the_context_is_refused_with_both_numbers():
    with pytest.raises(ConfigError, match=r"data.seq_len 8192 exceeds model.max_seq_len 4096"):
        dataclasses.replace(run_config(), data=DataConfig(stores=(StoreConfig(path="a"),), seq_len=8192))


def test_an_optional_config_comes_back_from_json_as_a_config():
    guided = configs.GenerationConfig(guidance=configs.GuidanceConfig(scheme="lumina"))
    assert configs.GenerationConfig.from_dict(guided.to_dict()) == guided
    assert configs.GenerationConfig.from_dict(configs.GenerationConfig().to_dict()) == configs.GenerationConfig()
