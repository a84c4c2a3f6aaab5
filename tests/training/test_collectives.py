"""What a compiled training step sends between devices: no batch and no vocabulary is gathered whole."""

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


def gathered_shapes(mesh, trainable):
    """Shapes that gathers give in the compiled step, each as a set of its sizes."""
    config = PretrainConfig(
        model=MODEL,
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
        program = step.lower(state_lib.abstract(recipe, made), batch).compile().as_text()
    results = re.findall(r"= (.+?) all-gather(?:-start)?\(", program)
    assert results
    return [tuple(map(int, sizes.split(","))) for result in results for sizes in re.findall(r"\[([\d,]+)\]", result)]


@pytest.mark.parametrize("mesh", [MeshConfig(data=2, fsdp=2, tensor=2), MeshConfig(data=2, fsdp=4, tensor=1)], ids=str)
def test_the_gradient_of_the_embedding_is_summed_where_its_tokens_are(mesh):
    assert not [shape for shape in gathered_shapes(mesh, TrainableConfig()) if ROWS in shape and LENGTH in shape]


def test_training_rows_of_the_vocabulary_gathers_no_vocabulary():
    trainable = TrainableConfig(parameters=("embed", "head"), rows=("image", "added"))
    assert not [shape for shape in gathered_shapes(MeshConfig(data=1, fsdp=2, tensor=4), trainable) if IDS in shape]
