"""Weights divided over a mesh: each device has its part, nothing gathers them, and what comes out is what one device gives."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from chameleon_jax.checkpoints.checkpointer import Checkpointer
from chameleon_jax.configs import (
    CheckpointConfig,
    EngineConfig,
    GenerationConfig,
    MeshConfig,
    SamplingConfig,
    TransformerConfig,
    text_and_image,
)
from chameleon_jax.errors import CheckpointError, ConfigError
from chameleon_jax.evaluation import likelihood
from chameleon_jax.generation import lanes, loading, scheduler
from chameleon_jax.generation.engine import Engine, generate
from chameleon_jax.generation.requests import Request
from chameleon_jax.generation.weights import decoding_form
from chameleon_jax.models import params, transformer
from chameleon_jax.models.quantize import Int8Matrix
from chameleon_jax.parallel.mesh import DECODING, make_mesh, mesh_of
from chameleon_jax.tokenizers.bundle import TokenizerBundle
from chameleon_jax.vocab import Vocab

VOCAB = Vocab.from_config(text_and_image(image_codes=50, reserved=4, text_tokens=300, codes_per_image=16))
MODEL = TransformerConfig(
    vocab_size=384, d_model=32, n_layers=2, n_heads=8, n_kv_heads=8, head_dim=8, d_ff=48, max_seq_len=64, compute_dtype="float32"
)  # fmt: skip
MESHES = [{"tensor": 8}, {"data": 2, "fsdp": 2, "tensor": 2}]
GREEDY = GenerationConfig(mode="text", max_tokens=12, sampling={"text": SamplingConfig(temperature=0.0)})
PROMPTS = [np.array([VOCAB.bos, *range(70 + i, 75 + 3 * i)], np.int32) for i in range(3)]


def mesh_with(axes):
    return make_mesh(MeshConfig(**{"data": 1, "fsdp": 1, **axes}))


@pytest.fixture(scope="module")
def weights():
    rng = np.random.default_rng(0)
    return params.map_specs(
        lambda spec: jnp.asarray(rng.normal(size=spec.shape) * 0.3 + (spec.init == "ones"), spec.dtype),
        transformer.param_specs(MODEL),
    )


@pytest.fixture(scope="module")
def workdir(weights, tmp_path_factory):
    """Two steps: 1 has the weights, 2 their double."""
    folder = tmp_path_factory.mktemp("run")
    checkpointer = Checkpointer(folder / "checkpoints", CheckpointConfig())
    for step in (1, 2):
        state = {"params": jax.tree.map(lambda leaf: leaf * step, weights)}  # noqa: B023
        checkpointer.save(step, state, {"config": {"model": MODEL.to_dict()}})
    checkpointer.close()
    return folder


@pytest.fixture
def load(workdir, monkeypatch):
    """load_run without a tokenizer, which this run has not."""
    monkeypatch.setattr(TokenizerBundle, "load", lambda folder: None)
    return lambda *args, **kwargs: loading.load_run(workdir, *args, **kwargs)


@pytest.mark.parametrize("axes", MESHES, ids=str)
def test_parameters_are_restored_to_their_shards(load, weights, axes):
    mesh = mesh_with(axes)
    loaded = load(mesh, step=1)
    assert (loaded.step, loaded.model) == (1, MODEL)
    jax.tree.map(np.testing.assert_array_equal, loaded.params, weights)
    wanted = params.shardings(transformer.param_specs(MODEL), mesh, DECODING)
    jax.tree.map(lambda leaf, sharding: np.testing.assert_equal(leaf.sharding, sharding), loaded.params, wanted)


def test_a_step_can_be_chosen_and_the_newest_is_the_default(load):
    assert load().step == load(mesh_with({"tensor": 8})).step == 2
    with pytest.raises(CheckpointError, match=r"no checkpoint in .*/checkpoints/7"):
        load(mesh_with({"tensor": 8}), step=7)


def test_a_mesh_that_does_not_divide_is_refused_before_anything_is_read(load, monkeypatch):
    monkeypatch.setattr(loading, "restore_subtree", lambda *args: pytest.fail("read"))
    monkeypatch.setattr(loading, "saved_metadata", lambda folder: {"config": {"model": MODEL.to_dict() | {"d_ff": 44}}})
    with pytest.raises(ConfigError, match=r"model.d_ff = 44 is not a multiple of the mesh's tensor = 8"):
        load(mesh_with({"tensor": 8}))


@pytest.mark.parametrize("axes", MESHES, ids=str)
def test_outputs_and_scores_of_a_mesh_are_those_of_one_device(load, axes):
    alone, divided = load(step=1), load(mesh_with(axes), step=1)
    expected = generate(alone.params, MODEL, VOCAB, PROMPTS, GREEDY)
    outputs = generate(divided.params, MODEL, VOCAB, PROMPTS, GREEDY)
    assert [o.ids.tolist() for o in outputs] == [e.ids.tolist() for e in expected]
    sequences, starts = [np.concatenate([p, e.ids]) for p, e in zip(PROMPTS, expected, strict=True)], [2, 3, 4]
    scores = [likelihood.score(loaded.params, MODEL, sequences, starts) for loaded in (alone, divided)]
    np.testing.assert_allclose(scores[1], scores[0], atol=1e-4)


def test_an_engine_runs_on_the_mesh_of_its_weights_and_divides_its_cache(load):
    mesh = mesh_with({"tensor": 8})
    expected = generate(load(step=1).params, MODEL, VOCAB, PROMPTS, GREEDY)
    with Engine(load(mesh, step=1).params, MODEL, VOCAB, EngineConfig(slots=3, block=5), donate=True) as engine:
        results = [stream.result() for stream in [engine.stream(Request(prompt=p, config=GREEDY)) for p in PROMPTS]]
        keys = engine._scheduler._lanes.cache.layers[0].keys
    assert [r.ids.tolist() for r in results] == [e.ids.tolist() for e in expected]
    assert keys.sharding.shard_shape(keys.shape) == (3, 1, 64, 8)


@pytest.mark.parametrize("form", ["bfloat16", "int8"])
def test_logits_in_bfloat16_are_near_those_of_one_device(weights, form):
    model = dataclasses.replace(MODEL, compute_dtype="bfloat16")
    tokens = np.stack([np.arange(70, 86)] * 2)
    positions, ones = np.broadcast_to(np.arange(16), (2, 16)), np.ones((2, 16), np.int32)

    @jax.jit
    def logits(weights):
        hidden = transformer.forward(weights, tokens, positions, ones, model, rules=DECODING).hidden
        return transformer.logits(weights, hidden, model, DECODING)

    alone = logits(decoding_form(weights, model, form))
    with jax.set_mesh(mesh_with({"data": 2, "fsdp": 2, "tensor": 2})):
        divided = logits(decoding_form(weights, model, form))
    assert np.sqrt(np.mean((divided - alone) ** 2)) < 0.03 * np.std(alone)


@pytest.mark.parametrize("axes", MESHES, ids=str)
@pytest.mark.parametrize("form", ["compute", "int8"])
def test_every_part_of_the_decoding_form_lies_where_the_rules_say(weights, form, axes):
    mesh = mesh_with(axes)
    with jax.set_mesh(mesh):
        made = decoding_form(weights, MODEL, form)
    assert mesh_of(made) == mesh
    specs = transformer.by_layer_specs(MODEL)

    def check(part, spec):
        matrix = part.values if isinstance(part, Int8Matrix) else part
        assert matrix.sharding == NamedSharding(mesh, DECODING.parameter(spec.axes))
        if isinstance(part, Int8Matrix):
            assert part.scale.shape == tuple(n for i, n in enumerate(spec.shape) if i not in spec.input_axes)

    jax.tree.map(check, made, specs, is_leaf=lambda node: isinstance(node, Int8Matrix))


@pytest.mark.parametrize("axes", MESHES, ids=str)
@pytest.mark.parametrize("form", ["compute", "int8"])
def test_no_weight_moves_for_a_token(weights, form, axes):
    """What is gathered in a block has rows of logits at the most: there is no collective on a weight."""
    shapes = lanes.Shapes(model=MODEL, vocab=VOCAB)
    with jax.set_mesh(mesh_with(axes)):
        made = decoding_form(weights, MODEL, form)
        empty = lanes.empty(shapes, scheduler.idle_rows(2, 64, shapes))
        program = lanes.run_block.lower(made, empty, shapes, 4, 64).compile().as_text()
    gathered = gathered_sizes(program)
    assert gathered and max(gathered) <= 2 * MODEL.vocab_size


def gathered_sizes(program):
    """Numbers of elements that collectives other than sums give, in a compiled program's text."""
    shapes = re.findall(r"= \w+\[([\d,]*)\]\S* (?:all-gather|all-to-all|collective-permute)(?:-start)?\(", program)
    return [int(np.prod([int(n) for n in shape.split(",") if n])) for shape in shapes]
