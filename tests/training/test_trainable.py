"""Training a part of the parameters: nothing else moves, has moments or gets a gradient."""

import dataclasses

import jax
import numpy as np
import pytest

from chameleon_jax.configs import MeshConfig, TrainableConfig
from chameleon_jax.errors import ConfigError
from chameleon_jax.models import params
from chameleon_jax.parallel import mesh as mesh_lib
from chameleon_jax.training import state as state_lib
from chameleon_jax.training.trainable import choose
from tests.training.test_step import CONFIG, ONE, assert_same_run, initial, products, recipe_of, run

SPECS = recipe_of(CONFIG).task.param_specs()
ROWS = {"text": (30, 64), "image": (4, 20), "new": (60, 64)}


def with_trainable(**settings):
    return dataclasses.replace(CONFIG, trainable=TrainableConfig(**settings))


def moved(config, mesh=ONE):
    """Path -> where the parameter differs from its initial value after three steps."""
    state, _ = run(config, mesh)
    before = initial(config.model, config.trainable)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.not_equal(new, old)
        for (path, new), old in zip(
            jax.tree.leaves_with_path(state.params), jax.tree.leaves(before.params), strict=True
        )
    }


def test_of_chosen_paths_alone_anything_moves_and_has_moments():
    config = with_trainable(parameters=("layers/attn/*", "norm"))
    changed = {path for path, where in moved(config).items() if where.any()}
    assert changed == {path for path in moved(config) if path.startswith("layers/attn/")} | {"norm"}
    moments = state_lib.create(params.initialise(jax.random.key(0), SPECS), recipe_of(config)).opt_state[1].mu
    assert sorted(moments) == ["layers", "norm"] and sorted(moments["layers"]) == ["attn"]


@pytest.mark.parametrize("mesh", [ONE, MeshConfig(data=2, fsdp=2, tensor=2)], ids=["one device", "a mesh"])
def test_of_chosen_rows_alone_anything_moves(mesh):
    where = moved(with_trainable(parameters=("head", "embed"), rows=("image",)), mesh)
    assert {path for path, changed in where.items() if changed.any()} == {"head", "embed"}
    ids = np.arange(64)
    chosen = (ids >= 4) & (ids < 20)
    np.testing.assert_array_equal(where["head"].any(axis=0), chosen)
    np.testing.assert_array_equal(where["embed"].any(axis=1), chosen)


def test_a_mesh_and_microbatches_give_the_run_of_one_device():
    config = with_trainable(parameters=("head", "layers/mlp/*"), rows=("image", "text"))
    cut = dataclasses.replace(config, train=dataclasses.replace(config.train, microbatches=2))
    assert_same_run(run(cut, MeshConfig(data=2, fsdp=2, tensor=2)), run(config, ONE))


def test_moments_of_chosen_rows_are_as_small_as_the_rows():
    recipe = recipe_of(with_trainable(parameters=("head",), rows=("image",)))
    mesh = mesh_lib.make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    state = state_lib.abstract(recipe, mesh)
    large = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]
    assert [leaf.shape for leaf in large] == [(32, 16)] * 2
    assert large[0].sharding.shard_shape(large[0].shape) == (16, 16)  # split over fsdp, whole over tensor


def test_frozen_parameters_cost_no_products():
    """With the head alone trained, the backward pass ends at the head."""
    frozen = products(with_trainable(parameters=("head",)))
    assert frozen < 0.6 * products(CONFIG)


def test_touching_ranges_are_joined_and_merging_restores_the_tree():
    split = choose(TrainableConfig(parameters=("head",), rows=("new", "text", "image")), SPECS, ROWS)
    assert split.rows == ((4, 20), (30, 64))
    weights = params.initialise(jax.random.key(0), SPECS)
    selected = split.select(weights)
    assert jax.tree.map(np.shape, selected) == {"head": (32, 50)}
    jax.tree.map(np.testing.assert_array_equal, split.merge(weights, selected), weights)
    doubled = split.merge(weights, {"head": 2 * selected["head"]})["head"]
    np.testing.assert_array_equal(doubled[:, 4:20], 2 * weights["head"][:, 4:20])
    np.testing.assert_array_equal(doubled[:, 20:30], weights["head"][:, 20:30])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"parameters": ("heads",)}, "no parameter matches 'heads' \\(did you mean 'head'"),
        ({"parameters": ("layers/attn/*",), "rows": ("image",)}, "no trained parameter has rows of the vocabulary"),
        ({"rows": ("images",)}, "no rows of the vocabulary are called 'images' \\(did you mean 'image'"),
    ],
)
def test_what_is_not_there_is_refused_with_the_nearest_name(settings, message):
    with pytest.raises(ConfigError, match=message):
        choose(TrainableConfig(**settings), SPECS, ROWS)


def test_everything_is_trained_by_default():
    assert jax.tree.map(
        np.shape, recipe_of(CONFIG).trainable.select(initial(CONFIG.model, CONFIG.trainable).params)
    ) == (jax.tree.map(lambda s: s.shape, params.abstract(SPECS)))
