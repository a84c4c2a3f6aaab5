"""Documents become one stream of ids whose spans tell modality and loss."""

import numpy as np
import pytest

from chameleon_jax.configs import text_and_image
from chameleon_jax.errors import TokenizerError
from chameleon_jax.tokenizers.documents import Document, Segment, Span, assemble, order_pair, valid_text
from chameleon_jax.vocab import Vocab

TEXT, IMAGE = 0, 1  # rows of the modality table

VOCAB = Vocab.from_config(text_and_image(image_codes=10, reserved=4, text_tokens=256, codes_per_image=4))
BEGIN, END = VOCAB.modalities[IMAGE].begin_marker, VOCAB.modalities[IMAGE].end_marker
CODES = np.array([0, 9, 3, 3])
IMAGE_IDS = [BEGIN, 4, 13, 7, 7, END]


def text_ids(*offsets):
    return np.array(offsets) + VOCAB.text.start


def text(data, loss=True, ends_turn=False):
    return Segment("text", data, loss, ends_turn)


def image(loss=True):
    return Segment("image", b"", loss, reference="a.png")


def document(*segments, name="d"):
    return Document(name, "s", segments)


def test_a_pair_is_wrapped_in_markers():
    made = assemble(document(text("ab"), image()), [[1, 2], CODES], VOCAB)
    assert made.ids.tolist() == [VOCAB.bos, *text_ids(1, 2), *IMAGE_IDS, VOCAB.eos]
    assert made.ids.dtype == np.int32
    assert made.spans == (Span(TEXT, 3, True), Span(IMAGE, 6, True), Span(TEXT, 1, True))


def test_neighbouring_texts_of_one_role_make_one_span():
    made = assemble(
        document(image(), text("a"), text(""), text("b")),
        [CODES, [1], [], [2]],
        VOCAB,
    )
    assert made.spans == (Span(TEXT, 1, True), Span(IMAGE, 6, True), Span(TEXT, 3, True))


def test_roles_split_spans_and_turns_end():
    question, answer = text("q", loss=False, ends_turn=True), text("a", ends_turn=True)
    made = assemble(document(image(loss=False), question, answer), [CODES, [1], [2]], VOCAB)
    turn = VOCAB.end_of_turn
    assert made.ids.tolist() == [VOCAB.bos, *IMAGE_IDS, *text_ids(1), turn, *text_ids(2), turn, VOCAB.eos]
    assert made.spans == (Span(TEXT, 1, False), Span(IMAGE, 6, False), Span(TEXT, 2, False), Span(TEXT, 3, True))


def test_two_images_in_a_row_stay_two_spans():
    made = assemble(document(image(), image()), [CODES, CODES], VOCAB)
    assert [span.modality for span in made.spans] == [TEXT, IMAGE, IMAGE, TEXT]


def test_an_empty_document_is_its_markers():
    made = assemble(document(), [], VOCAB)
    assert made.ids.tolist() == [VOCAB.bos, VOCAB.eos]
    assert made.spans == (Span(TEXT, 2, True),)


def test_forty_images_and_random_roles_keep_every_invariant():
    rng = np.random.default_rng(0)
    for _ in range(50):
        segments, codes = [], []
        for _ in range(rng.integers(0, 60)):
            loss = bool(rng.integers(2))
            if rng.integers(3):
                segments.append(image(loss))
                codes.append(rng.integers(0, 10, 4))
            else:
                segments.append(text("t", loss, bool(rng.integers(2))))
                codes.append(rng.integers(0, 256, rng.integers(0, 5)))
        made = assemble(document(*segments), codes, VOCAB)
        assert sum(span.length for span in made.spans) == len(made.ids)
        assert (made.ids[0], made.ids[-1]) == (VOCAB.bos, VOCAB.eos)
        start = 0
        for span in made.spans:
            part = made.ids[start : start + span.length]
            start += span.length
            if span.modality == IMAGE:
                assert (part[0], part[-1], len(part)) == (BEGIN, END, 6)
            else:
                assert np.all(VOCAB.modality_of(part) == TEXT) and BEGIN not in part


