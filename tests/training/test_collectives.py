"""What a compiled training step sends between devices: no batch and no vocabulary is gathered whole, and no gradient either."""

import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp
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
from chameleon_jax.parallel import shards
from chameleon_jax.parallel.mesh import make_mesh
from chameleon_jax.training import state as state_lib
from chameleon_jax.training import step as step_lib
from chameleon_jax.training.pretraining import PretrainTask
from chameleon_jax.training.task import Recipe

IDS, WIDTH, ROWS, LENGTH = 4096, 64, 16, 128
MODEL = TransformerConfig(
    vocab_size=IDS,
    d_model=WIDTH,
    n_layers=1,
    n_heads=8,
    n_kv_heads=8,
    head_dim=8,
    d_ff=96,
    max_seq_len=LENGTH,
    compute_dtype="bfloat16",
    attention_chunk=64,
)


@pytest.fixture(params=[True, pytest.param(False, marks=pytest.mark.slow)], ids=["by hand", "by XLA"])
def divided_by(request, monkeypatch):
    """Programs divided as on TPUs and GPUs, and as on CPUs."""
    monkeypatch.setattr(shards, "by_hand", lambda: request.param)
    compiled_text.cache_clear()


@pytest.fixture
def by_hand(monkeypatch):
    monkeypatch.setattr(shards, "by_hand", lambda: True)
    compiled_text.cache_clear()


def sent_shapes(operation, mesh, trainable):
    """Shapes that these collectives give in the compiled step."""
    results = re.findall(rf"= (.+?) {operation}(?:-start)?\(", compiled_text(mesh, trainable, MODEL))
    assert results
    return [tuple(map(int, sizes.split(","))) for result in results for sizes in re.findall(r"\[([\d,]+)\]", result)]


@functools.cache
def compiled_text(mesh, trainable, model):
    """The compiled step as XLA writes it."""
    config = PretrainConfig(
        model=model,
        data=DataConfig(stores=(StoreConfig(path="none"),), seq_len=LENGTH),
        train=TrainConfig(steps=2, batch_size=ROWS),
        trainable=trainable,
        mesh=mesh,
    )
    ids = jax.ShapeDtypeStruct((ROWS, LENGTH), jnp.int32)
    weights = jax.ShapeDtypeStruct((ROWS, LENGTH), jnp.float32)
    batch = Batch(
        tokens=ids, targets=ids, loss_weights=weights, segment_ids=ids, positions=ids, modality=ids, input_modality=ids
    )
    made = make_mesh(config.mesh)
    with jax.set_mesh(made):
        recipe = Recipe.of(
            PretrainTask(config=config, vocab=text_and_image()), config, {"image": (4, 1028), "added": (4000, 4010)}
        )
        step = step_lib.compiled_train_step(recipe, made, statistics=False)
        return step.lower(state_lib.abstract(recipe, made), batch).compile().as_text()


@pytest.mark.parametrize("mesh", [MeshConfig(data=2, fsdp=2, tensor=2), MeshConfig(data=2, fsdp=4, tensor=1)], ids=str)
def test_the_gradient_of_the_embedding_is_summed_where_its_tokens_are(mesh, divided_by):
    gathered = sent_shapes("all-gather", mesh, TrainableConfig())
    assert not [shape for shape in gathered if ROWS in shape and LENGTH in shape]


def test_training_rows_of_the_vocabulary_gathers_no_vocabulary(divided_by):
    trainable = TrainableConfig(parameters=("embed", "head"), rows=("image", "added"))
    gathered = sent_shapes("all-gather", MeshConfig(data=1, fsdp=2, tensor=4), trainable)
    assert not [shape for shape in gathered if IDS in shape]


def test_gradients_are_scattered_as_they_are_summed(by_hand):
    """A chip never receives a whole gradient: what all devices get is smaller than the smallest matrix, and every matrix is cut."""
    mesh = MeshConfig(data=1, fsdp=8, tensor=1)
    assert max(math.prod(shape) for shape in sent_shapes("all-reduce", mesh, TrainableConfig())) < WIDTH**2
    scattered = sent_shapes("reduce-scatter", mesh, TrainableConfig())
    assert sorted(math.prod(shape) * 8 for shape in scattered if math.prod(shape) * 8 > WIDTH) == sorted(
        [IDS * WIDTH] * 2 + [WIDTH * WIDTH] * 4 + [WIDTH * 96] * 3
    )


@pytest.mark.parametrize("remat", ["none", "attention"])
def test_no_weights_of_all_layers_exist_whole(remat, by_hand):
    """What is kept for the backward pass are the parts: weights are gathered a second time."""
    model = dataclasses.replace(MODEL, n_layers=3, remat=remat)
    text = compiled_text(MeshConfig(data=1, fsdp=8, tensor=1), TrainableConfig(), model)
    assert f"f32[3,{WIDTH // 8},96]" in text
    assert not re.search(rf"\[3,({WIDTH},96|{WIDTH},8,8|96,{WIDTH}|8,8,{WIDTH})\]", text)
