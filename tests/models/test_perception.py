"""The patch encoder against its definition in NumPy, and its vectors in the decoder's stream."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chameleon_jax.configs import MeshConfig, PatchEncoderConfig, TransformerConfig
from chameleon_jax.errors import ConfigError
from chameleon_jax.generation.weights import decoding_form
from chameleon_jax.models import kv_cache, params, perception, transformer
from chameleon_jax.models.layers import place
from chameleon_jax.parallel.mesh import DECODING, TRAINING, batch_sharding, make_mesh

CONFIG = TransformerConfig(
    vocab_size=64,
    d_model=24,
    n_layers=2,
    n_heads=4,
    n_kv_heads=2,
    head_dim=8,
    d_ff=40,
    max_seq_len=64,
    compute_dtype="float32",
    init_std=0.05,
    perception=PatchEncoderConfig(patch_size=4, width=16, n_layers=2, n_heads=2, d_ff=32),
)
ROWS, PICTURES, HEIGHT, WIDTH, LENGTH = 8, 2, 8, 12, 20
PATCHES = 6


def weights_of(config=CONFIG):
    """Norms that are not ones."""
    weights = transformer.init(jax.random.key(0), config)
    leaves, treedef = jax.tree.flatten(weights)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    moved = [leaf + 0.05 * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True)]
    return jax.device_get(treedef.unflatten(moved))


def inputs():
    """(pictures, tokens, positions, segments, vector_index): two pictures in a row, at other places in each, words between them."""
    rng = np.random.default_rng(0)
    pictures = rng.uniform(-1, 1, (ROWS, PICTURES, HEIGHT, WIDTH, 3)).astype(np.float32)
    tokens = rng.integers(0, CONFIG.vocab_size, (ROWS, LENGTH))
    index = np.full((ROWS, LENGTH), -1)
    for row in range(ROWS):
        first = 1 + row % 3
        index[row, first : first + PATCHES] = np.arange(PATCHES)
        index[row, first + PATCHES + 2 : first + 2 * PATCHES + 2] = np.arange(PATCHES, 2 * PATCHES)
    positions = np.broadcast_to(np.arange(LENGTH), (ROWS, LENGTH))
    return pictures, tokens, positions, np.ones_like(tokens), index


def defined(weights, picture, config):
    """Vectors [P D] of one picture in float64, head by head."""
    encoder, own = config.perception, jax.tree.map(np.float64, weights["perception"])
    size, embed = encoder.patch_size, np.float64(weights["embed"])
    norm = lambda x, scale: x / np.sqrt((x**2).mean(-1, keepdims=True) + config.norm_eps) * scale  # noqa: E731
    x, grid = [], []
    for top in range(0, picture.shape[0], size):
        for left in range(0, picture.shape[1], size):
            x.append(picture[top : top + size, left : left + size].reshape(-1) @ own["patches"])
            grid.append((top // size, left // size))
    quarter = encoder.width // 4
    turns = np.array([[side * 1e4 ** (-i / (quarter - 1)) for side in place for i in range(quarter)] for place in grid])
    x = np.array(x) + np.concatenate([np.sin(turns), np.cos(turns)], 1)
    for i in range(encoder.n_layers):
        layer = jax.tree.map(lambda leaf: leaf[i], own["layers"])  # noqa: B023
        y, out = norm(x, layer["attn_norm"]), 0
        for n in range(encoder.n_heads):
            q, k, v = (y @ layer["attn"][name][:, n] for name in ("wq", "wk", "wv"))
            chances = np.exp(q @ k.T / np.sqrt(q.shape[1]))
            out = out + chances / chances.sum(-1, keepdims=True) @ v @ layer["attn"]["wo"][n]
        x = x + out
        hidden = norm(x, layer["mlp_norm"]) @ layer["mlp"]["up"]
        gelu = 0.5 * hidden * (1 + np.tanh(np.sqrt(2 / np.pi) * (hidden + 0.044715 * hidden**3)))
        x = x + gelu @ layer["mlp"]["down"]
    return norm(norm(x, own["norm"]) @ own["projection"], own["scale"]) * np.sqrt((embed**2).mean())


@pytest.mark.parametrize("layers", [0, 2])
def test_vectors_are_those_of_the_definition(layers):
    config = dataclasses.replace(CONFIG, perception=dataclasses.replace(CONFIG.perception, n_layers=layers))
    weights, pictures = weights_of(config), inputs()[0][:2]
    made = jax.jit(perception.encode, static_argnums=2)(weights, pictures, config)
    assert made.shape == (2, PICTURES * PATCHES, CONFIG.d_model)
    for row in range(2):
        expected = np.concatenate([defined(weights, picture, config) for picture in pictures[row]])
        np.testing.assert_allclose(made[row], expected, atol=1e-5)


@pytest.mark.parametrize("loudness", [1e-3, 1.0])
def test_vectors_of_a_new_encoder_have_the_rms_of_the_token_embeddings(loudness):
    weights = transformer.init(jax.random.key(0), CONFIG)
    made = perception.encode(weights, inputs()[0] * loudness, CONFIG)
    rms = jnp.sqrt(jnp.mean(jnp.square(made), axis=-1))
    np.testing.assert_allclose(rms, jnp.sqrt(jnp.mean(jnp.square(weights["embed"]))), rtol=1e-3)


def test_a_position_with_the_vector_of_an_id_is_that_id():
    weights, (_, tokens, positions, segments, index) = weights_of(), inputs()
    vectors = weights["embed"][np.arange(PICTURES * PATCHES)][None].repeat(ROWS, 0)
    made = transformer.forward(weights, tokens, positions, segments, CONFIG, vectors=vectors, vector_index=index).hidden
    written = np.where(index >= 0, index, tokens)
    expected = transformer.forward(weights, written, positions, segments, CONFIG).hidden
    np.testing.assert_allclose(made, expected, atol=1e-5)


def gradient_of(config, sizes):
    pictures, *rest = inputs()
    mesh = make_mesh(
        MeshConfig(**dict(zip(("data", "fsdp", "tensor"), sizes, strict=True))), jax.devices()[: np.prod(sizes)]
    )
    placed = params.shardings(transformer.param_specs(config), mesh, TRAINING)

    def loss(weights, pictures, tokens, positions, segments, index):
        vectors = perception.encode(weights, pictures, config)
        out = transformer.forward(weights, tokens, positions, segments, config, vectors=vectors, vector_index=index)
        slopes = jax.random.normal(jax.random.key(2), out.hidden.shape)
        return jnp.sum(out.hidden.astype(jnp.float32) * slopes)

    rows = batch_sharding(mesh)
    with jax.set_mesh(mesh):
        made = jax.jit(jax.grad(loss), in_shardings=(placed, *[rows] * 5), out_shardings=placed)(
            weights_of(config), pictures, *rest
        )
        return jax.device_get(made)


def relative(ours, exact):
    wanted = np.linalg.norm(np.float64(exact))
    return np.linalg.norm(np.subtract(ours, exact, dtype=np.float64)) / (wanted or 1.0)  # the head is not used


def test_gradients_reach_the_encoder_alike_on_a_mesh_and_in_bfloat16():
    exact = gradient_of(CONFIG, (1, 1, 1))
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(exact["perception"]))
    divided = gradient_of(CONFIG, (2, 2, 2))
    narrow = gradient_of(dataclasses.replace(CONFIG, compute_dtype="bfloat16"), (2, 2, 2))
    for (path, wanted), mesh, rounded in zip(
        jax.tree.leaves_with_path(exact), jax.tree.leaves(divided), jax.tree.leaves(narrow), strict=True
    ):
        assert relative(mesh, wanted) < 1e-4, jax.tree_util.keystr(path)
        assert relative(rounded, wanted) < 0.06, f"{jax.tree_util.keystr(path)}: {relative(rounded, wanted):.3f}"


def test_the_gradient_of_a_vector_in_many_places_is_summed_in_float32():
    """2,000 places hold one vector: a bfloat16 sum would stop at 256."""
    index = jnp.zeros((1, 2000), jnp.int32)
    x, vectors = jnp.zeros((1, 2000, 2), jnp.bfloat16), jnp.zeros((1, 3, 2), jnp.bfloat16)
    made = jax.grad(lambda vectors: jnp.sum(place(x, vectors, index).astype(jnp.float32)))(vectors)
    np.testing.assert_array_equal(np.float32(made[0]), [[2000, 2000], [0, 0], [0, 0]])


@pytest.mark.parametrize("form", ["as they are", "int8"])
def test_a_prefill_with_vectors_and_steps_equals_the_full_forward(form):
    pictures, tokens, positions, segments, index = (x[:2] for x in inputs())
    weights = decoding_form(weights_of(), CONFIG, form)
    vectors = jax.jit(perception.encode, static_argnums=(2, 3))(weights, pictures, CONFIG, DECODING)
    run = jax.jit(transformer.forward, static_argnums=4, static_argnames="rules")
    full = run(weights, tokens, positions, segments, CONFIG, vectors=vectors, vector_index=index).hidden

    def part(begin, end, cache, **given):
        rows = (x[:, begin:end] for x in (tokens, positions, segments))
        return run(weights, *rows, CONFIG, cache=cache, rules=DECODING, **given)

    cache = kv_cache.create(CONFIG, 2, LENGTH, DECODING)
    out = part(0, 18, cache, vectors=vectors, vector_index=index[:, :18])
    np.testing.assert_allclose(out.hidden, full[:, :18], atol=1e-4)
    for at in (18, 19):
        out = part(at, at + 1, out.cache)
        np.testing.assert_allclose(out.hidden[:, 0], full[:, at], atol=1e-4)


def test_without_an_encoder_there_is_no_parameter_of_it():
    plain = dataclasses.replace(CONFIG, perception=None)
    assert "perception" not in transformer.param_specs(plain)
    assert transformer.flops_per_token(CONFIG, 64) == transformer.flops_per_token(plain, 64)


def test_wrong_sizes_are_refused():
    with pytest.raises(ConfigError, match="width 30 is not a multiple of n_heads 4"):
        PatchEncoderConfig(width=30, n_heads=4)
    with pytest.raises(ValueError, match="9x12 pixels is not made of patches of 4x4"):
        perception.patches(9, 12, CONFIG.perception)
