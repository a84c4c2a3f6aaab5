"""Products with eight-bit matrices are those of the matrices that they stand for, on every platform's way of computing them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chameleon_jax.configs import TransformerConfig
from chameleon_jax.models import quantize, transformer
from chameleon_jax.models.layers import linear
from chameleon_jax.models.quantize import Int8Matrix


@pytest.mark.parametrize("inputs", [(24,), (64,), (200,), (4, 48)], ids=str)
@pytest.mark.parametrize("outputs", [(7,), (3, 5)], ids=str)
def test_a_product_is_that_of_the_wide_matrix(inputs, outputs):
    rng = np.random.default_rng(0)
    values = jnp.asarray(rng.integers(-127, 128, (*inputs, *outputs)), jnp.int8)
    scale = jnp.asarray(rng.uniform(0.1, 1.0, outputs), jnp.float32)
    x = jnp.asarray(rng.normal(size=(2, 3, *inputs)), jnp.float32)
    wide = np.tensordot(np.asarray(x, np.float64), np.asarray(values, np.float64), len(inputs)) * np.asarray(scale)
    product = jax.jit(linear)(x, Int8Matrix(values=values, scale=scale))
    assert product.shape == (2, 3, *outputs)
    np.testing.assert_allclose(product, wide, rtol=1e-4, atol=1e-2)
    rows, matrix = x.reshape(6, -1), values.reshape(-1, scale.size)
    np.testing.assert_allclose(
        quantize._product(rows, matrix), quantize._product_by_blocks(rows, matrix), rtol=1e-4, atol=1e-2
    )


def test_logits_of_an_eight_bit_head_are_summed_and_returned_in_fp32():
    """In bfloat16 their rounding alone would be 4e-3, which makes ties and moves samples."""
    rng = np.random.default_rng(0)
    config = TransformerConfig(d_model=200, vocab_size=77, compute_dtype="bfloat16")
    head = quantize.quantize_parameter(
        jnp.asarray(rng.normal(size=(200, 77)), jnp.float32), transformer.param_specs(config)["head"]
    )
    hidden = jnp.asarray(rng.normal(size=(2, 3, 200)), jnp.bfloat16)
    logits = transformer.logits({"head": head}, hidden, config)
    exact = np.asarray(hidden, np.float64) @ (np.asarray(head.values, np.float64) * np.asarray(head.scale, np.float64))
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, exact, atol=1e-5 * np.abs(exact).max())


def test_a_loop_over_tokens_keeps_the_matrix_in_eight_bits():
    """No buffer of the compiled loop is as large as the widened matrix."""
    size = 1024
    matrix = Int8Matrix(values=jnp.ones((size, size), jnp.int8), scale=jnp.ones(size))

    @jax.jit
    def loop(x, matrix):
        return jax.lax.fori_loop(0, 4, lambda i, x: linear(x, matrix) * 1e-3, x)

    memory = loop.lower(jnp.ones((1, 1, size)), matrix).compile().memory_analysis()
    assert memory.temp_size_in_bytes < size * size
