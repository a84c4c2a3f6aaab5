"""The 34B compiles for serving on eight devices: each holds an eighth of the weights and of the cache, and no weight moves."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding

from chameleon_jax.configs import MeshConfig
from chameleon_jax.convert.releases import release
from chameleon_jax.generation import lanes, scheduler
from chameleon_jax.models import kv_cache, params, transformer
from chameleon_jax.parallel.mesh import DECODING, make_mesh
from chameleon_jax.vocab import Vocab
from tests.generation.test_mesh import gathered_sizes

RELEASE = release("chameleon-34b")
SLOTS, CONTEXT, WIDTH = 8, 4096, 1024
MESH = make_mesh(MeshConfig(data=1, fsdp=1, tensor=8))
LOGITS = SLOTS * RELEASE.model.vocab_size


def compiled(layers, dtype):
    """(bytes of weights, bytes of cache, run_block, admit) of the full width, compiled without an array being made."""
    model = dataclasses.replace(RELEASE.model, n_layers=layers, param_dtype=dtype, compute_dtype=dtype)
    shapes = lanes.Shapes(model=model, vocab=Vocab.from_config(RELEASE.vocab))
    weights = params.abstract(transformer.by_layer_specs(model), MESH, DECODING)

    def placed(leaf, letters):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(MESH, DECODING.activation(letters)))

    with jax.set_mesh(MESH):
        idle = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, scheduler.idle_rows(SLOTS, CONTEXT, shapes)))
        cache = jax.eval_shape(lambda: kv_cache.create(model, SLOTS, CONTEXT, DECODING))
        state = lanes.LaneState(
            cache=jax.tree.map(lambda leaf: placed(leaf, "B K S H"), cache),
            rows=jax.tree.map(lambda leaf: placed(leaf, " ".join("B" + "." * (leaf.ndim - 1))), idle),
        )
        places = jax.ShapeDtypeStruct((SLOTS,), jnp.int32)
        return (
            total(weights),
            total(state.cache),
            lanes.run_block.lower(weights, state, shapes, 8, CONTEXT).compile(),
            lanes.admit.lower(weights, state, places, idle, shapes, WIDTH).compile(),
        )


def total(tree):
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


@pytest.mark.slow
def test_each_of_eight_devices_holds_an_eighth_of_the_34b_and_no_weight_moves():
    weights, cache, block, admit = compiled(RELEASE.model.n_layers, "bfloat16")
    assert weights == pytest.approx(68.6e9, rel=1e-3)
    eighth = (weights + cache) / 8
    assert eighth * 0.999 < block.memory_analysis().argument_size_in_bytes < eighth + 8e6
    assert admit.memory_analysis().argument_size_in_bytes < eighth + 8e6
    # A matrix of one layer has 8,192 x 1,024 elements or more; what is gathered is the logits, for sampling.
    assert max(gathered_sizes(block.as_text())) <= LOGITS
    assert max(gathered_sizes(admit.as_text()), default=0) <= LOGITS


@pytest.mark.slow
def test_decoding_needs_no_room_that_grows_with_the_layers():
    """In float32: of bfloat16 operands, CPUs multiply float32 copies, which accelerators do not make."""
    one, two = (compiled(layers, "float32")[2].memory_analysis().temp_size_in_bytes for layers in (1, 2))
    assert two - one < 1e6
