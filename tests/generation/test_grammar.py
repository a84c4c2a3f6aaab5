"""The modality grammar, driven by random choices among what it allows."""

import dataclasses

import jax
import numpy as np
import pytest

from chameleon_jax.configs import GenerationConfig, VocabConfig
from chameleon_jax.generation import grammar
from chameleon_jax.generation.grammar import OUTSIDE, FinishReason, split_spans
from chameleon_jax.vocab import FixedSpan, Modality, ModalityId, Vocab

CODES = 4
VOCAB = Vocab.from_config(VocabConfig(image_codes=8, reserved=4, text_tokens=256, codes_per_image=CODES))
BOI, EOI = VOCAB.begin_of_image, VOCAB.end_of_image
TEXT, IMAGE = ModalityId.TEXT, ModalityId.IMAGE

allowed = jax.jit(grammar.allowed, static_argnums=(1, 2))
advance = jax.jit(grammar.advance, static_argnums=2)


def _start(mode, remaining, opened=OUTSIDE, max_images=2, vocab=VOCAB, grid=None, **config):
    remaining = np.atleast_1d(remaining)
    config = GenerationConfig(mode=mode, max_images=max_images, **config)
    grid = None if grid is None else np.tile(grid, (len(remaining), 1))
    return grammar.start(vocab, config, remaining, np.full(len(remaining), opened), grid)


def _allowed(state):
    return np.asarray(allowed(state, VOCAB, VOCAB.size))


def _ids(mask):
    return set(np.flatnonzero(mask).tolist())


def _random_walk(mode, remaining, rng, opened=OUTSIDE, max_images=2, favour=()):
    """Ids of one row until it finishes; `favour` ids are taken half of the time where they are allowed."""
    state, out = _start(mode, remaining, opened, max_images), []
    while state.finish[0] == FinishReason.RUNNING:
        choices = np.flatnonzero(_allowed(state)[0])
        wanted = [i for i in favour if i in choices]
        token = rng.choice(wanted) if wanted and rng.random() < 0.5 else rng.choice(choices)
        out.append(int(token))
        state = advance(state, np.array([token]), VOCAB)
    return np.array(out), FinishReason(int(state.finish[0]))


TEXT_IDS = set(range(VOCAB.text.start, VOCAB.text.stop))
CODE_IDS = set(range(VOCAB.image.start, VOCAB.image.stop))


def test_text_mode_allows_text_pieces_and_the_end_only():
    assert _ids(_allowed(_start("text", 100))[0]) == TEXT_IDS | {VOCAB.eos}


def test_interleaved_mode_also_allows_an_image_to_begin():
    assert _ids(_allowed(_start("interleaved", 100))[0]) == TEXT_IDS | {VOCAB.eos, BOI}


def test_image_mode_allows_nothing_but_the_beginning_of_an_image_outside_of_one():
    assert _ids(_allowed(_start("image", 100))[0]) == {BOI}


@pytest.mark.parametrize("mode", ["image", "interleaved"])
def test_inside_an_image_come_exactly_n_codes_then_the_end_marker(mode):
    state = advance(_start(mode, 100), np.array([BOI]), VOCAB)
    for _ in range(CODES):
        assert _ids(_allowed(state)[0]) == CODE_IDS
        state = advance(state, np.array([VOCAB.image.start]), VOCAB)
    assert _ids(_allowed(state)[0]) == {EOI}


def test_an_image_may_begin_only_where_all_of_it_fits():
    masks = _allowed(_start("interleaved", np.array([CODES + 1, CODES + 2, CODES + 3])))
    assert masks[:, BOI].tolist() == [False, True, True]


def test_no_more_images_begin_than_were_asked_for():
    state = _start("interleaved", 100, max_images=1)
    for token in [BOI, *[VOCAB.image.start] * CODES, EOI]:
        state = advance(state, np.array([token]), VOCAB)
    assert _ids(_allowed(state)[0]) == TEXT_IDS | {VOCAB.eos}


def test_ids_beyond_the_vocabulary_are_never_allowed():
    assert not np.asarray(allowed(_start("interleaved", 9), VOCAB, VOCAB.size + 7))[:, VOCAB.size :].any()


def test_image_mode_stops_when_all_images_are_there():
    ids, why = _random_walk("image", 100, np.random.default_rng(0), max_images=3)
    assert why == FinishReason.IMAGES and len(ids) == 3 * (CODES + 2)


def test_all_images_there_at_the_last_position_is_not_a_cut():
    _, why = _random_walk("image", 2 * (CODES + 2), np.random.default_rng(0), max_images=2)
    assert why == FinishReason.IMAGES


