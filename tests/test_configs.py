"""Configs check their types and rules when they are made, and survive JSON."""

import copy
import dataclasses
import json
import pickle

import pytest

from chameleon_jax import configs, gin_utils
from chameleon_jax.config_base import FrozenMap
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
        (
            lambda: configs.LossConfig(weights={"image": "1"}),
            r"LossConfig.weights: expected a mapping of str to float, .*got",
        ),
        (lambda: configs.LossConfig(weights={1: 1.0}), r"expected a mapping of str to float, .*got \{1: 1.0\}"),
        (
            lambda: configs.LossConfig(weights=("image", 1.0)),
            r"expected a mapping of str to float, .*got \('image', 1.0\)",
        ),
        (lambda: configs.LossConfig(weights={"image": float("nan")}), "expected a mapping"),
        (
            lambda: configs.TokenizeConfig(sources=(), tokenizer="t", max_spans={"image": 1.5}),
            r"expected a mapping of str to int",
        ),
        (
            lambda: configs.TokenizeConfig(
                sources=(configs.SourceConfig(name="a", kind="folder", path="x"),),
                tokenizer="t",
                max_spans={"image": 0},
            ),
            "that of 'image' must be at least 1, got 0",
        ),
        (lambda: TransformerConfig(d_model="512"), "expected int, got '512'"),
        (lambda: TransformerConfig(d_model=512.0), "expected int, got 512.0"),
        (lambda: TransformerConfig(d_model=True), "expected int, got True"),
        (lambda: TransformerConfig(qk_norm=1), "expected bool, got 1"),
        (lambda: TransformerConfig(norm_order="post"), "one of 'pre', 'swin'"),
        (lambda: TransformerConfig(dropout=float("nan")), "expected float, got NaN"),
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
        (lambda: DataConfig(stores=("a",)), "expected a list"),
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
        (
            lambda: configs.GenerationConfig(max_spans={"image": 0}),
            "max_spans of 'image' must be at least 1 and below .*, got 0",
        ),
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


SAMPLING = {"text": configs.SamplingConfig(temperature=0.0), "image": configs.SamplingConfig(top_k=5)}
WITH_MAPS = {
    "numbers": (configs.LossConfig, {"weights": {"image": 0.5, "text": 1.0}}),
    "nothing": (configs.LossConfig, {"weights": {}}),
    "tuples": (configs.GenerationConfig, {"grids": {"image": (4, 6)}, "max_spans": {"image": 2}}),
    "configs": (configs.GenerationConfig, {"sampling": SAMPLING}),
    "a table": (configs.VocabConfig, {"modalities": text_and_image().modalities}),
}


@pytest.mark.parametrize("case", WITH_MAPS)
def test_configs_with_maps_survive_json_and_stay_hashable(case):
    cls, values = WITH_MAPS[case]
    config = cls(**values)
    for again in (
        cls.from_dict(json.loads(config.to_json())),
        pickle.loads(pickle.dumps(config)),
        copy.deepcopy(config),
        dataclasses.replace(config),
    ):
        assert again == config and hash(again) == hash(config) and again.hash() == config.hash()
        assert again.diff(config) == {}
        for name, value in values.items():
            assert getattr(again, name) == value and type(getattr(again, name)) in (FrozenMap, tuple)


def test_the_order_of_a_map_says_nothing():
    one = configs.LossConfig(weights={"image": 0.5, "text": 2.0})
    other = configs.LossConfig(weights={"text": 2.0, "image": 0.5})
    assert one == other and hash(one) == hash(other) and one.hash() == other.hash()
    assert one.hash() != configs.LossConfig(weights={"text": 0.5, "image": 2.0}).hash()


def test_the_map_that_a_config_was_made_of_changes_it_no_more():
    weights = {"image": 0.5}
    config = configs.LossConfig(weights=weights)
    before = config.hash(), hash(config)
    weights["image"] = 3.0
    assert (config.hash(), hash(config)) == before and config.weights == {"image": 0.5}


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.update(a=1),
        lambda m: m.__setitem__("a", 1),
        lambda m: m.pop("image"),
        lambda m: m.popitem(),
        lambda m: m.clear(),
        lambda m: m.setdefault("a", 1),
        lambda m: m.__delitem__("image"),
        lambda m: m.__ior__({"a": 1}),
    ],
)
def test_a_map_of_a_config_does_not_change(change):
    weights = configs.LossConfig(weights={"image": 0.5}).weights
    with pytest.raises(TypeError, match="does not change"):
        change(weights)
    assert weights == {"image": 0.5}


