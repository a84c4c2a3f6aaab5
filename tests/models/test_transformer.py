"""The decoder against an independent NumPy float64 implementation, and what must not change its results."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chameleon_jax.configs import TransformerConfig
from chameleon_jax.models import keys, kv_cache, params, transformer
from chameleon_jax.parallel.mesh import DECODING

CONFIG = TransformerConfig(
    vocab_size=61,
    d_model=24,
    n_layers=4,
    n_heads=4,
    n_kv_heads=2,
    head_dim=8,
    d_ff=40,
    max_seq_len=64,
    qk_norm_groups=2,
    compute_dtype="float32",
    attention_chunk=5,
)
LENGTH = 14

forward = jax.jit(transformer.forward, static_argnums=4, static_argnames=("statistics", "tap_layers"))


@functools.cache
def random_weights(config: TransformerConfig):
    """Every parameter random, norms and their biases too, so that nothing hides behind a one or a zero."""
    leaves, treedef = jax.tree.flatten(params.abstract(transformer.param_specs(config)))
    split = jax.random.split(jax.random.key(3), len(leaves))
    values = [jax.random.normal(key, leaf.shape) * 0.3 for key, leaf in zip(split, leaves, strict=True)]
    return jax.tree.map_with_path(
        lambda path, x: x + 1.0 if "norm" in jax.tree_util.keystr(path) else x, treedef.unflatten(values)
    )


@functools.cache
def packed_rows():
    """Two rows: documents of 6 and 5 tokens and padding; documents of 3 and 11 tokens."""
    tokens = np.random.default_rng(0).integers(0, CONFIG.vocab_size, (2, LENGTH))
    segments = np.array([[1] * 6 + [2] * 5 + [0] * 3, [1] * 3 + [2] * 11])
    positions = np.array([[*range(6), *range(5), 0, 0, 0], [*range(3), *range(11)]])
    return jnp.asarray(tokens), jnp.asarray(positions), jnp.asarray(segments)


def oracle(weights, tokens, config: TransformerConfig) -> tuple[np.ndarray, dict[str, list]]:
    """Hidden states [T D] of one document in float64, written head by head from the papers, and what each layer produced."""
    weights = jax.tree.map(lambda x: np.asarray(x, np.float64), weights)
    length, half = len(tokens), config.head_dim // 2
    layers = weights["layers"]

    def rms_norm(x, scale):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + config.norm_eps) * scale

    def layer_norm(x, scale, bias):
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * scale + bias

    def rotate(x):  # the pair (i, i + H/2) is a complex number
        turn = np.exp(1j * np.arange(length)[:, None] * config.rope_theta ** (-np.arange(half) / half))
        turned = (x[:, :half] + 1j * x[:, half:]) * turn
        return np.concatenate([turned.real, turned.imag], -1)

    def head(x, i, n, seen):
        attn = jax.tree.map(lambda w: w[i], layers["attn"])
        kv = n // (config.n_heads // config.n_kv_heads)
        raw_q, raw_k, v = x @ attn["wq"][:, n], x @ attn["wk"][:, kv], x @ attn["wv"][:, kv]
        q, k = raw_q, raw_k
        if config.qk_norm:
            q_group = n // (config.n_heads // config.qk_norm_groups)
            k_group = kv // (config.n_kv_heads // config.qk_norm_groups)
            q = layer_norm(q, attn["q_norm"]["scale"][q_group], attn["q_norm"]["bias"][q_group])
            k = layer_norm(k, attn["k_norm"]["scale"][k_group], attn["k_norm"]["bias"][k_group])
        scores = rotate(q) @ rotate(k).T / np.sqrt(config.head_dim)
        scores[np.triu_indices(length, 1)] = -np.inf
        seen["max_attention_logit"].append(scores.max())
        seen["q"].append(raw_q)
        seen["k"].append(raw_k)
        chances = np.exp(scores - scores.max(-1, keepdims=True))
        return (chances / chances.sum(-1, keepdims=True)) @ v @ attn["wo"][n]

    def mlp(x, i):
        m = jax.tree.map(lambda w: w[i], layers["mlp"])
        gate = x @ m["gate"]
        return (gate / (1 + np.exp(-gate)) * (x @ m["up"])) @ m["down"]

    x = weights["embed"][tokens]
    record = {"max_attention_logit": [], "attention_out": [], "mlp_out": [], "residual": [], "q": [], "k": []}
    for i in range(config.n_layers):
        seen = {"max_attention_logit": [], "q": [], "k": []}
        attend = lambda y, i=i, seen=seen: sum(head(y, i, n, seen) for n in range(config.n_heads))  # noqa: E731
        for name, branch in (("attn", attend), ("mlp", lambda y, i=i: mlp(y, i))):
            scale = layers[f"{name}_norm"][i]
            out = branch(rms_norm(x, scale)) if config.norm_order == "pre" else rms_norm(branch(x), scale)
            record["attention_out" if name == "attn" else "mlp_out"].append(out)
            x = x + out
        record["residual"].append(x)
        record["max_attention_logit"].append(max(seen["max_attention_logit"]))
        record["q"].append(np.stack(seen["q"]))
        record["k"].append(np.stack(seen["k"]))
    return rms_norm(x, weights["norm"]), record


def document(tokens):
    """(tokens, positions, segments) of one unpadded row."""
    tokens = jnp.asarray(tokens)[None]
    return tokens, jnp.arange(tokens.shape[1])[None], jnp.ones_like(tokens)


@pytest.mark.parametrize("norm_order", ["pre", "swin"])
@pytest.mark.parametrize("qk_norm", [True, False])
def test_hidden_states_equal_the_numpy_implementation(norm_order, qk_norm):
    config = dataclasses.replace(CONFIG, norm_order=norm_order, qk_norm=qk_norm)
    weights = random_weights(config)
    tokens = packed_rows()[0][0]
    out = forward(weights, *document(tokens), config)
    expected, _ = oracle(weights, np.asarray(tokens), config)
    np.testing.assert_allclose(out.hidden[0], expected, atol=2e-5)
    np.testing.assert_allclose(
        transformer.logits(weights, out.hidden, config)[0],
        expected @ np.asarray(weights["head"], np.float64),
        atol=1e-4,
    )


def test_statistics_and_taps_equal_what_the_numpy_implementation_saw():
    weights = random_weights(CONFIG)
    tokens = packed_rows()[0][1]
    out = forward(weights, *document(tokens), CONFIG, statistics=True, tap_layers=(2, 0))
    _, record = oracle(weights, np.asarray(tokens), CONFIG)
    statistics = out.statistics.named()
    for name in transformer.ACTIVATIONS:
        np.testing.assert_allclose(out.activations[name][:, 0], [record[name][2], record[name][0]], atol=2e-5)
        expected = [np.sqrt((layer**2).mean()) for layer in record[name]]
        np.testing.assert_allclose(statistics[f"{name}_rms"], expected, rtol=1e-5)
    for name in ("q", "k"):
        np.testing.assert_allclose(
            statistics[f"{name}_rms"], [np.sqrt((layer**2).mean()) for layer in record[name]], rtol=1e-5
        )
    np.testing.assert_allclose(statistics["max_attention_logit"], record["max_attention_logit"], rtol=1e-5)


def test_asking_for_taps_and_statistics_does_not_change_the_output():
    weights = random_weights(CONFIG)
    plain = forward(weights, *packed_rows(), CONFIG)
    tapped = forward(weights, *packed_rows(), CONFIG, statistics=True, tap_layers=(1, 3))
    np.testing.assert_allclose(plain.hidden, tapped.hidden, atol=1e-5)
    assert plain.statistics is None and plain.activations == {}


def test_padding_does_not_enter_the_statistics():
    weights = random_weights(CONFIG)
    tokens, positions, segments = packed_rows()
    real = forward(weights, *document(tokens[0, :6]), CONFIG, statistics=True).statistics.named()
    alone = jnp.where(segments == 1, 1, 0)[:1]
    padded = forward(weights, tokens[:1], positions[:1], alone, CONFIG, statistics=True).statistics.named()
    for name in real:
        if name.endswith("_rms"):
            np.testing.assert_allclose(padded[name], real[name], rtol=1e-5, err_msg=name)


def test_a_packed_row_equals_its_documents_run_alone():
    weights = random_weights(CONFIG)
    tokens, positions, segments = packed_rows()
    packed = forward(weights, tokens, positions, segments, CONFIG).hidden
    for row in range(2):
        for segment in (1, 2):
            here = np.flatnonzero(np.asarray(segments[row]) == segment)
            alone = forward(weights, *document(tokens[row, here]), CONFIG).hidden[0]
            np.testing.assert_allclose(packed[row, here], alone, atol=1e-5)


def test_a_later_token_changes_no_earlier_output():
    weights = random_weights(CONFIG)
    tokens, positions, segments = packed_rows()
    changed = tokens.at[1, 8].add(1)
    before = forward(weights, tokens, positions, segments, CONFIG).hidden[1]
    after = forward(weights, changed, positions, segments, CONFIG).hidden[1]
    np.testing.assert_array_equal(before[:8], after[:8])
    assert not np.allclose(before[8], after[8])


@functools.cache
def gradient_of(config: TransformerConfig):
    def loss(weights):
        out = forward(weights, *packed_rows(), config, dropout_key=jax.random.key(5))
        return jnp.sum(jnp.sin(out.hidden))

    return jax.jit(jax.value_and_grad(loss))(random_weights(CONFIG))


@pytest.mark.parametrize(
    "change",
    [{"remat": "full"}, {"remat": "dots"}, {"remat": "attention"}, {"scan_unroll": 2}, {"attention": "reference"}],
    ids=str,
)
def test_memory_and_speed_settings_change_neither_value_nor_gradient(change):
    base = dataclasses.replace(CONFIG, dropout=0.1)
    value, gradient = gradient_of(base)
    other_value, other = gradient_of(dataclasses.replace(base, **change))
    np.testing.assert_allclose(value, other_value, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4, rtol=1e-4), gradient, other)


def test_rematerialisation_under_the_attention_policy_keeps_only_the_attention_values():
    config = dataclasses.replace(CONFIG, remat="attention")
    tokens, positions, segments = packed_rows()

    def loss(weights):
        return jnp.sum(transformer.forward(weights, tokens, positions, segments, config).hidden)

    _, pullback = jax.vjp(loss, random_weights(config))
    heads = (CONFIG.n_layers, 2, CONFIG.n_kv_heads, CONFIG.n_heads // CONFIG.n_kv_heads, LENGTH)
    kept = [leaf.shape for leaf in jax.tree.leaves(pullback) if hasattr(leaf, "shape")]
    assert (*heads, CONFIG.head_dim) in kept
    assert not any(shape[-1:] == (CONFIG.d_ff,) and LENGTH in shape for shape in kept)


def test_dropout_depends_on_its_key_alone_and_is_off_without_one():
    weights = random_weights(CONFIG)
    dropped = dataclasses.replace(CONFIG, dropout=0.5)

    def run(config, key):
        return forward(weights, *packed_rows(), config, dropout_key=key).hidden

    first, second = jax.random.key(1), jax.random.key(2)
    np.testing.assert_array_equal(run(dropped, first), run(dropped, first))
    assert not np.allclose(run(dropped, first), run(dropped, second))
    np.testing.assert_array_equal(run(dropped, None), run(CONFIG, None))
    np.testing.assert_array_equal(run(CONFIG, first), run(CONFIG, None))


def test_decoding_with_a_cache_equals_the_full_forward_for_rows_of_different_lengths():
    weights, lengths, prompt = random_weights(CONFIG), np.array([12, 9]), np.array([7, 4])
    tokens = packed_rows()[0]
    full = [forward(weights, *document(tokens[row, : lengths[row]]), CONFIG).hidden[0] for row in range(2)]

    # Prefill: both prompts padded to the longer one. Rows go on from where their own prompt ends.
    width = int(prompt.max())
    positions = jnp.broadcast_to(jnp.arange(width), (2, width))
    segments = (positions < prompt[:, None]).astype(jnp.int32)
    # What lies in slots not yet reached, of an earlier sequence perhaps, is never seen.
    cache = jax.tree.map(lambda empty: empty + 7.0, kv_cache.create(CONFIG, 2, 13, DECODING))
    out = forward(weights, tokens[:, :width], positions, segments, CONFIG, cache=cache)
    for row in range(2):
        np.testing.assert_allclose(out.hidden[row, : prompt[row]], full[row][: prompt[row]], atol=1e-5)

    decode = jax.jit(
        lambda token, position, alive, cache: forward(weights, token, position, alive, CONFIG, cache=cache)
    )
    for step in range(5):
        at = prompt + step
        alive = (at < lengths).astype(np.int32)  # a row that has ended feeds padding
        out = decode(tokens[np.arange(2), at % LENGTH][:, None], at[:, None], alive[:, None], out.cache)
        for row in np.flatnonzero(alive):
            np.testing.assert_allclose(out.hidden[row, 0], full[row][at[row]], atol=1e-5)


@pytest.mark.parametrize("with_taps", [False, True])
def test_layers_one_by_one_give_what_the_scanned_ones_give(with_taps):
    weights = random_weights(CONFIG)
    options = {"statistics": True, "tap_layers": (1,)} if with_taps else {}
    scanned = forward(weights, *packed_rows(), CONFIG, **options)
    one_by_one = forward(transformer.by_layer(weights), *packed_rows(), CONFIG, **options)
    jax.tree.map(
        lambda ours, theirs: np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-5), one_by_one, scanned
    )
    assert (scanned.statistics is not None) == with_taps


def test_statistics_of_parts_join_to_those_of_the_whole():
    weights = random_weights(CONFIG)
    tokens, positions, segments = packed_rows()  # rows of 11 and of 14 real tokens

    def of(rows):
        return forward(weights, tokens[rows], positions[rows], segments[rows], CONFIG, statistics=True).statistics

    whole = of(slice(0, 2)).named()
    parts = jax.tree.map(lambda *x: jnp.stack(x), of(slice(0, 1)), of(slice(1, 2)))
    joined = parts.joined().named()
    assert joined.keys() == whole.keys()
    for name in whole:
        np.testing.assert_allclose(joined[name], whole[name], rtol=1e-5, err_msg=name)
    assert not np.allclose(joined["mlp_out_rms"], jnp.max(parts.named()["mlp_out_rms"], axis=0), rtol=1e-5)


def saved_attention_values(backend: str, remat: str) -> list[tuple[int, ...]]:
    """Shapes of the stacked arrays of the size of all attention values that the forward scan keeps for the backward pass."""
    config = dataclasses.replace(CONFIG, attention=backend, remat=remat, compute_dtype="bfloat16", d_ff=44)
    weights = params.abstract(transformer.param_specs(config))
    loss = lambda w: jnp.sum(transformer.forward(w, *packed_rows(), config).hidden.astype(jnp.float32))  # noqa: E731
    scan = next(e for e in jax.make_jaxpr(jax.grad(loss))(weights).eqns if e.primitive.name == "scan")
    size = CONFIG.n_layers * 2 * LENGTH * CONFIG.n_heads * CONFIG.head_dim
    named = {(2, LENGTH, 4, 8), (2, 2, 2, LENGTH, 8)}
    kept = [v.aval.shape for v in scan.outvars if v.aval.size == size and v.aval.ndim > 1]
    return [shape for shape in kept if shape[1:] in named]


@pytest.mark.parametrize("backend", ["chunked", "reference"])
def test_the_remat_policy_attention_keeps_the_attention_values_once(backend):
    assert len(saved_attention_values(backend, "attention")) == 1
    assert len(saved_attention_values(backend, "full")) == 0


def test_dropout_of_a_branch_is_a_function_of_its_name_and_layer():
    weights, config = random_weights(CONFIG), dataclasses.replace(CONFIG, dropout=0.5)
    options = {"dropout_key": jax.random.key(1), "tap_layers": (0, 1)}
    out = transformer.forward(weights, *packed_rows(), config, **options)
    plain = transformer.forward(weights, *packed_rows(), config, tap_layers=(0,))
    x = weights["embed"][packed_rows()[0]]
    for name, tap in (("attention", "attention_out"), ("mlp", "mlp_out")):
        key = keys.fold_name(jax.random.fold_in(jax.random.key(1), 0), name)
        x = x + jnp.where(jax.random.bernoulli(key, 0.5, x.shape), out.activations[tap][0] * 2, 0)
    np.testing.assert_allclose(x, out.activations["residual"][0], atol=1e-5)
    np.testing.assert_allclose(out.activations["attention_out"][0], plain.activations["attention_out"][0], atol=1e-5)


def test_slots_behind_the_visible_ones_are_not_looked_at():
    weights, tokens = random_weights(CONFIG), packed_rows()[0][:1, :9]
    positions, segments = jnp.arange(9)[None], jnp.ones((1, 9), jnp.int32)
    cache = kv_cache.create(CONFIG, 1, 64, DECODING)
    few = transformer.forward(weights, tokens, positions, segments, CONFIG, cache=cache, visible=9)
    all_ = forward(weights, tokens, positions, segments, CONFIG, cache=cache)
    np.testing.assert_allclose(few.hidden, all_.hidden, atol=1e-5)
    assert few.cache.slots == 64


def test_bfloat16_compute_stays_near_float32():
    weights = random_weights(CONFIG)
    exact = forward(weights, *packed_rows(), CONFIG).hidden
    config = dataclasses.replace(CONFIG, compute_dtype="bfloat16")
    rounded = forward(weights, *packed_rows(), config).hidden
    assert rounded.dtype == jnp.bfloat16
    assert jnp.linalg.norm(rounded - exact) < 0.05 * jnp.linalg.norm(exact)


def test_the_released_7b_has_its_published_parameter_count():
    assert params.count(transformer.param_specs(TransformerConfig(vocab_size=65536))) == 7_013_158_912


def test_initial_values_have_the_asked_for_spread_and_do_not_depend_on_other_parameters():
    config = dataclasses.replace(CONFIG, d_model=64, d_ff=256, vocab_size=512)
    weights = transformer.init(jax.random.key(0), config)
    np.testing.assert_allclose(weights["embed"].std(), config.init_std, rtol=0.05)
    np.testing.assert_allclose(weights["layers"]["mlp"]["down"].std(), config.init_std / np.sqrt(8), rtol=0.05)
    without = transformer.init(jax.random.key(0), dataclasses.replace(config, qk_norm=False))
    np.testing.assert_array_equal(weights["embed"], without["embed"])
