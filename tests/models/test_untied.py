"""Untied parts against a decoder that gathers the parameters of every position, against the tied model, and when decoding."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chameleon_jax.configs import MeshConfig, TransformerConfig
from chameleon_jax.errors import ConfigError
from chameleon_jax.generation.weights import decoding_form
from chameleon_jax.models import kv_cache, params, transformer, untied
from chameleon_jax.models.quantize import quantize_parameter
from chameleon_jax.parallel.mesh import AXES, DECODING, TRAINING, batch_sharding, make_mesh

TIED = TransformerConfig(
    vocab_size=64,
    d_model=24,
    n_layers=2,
    n_heads=4,
    n_kv_heads=2,
    head_dim=8,
    d_ff=40,
    max_seq_len=192,
    qk_norm_groups=2,
    compute_dtype="float32",
    attention_chunk=64,
)
PARTS = ("mlp", "norms", "attention")
ALL = dataclasses.replace(TIED, untied=PARTS, modalities=2)
ROWS, LENGTH = 8, 160  # 1,280 positions: several chunks on one device, and on each shard of a mesh

forward = jax.jit(transformer.forward, static_argnums=4, static_argnames=("statistics",))


@functools.cache
def random_weights(config):
    """Every parameter random, norms and biases too; with the tied config's entry for each modality, they differ."""
    leaves, treedef = jax.tree.flatten(params.abstract(transformer.param_specs(config)))
    split = jax.random.split(jax.random.key(3), len(leaves))
    values = [jax.random.normal(key, leaf.shape) * 0.2 for key, leaf in zip(split, leaves, strict=True)]
    weights = jax.tree.map_with_path(
        lambda path, x: x + 1.0 if "norm" in jax.tree_util.keystr(path) else x, treedef.unflatten(values)
    )
    return jax.device_get(weights)  # for any mesh


