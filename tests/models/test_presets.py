"""Named sizes have their parameter counts, and the released ones compile for a cluster without one."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, AxisType

from chameleon_jax.configs import DataConfig, PretrainConfig, StoreConfig, TrainConfig, text_and_image
from chameleon_jax.convert.releases import RELEASES, release
from chameleon_jax.data.batch import Batch
from chameleon_jax.errors import ConfigError
from chameleon_jax.models import params, transformer
from chameleon_jax.models.presets import PRESETS, preset
from chameleon_jax.parallel import mesh as mesh_lib
from chameleon_jax.training import state, step
from chameleon_jax.training.pretraining import PretrainTask
from chameleon_jax.training.task import Recipe
from chameleon_jax.vocab import Vocab


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("34m", 33_696_256),
        # matrices and RMSNorms, and QK-norm: layers x (q and k) x (scale and bias) x groups x head size
        ("chameleon-7b", 7_013_142_528 + 32 * 2 * 2 * 128),
        ("chameleon-34b", 34_293_424_128 + 48 * 2 * 2 * 4 * 128),
        ("anole-7b", 7_013_142_528 + 32 * 2 * 2 * 128),
        ("lumina-mgpt-7b", 7_013_142_528 + 32 * 2 * 2 * 128),
        ("lumina-mgpt-34b", 34_293_424_128 + 48 * 2 * 2 * 4 * 128),
    ],
)
def test_parameter_counts(name, count):
    assert params.count(transformer.param_specs(preset(name))) == count


@pytest.mark.parametrize(("name", "low", "high"), [("tiny", 1e5, 1e6), ("100m", 9e7, 1.3e8), ("1b", 0.9e9, 1.4e9)])
def test_small_presets_have_the_size_of_their_name(name, low, high):
    assert low < params.count(transformer.param_specs(preset(name))) < high


def test_an_unknown_preset_is_refused_with_the_nearest_name():
    with pytest.raises(ConfigError, match="no model preset 'Chameleon-7B' \\(did you mean 'chameleon-7b'"):
        preset("Chameleon-7B")
    with pytest.raises(ConfigError, match="no release 'chameleon-8b' \\(did you mean 'chameleon-7b'"):
        release("chameleon-8b")


@pytest.mark.parametrize("name", RELEASES)
def test_a_release_compiles_on_a_cpu_without_allocating(name):
    config = PRESETS[name]
    weights = params.abstract(transformer.param_specs(config))
    ids = jax.ShapeDtypeStruct((1, 64), jnp.int32)

    def forward(weights, tokens, positions, segments):
        hidden = transformer.forward(weights, tokens, positions, segments, config).hidden
        return transformer.logits(weights, hidden, config)

    compiled = jax.jit(forward).lower(weights, ids, ids, ids).compile()
    assert compiled.memory_analysis().argument_size_in_bytes >= 4 * params.count(transformer.param_specs(config))
    assert compiled.out_info.shape == (1, 64, 65536)


@pytest.mark.parametrize("name", RELEASES)
def test_the_ids_of_a_release_are_those_of_its_tokenizer_file(name):
    known = RELEASES[name]
    vocab = Vocab.from_config(known.vocab)
    assert (vocab.size, vocab.bos, vocab.pad, vocab.eos) == (known.model.vocab_size, 0, 1, 2)
    assert (vocab.modalities[1].end_marker, vocab.modalities[1].begin_marker, vocab.end_of_turn, vocab.placeholder) == (
        8196,
        8197,
        8710,
        8711,
    )
    assert (vocab.modalities[1].start, vocab.modalities[1].stop) == (4, 8196)
    if "lumina" in name:
        grammar = vocab.modalities[1].grammar
        assert (grammar.newline, grammar.size_base) == (8803, 8804)
        assert [grammar.length(side, side) for side in (32, 48, 64)] == [1060, 2356, 4164]
    else:
        assert vocab.modalities[1].grammar.length == 1024


@pytest.mark.parametrize("name", ["chameleon-7b", "chameleon-34b"])
def test_a_train_step_of_the_released_sizes_lowers_for_a_cluster_without_allocating(name):
    mesh = AbstractMesh((4, 8, 4), mesh_lib.AXES, axis_types=(AxisType.Auto,) * 3)
    rows, length = 32, 4096
    config = PretrainConfig(
        model=PRESETS[name],
        data=DataConfig(stores=(StoreConfig(path="unused"),), seq_len=length),
        train=TrainConfig(steps=100, batch_size=rows),
    )
    mesh_lib.check_fits(config.model, rows, 1, mesh)
    with jax.sharding.use_abstract_mesh(mesh):
        recipe = Recipe.of(PretrainTask(config=config, vocab=text_and_image()), config)
        abstract = state.abstract(recipe, mesh)
        of = lambda dtype: jax.ShapeDtypeStruct(  # noqa: E731
            (rows, length), dtype, sharding=mesh_lib.batch_sharding(mesh)
        )
        batch = Batch(
            tokens=of(jnp.int32),
            targets=of(jnp.int32),
            loss_weights=of(jnp.float32),
            segment_ids=of(jnp.int32),
            positions=of(jnp.int32),
            modality=of(jnp.int32),
            input_modality=of(jnp.int32),
        )
        compiled = step.compiled_train_step(recipe, mesh, statistics=True)
        lowered = compiled.trace(abstract, batch).lower(lowering_platforms=("tpu",))
    assert lowered.out_info[0].params["head"].shape == (config.model.d_model, config.model.vocab_size)
    bytes_per_device = sum(
        jnp.dtype(leaf.dtype).itemsize * leaf.size // leaf.sharding.num_devices
        if not leaf.sharding.is_fully_replicated
        else jnp.dtype(leaf.dtype).itemsize * leaf.size
        for leaf in jax.tree.leaves(abstract.params)
    )
    assert bytes_per_device < 10 * 2**30
