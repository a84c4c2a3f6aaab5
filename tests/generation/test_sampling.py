"""Sampling against plain NumPy, against transformers' processors, and against its own distribution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chameleon_jax.configs import SAMPLING_PRESETS, GenerationConfig, GuidanceConfig, SamplingConfig, text_and_image
from chameleon_jax.errors import ConfigError
from chameleon_jax.generation import sampling
from chameleon_jax.generation.sampling import SamplingArrays
from chameleon_jax.vocab import Vocab

sample_jit = jax.jit(sampling.sample)
top_k_mask = jax.jit(sampling.top_k_mask)
top_p_mask = jax.jit(sampling.top_p_mask)


def sample(logits, mask, temperature, top_p, keys, top_k=0, repetition_penalty=1.0, seen=None):
    """Settings are numbers, or arrays of one a row."""
    rows = np.zeros(len(logits))
    settings = SamplingArrays(
        temperature=jnp.asarray(rows + temperature, jnp.float32),
        top_p=jnp.asarray(rows + top_p, jnp.float32),
        top_k=jnp.asarray(rows + top_k, jnp.int32),
        repetition_penalty=jnp.asarray(rows + repetition_penalty, jnp.float32),
    )
    seen = jnp.zeros(mask.shape, bool) if seen is None else jnp.asarray(seen)
    return sample_jit(jnp.asarray(logits), jnp.asarray(mask), settings, seen, keys)


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
            temperature,
            0.9,
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
        1.0,
        0.9,
        _keys(200),
    )
    assert set(np.asarray(tokens).tolist()) == {1, 2}


def test_temperature_comes_before_top_p():
    """Cold: the first id alone reaches p. Hot: all three are needed."""
    logits = jnp.tile(jnp.asarray([2.0, 1.0, 0.0]), (400, 1))
    temperature = jnp.where(jnp.arange(400) < 200, 0.25, 100.0)
    tokens = np.asarray(sample(logits, logits > -1, temperature, 0.9, _keys(400)))
    assert set(tokens[:200]) == {0} and set(tokens[200:]) == {0, 1, 2}


def test_temperature_zero_takes_the_first_of_the_most_likely():
    logits = jnp.asarray([[0.0, 3.0, 3.0, 9.0]])
    mask = jnp.asarray([[True, True, True, False]])
    for seed in range(5):
        assert sample(logits, mask, 0.0, 0.9, _keys(1, seed)).tolist() == [1]


@pytest.mark.parametrize("temperature", [1e-30, 1e-6, 1e30])
def test_extreme_temperatures_stay_inside_the_mask(temperature):
    logits = jnp.asarray([[1e4, -1e4, 0.0, 5.0]] * 50)
    mask = jnp.asarray([[False, True, True, True]] * 50)
    tokens = sample(logits, mask, temperature, 0.9, _keys(50))
    assert set(np.asarray(tokens).tolist()) <= {1, 2, 3}
    assert temperature > 1 or set(np.asarray(tokens).tolist()) == {3}


def test_one_allowed_id_is_forced_whatever_its_logit():
    logits = jnp.asarray([[50.0, -1e30, 2.0]])
    mask = jnp.asarray([[False, True, False]])
    for temperature in (0.0, 1.0):
        assert sample(logits, mask, temperature, 0.5, _keys(1)).tolist() == [1]


def test_a_finished_row_gives_its_only_id_whatever_its_settings_and_its_neighbours():
    """Rows without a choice ask for no work; where others do, they still give the one id."""
    mask = np.zeros((2, 9), bool)
    mask[0, 4], mask[1] = True, True
    logits, seen = np.full((2, 9), -5.0, np.float32), np.ones((2, 9), bool)
    both = sample(logits, mask, 1.0, 0.5, _keys(2), 3, 1.2, seen)
    assert both[0] == 4 == sample(logits[:1], mask[:1], 1.0, 0.5, _keys(1), 3, 1.2, seen[:1])[0]


@pytest.mark.parametrize("penalty", [0.5, 3.0])
def test_a_penalty_of_extreme_logits_stays_inside_the_mask(penalty):
    largest = np.finfo(np.float32).max
    logits = np.array([[largest, -largest, largest], [0.0, -largest, -largest]], np.float32)
    mask = np.array([[False, True, False], [False, False, True]])
    for temperature in (0.0, 1.0):
        tokens = sample(logits, mask, temperature, 0.9, _keys(2), 2, penalty, seen=np.ones((2, 3), bool))
        assert tokens.tolist() == [1, 2]


def _random_settings(rng, rows):
    return {
        "temperature": rng.choice([0.0, 0.3, 1.0, 2.0], rows),
        "top_p": rng.choice([0.1, 0.5, 0.9, 1.0], rows),
        "top_k": rng.choice([0, 1, 5, 1000], rows),
        "repetition_penalty": rng.choice([0.7, 1.0, 1.5], rows),
    }


def test_rows_have_their_own_settings_and_keys():
    """Each alone, where what its neighbours asked for is skipped, draws what it draws among them."""
    rng, rows = np.random.default_rng(0), 48
    logits = rng.normal(size=(rows, 50)).astype(np.float32) * 3
    mask, seen = rng.random((rows, 50)) < 0.7, rng.random((rows, 50)) < 0.3
    settings, keys = _random_settings(rng, rows), _keys(rows)
    together = sample(logits, mask, keys=keys, seen=seen, **settings)
    for i in range(rows):
        own = {name: values[i] for name, values in settings.items()}
        i = slice(i, i + 1)
        assert sample(logits[i], mask[i], keys=keys[i], seen=seen[i], **own) == together[i]


def _numpy_top_k(logits, top_k):
    """All that is at least the k-th highest."""
    kept = np.ones(logits.shape, bool)
    for row, k in enumerate(top_k):
        if 0 < k < logits.shape[1]:
            kept[row] = logits[row] >= np.sort(logits[row])[-k]
    return kept


def test_top_k_keeps_the_same_ids_as_numpy():
    rng = np.random.default_rng(0)
    logits = (rng.normal(size=(64, 300)) * 10.0 ** rng.integers(-30, 30, (64, 1))).astype(np.float32)
    logits[::2] = np.round(logits[::2] * 2) / 2  # many ties
    logits[::3] = np.where(rng.random((22, 300)) < 0.9, -np.inf, logits[::3])
    top_k = rng.choice([0, 1, 2, 5, 40, 299, 300, 10_000], 64)
    np.testing.assert_array_equal(top_k_mask(logits, top_k), _numpy_top_k(logits, top_k))


@pytest.mark.parametrize(
    "logits, k, kept",
    [
        ([3.0, 1.0, 2.0, 0.0], 2, [1, 0, 1, 0]),
        ([3.0, 2.0, 2.0, 2.0], 2, [1, 1, 1, 1]),  # equals of the k-th stay
        ([-3.0, -1.0, -2.0, -4.0], 1, [0, 1, 0, 0]),
        ([0.0, -0.0, -1.0, -1e-30], 1, [1, 1, 0, 0]),
        ([-np.inf, 5.0, -np.inf, -np.inf], 2, [1, 1, 1, 1]),  # fewer than k are possible
        ([1.0, 2.0, 3.0, 4.0], 0, [1, 1, 1, 1]),
    ],
)
def test_top_k_is_exact_in_ties_and_between_the_signs(logits, k, kept):
    mask = top_k_mask(jnp.asarray([logits], jnp.float32), jnp.asarray([k]))
    assert mask[0].tolist() == [bool(k) for k in kept]


def test_top_k_comes_before_top_p():
    """Of .4 .3 .2 .1, top-p .75 alone keeps three; of the two that top-k leaves, .57 and .43, it keeps both, and .5 one."""
    logits = jnp.tile(jnp.log(jnp.asarray([0.4, 0.3, 0.2, 0.1])), (600, 1))
    top_p, top_k = jnp.repeat(jnp.asarray([0.75, 0.75, 0.5]), 200), jnp.repeat(jnp.asarray([0, 2, 2]), 200)
    tokens = np.asarray(sample(logits, logits < 0, 1.0, top_p, _keys(600), top_k)).reshape(3, 200)
    assert [set(row) for row in tokens.tolist()] == [{0, 1, 2}, {0, 1}, {0}]


def test_the_mask_comes_before_top_k():
    logits = jnp.tile(jnp.arange(6.0), (200, 1))
    tokens = sample(logits, logits < 3, 5.0, 1.0, _keys(200), 2)
    assert set(tokens.tolist()) == {1, 2}


def test_the_penalty_lowers_seen_ids_of_either_sign_and_rules_greedy_rows_too():
    logits = jnp.asarray([[1.1, 1.0, -5.0], [-5.0, -1.0, -1.1], [1.1, 1.0, -5.0]])
    seen = jnp.asarray([[True, False, True], [False, True, False], [True, False, True]])
    penalty = jnp.asarray([1.2, 1.2, 1.0])
    tokens = sample(logits, jnp.ones((3, 3), bool), 0.0, 0.9, _keys(3), 0, penalty, seen)
    assert tokens.tolist() == [1, 2, 0]


def test_seen_ids_are_those_within_the_length():
    ids = jnp.asarray([[0, 3, 3, 1], [2, 1, 1, 1]])
    seen = sampling.seen_ids(ids, jnp.asarray([3, 1]), 5)
    assert [np.flatnonzero(row).tolist() for row in seen] == [[0, 3], [2]]


def _warped(logits, mask, ids, temperature, top_p, top_k, repetition_penalty):
    """Probabilities after transformers' processors, in its own order."""
    torch = pytest.importorskip("torch")
    warpers = pytest.importorskip("transformers.generation.logits_process")
    ids = torch.tensor(ids)[None]
    scores = torch.tensor(np.where(mask, logits, -np.inf).astype(np.float32))[None]
    if repetition_penalty != 1:
        scores = warpers.RepetitionPenaltyLogitsProcessor(float(repetition_penalty))(ids, scores)
    if top_k > 0:
        scores = warpers.TopKLogitsWarper(int(top_k))(ids, scores)
    scores = warpers.TemperatureLogitsWarper(float(temperature))(ids, scores)
    if top_p < 1:
        scores = warpers.TopPLogitsWarper(float(top_p))(ids, scores)
    return torch.softmax(scores, dim=-1)[0].numpy()


