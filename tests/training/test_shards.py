"""A step divided by hand, as on TPUs and GPUs, gives the gradients of one device."""

import dataclasses

import jax
import numpy as np
import pytest

from chameleon_jax.configs import (
    DataConfig,
    MeshConfig,
    PretrainConfig,
    StoreConfig,
    TrainableConfig,
    TrainConfig,
    TransformerConfig,
    text_and_image,
)
from chameleon_jax.data.batch import Batch
from chameleon_jax.parallel import mesh as mesh_lib
from chameleon_jax.parallel import shards
from chameleon_jax.training import state as state_lib
from chameleon_jax.training import step as step_lib
from chameleon_jax.training.pretraining import PretrainTask
from chameleon_jax.training.task import Recipe

ROWS, LENGTH, VOCAB = 8, 16, 64
MODEL = TransformerConfig(
    vocab_size=VOCAB, d_model=32, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=8, d_ff=48, max_seq_len=LENGTH,
    compute_dtype="float32", attention_chunk=8, dropout=0.2,
)  # fmt: skip


def batch() -> Batch:
    rng = np.random.default_rng(0)
    ids = lambda high: rng.integers(0, high, (ROWS, LENGTH), dtype=np.int32)  # noqa: E731
    slots = np.broadcast_to(np.arange(LENGTH, dtype=np.int32), (ROWS, LENGTH))
    return Batch(
        tokens=ids(VOCAB),
        targets=ids(VOCAB),
        loss_weights=rng.random((ROWS, LENGTH)).astype(np.float32),
        segment_ids=np.where(slots < 6, 1, 2).astype(np.int32),
        positions=np.where(slots < 6, slots, slots - 6).astype(np.int32),
        modality=ids(2),
        input_modality=ids(2),
    )


def gradient_sums(sizes, microbatches=1, trainable=None, **model):
    """(gradients, sums, statistics) of a batch with dropout on a mesh of these sizes."""
    config = PretrainConfig(
        model=dataclasses.replace(MODEL, **model),
        data=DataConfig(stores=(StoreConfig(path="unused"),), seq_len=LENGTH),
        train=TrainConfig(steps=2, batch_size=ROWS, microbatches=microbatches),
        trainable=trainable or TrainableConfig(),
    )
    task = PretrainTask(config=config, vocab=text_and_image())
    recipe = Recipe.of(task, config, {"image": (4, 20)})
    sizes = MeshConfig(**dict(zip(mesh_lib.AXES, sizes, strict=True)))
    # Four of the eight devices at most: each that waits holds a thread.
    mesh = mesh_lib.make_mesh(sizes, jax.devices()[: sizes.data * sizes.fsdp * sizes.tensor])
    placed = state_lib.shardings(recipe, mesh).params
    function = jax.jit(
        lambda w, b: step_lib.gradient_sums(w, b, recipe, jax.random.key(3), statistics=True),
        in_shardings=(placed, mesh_lib.batch_sharding(mesh)),
    )
    weights = jax.device_put(jax.device_get(task.initial_params(None, mesh)), placed)
    with jax.set_mesh(mesh):
        return jax.device_get(function(weights, batch()))


ROWS_OF_THE_VOCABULARY = TrainableConfig(parameters=("embed", "head"), rows=("image",))


@pytest.mark.parametrize(
    ("sizes", "settings"),
    [
        ((1, 4, 1), {"remat": "none"}),
        ((2, 1, 2), {"remat": "attention", "microbatches": 2}),
        pytest.param((1, 2, 2), {"remat": "none", "untied": ("mlp", "norms", "attention")}, marks=pytest.mark.slow),
        pytest.param((1, 2, 2), {"remat": "full", "trainable": ROWS_OF_THE_VOCABULARY}, marks=pytest.mark.slow),
    ],
    ids=["fsdp", "data and tensor in microbatches", "fsdp and tensor of untied parts", "rows of the vocabulary"],
)
def test_gradients_sums_and_dropout_are_those_of_one_device(sizes, settings, monkeypatch):
    expected = gradient_sums((1, 1, 1), **{**settings, "microbatches": 1})
    monkeypatch.setattr(shards, "by_hand", lambda: True)
    ours = gradient_sums(sizes, **settings)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), ours, expected)