def test_image_mode_stops_for_length_when_the_next_image_does_not_fit():
    ids, why = _random_walk("image", 2 * (CODES + 2) - 1, np.random.default_rng(0), max_images=2)
    assert why == FinishReason.LENGTH and len(ids) == CODES + 2


def test_end_of_sequence_at_the_last_position_counts_as_the_end():
    state = advance(_start("text", 1), np.array([VOCAB.eos]), VOCAB)
    assert state.finish[0] == FinishReason.EOS


def test_a_finished_row_changes_no_more():
    state = advance(_start("text", 5), np.array([VOCAB.eos]), VOCAB)
    again = advance(state, np.array([VOCAB.pad]), VOCAB)
    jax.tree.map(np.testing.assert_array_equal, state, again)
    assert _ids(_allowed(state)[0]) == {VOCAB.pad}


@pytest.mark.parametrize("mode", ["text", "image", "interleaved"])
@pytest.mark.parametrize("opened", [OUTSIDE, IMAGE])
def test_every_walk_gives_whole_images_within_the_length(mode, opened):
    if mode == "text" and opened == IMAGE:
        pytest.skip("text mode never stands inside an image")
    rng = np.random.default_rng(len(mode) + opened)
    for _ in range(25):
        remaining = int(rng.integers(CODES + 2, 40))
        ids, why = _random_walk(mode, remaining, rng, opened, favour=(BOI,))
        spans = split_spans(ids, VOCAB)
        assert len(ids) <= remaining and all(span.complete for span in spans)
        assert np.array_equal(np.concatenate([span.ids for span in spans]), ids)
        assert sum(span.modality == IMAGE for span in spans) <= 2
        assert (VOCAB.eos in ids) == (why == FinishReason.EOS)
        assert why != FinishReason.LENGTH or mode == "image" or len(ids) == remaining


def test_a_further_fixed_modality_is_a_further_row_of_the_table(monkeypatch):
    audio = Modality(name="audio", start=12, stop=14, begin_marker=14, end_marker=15, grammar=FixedSpan(length=2))
    text = dataclasses.replace(VOCAB.text, start=18)
    image = dataclasses.replace(VOCAB.image, start=4, stop=10, end_marker=10, begin_marker=11)
    vocab = dataclasses.replace(VOCAB, modalities=(text, image, audio), begin_of_image=11, end_of_image=10)
    monkeypatch.setitem(grammar.MODES, "image", (2,))
    state, out = _start("image", 9, max_images=1, vocab=vocab), []
    while state.finish[0] == FinishReason.RUNNING:
        token = int(np.flatnonzero(np.asarray(allowed(state, vocab, vocab.size))[0])[-1])
        out.append(token)
        state = advance(state, np.array([token]), vocab)
    assert out == [14, 13, 13, 15]


def _image(codes=CODES):
    return [BOI, *[VOCAB.image.start] * codes, EOI]


WORD = VOCAB.text.start


@pytest.mark.parametrize(
    "ids, expected",
    [
        ([], []),
        ([WORD, WORD, VOCAB.eos], [(TEXT, 3, True)]),
        ([WORD, *_image(), WORD], [(TEXT, 1, True), (IMAGE, 6, True), (TEXT, 1, True)]),
        ([*_image(), *_image()], [(IMAGE, 6, True), (IMAGE, 6, True)]),
        (_image()[1:], [(IMAGE, 5, True)]),  # the begin marker stood in the prompt
        ([WORD, *_image()[1:]], [(TEXT, 1, True), (IMAGE, 5, False)]),
        (_image()[:3], [(IMAGE, 3, False)]),
        ([BOI], [(IMAGE, 1, False)]),
        ([*_image(2), WORD], [(IMAGE, 4, False), (TEXT, 1, True)]),
        ([*_image()[:-1], VOCAB.image.start, EOI], [(IMAGE, 5, False), (IMAGE, 2, False)]),
        ([EOI, EOI], [(IMAGE, 1, False), (IMAGE, 1, False)]),
        ([BOI, WORD], [(IMAGE, 1, False), (TEXT, 1, True)]),
    ],
)
def test_spans_are_cut_at_markers_and_broken_images_are_reported(ids, expected):
    spans = split_spans(np.array(ids, np.int32), VOCAB)
    assert [(span.modality, len(span.ids), span.complete) for span in spans] == expected


def test_no_id_is_lost_in_any_stream():
    rng = np.random.default_rng(3)
    likely = np.array([BOI, EOI, VOCAB.image.start, VOCAB.image.start + 1, WORD, VOCAB.eos, VOCAB.end_of_turn])
    for _ in range(200):
        ids = rng.choice(likely, size=rng.integers(1, 40))
        assert np.array_equal(np.concatenate([span.ids for span in split_spans(ids, VOCAB)]), ids)