@functools.cache
def batch():
    """(tokens, positions, segments, modality): two documents and padding in a row; shares of modalities differ by row."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, ALL.vocab_size, (ROWS, LENGTH))
    slots, cut = np.arange(LENGTH)[None], rng.integers(20, LENGTH - 40, (ROWS, 1))
    segments = np.where(slots < cut, 1, np.where(slots < LENGTH - 9, 2, 0))
    spans = rng.integers(5, 40, (ROWS, 1))
    modality = (slots // spans + np.arange(ROWS)[:, None]) % ALL.modalities
    modality[0] = 1  # a row without the other
    return tokens, np.where(slots < cut, slots, slots - cut), segments, modality


def gathered(weights, tokens, positions, segments, modality, config):
    """Hidden states [B T D] in fp32, as the definition says: each position multiplies by the matrices of its own modality."""
    specs = transformer.param_specs(config)
    own = lambda leaf, spec: leaf[modality] if spec.untied is not None else leaf[None, None]  # noqa: E731
    norm = lambda x, s: x / jnp.sqrt(jnp.mean(x**2, -1, keepdims=True) + config.norm_eps) * s  # noqa: E731
    half = config.head_dim // 2
    angles = positions[..., None, None] * config.rope_theta ** (-jnp.arange(half) / half)
    see = (segments[:, :, None] == segments[:, None]) & (positions[:, :, None] >= positions[:, None])

    def heads_normed(x, scale, bias):
        groups = scale.shape[2]
        x = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5)
        x = x.reshape(*x.shape[:2], groups, -1, x.shape[-1]) * scale[:, :, :, None] + bias[:, :, :, None]
        return x.reshape(*x.shape[:2], -1, x.shape[-1])

    def rotate(x):
        a, b = x[..., :half], x[..., half:]
        cos, sin = jnp.cos(angles), jnp.sin(angles)
        return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)

    def attend(y, w):
        multiply = lambda y, k: jnp.einsum("btd,btdnh->btnh", y, jnp.broadcast_to(k, (*y.shape[:2], *k.shape[2:])))  # noqa: E731
        q, k, v = (multiply(y, w[name]) for name in ("wq", "wk", "wv"))
        q, k = (rotate(heads_normed(x, **w[name])) for x, name in ((q, "q_norm"), (k, "k_norm")))
        k, v = (jnp.repeat(x, config.n_heads // config.n_kv_heads, axis=2) for x in (k, v))
        scores = jnp.einsum("btnh,bsnh->bnts", q, k) / np.sqrt(config.head_dim)
        chances = jax.nn.softmax(jnp.where(see[:, None], scores, -1e30), -1)
        wo = jnp.broadcast_to(w["wo"], (*y.shape[:2], *w["wo"].shape[2:]))
        return jnp.einsum("bnts,bsnh,btnhd->btd", chances, v, wo)

    def mlp(y, w):
        gate, up = (jnp.squeeze(y[:, :, None] @ w[name], 2) for name in ("gate", "up"))
        return jnp.squeeze((jax.nn.silu(gate) * up)[:, :, None] @ w["down"], 2)

    x = weights["embed"][tokens]
    for i in range(config.n_layers):
        layer = jax.tree.map(
            lambda leaf, spec: own(leaf[i], spec.layer),  # noqa: B023
            weights["layers"],
            specs["layers"],
        )
        for name, branch in (("attn", attend), ("mlp", mlp)):
            scale = layer[f"{name}_norm"]
            pre = config.norm_order == "pre"
            x = x + (branch(norm(x, scale), layer[name]) if pre else norm(branch(x, layer[name]), scale))
    return norm(x, own(weights["norm"], specs["norm"]))


def loss(hidden, segments):
    """A number that depends on every real position, and on padding not at all."""
    slopes = jax.random.normal(jax.random.key(1), hidden.shape)
    return jnp.sum(jnp.where(segments[..., None] > 0, jnp.sin(hidden.astype(jnp.float32)) * slopes, 0.0))


def ours(config, mesh_sizes=(1, 1, 1), weights=None, dropout_key=None):
    """Value and gradient of `loss` with jit, on a mesh."""
    tokens, positions, segments, modality = batch()
    mesh = make_mesh(MeshConfig(**dict(zip(AXES, mesh_sizes, strict=True))), jax.devices()[: int(np.prod(mesh_sizes))])
    placed = params.shardings(transformer.param_specs(config), mesh, TRAINING)

    def value(weights, tokens, positions, segments, modality):
        out = transformer.forward(
            weights, tokens, positions, segments, config, modality=modality, dropout_key=dropout_key
        )
        return loss(out.hidden, segments)

    rows = (batch_sharding(mesh),) * 4
    function = jax.jit(jax.value_and_grad(value), in_shardings=(placed, *rows), out_shardings=(None, placed))
    with jax.set_mesh(mesh):
        return jax.device_get(function(weights or random_weights(config), tokens, positions, segments, modality))


@functools.cache
def exact(config):
    tokens, positions, segments, modality = batch()

    def value(weights):
        return loss(gathered(weights, tokens, positions, segments, modality, config), segments)

    return jax.device_get(jax.jit(jax.value_and_grad(value))(random_weights(config)))


def relative(ours, exact):
    wanted = np.linalg.norm(np.float64(exact))
    return np.linalg.norm(np.subtract(ours, exact, dtype=np.float64)) / (wanted or 1.0)  # of what is not used it is 0


def assert_gradients_near(made, wanted, limit):
    for (path, mine), theirs in zip(jax.tree.leaves_with_path(made), jax.tree.leaves(wanted), strict=True):
        assert relative(mine, theirs) < limit, f"{jax.tree_util.keystr(path)}: {relative(mine, theirs):.2e}"


@pytest.mark.parametrize(
    "change",
    [
        {"norm_order": "swin"},
        {"untied": ("mlp",), "modalities": 3},  # one of them is nowhere
        {"untied": ("norms",)},
        {"untied": ("attention",)},
    ],
    ids=str,
)
def test_values_and_gradients_are_those_of_parameters_gathered_for_every_position(change):
    config = dataclasses.replace(ALL, **change)
    value, gradient = ours(config)
    expected, slopes = exact(config)
    np.testing.assert_allclose(value, expected, rtol=1e-4)
    for (path, mine), theirs in zip(jax.tree.leaves_with_path(gradient), jax.tree.leaves(slopes), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=2e-4 * np.abs(theirs).max(), err_msg=jax.tree_util.keystr(path))


@pytest.mark.parametrize("change", [{"remat": "full"}, {"remat": "dots", "scan_unroll": 2}], ids=str)
def test_memory_settings_change_nothing(change):
    value, gradient = ours(dataclasses.replace(ALL, **change))
    np.testing.assert_allclose(value, exact(ALL)[0], rtol=1e-4)
    assert_gradients_near(gradient, exact(ALL)[1], 1e-4)


def test_nor_does_a_mesh():
    value, gradient = ours(dataclasses.replace(ALL, remat="attention"), (2, 2, 2))
    np.testing.assert_allclose(value, exact(ALL)[0], rtol=1e-4)
    assert_gradients_near(gradient, exact(ALL)[1], 1e-4)


@functools.cache
def copies(config):
    """The tied model's weights with as many equal copies as the untied config has modalities."""
    return jax.tree.map(
        lambda leaf, spec: leaf if spec.untied is None else np.stack([leaf] * config.modalities, axis=spec.untied),
        random_weights(TIED),
        transformer.param_specs(config),
    )