def test_draws_follow_the_distribution_of_transformers_processors():
    rng, draws, size = np.random.default_rng(1), 2000, 40
    cuts = 0
    for case in range(24):
        logits = (rng.normal(size=size) * rng.choice([1.0, 3.0])).astype(np.float32)
        mask, ids = rng.random(size) < 0.8, rng.integers(0, size, 10)
        settings = {
            "temperature": rng.choice([0.3, 1.0, 2.0]),
            "top_p": rng.choice([0.2, 0.7, 0.9, 1.0]),
            "top_k": rng.choice([0, 1, 4, 15, 1000]),
            "repetition_penalty": rng.choice([0.8, 1.0, 1.2]),
        }
        expected = _warped(logits, mask, ids, **settings)
        seen = np.tile(np.isin(np.arange(size), ids), (draws, 1))
        rows = np.tile(logits, (draws, 1)), np.tile(mask, (draws, 1))
        tokens = np.asarray(sample(*rows, keys=_keys(draws, case * draws), seen=seen, **settings))
        observed = np.bincount(tokens, minlength=size) / draws
        assert observed[expected == 0].sum() == 0
        np.testing.assert_allclose(observed, expected, atol=5 * np.sqrt(0.25 / draws))
        cuts += (expected == 0).sum() > (~mask).sum()
    assert cuts > 10


