"""Log-probabilities of what was generated, against a forward pass over the whole sequence and `evaluation.likelihood`."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from chameleon_jax.configs import EngineConfig, GenerationConfig, GuidanceConfig, SamplingConfig
from chameleon_jax.errors import GenerationError
from chameleon_jax.evaluation.likelihood import score
from chameleon_jax.generation import lanes
from chameleon_jax.generation.engine import Engine, generate
from chameleon_jax.generation.logprobs import MOST_TOP
from chameleon_jax.generation.requests import Request
from tests.generation.test_guidance import FIXED as VOCAB
from tests.generation.test_guidance import logits_of, model_of, weights_of

MODEL = model_of(VOCAB)
RANDOM = SamplingConfig(temperature=1.3, top_p=0.8, top_k=40, repetition_penalty=1.2)
PROMPTS = [[VOCAB.bos, VOCAB.text.start + 5, VOCAB.text.start + 9], [VOCAB.bos]]
GUIDANCE = GuidanceConfig(text=2.5, image=1.3)


def config_of(**settings):
    base = {"max_tokens": 20, "max_spans": {"image": 2}, "sampling": dict.fromkeys(VOCAB.names, RANDOM)}
    return GenerationConfig(**base | settings)


@pytest.fixture(scope="module")
def engine():
    with Engine(weights_of(VOCAB), MODEL, VOCAB, EngineConfig(slots=4, context=32, block=4)) as engine:
        yield engine


def run(engine, requests):
    streams = [engine.stream(request) for request in requests]
    return [stream.result() for stream in streams]


def request_of(prompt, config, logprobs, row_id=0):
    return Request(prompt=np.array(prompt), config=config, logprobs=logprobs, row_id=row_id)


def by_hand(prompt, ids):
    """Of each id the log-probability of all ids in its place."""
    whole, last = [*prompt, *map(int, ids)], logits_of(VOCAB)
    logits = np.stack([last(whole[:at]) for at in range(len(prompt), len(whole))])
    peak = logits.max(-1, keepdims=True)
    return logits - peak - np.log(np.exp(logits - peak).sum(-1, keepdims=True))


@pytest.mark.parametrize("guidance", [None, GUIDANCE], ids=["plain", "guided"])
def test_they_are_the_models_own_whatever_an_id_was_drawn_with(engine, guidance):
    """Guidance, mask, temperature, cuts and penalty do not count."""
    config = config_of(guidance=guidance)
    outputs = run(engine, [request_of(prompt, config, 5) for prompt in PROMPTS])
    written = np.concatenate([output.ids for output in outputs])
    assert VOCAB.modalities[VOCAB.row("image")].holds(written).any() and VOCAB.text.holds(written).any()
    for prompt, output in zip(PROMPTS, outputs, strict=True):
        expected, found = by_hand(prompt, output.ids), output.logprobs
        places = np.arange(len(output.ids))
        np.testing.assert_allclose(found.chosen, expected[places, output.ids], atol=1e-4)
        np.testing.assert_allclose(found.top, -np.sort(-expected)[:, :5], atol=1e-4)
        np.testing.assert_allclose(expected[places[:, None], found.top_ids], found.top, atol=1e-4)


def test_their_sum_is_the_likelihood(engine):
    outputs = run(engine, [request_of(prompt, config_of(), 0) for prompt in PROMPTS])
    sequences = [np.array([*prompt, *output.ids]) for prompt, output in zip(PROMPTS, outputs, strict=True)]
    expected = score(weights_of(VOCAB), MODEL, sequences, [len(prompt) for prompt in PROMPTS])
    np.testing.assert_allclose([output.logprobs.chosen.sum() for output in outputs], expected, rtol=1e-4)
    assert all(output.logprobs.top.shape == (len(output.ids), 0) for output in outputs)


def test_in_bfloat16_with_a_wider_head_they_are_the_likelihood_and_known_ids_are_the_alternatives():
    model = dataclasses.replace(MODEL, vocab_size=VOCAB.size + 8, compute_dtype="bfloat16")
    weights = weights_of(VOCAB)
    # Ids that the vocabulary has not are likely ones here: they have their share, and are told to nobody.
    head = jnp.pad(weights["head"], ((0, 0), (0, 8))).at[0, VOCAB.size :].set(8.0)
    weights = weights | {"embed": jnp.pad(weights["embed"], ((0, 8), (0, 0))), "head": head}
    [output] = generate(weights, model, VOCAB, PROMPTS[:1], config_of(), logprobs=MOST_TOP)
    assert output.logprobs.top_ids.max() < VOCAB.size
    assert np.exp(output.logprobs.top[0].astype(float)).sum() < 0.9
    expected = score(weights, model, [np.array([*PROMPTS[0], *output.ids])], [len(PROMPTS[0])])
    np.testing.assert_allclose(output.logprobs.chosen.sum(), expected[0], atol=0.02 * len(output.ids))


def test_requests_with_and_without_run_together_on_one_more_program(engine):
    config = config_of(mode="image", max_spans={"image": 1})
    asked = [request_of(PROMPTS[0], config, logprobs) for logprobs in (None, 3, MOST_TOP)]
    [alone] = run(engine, asked[:1])
    programs, came = lanes.run_block._cache_size(), []
    engine.submit(asked[1], lambda ids, logprobs: came.append((ids, logprobs)), lambda result: None)
    plain, three, many = run(engine, asked)
    [again] = run(engine, asked[2:])
    assert lanes.run_block._cache_size() <= programs + 1
    assert plain.logprobs is None
    for output in (alone, three, many, again):
        assert output.ids.tolist() == plain.ids.tolist()
    assert three.logprobs.top.shape == (len(plain.ids), 3) and many.logprobs.top.shape == (len(plain.ids), MOST_TOP)
    np.testing.assert_array_equal(many.logprobs.top_ids[:, :3], three.logprobs.top_ids)
    np.testing.assert_allclose(again.logprobs.chosen, three.logprobs.chosen, atol=1e-5)
    assert all(len(ids) == len(logprobs) > 0 for ids, logprobs in came)
    np.testing.assert_allclose(np.concatenate([got.chosen for _, got in came]), three.logprobs.chosen, atol=1e-5)


@pytest.mark.parametrize("asked", [-1, MOST_TOP + 1])
def test_more_alternatives_than_are_told_are_refused(engine, asked):
    with pytest.raises(GenerationError, match=f"logprobs of {asked} alternatives; 0 to {MOST_TOP} can be told"):
        engine.stream(request_of(PROMPTS[0], config_of(), asked))