def test_equal_copies_are_the_tied_model_with_dropout_and_their_gradients_add_up_to_its():
    tied, config = (dataclasses.replace(c, dropout=0.2) for c in (TIED, ALL))
    key = jax.random.key(7)
    value, gradient = ours(config, weights=copies(ALL), dropout_key=key)
    expected, slopes = ours(tied, weights=random_weights(TIED), dropout_key=key)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    added = jax.tree.map(
        lambda leaf, spec: leaf if spec.untied is None else leaf.sum(spec.untied),
        gradient,
        transformer.param_specs(config),
    )
    assert_gradients_near(added, slopes, 1e-5)


def test_equal_copies_in_bfloat16_are_as_near_to_float32_as_the_tied_model():
    tokens, positions, segments, modality = batch()
    tied, config = (dataclasses.replace(c, compute_dtype="bfloat16") for c in (TIED, ALL))
    made = forward(copies(ALL), tokens, positions, segments, config, modality=modality).hidden
    theirs = forward(random_weights(TIED), tokens, positions, segments, tied).hidden
    wide = forward(random_weights(TIED), tokens, positions, segments, TIED).hidden
    assert made.dtype == jnp.bfloat16
    made, theirs, wide = (np.float32(x)[segments > 0] for x in (made, theirs, wide))
    assert relative(made, wide) < 1.05 * relative(theirs, wide) < 0.05


def prefill_and_steps(weights, config, lengths, prompt, width=None):
    """Hidden states of rows by a padded prefill and then a token at a time; {(row, position): [D]}."""
    tokens, _, _, modality = batch()
    seen, count, width = {}, len(lengths), width or int(prompt.max())
    positions = jnp.broadcast_to(jnp.arange(width), (count, width))
    segments = (positions < prompt[:, None]).astype(jnp.int32)
    run = jax.jit(
        lambda tokens, positions, segments, modality, cache: transformer.forward(
            weights, tokens, positions, segments, config, modality=modality, cache=cache, rules=DECODING
        )
    )
    cache = kv_cache.create(config, count, 96, DECODING)
    out = run(tokens[:count, :width], positions, segments, modality[:count, :width], cache)
    hidden = np.asarray(out.hidden)
    seen |= {(row, at): hidden[row, at] for row in range(count) for at in range(prompt[row])}
    for step in range(int((lengths - prompt).max())):
        at = prompt + step
        alive = (at < lengths).astype(np.int32)  # a row that has ended feeds padding
        here = (np.arange(count), at)
        out = run(tokens[here][:, None], at[:, None], alive[:, None], modality[here][:, None], out.cache)
        hidden = np.asarray(out.hidden)
        seen |= {(row, int(at[row])): hidden[row, 0] for row in np.flatnonzero(alive)}
    return seen


def full(weights, config, lengths):
    tokens, _, _, modality = batch()
    width = int(lengths.max())
    positions = jnp.broadcast_to(jnp.arange(width), (len(lengths), width))
    segments = (positions < lengths[:, None]).astype(jnp.int32)
    here = slice(0, len(lengths)), slice(0, width)
    return np.asarray(forward(weights, tokens[here], positions, segments, config, modality=modality[here]).hidden)


LENGTHS, PROMPT = np.array([85, 67, 86, 63]), np.array([82, 64, 85, 62])  # a prefill of 340 positions in several chunks