def test_cuts_keep_the_same_ids_as_transformers_at_the_size_of_a_real_vocabulary():
    torch = pytest.importorskip("torch")
    warpers = pytest.importorskip("transformers.generation.logits_process")
    logits = np.random.default_rng(2).normal(size=(4, 65_536)).astype(np.float32) * np.array([[1], [2], [3], [5]])
    logits = logits.astype(np.float32)
    for k in (1, 5, 2000):
        theirs = torch.isfinite(warpers.TopKLogitsWarper(k)(None, torch.tensor(logits))).numpy()
        np.testing.assert_array_equal(top_k_mask(logits, np.full(4, k)), theirs)
    for p in (0.1, 0.9):
        theirs = torch.isfinite(warpers.TopPLogitsWarper(p)(None, torch.tensor(logits))).numpy()
        ours = np.asarray(top_p_mask(jax.nn.softmax(logits), np.full(4, p, np.float32)))
        # They add up 65,536 numbers from the small end, which moves the cut by the rounding of the sum.
        probabilities = np.where(ours != theirs, jax.nn.softmax(logits), 0)
        assert probabilities.sum(axis=1).max() < 1e-5


@pytest.mark.parametrize("p", [1e-9, 0.25, 0.5, 0.50001, 0.75, 0.8])
@pytest.mark.parametrize("probabilities", [[0.5, 0.25, 0.125, 0.125], [0.25] * 4, [1.0, 1e-30, 1e-30, 1e-30]])
def test_top_p_keeps_as_many_as_transformers_on_its_boundary(probabilities, p):
    """Their rule, ascending: what adds up to at most 1 - p goes, one stays. Which of equals stay is theirs to choose."""
    torch = pytest.importorskip("torch")
    warpers = pytest.importorskip("transformers.generation.logits_process")
    theirs = torch.isfinite(warpers.TopPLogitsWarper(p)(None, torch.log(torch.tensor([probabilities])))).numpy()
    ours = np.asarray(top_p_mask(jnp.asarray([probabilities]), jnp.asarray([p], jnp.float32)))
    assert ours.sum() == theirs.sum()