def test_grids_of_several_sizes_keep_their_shape():
    sizes = {"image_span": "grid", "max_grids": 3, "grid_unit": 1, "codes_per_image": 6}
    vocab = Vocab.from_config(text_and_image(image_codes=10, reserved=8, text_tokens=256, **sizes))
    row = vocab.modalities[IMAGE]
    grid, row_end = row.grammar, row.grammar.newline
    made = assemble(document(image(), image()), [np.array([[0, 9, 3]]), np.array([[1], [2]])], vocab)
    wide = [row.begin_marker, grid.size_base + 1, grid.size_base + 3, 4, 13, 7, row_end, row.end_marker]
    high = [row.begin_marker, grid.size_base + 2, grid.size_base + 1, 5, row_end, 6, row_end, row.end_marker]
    assert made.ids.tolist() == [vocab.bos, *wide, *high, vocab.eos]
    assert made.spans == (Span(TEXT, 1, True), Span(IMAGE, 8, True), Span(IMAGE, 8, True), Span(TEXT, 1, True))
    with pytest.raises(TokenizerError, match="document d: a span of 'image' has 3x3 = 9 codes, 6 are the most"):
        assemble(document(image()), [np.zeros((3, 3), int)], vocab)


WRONG = {
    "too few codes": ([CODES], "document d has 2 segments, got codes of 1"),
    "too many codes": ([[1], CODES, CODES], "has 2 segments, got codes of 3"),
    "a code below those of text": ([[-1], CODES], r"document d: code -1 of 'text' is outside 0\.\.255"),
    "a code above those of text": ([[256], CODES], r"code 256 of 'text' is outside 0\.\.255"),
    "text in two dimensions": (
        [np.array([[1]]), CODES],
        r"span of 'text' has codes of shape \(1, 1\) instead of \(1,\)",
    ),
    "codes cut short": ([[1], CODES[:3]], r"document d: .* shape \(3,\) instead of \(4,\)"),
    "codes of a grid": ([[1], CODES.reshape(2, 2)], r"shape \(2, 2\) instead of \(4,\)"),
    "a code outside the codebook": ([[1], np.array([0, 1, 2, 10])], r"code 10 of 'image' is outside 0\.\.9"),
}


@pytest.mark.parametrize("case", WRONG)
def test_parts_that_do_not_fit_are_refused(case):
    codes, reason = WRONG[case]
    with pytest.raises(TokenizerError, match=reason):
        assemble(document(text("a"), image()), codes, VOCAB)


def test_a_segment_of_a_modality_that_there_is_not_is_refused_with_the_nearest():
    with pytest.raises(TokenizerError, match=r"document d: .* no modality 'images' \(did you mean 'image'\?\)"):
        assemble(document(Segment("images", b"")), [CODES], VOCAB)


def test_the_coin_of_a_pair_depends_on_seed_and_id_alone():
    def image_first(number, seed, probability=0.5, reverse=False):
        pair = (image(), text("a")) if reverse else (text("a"), image())
        ordered = order_pair(document(*pair, name=f"s/{number}"), VOCAB, seed, probability)
        return ordered.segments[0].modality == "image"

    first = [image_first(n, 0) for n in range(2000)]
    assert first == [image_first(n, 0, reverse=True) for n in range(2000)]
    assert 0.46 < np.mean(first) < 0.54
    assert 0.45 < np.mean(np.array(first) == [image_first(n, 1) for n in range(2000)]) < 0.55
    assert all(image_first(n, 0, 1.0) for n in range(50)) and not any(image_first(n, 0, 0.0) for n in range(50))
    # Golden: another rule would order the documents of existing stores in another way.
    assert [image_first(n, 7) for n in range(8)] == [False, False, False, True, True, False, True, True]


def test_other_documents_keep_their_order():
    for segments in (
        (image(), image()),
        (text("a"),),
        (image(), text("a"), text("b")),
        (image(), text("q", ends_turn=True)),
        (),
    ):
        for probability in (0.0, 1.0):
            assert order_pair(document(*segments), VOCAB, 0, probability).segments == segments


def test_valid_text_joins_pairs_and_replaces_lone_surrogates():
    assert valid_text("\ud83d\ude00 \ud83d é") == "😀 \ufffd é"