@pytest.mark.parametrize("form", ["stacked", "as they are"])
def test_decoding_with_a_cache_equals_the_full_forward(form):
    weights = random_weights(ALL)
    expected = full(weights, ALL, LENGTHS)
    if form != "stacked":
        weights = decoding_form(weights, ALL, form)
    seen = prefill_and_steps(weights, ALL, LENGTHS, PROMPT)
    assert len(seen) == LENGTHS.sum()
    for (row, at), hidden in seen.items():
        np.testing.assert_allclose(hidden, expected[row, at], atol=2e-4)


def test_eight_bits_decode_as_the_matrices_that_they_stand_for():
    specs = transformer.param_specs(ALL)
    narrow = jax.tree.map(quantize_parameter, random_weights(ALL), specs)

    def widen(leaf, spec):
        if not hasattr(leaf, "values"):
            return leaf
        return leaf.values * jnp.expand_dims(leaf.scale, spec.input_axes)

    wide = jax.tree.map(widen, narrow, specs, is_leaf=lambda node: hasattr(node, "values") and hasattr(node, "scale"))
    expected = full(wide, ALL, LENGTHS)
    for weights in (narrow, decoding_form(random_weights(ALL), ALL, "int8")):
        for (row, at), hidden in prefill_and_steps(weights, ALL, LENGTHS, PROMPT).items():
            np.testing.assert_allclose(hidden, expected[row, at], atol=2e-3)


@pytest.mark.parametrize("form", ["as they are", "int8"])
def test_decoding_on_a_mesh_equals_that_on_one_device(form):
    expected = prefill_and_steps(decoding_form(random_weights(ALL), ALL, form), ALL, LENGTHS, PROMPT)
    with jax.set_mesh(make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))):
        made = prefill_and_steps(decoding_form(random_weights(ALL), ALL, form), ALL, LENGTHS, PROMPT)
    assert made.keys() == expected.keys()
    for place, hidden in made.items():
        np.testing.assert_allclose(hidden, expected[place], atol=5e-4)


def test_weights_of_an_absent_modality_are_not_read():
    """They may be anything, not only finite: nothing multiplies by them."""
    tokens, positions, segments, _ = batch()
    modality, config = jnp.ones_like(tokens), dataclasses.replace(ALL, untied=("mlp",))
    weights = random_weights(config)
    nothing = lambda leaf: np.where(np.arange(2)[:, None, None] == 1, leaf, np.nan)  # noqa: E731
    only = weights | {"layers": weights["layers"] | {"mlp": jax.tree.map(nothing, weights["layers"]["mlp"])}}
    made = forward(only, tokens, positions, segments, config, modality=modality).hidden
    expected = forward(weights, tokens, positions, segments, config, modality=modality).hidden
    np.testing.assert_array_equal(made, expected)


def test_as_few_chunks_are_computed_as_hold_a_modality():
    tokens, _, segments, modality = batch()
    routes = untied.route(modality, segments, 2, TRAINING)
    assert routes.sorted.shape == (1, ROWS * LENGTH) and routes.chunk == 128
    np.testing.assert_array_equal(routes.sorted[0], np.sort(np.where(segments > 0, modality, 2).reshape(-1)))
    assert int((routes.end - routes.begin).sum()) <= 10 + 1
    np.testing.assert_array_equal(untied.to_positions(untied.to_places(tokens, routes), routes), tokens)


@pytest.mark.parametrize("positions", [280, 1000, 1120, 1152, 1344, 2000, 3072, 6144])
def test_usual_numbers_of_positions_are_divided(positions):
    modality = jnp.zeros((1, positions), jnp.int32)
    chunk = untied.route(modality, modality + 1, 2, TRAINING).chunk
    assert positions % chunk == 0 and max(64, positions // 32) <= chunk <= max(256, positions // 8)


def test_a_token_has_the_flops_of_the_tied_model():
    assert transformer.flops_per_token(ALL, 128) == transformer.flops_per_token(TIED, 128)
    shared = 2 * 64 * 24  # embeddings and head
    wanted = 2 * params.count(transformer.param_specs(TIED)) - shared
    assert params.count(transformer.param_specs(ALL)) == wanted


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"untied": ("embed",)}, "expected a list"),
        ({"untied": ("mlp", "mlp")}, "names a part twice"),
        ({"untied": ("mlp",), "modalities": 0}, "modalities must be at least 1"),
    ],
)
def test_wrong_settings_are_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        TransformerConfig(**fields)
