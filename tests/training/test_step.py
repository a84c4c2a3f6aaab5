"""The train step: one result however the batch is cut, one trace, and no bad step in the weights."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from chameleon_jax.configs import (
    DataConfig,
    MeshConfig,
    OptimConfig,
    PretrainConfig,
    StoreConfig,
    TrainableConfig,
    TrainConfig,
    TransformerConfig,
    text_and_image,
)
from chameleon_jax.data.batch import Batch
from chameleon_jax.parallel import mesh as mesh_lib
from chameleon_jax.training import state as state_lib
from chameleon_jax.training import step as step_lib
from chameleon_jax.training.pretraining import PretrainTask
from chameleon_jax.training.task import Recipe

ROWS, LENGTH, VOCAB = 8, 16, 64
CONFIG = PretrainConfig(
    model=TransformerConfig(
        vocab_size=VOCAB,
        d_model=32,
        n_layers=2,
        n_heads=4,
        n_kv_heads=2,
        head_dim=8,
        d_ff=48,
        max_seq_len=LENGTH,
        compute_dtype="float32",
        attention_chunk=8,
    ),
    data=DataConfig(stores=(StoreConfig(path="unused"),), seq_len=LENGTH),
    train=TrainConfig(steps=100, batch_size=ROWS),
    optim=OptimConfig(learning_rate=1e-2, warmup_steps=2),
)
ONE = MeshConfig(data=1, fsdp=1, tensor=1)


def batch(seed: int) -> Batch:
    """Packed rows of two documents, with very different trained weight in each row."""
    rng = np.random.default_rng(seed)
    cut = rng.integers(2, LENGTH - 2, (ROWS, 1))
    slots = np.arange(LENGTH)[None]
    weights = (rng.random((ROWS, LENGTH)) < np.linspace(0.05, 1, ROWS)[:, None]).astype(np.float32)
    return Batch(
        tokens=rng.integers(0, VOCAB, (ROWS, LENGTH), dtype=np.int32),
        targets=rng.integers(0, VOCAB, (ROWS, LENGTH), dtype=np.int32),
        loss_weights=weights,
        segment_ids=np.where(slots < cut, 1, 2).astype(np.int32),
        positions=np.where(slots < cut, slots, slots - cut).astype(np.int32),
        modality=rng.integers(0, 2, (ROWS, LENGTH), dtype=np.int32),
        input_modality=rng.integers(0, 2, (ROWS, LENGTH), dtype=np.int32),
    )


def recipe_of(config: PretrainConfig) -> Recipe:
    return Recipe.of(
        PretrainTask(config=config, vocab=text_and_image()), config, {"text": (30, VOCAB), "image": (4, 20)}
    )


def initialise(config: PretrainConfig, mesh):
    """The state before the first step, as the loop makes it."""
    recipe = recipe_of(config)
    return state_lib.initialise(recipe.task.initial_params(None, mesh), recipe, mesh)


@functools.cache
def initial(model: TransformerConfig, trainable: TrainableConfig):
    """The state before the first step, on the host."""
    config = dataclasses.replace(CONFIG, model=model, trainable=trainable)
    return jax.device_get(initialise(config, mesh_lib.make_mesh(ONE, jax.devices()[:1])))


def start(config: PretrainConfig, mesh):
    """`initial` on a mesh, in buffers of its own."""
    return jax.tree.map(
        jax.device_put, initial(config.model, config.trainable), state_lib.shardings(recipe_of(config), mesh)
    )


@functools.cache
def compiled_step(config: PretrainConfig, statistics: bool = True):
    """The compiled step on a mesh of one device."""
    mesh = mesh_lib.make_mesh(ONE, jax.devices()[:1])
    return step_lib.compiled_train_step(recipe_of(config), mesh, statistics=statistics)


@functools.cache
def run(config: PretrainConfig, mesh_config: MeshConfig, steps: int = 3):
    """(state as NumPy, [metrics as NumPy]) after `steps` steps."""
    size = mesh_config.data * mesh_config.fsdp * mesh_config.tensor
    mesh = mesh_lib.make_mesh(mesh_config, jax.devices()[:size])
    compiled = (
        compiled_step(config) if size == 1 else step_lib.compiled_train_step(recipe_of(config), mesh, statistics=True)
    )
    with jax.set_mesh(mesh):
        state, metrics = start(config, mesh), []
        for number in range(steps):
            placed = jax.device_put(batch(number), mesh_lib.batch_sharding(mesh))
            state, measured = compiled(state, placed)
            metrics.append(jax.device_get(measured))
    return jax.device_get(state), metrics


def assert_same_run(one, other):
    for mine, theirs in zip(one[1], other[1], strict=True):
        np.testing.assert_allclose(
            mine.sums.objective / mine.sums.normaliser, theirs.sums.objective / theirs.sums.normaliser, atol=1e-5
        )
        np.testing.assert_allclose(mine.gradient_norm, theirs.gradient_norm, rtol=1e-4)
        np.testing.assert_allclose(mine.sums.weight, theirs.sums.weight)
        for name in theirs.statistics:
            np.testing.assert_allclose(mine.statistics[name], theirs.statistics[name], rtol=1e-4, err_msg=name)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), one[0].params, other[0].params)


@pytest.mark.parametrize("axes", [(8, 1, 1), (2, 2, 2)], ids=str)
def test_meshes_give_the_loss_and_updates_of_one_device(axes):
    sizes = MeshConfig(**dict(zip(("data", "fsdp", "tensor"), axes, strict=True)))
    assert_same_run(run(CONFIG, sizes), run(CONFIG, ONE))


def with_microbatches(count):
    return dataclasses.replace(CONFIG, train=dataclasses.replace(CONFIG.train, microbatches=count))


def test_four_microbatches_give_the_loss_and_updates_of_one():
    assert_same_run(run(with_microbatches(4), ONE), run(CONFIG, ONE))


def test_microbatches_on_a_mesh_give_the_loss_and_updates_of_one_device():
    assert_same_run(run(with_microbatches(2), MeshConfig(data=2, fsdp=2, tensor=2)), run(CONFIG, ONE))


def test_no_large_parameter_or_moment_is_replicated_on_a_mesh():
    mesh = mesh_lib.make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    state = initialise(CONFIG, mesh)
    large = [x for x in jax.tree.leaves((state.params, state.opt_state)) if x.size > 1000]
    assert len(large) == 3 * 9
    for array in large:
        assert array.addressable_shards[0].data.size <= array.size // 4
        assert not array.is_fully_replicated


def test_several_steps_trace_once_and_donate_the_state():
    mesh = mesh_lib.make_mesh(ONE, jax.devices()[:1])
    compiled = compiled_step(CONFIG)
    with jax.set_mesh(mesh):
        state = start(CONFIG, mesh)
        for number in range(3):
            before = state
            state, _ = compiled(state, jax.device_put(batch(number), mesh_lib.batch_sharding(mesh)))
            assert all(leaf.is_deleted() for leaf in jax.tree.leaves((before.params, before.opt_state)))
    assert compiled._cache_size() == 1


def poisoned(number: int) -> Batch:
    bad = batch(number)
    return bad.replace(loss_weights=np.where(np.arange(LENGTH) == 3, np.nan, bad.loss_weights).astype(np.float32))


def test_a_step_that_is_not_finite_changes_no_bit_of_weights_or_moments_and_is_counted():
    mesh = mesh_lib.make_mesh(ONE, jax.devices()[:1])
    step = compiled_step(CONFIG)

    def take(state, batch):
        state, metrics = step(state, jax.device_put(batch, mesh_lib.batch_sharding(mesh)))
        return state, jax.device_get((state, metrics))

    with jax.set_mesh(mesh):
        state, (good, _) = take(start(CONFIG, mesh), batch(0))
        state, (after, metrics) = take(state, poisoned(1))
        _, (resumed, _) = take(state, batch(2))
    assert not np.isfinite(metrics.sums.objective)
    jax.tree.map(np.testing.assert_array_equal, (after.params, after.opt_state), (good.params, good.opt_state))
    assert int(after.step) == 2 and int(after.skipped) == 1 and int(metrics.skipped) == 1
    assert int(resumed.skipped) == 1
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(resumed.params))


@pytest.mark.parametrize("log", ["with statistics", "without"])
def test_the_rate_applied_is_the_rate_logged_after_skipped_steps_too(log):
    """Four of ten steps are skipped; an update of Adam with decay is -rate x a direction that the rate does not enter."""
    config = dataclasses.replace(
        CONFIG,
        optim=OptimConfig(learning_rate=0.5, warmup_steps=0, schedule="cosine"),
        train=TrainConfig(steps=10, batch_size=ROWS),
    )
    mesh = mesh_lib.make_mesh(ONE, jax.devices()[:1])
    step = compiled_step(config, log == "with statistics")
    bad = {1, 2, 5, 6}
    with jax.set_mesh(mesh):
        state = start(config, mesh)
        for number in range(10):
            before = jax.device_get(state)
            state, metrics = step(state, poisoned(number) if number in bad else batch(number))
            metrics = jax.device_get(metrics)
            expected = 0.25 * (1 + np.cos(np.pi * number / 10))
            np.testing.assert_allclose(metrics.learning_rate, expected, rtol=1e-5)
            if number in bad:
                continue
            adam = jax.device_get(state.opt_state[1])
            count = number + 1 - sum(b <= number for b in bad)
            assert int(adam.count) == count
            first, second = adam.mu["head"] / (1 - 0.9**count), adam.nu["head"] / (1 - 0.95**count)
            direction = first / (np.sqrt(second) + config.optim.eps) + 0.1 * before.params["head"]
            moved = np.asarray(state.params["head"]) - before.params["head"]
            np.testing.assert_allclose(moved, -expected * direction, rtol=2e-3, atol=2e-5)


def products(config: PretrainConfig) -> int:
    """Matrix products in the program of a step."""
    mesh = mesh_lib.make_mesh(ONE, jax.devices()[:1])
    compiled = step_lib.compiled_train_step(recipe_of(config), mesh, statistics=True)
    with jax.set_mesh(mesh):
        return str(compiled.trace(start(config, mesh), batch(0)).jaxpr).count("dot_general[")


def test_a_program_with_microbatches_holds_the_model_once():
    assert products(with_microbatches(4)) == products(CONFIG) > 20


def test_the_sums_of_microbatches_lie_as_the_parameters_do():
    mesh = mesh_lib.make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    recipe = recipe_of(with_microbatches(2))
    with jax.set_mesh(mesh):
        state = initialise(recipe.config, mesh)
        placed = jax.device_put(batch(0), mesh_lib.batch_sharding(mesh))
        gradient = jax.jit(lambda w, b: step_lib.gradient_sums(w, b, recipe, None, statistics=False)[0])
        found = gradient(state.params, placed)
    jax.tree.map(
        lambda g, w: np.testing.assert_equal(g.sharding.shard_shape(g.shape), w.sharding.shard_shape(w.shape)),
        found,
        state.params,
    )


def test_steps_with_and_without_statistics_are_the_same_step():
    mesh = mesh_lib.make_mesh(ONE, jax.devices()[:1])
    with jax.set_mesh(mesh):
        (with_, measured), (without, plain) = (
            compiled_step(CONFIG, statistics)(start(CONFIG, mesh), batch(0)) for statistics in (True, False)
        )
    assert measured.statistics is not None and plain.statistics is None
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), with_.params, without.params)


def test_dropout_follows_the_step_number_and_the_seed():
    config = dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, dropout=0.5))
    mesh = mesh_lib.make_mesh(ONE, jax.devices()[:1])
    step = jax.jit(lambda s, b: step_lib.train_step(s, b, recipe_of(config), statistics=False)[1].sums.objective)
    with jax.set_mesh(mesh):
        state = start(config, mesh)
        first = float(step(state, batch(0)))
        assert float(step(state, batch(0))) == first
        assert float(step(state.replace(step=state.step + 1), batch(0))) != first


def test_training_on_one_batch_learns_it():
    mesh = mesh_lib.make_mesh(ONE, jax.devices()[:1])
    compiled = compiled_step(CONFIG)
    evaluate = step_lib.compiled_eval_step(recipe_of(CONFIG), mesh)
    fixed = jax.device_put(batch(0), mesh_lib.batch_sharding(mesh))
    with jax.set_mesh(mesh):
        state = start(CONFIG, mesh)
        for _ in range(40):
            state, metrics = compiled(state, fixed)
        sums = evaluate(state.params, fixed)
    assert float(metrics.sums.nll.sum() / metrics.sums.weight.sum()) < 1.0
    assert float(sums.nll.sum() / sums.weight.sum()) < 1.0
    np.testing.assert_array_equal(state.tokens_seen[:, 1], 40 * metrics.sums.weight)


def test_reported_norms_are_those_of_the_update():
    state, metrics = run(CONFIG, ONE, steps=1)
    before = initial(CONFIG.model, CONFIG.trainable)

    def norm(tree):
        return np.sqrt(sum(np.sum(np.square(x, dtype=np.float64)) for x in jax.tree.leaves(tree)))

    np.testing.assert_allclose(metrics[0].parameter_norm, norm(state.params), rtol=1e-5)
    difference = jax.tree.map(np.subtract, state.params, before.params)
    np.testing.assert_allclose(metrics[0].update_norm, norm(difference), rtol=1e-4)
    assert metrics[0].learning_rate == pytest.approx(5e-3)
    assert metrics[0].statistics["max_attention_logit"].shape == (2,)
