"""Norms, rotary positions and dropout against their definitions."""

import jax
import jax.numpy as jnp
import numpy as np

from chameleon_jax.models import layers


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_rotary_positions_turn_complex_numbers_and_keep_relative_angles():
    x, positions = normal(2, 7, 3, 8), np.array([[0, 1, 2, 3, 4, 5, 6], [0, 1, 0, 1, 2, 900, 901]])
    cos, sin = layers.rotary_angles(jnp.asarray(positions), 8, 10000.0)
    out = np.asarray(layers.apply_rotary(jnp.asarray(x), cos, sin))
    turn = np.exp(1j * positions[..., None] * 10000.0 ** (-np.arange(4) / 4))[:, :, None]
    expected = (x[..., :4] + 1j * x[..., 4:]) * turn
    np.testing.assert_allclose(out, np.concatenate([expected.real, expected.imag], -1), atol=2e-4)
    # the product of two rotated vectors depends on the distance of their positions alone
    query, key = jnp.asarray(x[:1, :1]), jnp.asarray(x[:1, 1:2])

    def product(i, j):
        turned = [
            layers.apply_rotary(v, *layers.rotary_angles(jnp.array([[p]]), 8, 10000.0))
            for v, p in ((query, i), (key, j))
        ]
        return jnp.vdot(*turned)

    np.testing.assert_allclose(product(5, 3), product(105, 103), rtol=1e-4)


def test_qk_norm_is_layer_norm_with_one_set_of_parameters_for_each_group_of_heads():
    x, scale, bias = normal(2, 3, 4, 16), normal(2, 16, seed=1), normal(2, 16, seed=2)
    out = layers.qk_norm(jnp.asarray(x), jnp.asarray(scale), jnp.asarray(bias))
    wide = x.astype(np.float64)
    normed = (wide - wide.mean(-1, keepdims=True)) / np.sqrt(wide.var(-1, keepdims=True) + 1e-5)
    for head, group in enumerate((0, 0, 1, 1)):
        np.testing.assert_allclose(out[:, :, head], normed[:, :, head] * scale[group] + bias[group], atol=1e-5)


def test_qk_norm_of_large_almost_equal_numbers_keeps_their_variance():
    x = 1000.0 + 0.01 * np.arange(16, dtype=np.float32)
    out = layers.qk_norm(jnp.asarray(x)[None, None, None], jnp.ones((1, 16)), jnp.zeros((1, 16)))
    wide = x.astype(np.float64)
    np.testing.assert_allclose(out[0, 0, 0], (wide - wide.mean()) / np.sqrt(wide.var() + 1e-5), atol=2e-2)


def test_rms_norm_rounds_once():
    x, scale = jnp.asarray(normal(4, 64), jnp.bfloat16), jnp.asarray(normal(64, seed=1), jnp.bfloat16)
    wide, wide_scale = np.asarray(x, np.float64), np.asarray(scale, np.float64)
    exact = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + 1e-5) * wide_scale
    out = layers.rms_norm(x, scale, 1e-5)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_array_equal(out, jnp.asarray(exact, jnp.float32).astype(jnp.bfloat16))


def test_linear_contracts_every_feature_dimension():
    x, kernel = normal(2, 3, 4, 5), normal(4, 5, 6, 7)
    out = layers.linear(jnp.asarray(x), jnp.asarray(kernel))
    np.testing.assert_allclose(out, np.einsum("btnh,nhxy->btxy", x, kernel), atol=1e-5)


def test_dropout_keeps_the_mean_and_zeroes_the_asked_for_share():
    x = jnp.ones((100, 1000))
    out = layers.dropout(x, 0.3, jax.random.key(0))
    assert abs(float(jnp.mean(out == 0)) - 0.3) < 0.01
    assert abs(float(jnp.mean(out)) - 1.0) < 0.01
    np.testing.assert_array_equal(out, layers.dropout(x, 0.3, jax.random.key(0)))


def test_dropout_of_rate_zero_or_without_a_key_is_the_identity():
    x = jnp.asarray(normal(3, 4))
    np.testing.assert_array_equal(layers.dropout(x, 0.0, jax.random.key(0)), x)
    np.testing.assert_array_equal(layers.dropout(x, 0.5, None), x)
