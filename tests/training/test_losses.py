"""The chunked loss against the plain one and against its definition in NumPy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chameleon_jax.configs import LossConfig
from chameleon_jax.training import losses

B, T, D, V = 3, 12, 16, 50
CONFIG = LossConfig(z_loss=1e-2, chunk=12)
MODALITY_WEIGHTS = (0.7, 1.9)


def inputs(dtype=jnp.float32):
    rng = np.random.default_rng(0)
    weights = rng.random((B, T)) * (rng.random((B, T)) > 0.3)
    return (
        jnp.asarray(rng.normal(size=(B, T, D)), dtype),
        jnp.asarray(rng.normal(size=(D, V)), jnp.float32),
        jnp.asarray(rng.integers(0, V, (B, T))),
        jnp.asarray(weights, jnp.float32),
        jnp.asarray(rng.integers(0, 2, (B, T))),
    )


def value_and_gradient(function, arrays, config, modality_weights=MODALITY_WEIGHTS):
    def objective(hidden, head):
        sums = function(hidden, head, *arrays[2:], modality_weights, config)
        return 3.0 * sums.objective, sums  # a factor, so that the cotangent is not 1

    return jax.jit(jax.grad(objective, argnums=(0, 1), has_aux=True))(*arrays[:2])


def assert_same(first, second, tolerance=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), first, second)


@pytest.mark.parametrize("chunk", [1, 6, 12, 1000])
def test_chunked_and_plain_give_the_same_sums_and_gradients(chunk):
    config = dataclasses.replace(CONFIG, chunk=chunk)
    expected = value_and_gradient(losses.cross_entropy_plain, inputs(), config)
    assert_same(value_and_gradient(losses.cross_entropy, inputs(), config), expected)
    assert_same(losses.cross_entropy(*inputs(), MODALITY_WEIGHTS, config), expected[1])


def test_sums_are_those_of_the_definition():
    hidden, head, targets, weights, modality = (np.asarray(x) for x in inputs())
    logits = hidden.astype(np.float64) @ head.astype(np.float64)
    log_z = np.log(np.exp(logits).sum(-1))
    chosen = np.take_along_axis(logits, targets[..., None], -1)[..., 0]
    sums = losses.cross_entropy(*inputs(), MODALITY_WEIGHTS, CONFIG)
    objective = 0.0
    for m, modality_weight in enumerate(MODALITY_WEIGHTS):
        w = weights * (modality == m)
        objective += modality_weight * (w * (log_z - chosen + 1e-2 * log_z**2)).sum()
        np.testing.assert_allclose(sums.weight[m], w.sum(), rtol=1e-5)
        np.testing.assert_allclose(sums.nll[m], (w * (log_z - chosen)).sum(), rtol=1e-5)
        np.testing.assert_allclose(sums.log_z[m], (w * log_z).sum(), rtol=1e-5)
        np.testing.assert_allclose(sums.z_loss[m], (w * 1e-2 * log_z**2).sum(), rtol=1e-5)
        np.testing.assert_allclose(sums.correct[m], (w * (logits.argmax(-1) == targets)).sum(), rtol=1e-5)
    np.testing.assert_allclose(sums.objective, objective, rtol=1e-5)
    np.testing.assert_allclose(sums.normaliser, 0.7 * sums.weight[0] + 1.9 * sums.weight[1], rtol=1e-6)
    np.testing.assert_allclose(sums.logit_max, logits[weights > 0].max(), rtol=1e-6)


def test_z_loss_has_a_gradient():
    with_z, _ = value_and_gradient(losses.cross_entropy, inputs(), CONFIG)
    without, _ = value_and_gradient(losses.cross_entropy, inputs(), dataclasses.replace(CONFIG, z_loss=0.0))
    for one, other in zip(with_z, without, strict=True):
        assert float(jnp.abs(one - other).max()) > 1e-2


def test_tokens_of_weight_zero_get_no_gradient_and_change_nothing():
    hidden, head, targets, weights, modality = inputs()
    (d_hidden, _), sums = value_and_gradient(losses.cross_entropy, inputs(), CONFIG)
    silent = np.asarray(weights) == 0
    assert silent.any()
    np.testing.assert_array_equal(np.asarray(d_hidden)[silent], 0.0)
    other = jnp.where(silent[..., None], 100.0, hidden), head, jnp.where(silent, 0, targets), weights, 1 - modality
    other = (*other[:4], jnp.where(silent, 1 - modality, modality))
    assert_same(losses.cross_entropy(*other, MODALITY_WEIGHTS, CONFIG), sums)


def test_a_batch_without_any_weight_has_zero_sums_and_zero_gradient():
    hidden, head, targets, weights, modality = inputs()
    gradient, sums = value_and_gradient(
        losses.cross_entropy, (hidden, head, targets, jnp.zeros_like(weights), modality), CONFIG
    )
    assert sums.objective == 0 and sums.normaliser == 0
    for part in gradient:
        np.testing.assert_array_equal(part, 0.0)


def test_sums_of_two_halves_add_up_to_those_of_the_whole():
    whole = losses.cross_entropy(*inputs(), MODALITY_WEIGHTS, CONFIG)
    halves = [losses.cross_entropy(x[:, s], h, *(y[:, s] for y in rest), MODALITY_WEIGHTS, CONFIG)
              for x, h, *rest in [inputs()] for s in (slice(0, 5), slice(5, None))]  # fmt: skip
    assert_same(halves[0] + halves[1], whole)


def test_a_modality_of_weight_zero_is_measured_but_not_trained():
    (d_hidden, _), sums = value_and_gradient(losses.cross_entropy, inputs(), CONFIG, (0.7, 0.0))
    image = np.asarray(inputs()[4]) == 1
    np.testing.assert_array_equal(np.asarray(d_hidden)[image], 0.0)
    assert sums.nll[1] > 0


def test_a_table_may_have_more_rows_than_two():
    hidden, head, targets, weights, _ = inputs()
    modality = jnp.asarray(np.random.default_rng(1).integers(0, 3, (B, T)))  # none is of the last row
    arrays, three = (hidden, head, targets, weights, modality), (0.7, 1.9, 0.3, 5.0)
    chunked = value_and_gradient(losses.cross_entropy, arrays, CONFIG, three)
    assert_same(chunked, value_and_gradient(losses.cross_entropy_plain, arrays, CONFIG, three))
    sums = chunked[1]
    assert sums.nll.shape == (4,) and sums.weight[3] == sums.nll[3] == 0
    for m in range(3):
        np.testing.assert_allclose(sums.weight[m], np.asarray(weights)[np.asarray(modality) == m].sum(), rtol=1e-5)
    np.testing.assert_allclose(sums.normaliser, np.dot(three, sums.weight), rtol=1e-5)


def test_bfloat16_hidden_states_give_nearly_the_gradient_of_float32():
    (exact, exact_head), _ = value_and_gradient(losses.cross_entropy, inputs(), CONFIG)
    (d_hidden, d_head), _ = value_and_gradient(losses.cross_entropy, inputs(jnp.bfloat16), CONFIG)
    assert d_hidden.dtype == jnp.bfloat16 and d_head.dtype == jnp.float32
    for ours, theirs in ((d_hidden, exact), (d_head, exact_head)):
        assert jnp.linalg.norm(ours - theirs) < 0.03 * jnp.linalg.norm(theirs)


def test_no_array_of_all_logits_exists_in_the_chunked_loss():
    text = str(jax.make_jaxpr(lambda a: value_and_gradient(losses.cross_entropy, a, CONFIG))(inputs()))
    assert f"[{B},4,{V}]" in text and f"[{B},{T},{V}]" not in text
