"""Ids as they come become the words and pictures that they are at once, whole characters and all."""

import numpy as np
import pytest

from chameleon_jax.generation.prompt import SpanOutput, TextOutput, read_output
from chameleon_jax.generation.reader import OutputReader, Pieces, SpanPiece, TextPiece
from tests.tiny_run import make_run

IMAGE = 1  # row of the modality table


@pytest.fixture(scope="module")
def pieces(tiny):
    return Pieces(tiny.bundle)


@pytest.fixture(scope="module")
def grid():
    return make_run(is_grid=True).bundle


def read(pieces, ids, step, **settings):
    """All that is read of ids that come in pieces of `step`."""
    reader, out = OutputReader(pieces, **settings), []
    for at in range(0, len(ids), step):
        out += reader.feed(ids[at : at + step])
    return out + reader.finish()


def words(out):
    return "".join(part.text for part in out if isinstance(part, TextPiece))


@pytest.mark.parametrize("step", [1, 2, 7])
def test_any_ids_give_the_text_of_the_tokenizer(tiny, pieces, step):
    text = tiny.bundle.vocab.text
    for seed in range(30):
        ids = np.random.default_rng(seed).integers(text.start, text.stop, 40)
        assert words(read(pieces, ids, step)) == tiny.bundle.text.decode(ids)


def test_a_character_is_handed_out_whole(tiny, pieces):
    text = tiny.bundle.text
    ids = text.encode("a 🦎 é")
    assert len(ids) > 6  # its bytes are pieces of their own
    out = read(pieces, ids, 1)
    assert "�" not in words(out) and words(out) == "a 🦎 é"
    assert "🦎" in [part.text for part in out]


@pytest.mark.parametrize("is_grid", [False, True])
@pytest.mark.parametrize("step", [1, 5, 1000])
def test_words_and_pictures_are_those_of_the_whole_output(tiny, grid, is_grid, step):
    bundle = grid if is_grid else tiny.bundle
    vocab, rng = bundle.vocab, np.random.default_rng(step)
    shapes = [(2, 4), (4, 4)] if is_grid else [(16,), (16,)]
    codes = [rng.integers(0, 16, shape) for shape in shapes]
    ids = [
        bundle.text.encode("ein größer"),
        *[vocab.modalities[IMAGE].span(c) for c in codes],
        bundle.text.encode(" 日本"),
        [vocab.eos],
    ]
    ids = np.concatenate([*ids[:2], bundle.text.encode("und"), *ids[2:]])
    out = read(Pieces(bundle), ids, step)
    merged = [part for part in out if isinstance(part, SpanPiece)]
    assert [part.index for part in merged] == [0, 1] and not any(part.partial for part in merged)
    for part, wanted in zip(merged, codes, strict=True):
        assert part.modality == "image" and np.array_equal(part.codes, wanted)  # in the shape of the grid, too
    kinds = [type(part) for part in read_output(ids, bundle)]
    assert kinds == [TextOutput, SpanOutput, TextOutput, SpanOutput, TextOutput]
    assert words(out) == "".join(p.text for p in read_output(ids, bundle) if isinstance(p, TextOutput))


@pytest.mark.parametrize("is_grid", [False, True])
def test_previews_come_every_few_codes(tiny, grid, is_grid):
    bundle = grid if is_grid else tiny.bundle
    span = bundle.vocab.modalities[IMAGE].span(np.arange(16).reshape((4, 4) if is_grid else (16,)))
    out = read(Pieces(bundle), span, 3, partial_every=5)
    assert [(part.partial, part.done, part.of) for part in out] == [
        (True, 5, 16),
        (True, 10, 16),
        (True, 15, 16),
        (False, 16, 16),
    ]
    assert out[0].codes.reshape(-1).tolist() == [0, 1, 2, 3, 4, *[0] * 11]
    assert all(part.codes.shape == ((4, 4) if is_grid else (16,)) for part in out)


def test_a_picture_that_breaks_off_is_left_out_and_text_goes_on(tiny, pieces):
    image, text = tiny.bundle.vocab.modalities[IMAGE], tiny.bundle.text
    cut = image.span(np.zeros(16, int))[:7]
    ids = np.concatenate([cut, text.encode("red"), [image.start, image.end_marker], text.encode(" heart")])
    out = read(pieces, ids, 2)
    assert words(out) == "red heart" and all(isinstance(part, TextPiece) for part in out)
    assert words(read(pieces, np.concatenate([text.encode("red"), cut]), 2)) == "red"


@pytest.mark.parametrize("step", [1, 3, 100])
@pytest.mark.parametrize(
    "stop, left",
    [(["heart"], "a red "), (["zzz"], "a red heart red heart"), (["red h", "d he"], "a "), ([" heart red"], "a red")],
)
def test_words_end_before_a_stop_string(tiny, pieces, step, stop, left):
    ids = tiny.bundle.text.encode("a red heart red heart")
    assert words(read(pieces, ids, step, stop=stop)) == left


def test_ids_behind_a_stop_string_do_not_count(tiny, pieces):
    reader = OutputReader(pieces, stop=["x"])
    reader.feed(tiny.bundle.text.encode("wxyz wxyz"))
    assert reader.stopped and reader.tokens == {"text": 2, "image": 0}


def test_a_token_view_names_what_an_id_is(grid):
    vocab = grid.vocab
    shown = Pieces(grid).describe(
        [vocab.bos, *vocab.modalities[IMAGE].span(np.ones((2, 2), int)), *grid.text.encode("é red")]
    )
    assert [(token["kind"], token["piece"]) for token in shown[:4]] == [
        ("marker", "[bos]"),
        ("marker", "[begin image]"),
        ("marker", "[size 1]"),
        ("marker", "[size 1]"),
    ]
    assert [token["piece"] for token in shown[4:10]] == ["1", "1", "[row]", "1", "1", "[row]"]
    assert {(token["kind"], token["modality"]) for token in shown[4:6]} == {("image", "image")}
    assert {token["kind"] for token in shown[11:]} == {"text"} and shown[-1]["piece"].strip() == "red"
    assert Pieces(grid).describe(range(vocab.size))[-1]["id"] == vocab.size - 1
