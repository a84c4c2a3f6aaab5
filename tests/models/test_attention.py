"""The backends of the mask specification that run everywhere give the same values, gradients and largest logit."""

import dataclasses
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chameleon_jax.configs import TransformerConfig
from chameleon_jax.errors import ConfigError
from chameleon_jax.models.attention import reference, registry
from chameleon_jax.models.attention.chunked import MAX_BLOCKS
from chameleon_jax.models.attention.mask import MaskSpec
from chameleon_jax.models.attention.registry import BACKENDS, attention

LENGTH = 13


def inputs(queries=LENGTH, keys=LENGTH, heads=4, kv_heads=2):
    rng = np.random.default_rng(0)
    shapes = ((2, queries, heads, 8), (2, kv_heads, keys, 8), (2, kv_heads, keys, 8))
    return tuple(jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes)


def packed_mask():
    segments = jnp.asarray([[1] * 6 + [2] * 5 + [0] * 2, [1] * 3 + [2] * 10])
    return MaskSpec(query_segments=segments, key_segments=segments)


def cached_mask(queries=5, keys=LENGTH):
    """Rows whose five queries sit at different slots of a cache that is filled up to them."""
    slots = jnp.asarray([[4, 5, 6, 7, 8], [0, 1, 2, 3, 4]])[:, :queries]
    filled = (jnp.arange(keys)[None] <= slots[:, -1:]).astype(jnp.int32)
    return MaskSpec(query_segments=jnp.ones((2, queries), jnp.int32), key_segments=filled, query_slots=slots)


