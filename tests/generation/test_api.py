"""Words and pictures in, words and pictures out, on a small random model."""

import dataclasses
import time

import numpy as np
import pytest
from PIL import Image

from chameleon_jax.configs import EngineConfig, GenerationConfig
from chameleon_jax.errors import DataError, GenerationError
from chameleon_jax.generation.api import Generator, StreamedSpan
from chameleon_jax.generation.keep import Keep
from tests.tiny_run import make_run


@pytest.fixture(scope="module")
def generator():
    with Generator(make_run(context=96), EngineConfig(slots=4, block=4)) as generator:
        yield generator


FOX = Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 30, 3), np.uint8))
DRAW = GenerationConfig(mode="image", max_spans={"image": 2}, max_tokens=60)


def test_pictures_come_out_in_order(generator):
    answer = generator.generate(["a red fox ", FOX, " again"], DRAW)
    assert [type(segment) for segment in answer] == [Image.Image, Image.Image]
    assert all(picture.size == (16, 16) for picture in answer)


def test_an_answer_knows_its_ids_and_the_likelihood_of_each_and_keeps_codes(generator):
    once = dataclasses.replace(DRAW, max_spans={"image": 1})
    codes = np.where(np.arange(16) < 12, np.arange(16), -1)
    answer = generator.generate(["a red fox"], once, logprobs=2, keep=Keep(modality="image", codes=codes))
    image = generator.bundle.vocab.modalities[generator.bundle.vocab.row("image")]
    assert image.codes(answer.ids[1:-1])[:12].tolist() == codes[:12].tolist()
    assert answer.logprobs.top.shape == (18, 2) and answer.finish_reason == "spans" and len(answer) == 1


def test_a_batch_gives_each_prompt_its_answer_and_draws_equal_ones_apart(generator):
    text = GenerationConfig(mode="text", max_tokens=12)
    first, second, third = generator.generate_batch([["a fox"], ["a fox"], [FOX, "what is it?"]], text)
    assert all(isinstance(segment, str) for answer in (first, second, third) for segment in answer)
    assert first != second
    assert generator.generate(["a fox"], text) == first


def test_pictures_are_read_as_files_are(generator):
    """Alpha lies on white; what is wider than eight bits is refused, not clipped."""
    clear = Image.new("RGBA", (20, 20), (0, 0, 0, 0))
    ids = [generator._request([picture], DRAW, {}).prompt for picture in (clear, Image.new("RGB", (20, 20), "white"))]
    np.testing.assert_array_equal(*ids)
    with pytest.raises(DataError, match="wider than 8 bits"):
        generator.generate([Image.new("I;16", (20, 20))], DRAW)


def test_a_batch_may_be_longer_than_the_engines_queue(generator):
    text = GenerationConfig(mode="text", max_tokens=3)
    answers = generator.generate_batch([["a fox"]] * 50, text)
    assert len(answers) == 50 and answers[:2] == generator.generate_batch([["a fox"]] * 2, text)


def test_a_batch_with_a_prompt_that_cannot_be_served_leaves_nothing_running(generator):
    with pytest.raises(GenerationError):
        generator.generate_batch([["a fox"], ["a fox " * 200]], GenerationConfig(mode="text"))
    deadline = time.monotonic() + 20
    while generator.engine.stats().running + generator.engine.stats().queued:  # the block under way is waited for
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_stream_ends_in_what_generate_gives(generator):
    pieces = list(generator.stream(["a red fox"], DRAW, partial_every=4))
    assert all(isinstance(piece, StreamedSpan) for piece in pieces)
    assert [(piece.done, piece.of) for piece in pieces] == [(4, 16), (8, 16), (12, 16), (16, 16)] * 2
    whole = [np.asarray(piece.data) for piece in pieces if not piece.partial]
    expected = [np.asarray(picture) for picture in generator.generate(["a red fox"], DRAW)]
    assert all(np.array_equal(a, b) for a, b in zip(whole, expected, strict=True))
    words = generator.stream(["a red fox"], dataclasses.replace(DRAW, mode="text"))
    assert "".join(words) == "".join(generator.generate(["a red fox"], dataclasses.replace(DRAW, mode="text")))


def test_leaving_a_stream_frees_its_slot(generator):
    stream = generator.stream(["a"], GenerationConfig(mode="text", max_tokens=80))
    next(stream)
    stream.close()
    assert generator.generate(["a red fox"], DRAW)
    assert generator.engine.stats().running == 0


@pytest.mark.parametrize(
    ("prompt", "told"),
    [
        ("a fox", "list of strings and pictures"),
        (None, "list of strings and pictures, not NoneType"),
        ([5], "int is none of them"),
        (["zebra "] * 90, "context of 96"),
    ],
)
def test_prompts_that_cannot_be_served_are_refused(generator, prompt, told):
    with pytest.raises(GenerationError, match=told):
        generator.generate(prompt)
