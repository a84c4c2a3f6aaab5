"""Likelihoods against the definition, one sequence at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chameleon_jax.configs import TransformerConfig
from chameleon_jax.errors import GenerationError
from chameleon_jax.evaluation import likelihood
from chameleon_jax.evaluation.likelihood import score
from chameleon_jax.models import transformer
from chameleon_jax.models.params import map_specs

MODEL = TransformerConfig(
    vocab_size=50,
    d_model=16,
    n_layers=2,
    n_heads=2,
    n_kv_heads=2,
    head_dim=8,
    d_ff=24,
    max_seq_len=150,
    compute_dtype="float32",
    init_std=0.3,
)


@pytest.fixture(scope="module")
def weights():
    """Normal matrices, norms of one, biases of zero; drawn by NumPy, which needs no compiling."""
    rng = np.random.default_rng(1)
    fixed = {"ones": np.ones, "zeros": np.zeros}

    def draw(spec):
        return jnp.asarray(
            fixed[spec.init](spec.shape) if spec.init in fixed else rng.normal(scale=spec.std, size=spec.shape),
            spec.dtype,
        )

    return map_specs(draw, transformer.param_specs(MODEL))


@pytest.fixture(scope="module")
def sequences():
    rng = np.random.default_rng(0)
    return [rng.integers(0, 50, size=length) for length in (5, 140, 2, 64, 30, 65, 9)]


STARTS = [2, 100, 1, 63, 1, 64, 8]


@jax.jit
def _log_p(weights, tokens):
    positions = jnp.arange(tokens.shape[1])[None]
    hidden = transformer.forward(weights, tokens, positions, jnp.ones_like(tokens), MODEL).hidden
    return jax.nn.log_softmax(transformer.logits(weights, hidden, MODEL)[0])


def _definition(weights, sequence, start):
    padded = np.zeros((1, MODEL.max_seq_len), np.int32)
    padded[0, : len(sequence)] = sequence
    log_p = np.asarray(_log_p(weights, padded), np.float64)
    return sum(log_p[t - 1, sequence[t]] for t in range(start, len(sequence)))


def test_scores_are_those_of_each_sequence_alone(weights, sequences, monkeypatch):
    expected = [_definition(weights, *pair) for pair in zip(sequences, STARTS, strict=True)]
    np.testing.assert_allclose(score(weights, MODEL, sequences, STARTS, batch_size=3), expected, rtol=1e-5)
    monkeypatch.setattr(likelihood, "LOGIT_TOKENS", 100)  # blocks that do not divide the length
    likelihood._score_batch.clear_cache()
    np.testing.assert_allclose(score(weights, MODEL, sequences, STARTS, batch_size=3), expected, rtol=1e-5)
    likelihood._score_batch.clear_cache()


def test_the_parts_of_a_continuation_add_up(weights, sequences):
    long = sequences[1]
    whole, front, back = score(weights, MODEL, [long, long[:60], long], [1, 1, 60])
    assert whole == pytest.approx(front + back, rel=1e-5)


def test_likelihoods_of_all_continuations_sum_to_one(weights):
    sequences = [np.array([3, 4, i]) for i in range(50)]
    assert np.exp(score(weights, MODEL, sequences, [2] * 50)).sum() == pytest.approx(1.0, abs=1e-4)


def test_nothing_to_score_gives_nothing(weights):
    assert score(weights, MODEL, [], []).shape == (0,)


@pytest.mark.parametrize(
    "sequence, start, told",
    [
        ([1, 2], 0, "between 1 and 1"),
        ([1, 2], 2, "between 1 and 1"),
        ([1] * 151, 5, "151 ids"),
        ([1, 50], 1, "the model has 50"),
        ([-1, 5], 1, "ids -1..5"),
    ],
)
def test_a_sequence_that_cannot_be_scored_is_refused(weights, sequence, start, told):
    with pytest.raises(GenerationError, match="sequence 0") as error:
        score(weights, MODEL, [np.array(sequence)], [start])
    assert told in str(error.value)