def test_settings_are_picked_by_row_and_modality():
    greedy, wide = SamplingConfig(temperature=0.0), SamplingConfig(temperature=2.0, top_p=1.0, top_k=7)
    table = text_and_image(image_codes=8, reserved=4, text_tokens=256, codes_per_image=4).with_row(
        "text", sampling=greedy
    )
    configs = [GenerationConfig(sampling={"image": wide}), GenerationConfig(sampling={"text": wide, "image": greedy})]
    of_requests = SamplingArrays.of(configs, Vocab.from_config(table))
    settings = of_requests.at(jnp.asarray([1, 1]))
    assert settings.temperature.tolist() == [2.0, 0.0] and settings.top_k.tolist() == [7, 0]
    # What a request does not name is as the table says.
    assert of_requests.at(jnp.asarray([0, 0])).temperature.tolist() == [0.0, 2.0]


def test_presets_are_those_of_the_released_decoders():
    meta, anole, lumina = (SAMPLING_PRESETS[name] for name in ("meta", "anole", "lumina"))
    plain = SamplingConfig(temperature=0.7, top_p=0.9, top_k=0, repetition_penalty=1.0)
    assert plain == SamplingConfig() == meta[1] == anole[1]
    assert meta[0].diff(plain) == {"repetition_penalty": (1.2, 1.0)}
    assert anole[0].diff(meta[0]) == {"temperature": (1.0, 0.7)}
    assert [(c.temperature, c.top_p, c.top_k, c.repetition_penalty) for c in lumina] == [
        (1.0, 1.0, 5, 1.0),
        (1.0, 1.0, 2000, 1.0),
    ]


def test_a_request_with_all_settings_survives_json():
    text, image = SAMPLING_PRESETS["lumina"]
    config = GenerationConfig(
        sampling={"text": text, "image": image}, guidance=GuidanceConfig(scheme="lumina"), stop_ids=(3, 4)
    )
    assert GenerationConfig.from_dict(config.to_dict()) == config
    assert GenerationConfig.from_dict(GenerationConfig().to_dict()) == GenerationConfig()


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: SamplingConfig(top_k=-1), "top_k must be in 0..2147483647"),
        # Beyond what the device can hold they would be other numbers there.
        (lambda: SamplingConfig(top_k=2**31), "top_k must be in 0..2147483647"),
        (lambda: SamplingConfig(top_p=1e-50), "top_p must be in"),
        (lambda: GenerationConfig(max_spans={"image": 2**31}), "max_spans of 'image' must be at least 1 and below"),
        (lambda: GenerationConfig(seed=2**32), "seed must be in 0..4294967295"),
        (lambda: GenerationConfig(seed=-1), "seed must be in 0..4294967295"),
        (lambda: GenerationConfig(stop_ids=(2**31,)), "stop_ids must be at most 8 ids"),
        (lambda: SamplingConfig(repetition_penalty=0.0), "repetition_penalty must be finite and positive"),
        (lambda: SamplingConfig(repetition_penalty=float("inf")), "repetition_penalty must be finite and positive"),
        (lambda: GuidanceConfig(text=-1.0), "text must be finite and >= 0"),
        (lambda: GuidanceConfig(image=float("inf")), "image must be finite and >= 0"),
        (lambda: GuidanceConfig(scheme="anole"), "one of 'meta', 'lumina'"),
        (lambda: GenerationConfig(stop_ids=tuple(range(9))), "stop_ids must be at most 8 ids"),
        (lambda: GenerationConfig(stop_ids=(-1,)), "stop_ids must be at most 8 ids, none negative"),
        (lambda: GenerationConfig.from_dict({"guidance": {"txt": 1.0}}), "did you mean 'text'"),
    ],
)
def test_wrong_settings_are_refused_with_their_name(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
