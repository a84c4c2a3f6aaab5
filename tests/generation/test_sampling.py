"""Sampling against a plain NumPy implementation and against its own distribution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chameleon_jax.generation import sampling

sample = jax.jit(sampling.sample)
top_p_mask = jax.jit(sampling.top_p_mask)


def _numpy_top_p(probabilities, p):
    """Smallest prefix, in order of falling probability and rising id, whose mass reaches p; double precision."""
    kept = np.zeros(probabilities.shape, bool)
    for row, (values, threshold) in enumerate(zip(probabilities.astype(np.float64), p, strict=True)):
        order = np.argsort(-values, kind="stable")
        mass = 0.0
        for i in order:
            kept[row, i] = True
            mass += values[i]
            if mass >= threshold:
                break
    return kept


def _keys(count, seed=0):
    return jax.vmap(jax.random.key)(jnp.arange(seed, seed + count))


def test_top_p_keeps_the_same_ids_as_numpy():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(64, 300)) * rng.choice([0.5, 2.0, 6.0], size=(64, 1))
    probabilities = np.asarray(jax.nn.softmax(jnp.asarray(logits, jnp.float32)))
    p = rng.uniform(0.05, 0.99, size=64).astype(np.float32)
    np.testing.assert_array_equal(
        top_p_mask(jnp.asarray(probabilities), jnp.asarray(p)), _numpy_top_p(probabilities, p)
    )


@pytest.mark.parametrize(
    "probabilities, p, kept",
    [
        ([0.5, 0.25, 0.125, 0.125], 0.5, [1, 0, 0, 0]),  # the mass reaches p exactly
        ([0.5, 0.25, 0.125, 0.125], 0.50001, [1, 1, 0, 0]),
        ([0.125, 0.25, 0.125, 0.5], 0.8, [1, 1, 0, 1]),  # of equals the lower id stays
        ([0.25, 0.25, 0.25, 0.25], 0.75, [1, 1, 1, 0]),
        ([0.25, 0.25, 0.25, 0.25], 1e-9, [1, 0, 0, 0]),  # one always stays
        ([0.5, 0.5, 0.0, 0.0], 0.99, [1, 1, 0, 0]),
        ([1.0, 0.0, 0.0, 0.0], 0.9, [1, 0, 0, 0]),
        ([0.5, 0.25, 0.125, 0.125], 1.0, [1, 1, 1, 1]),
    ],
)
def test_top_p_is_exact_on_its_boundary_and_stable_in_ties(probabilities, p, kept):
    mask = top_p_mask(jnp.asarray([probabilities], jnp.float32), jnp.asarray([p], jnp.float32))
    assert mask[0].tolist() == [bool(k) for k in kept]


def test_draws_follow_the_masked_tempered_and_cut_distribution():
    logits = jnp.log(jnp.asarray([0.05, 0.3, 0.2, 0.4, 0.05]))
    mask = jnp.asarray([True, True, True, False, True])
    draws, temperature = 20_000, 0.8
    tokens = np.asarray(
        sample(
            jnp.tile(logits, (draws, 1)),
            jnp.tile(mask, (draws, 1)),
            jnp.full(draws, temperature),
            jnp.full(draws, 0.9),
            _keys(draws),
        )
    )
    tempered = np.where(mask, np.exp(np.asarray(logits) / temperature), 0)
    tempered /= tempered.sum()
    expected = np.where(_numpy_top_p(tempered[None], [0.9])[0], tempered, 0)
    expected /= expected.sum()
    assert (expected > 0).sum() == 3  # the cut takes one of the two rare ids
    observed = np.bincount(tokens, minlength=5) / draws
    assert observed[expected == 0].sum() == 0
    np.testing.assert_allclose(observed, expected, atol=5 * np.sqrt(0.25 / draws))


def test_the_mask_comes_before_top_p():
    """The forbidden id holds nearly all mass; top-p must count only what is allowed."""
    tokens = sample(
        jnp.tile(jnp.log(jnp.asarray([0.98, 0.01, 0.01])), (200, 1)),
        jnp.tile(jnp.asarray([False, True, True]), (200, 1)),
        jnp.ones(200),
        jnp.full(200, 0.9),
        _keys(200),
    )
    assert set(np.asarray(tokens).tolist()) == {1, 2}


def test_temperature_comes_before_top_p():
    """Cold: the first id alone reaches p. Hot: all three are needed."""
    logits = jnp.tile(jnp.asarray([2.0, 1.0, 0.0]), (400, 1))
    temperature = jnp.where(jnp.arange(400) < 200, 0.25, 100.0)
    tokens = np.asarray(sample(logits, logits > -1, temperature, jnp.full(400, 0.9), _keys(400)))
    assert set(tokens[:200]) == {0} and set(tokens[200:]) == {0, 1, 2}


def test_temperature_zero_takes_the_first_of_the_most_likely():
    logits = jnp.asarray([[0.0, 3.0, 3.0, 9.0]])
    mask = jnp.asarray([[True, True, True, False]])
    for seed in range(5):
        assert sample(logits, mask, jnp.zeros(1), jnp.full(1, 0.9), _keys(1, seed)).tolist() == [1]


@pytest.mark.parametrize("temperature", [1e-30, 1e-6, 1e30])
def test_extreme_temperatures_stay_inside_the_mask(temperature):
    logits = jnp.asarray([[1e4, -1e4, 0.0, 5.0]] * 50)
    mask = jnp.asarray([[False, True, True, True]] * 50)
    tokens = sample(logits, mask, jnp.full(50, temperature), jnp.full(50, 0.9), _keys(50))
    assert set(np.asarray(tokens).tolist()) <= {1, 2, 3}
    assert temperature > 1 or set(np.asarray(tokens).tolist()) == {3}


def test_one_allowed_id_is_forced_whatever_its_logit():
    logits = jnp.asarray([[50.0, -1e30, 2.0]])
    mask = jnp.asarray([[False, True, False]])
    for temperature in (0.0, 1.0):
        assert sample(logits, mask, jnp.full(1, temperature), jnp.full(1, 0.5), _keys(1)).tolist() == [1]


def test_rows_have_their_own_settings_and_keys():
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.normal(size=(4, 50)), jnp.float32)
    mask = jnp.ones((4, 50), bool)
    temperature, top_p = jnp.asarray([0.0, 0.5, 1.0, 2.0]), jnp.asarray([0.1, 0.5, 0.9, 1.0])
    together = sample(logits, mask, temperature, top_p, _keys(4))
    for i in range(4):
        row = slice(i, i + 1)
        assert sample(logits[row], mask[row], temperature[row], top_p[row], _keys(4)[row])[0] == together[i]