def test_diff_names_the_entries_of_maps_and_the_rows_of_tables():
    one = configs.GenerationConfig(sampling=SAMPLING, grids={"image": (4, 6)})
    other = configs.GenerationConfig(
        sampling={"text": SAMPLING["text"]}, grids={"image": (4, 4)}, max_spans={"image": 2}
    )
    assert one.diff(other) == {
        "grids.image": ([4, 6], [4, 4]),
        "max_spans.image": (None, 2),
        "sampling.image.temperature": (0.7, None),
        "sampling.image.top_p": (0.9, None),
        "sampling.image.top_k": (5, None),
        "sampling.image.repetition_penalty": (1.0, None),
    }
    assert text_and_image().diff(text_and_image(image_codes=16)) == {"modalities.1.ids": (8192, 16)}


def test_gin_binds_maps_and_tables(tmp_path):
    (tmp_path / "loss.gin").write_text("LossConfig.weights = {'image': 0.5, 'text': 1}\n")
    loaded = gin_utils.load(configs.LossConfig, [str(tmp_path / "loss.gin")])
    assert loaded.config == configs.LossConfig(weights={"image": 0.5, "text": 1})
    loaded = gin_utils.load(configs.LossConfig, [str(tmp_path / "loss.gin")], ["LossConfig.weights={'image': 2.0}"])
    assert loaded.config.weights == {"image": 2.0}  # a later binding replaces the whole map
    with pytest.raises(ConfigError, match=r"that of 'image' must be finite"):
        gin_utils.load(configs.LossConfig, [], ["LossConfig.weights={'image': -2.0}"])

    (tmp_path / "generate.gin").write_text(
        "GenerationConfig.sampling = {'text': @greedy/SamplingConfig()}\n"
        "greedy/SamplingConfig.temperature = 0.0\n"
        "GenerationConfig.grids = {'image': (4, 6)}\n"
    )
    made = gin_utils.load(configs.GenerationConfig, [str(tmp_path / "generate.gin")]).config
    assert made == configs.GenerationConfig(sampling={"text": SAMPLING["text"]}, grids={"image": (4, 6)})

    (tmp_path / "table.gin").write_text(
        "VocabConfig.modalities = [@words/ModalityConfig(), @moves/ModalityConfig()]\n"
        "words/ModalityConfig.name = 'words'\n"
        "words/ModalityConfig.ids = 300\n"
        "words/ModalityConfig.span = 'free'\n"
        "words/ModalityConfig.codec = 'bpe'\n"
        "moves/ModalityConfig.name = 'moves'\n"
        "moves/ModalityConfig.ids = 64\n"
        "moves/ModalityConfig.length = 8\n"
    )
    words = configs.ModalityConfig(name="words", ids=300, span="free", codec="bpe")
    moves = configs.ModalityConfig(name="moves", ids=64, length=8)
    found = gin_utils.load(configs.VocabConfig, [str(tmp_path / "table.gin")]).config
    assert found == configs.VocabConfig(modalities=(words, moves))
    with pytest.raises(ConfigError, match="ModalityConfig has no field 'lenght'"):
        gin_utils.load(configs.VocabConfig, [str(tmp_path / "table.gin")], ["moves/ModalityConfig.lenght=8"])


def test_gin_makes_the_table_of_text_and_images():
    bindings = ["TrainTokenizerConfig.sources=[@SourceConfig()]", "SourceConfig.name=a", "SourceConfig.kind=folder"]
    bindings += [
        "SourceConfig.path=x",
        "TrainTokenizerConfig.vocab=@text_and_image()",
        "text_and_image.text_tokens=999",
    ]
    config = gin_utils.load(configs.TrainTokenizerConfig, [], bindings).config
    assert config.vocab == text_and_image(text_tokens=999)
    assert configs.TrainTokenizerConfig.from_dict(config.to_dict()) == config
    with pytest.raises(ConfigError, match=r"text_and_image has no field 'image_cods' \(did you mean 'image_codes'\?\)"):
        gin_utils.load(configs.TrainTokenizerConfig, [], [*bindings, "text_and_image.image_cods=3"])