@pytest.mark.parametrize("chunk", [1, 5, 13, 64])
@pytest.mark.parametrize("kind", ["packed", "cached", "many heads"])
def test_chunked_equals_reference_in_values_gradients_and_largest_logit(kind, chunk):
    arrays = {"packed": inputs(), "cached": inputs(queries=5), "many heads": inputs(heads=6, kv_heads=6)}[kind]
    mask = cached_mask() if kind == "cached" else packed_mask()
    weight = jnp.asarray(np.random.default_rng(1).normal(size=arrays[0].shape), jnp.float32)

    def run(backend):
        def loss(arrays):
            out = attention(*arrays, mask, backend=backend, chunk=chunk, max_logit=True)
            return jnp.sum(out.values * weight), out

        return jax.jit(jax.value_and_grad(loss, has_aux=True))(arrays)

    (_, expected), expected_gradient = run("reference")
    (_, out), gradient = run("chunked")
    np.testing.assert_allclose(out.values, expected.values, atol=1e-5)
    np.testing.assert_allclose(out.max_logit, expected.max_logit, rtol=1e-6)
    for ours, theirs in zip(gradient, expected_gradient, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("backend", [name for name in BACKENDS if "cpu" in BACKENDS[name].platforms])
def test_every_backend_attends_in_bfloat16_on_a_cpu(backend):
    """With as many key/value heads as queries too, where XLA once met a product that its CPU backend does not have."""
    mask = packed_mask()
    for kv_heads in (2, 4):
        whole = inputs(kv_heads=kv_heads)
        halved = tuple(array.astype(jnp.bfloat16) for array in whole)
        run = jax.jit(lambda *arrays: attention(*arrays, mask, backend=backend, chunk=5).values)
        np.testing.assert_allclose(run(*halved).astype(jnp.float32), run(*whole), atol=0.03)


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_a_single_query_in_the_form_for_tpus_attends_as_in_the_plain_one(kv_heads, monkeypatch):
    arrays, mask = inputs(queries=1, kv_heads=kv_heads), cached_mask(queries=1)

    def run():
        return jax.jit(lambda *a: attention(*a, mask, backend="reference", chunk=4, max_logit=True))(*arrays)

    plain = run()
    monkeypatch.setattr(reference, "platform", lambda: "tpu")
    tiled = run()
    np.testing.assert_allclose(tiled.values, plain.values, atol=1e-6)
    np.testing.assert_allclose(tiled.max_logit, plain.max_logit, rtol=1e-6)


def test_reference_equals_a_loop_over_queries():
    query, key, value = inputs()
    mask = packed_mask()
    out = np.asarray(attention(query, key, value, mask, backend="reference", chunk=64).values)
    segments = np.asarray(mask.key_segments)
    for row, t, n in ((0, 3, 0), (0, 8, 3), (1, 12, 1), (1, 2, 2)):
        seen = [s for s in range(t + 1) if segments[row, s] == segments[row, t]]
        scores = np.array([query[row, t, n] @ key[row, n // 2, s] for s in seen]) / np.sqrt(8)
        chances = np.exp(scores) / np.exp(scores).sum()
        np.testing.assert_allclose(
            out[row, t, n], sum(c * value[row, n // 2, s] for c, s in zip(chances, seen, strict=True)), atol=1e-5
        )


@pytest.mark.parametrize("backend", ["reference", "chunked"])
def test_logits_far_beyond_the_range_of_exp_stay_finite(backend):
    query, key, value = inputs()

    def total(query):
        return attention(query, key, value, packed_mask(), backend=backend, chunk=5).values.sum()

    assert jnp.isfinite(jax.jit(jax.grad(total))(query * 1e4)).all()


def test_the_chunked_backend_never_holds_the_scores_of_all_queries():
    query, key, value = jnp.zeros((1, 512, 1, 8)), jnp.zeros((1, 1, 512, 8)), jnp.zeros((1, 1, 512, 8))
    ones = jnp.ones((1, 512), jnp.int32)
    mask = MaskSpec(query_segments=ones, key_segments=ones)

    def arrays_of(backend):
        loss = jax.grad(lambda q: attention(q, key, value, mask, backend=backend, chunk=64).values.sum())
        return str(jax.make_jaxpr(loss)(query))

    assert "512,512]" in arrays_of("reference")
    assert "512,512]" not in arrays_of("chunked")


def test_long_rows_get_longer_chunks_instead_of_more_of_them():
    length = 4 * MAX_BLOCKS
    arrays = (jnp.zeros((1, length, 1, 2)), jnp.zeros((1, 1, length, 2)), jnp.zeros((1, 1, length, 2)))
    ones = jnp.ones((1, length), jnp.int32)
    mask = MaskSpec(query_segments=ones, key_segments=ones)
    text = str(jax.make_jaxpr(lambda *a: attention(*a, mask, backend="chunked", chunk=1).values)(*arrays))
    assert text.count("dot_general[") == 2 * MAX_BLOCKS


def test_an_unknown_backend_is_refused():
    with pytest.raises(ConfigError, match="unknown attention backend 'chunky' \\(did you mean 'chunked'"):
        attention(*inputs(), packed_mask(), backend="chunky", chunk=4)


def test_the_config_offers_auto_and_every_backend():
    offered = typing.get_args(typing.get_type_hints(TransformerConfig)["attention"])
    assert set(offered) == {"auto", *BACKENDS}


@pytest.mark.parametrize(
    ("lacking", "message"),
    [
        ({"slots": False}, "queries at the slots of a cache"),
        ({"length_multiple": 4}, "rows of 5 tokens, which is not a multiple of 4"),
        ({"dtypes": ("bfloat16",)}, "dtype float32"),
        ({"platforms": ("tpu",)}, "platform cpu"),
    ],
)
def test_a_backend_that_cannot_do_what_is_asked_is_refused_and_auto_passes_it_over(lacking, message, monkeypatch):
    limited = dataclasses.replace(BACKENDS["chunked"], **lacking)
    monkeypatch.setitem(registry.BACKENDS, "chunked", limited)
    arrays, mask = inputs(queries=5), cached_mask()
    with pytest.raises(ConfigError, match=f"attention backend 'chunked' cannot do {message}"):
        attention(*arrays, mask, backend="chunked", chunk=4)
    text = str(jax.make_jaxpr(lambda *a: attention(*a, mask, backend="auto", chunk=4).values)(*arrays))
    assert "custom_vjp" not in text  # which is the chunked backend's


def test_the_largest_logit_is_given_only_when_asked_for():
    assert attention(*inputs(), packed_mask(), backend="auto", chunk=4).max_logit is None
