"""Spans of which some codes are given: these stand, the others are drawn behind what stands before them."""

import dataclasses

import numpy as np
import pytest

from chameleon_jax.configs import EngineConfig, GenerationConfig, GuidanceConfig, SamplingConfig
from chameleon_jax.errors import GenerationError
from chameleon_jax.generation import lanes
from chameleon_jax.generation.engine import Engine
from chameleon_jax.generation.grammar import longest_body, split_spans
from chameleon_jax.generation.keep import REDRAW, Keep, kept_ids
from chameleon_jax.generation.requests import Request
from tests.generation.test_guidance import FIXED, GREEDY, GRID, OTHER, logits_of, model_of, weights_of

RANDOM = SamplingConfig(temperature=3.0, top_p=1.0)
CODES = [3, REDRAW, 9, REDRAW]  # of the fixed span of 4, and of a grid of 2x2


@pytest.fixture(scope="module", params=[FIXED, GRID], ids=["fixed", "grid"])
def engine(request):
    vocab = request.param
    with Engine(weights_of(vocab), model_of(vocab), vocab, EngineConfig(slots=4, context=32, block=4)) as engine:
        yield engine


def config_of(vocab, settings=RANDOM, **changes):
    grids = {"image": (2, 2)} if vocab is GRID else {}
    sampling = dict.fromkeys(vocab.names, settings)
    base = {"mode": "image", "max_tokens": 24, "max_spans": {"image": 1}, "sampling": sampling, "grids": grids}
    return GenerationConfig(**base | changes)


def drawn(engine, config, codes, begun=(), **settings):
    """The output's ids, and the codes of each of its pictures."""
    vocab = engine.vocab
    keep = None if codes is None else Keep(modality="image", codes=np.array(codes))
    prompt = np.array([vocab.bos, vocab.text.start + 5, *begun])
    output = engine.stream(Request(prompt=prompt, config=config, keep=keep, **settings)).result()
    image = vocab.modalities[vocab.row("image")]
    spans = [span for span in split_spans(output.ids, vocab) if vocab.names[span.modality] == "image"]
    assert all(span.complete for span in spans)
    return output.ids.tolist(), [image.codes(span.content).tolist() for span in spans]


@pytest.mark.parametrize("guidance", [None, GuidanceConfig(text=2.5, image=1.3)], ids=["plain", "guided"])
def test_given_codes_stand_and_the_others_are_drawn(engine, guidance):
    config = config_of(engine.vocab, guidance=guidance)
    found = {tuple(drawn(engine, config, CODES, row_id=i)[1][0]) for i in range(6)}
    assert {(codes[0], codes[2]) for codes in found} == {(3, 9)}
    assert len({codes[1] for codes in found}) > 1 and len({codes[3] for codes in found}) > 1


def test_a_drawn_code_is_the_likeliest_behind_what_stands_before_it(engine):
    vocab = engine.vocab
    ids, [codes] = drawn(engine, config_of(vocab, GREEDY), CODES)
    image, prompt = vocab.modalities[vocab.row("image")], [vocab.bos, vocab.text.start + 5]
    _, [free] = drawn(engine, config_of(vocab, GREEDY), None)
    assert codes[0] == 3 != free[0] and codes[2] == 9 != free[2]
    for code, place in ((codes[1], 1), (codes[3], 3)):
        at = np.flatnonzero(image.holds(np.array(ids)))[place]
        logits = logits_of(vocab)([*prompt, *ids[:at]])[image.start : image.stop]
        assert code == int(np.argmax(logits))


def test_only_the_first_span_of_the_output_is_given(engine):
    config = config_of(engine.vocab, max_spans={"image": 2})
    found = [drawn(engine, config, CODES, row_id=i)[1] for i in range(4)]
    assert all((first[0], first[2]) == (3, 9) for first, _ in found)
    assert any((second[0], second[2]) != (3, 9) for _, second in found)


def test_a_span_that_the_prompt_has_begun_is_the_first(engine):
    image = engine.vocab.modalities[engine.vocab.row("image")]
    begun = [image.begin_marker]
    config = config_of(engine.vocab)
    if engine.vocab is GRID:  # the prompt says the size, the request need not
        begun += [image.grammar.size_base + 2] * 2
        config = dataclasses.replace(config, grids={})
    _, [codes] = drawn(engine, config, CODES, begun)
    assert (codes[0], codes[2]) == (3, 9)


def test_what_is_kept_is_data_of_one_program_and_neighbours_are_free(engine):
    config = config_of(engine.vocab)
    alone = drawn(engine, config, None)
    before = lanes.run_block._cache_size()
    assert drawn(engine, config, [REDRAW, 1, 2, 3])[1][0][1:] == [1, 2, 3]
    assert drawn(engine, config, [15, 0, 0, REDRAW])[1][0][:3] == [15, 0, 0]
    assert drawn(engine, config, [REDRAW] * 4) == alone == drawn(engine, config, None)
    assert lanes.run_block._cache_size() == before


@pytest.mark.parametrize(
    ("vocab", "keep", "changes", "told"),
    [
        (FIXED, ("image", CODES[:3]), {}, "3 codes of 'image' are kept or left to draw; a span has 4"),
        (FIXED, ("image", [3, 16, -1, 0]), {}, "kept code 16 of 'image', number 1, is outside 0..15"),
        (FIXED, ("image", [3, 0, 0, -2]), {}, "kept code -2 of 'image', number 3, is outside 0..15"),
        (FIXED, ("image", [1, 2, 3, 4]), {}, "all 4 codes of 'image' are kept: leave some to draw"),
        (FIXED, ("image", [[1, 2], [3, -1]]), {}, r"one list of integers, not int64 of shape \(2, 2\)"),
        (FIXED, ("image", [0.5, 1.0, -1, 1]), {}, "one list of integers, not float64"),
        (FIXED, ("imgae", CODES), {}, "did you mean 'image'"),
        (FIXED, ("text", CODES), {}, "codes of 'text' cannot be kept: it has no spans with markers"),
        (FIXED, ("image", CODES), {"mode": "text"}, "mode 'text' writes no such spans"),
        (FIXED, ("image", CODES), {"mode": "unrestricted"}, "mode 'unrestricted' writes no such spans"),
        (GRID, ("image", CODES), {"grids": {}}, "say its height and width"),
        (GRID, ("image", CODES), {"grids": {"image": (2, 3)}}, "4 codes .* a span of 2x3 has 6"),
        (OTHER, ("drawings", CODES), {"mode": "beeps", "max_spans": {}}, "mode 'beeps' writes no such spans"),
    ],
)
def test_what_cannot_be_kept_is_refused_with_a_reason(vocab, keep, changes, told):
    config = config_of(vocab, **changes)
    with pytest.raises(GenerationError, match=told):
        kept_ids(Keep(modality=keep[0], codes=np.array(keep[1])), vocab, config)


def test_the_longest_span_of_a_vocabulary():
    assert longest_body(FIXED) == 4
    # At most 3 units of 1 code and 16 codes: 3x3, two sizes before the rows and an end behind each.
    assert longest_body(GRID) == 2 + 3 * 4
