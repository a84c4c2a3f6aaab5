"""The grammar of grid spans, driven by random choices among what it allows and read by a parser of its own."""

import jax
import numpy as np
import pytest

from chameleon_jax.configs import GenerationConfig, text_and_image
from chameleon_jax.generation import grammar
from chameleon_jax.generation.grammar import OUTSIDE, FinishReason, split_spans
from chameleon_jax.vocab import Vocab

TEXT, IMAGE = 0, 1  # rows of the modality table

UNIT, LONGEST, MOST = 2, 4, 24  # codes of a unit, units of the longest side, codes of an image
VOCAB = Vocab.from_config(
    text_and_image(
        image_codes=8,
        reserved=9,
        text_tokens=256,
        image_span="grid",
        codes_per_image=MOST,
        max_grids=LONGEST,
        grid_unit=UNIT,
    )
)
PICTURE = VOCAB.modalities[IMAGE]
GRID = PICTURE.grammar
BOI, EOI, EOL = PICTURE.begin_marker, PICTURE.end_marker, GRID.newline
SIDES = [UNIT * n for n in range(1, LONGEST + 1)]
SMALLEST = 4 + UNIT * (UNIT + 1)
WORD, CODE = VOCAB.text.start, PICTURE.start

allowed = jax.jit(grammar.allowed, static_argnums=(1, 2))
advance = jax.jit(grammar.advance, static_argnums=2)


def side_id(side):
    return GRID.size_base + side // UNIT


def ids_of(height, width, seed=0):
    codes = np.random.default_rng(seed).integers(0, 8, (height, width))
    return PICTURE.span(codes).tolist(), codes


def start(remaining, said=None, mode="interleaved", **config):
    """One row; `said` is what a prompt has said of a begun image: (0, 0), (height, 0) or (height, width)."""
    opened = np.array([OUTSIDE if said is None else IMAGE])
    config = GenerationConfig(mode=mode, **config)
    return grammar.start(VOCAB, config, np.array([remaining]), opened, np.array([said or (0, 0)]))


def choices(state):
    return np.flatnonzero(np.asarray(allowed(state, VOCAB, VOCAB.size))[0]).tolist()


def follow(state, ids):
    for token in ids:
        assert token in choices(state)
        state = advance(state, np.array([token]), VOCAB)
    return state


def walk(state, rng, favour=()):
    """Ids until the row finishes; `favour` ids are taken half of the time where they are allowed."""
    out = []
    while state.finish[0] == FinishReason.RUNNING:
        options = choices(state)
        wanted = [i for i in favour if i in options]
        out.append(int(rng.choice(wanted if wanted and rng.random() < 0.5 else options)))
        state = advance(state, np.array([out[-1]]), VOCAB)
    return out, FinishReason(int(state.finish[0]))


def images_of(ids):
    """Sizes of the images of a stream, read one id after the other; fails at the first id that breaks the grammar."""
    ids, sizes = iter(ids), []
    for token in ids:
        if token != BOI:
            assert token >= WORD or token in (VOCAB.eos, VOCAB.end_of_turn)
            continue
        height, width = ((next(ids) - GRID.size_base) * UNIT for _ in range(2))
        assert height in SIDES and width in SIDES and height * width <= MOST
        for _ in range(height):
            assert all(PICTURE.start <= next(ids) < PICTURE.stop for _ in range(width))
            assert next(ids) == EOL
        assert next(ids) == EOI
        sizes.append((height, width))
    return sizes


@pytest.mark.parametrize("mode", ["interleaved", "image"])
@pytest.mark.parametrize("said", [None, (0, 0), (4, 0), (2, 8)])
def test_every_walk_gives_whole_grids_within_the_length(mode, said):
    rng, seen = np.random.default_rng(0), set()
    height, width = (side or UNIT for side in said or (0, 0))
    begun = [] if said is None else [BOI, *[side_id(side) for side in said if side]]
    least = GRID.length(height, width) - len(begun)
    for _ in range(40):
        remaining = int(rng.integers(least, 90))
        ids, why = walk(start(remaining, said, mode, max_spans={"image": 3}), rng, favour=(BOI,))
        sizes = images_of(begun + ids)
        assert len(ids) <= remaining and len(sizes) <= 3
        assert said is None or all(s in (0, g) for s, g in zip(said, sizes[0], strict=True))
        assert why != FinishReason.LENGTH or mode == "image" or len(ids) == remaining
        assert (VOCAB.eos in ids) == (why == FinishReason.EOS)
        assert (len(sizes) == 3) if why == FinishReason.SPANS else (mode == "interleaved" or len(sizes) < 3)
        spans = split_spans(begun + ids, VOCAB)
        assert [span.grid for span in spans if span.modality == IMAGE] == sizes
        assert all(span.complete for span in spans)
        seen |= set(sizes)
    every = {(h, w) for h in SIDES for w in SIDES if h * w <= MOST}
    assert seen == every or said is not None


@pytest.mark.parametrize("size", [(2, 2), (4, 6), (8, 2)])
def test_a_size_that_is_asked_for_is_the_size_of_every_image(size):
    rng = np.random.default_rng(1)
    for _ in range(10):
        ids, why = walk(start(200, mode="image", max_spans={"image": 2}, grids={"image": size}), rng)
        assert why == FinishReason.SPANS and images_of(ids) == [size] * 2


def test_an_image_begins_only_where_the_smallest_or_the_wanted_one_fits():
    assert [BOI in choices(start(room)) for room in (SMALLEST - 1, SMALLEST)] == [False, True]
    wanted = GRID.length(4, 6)
    assert [BOI in choices(start(room, grids={"image": (4, 6)})) for room in (wanted - 1, wanted)] == [False, True]


@pytest.mark.parametrize("room", range(SMALLEST - 1, 60))
def test_sizes_come_only_where_a_whole_image_of_them_fits(room):
    def fits(height, width):
        return height * width <= MOST and 3 + height * (width + 1) <= room

    heights = choices(start(room, (0, 0)))
    assert heights == [side_id(h) for h in SIDES if fits(h, UNIT)]
    for h in SIDES:
        if fits(h, UNIT):
            widths = choices(start(room - 1, (h, 0)))
            assert widths == [side_id(w) for w in SIDES if fits(h, w)]


def test_rows_end_in_a_forced_row_end_and_the_image_in_a_forced_marker():
    state = follow(start(100), [BOI, side_id(2), side_id(4)])
    codes = list(range(PICTURE.start, PICTURE.stop))
    for _ in range(2):
        for _ in range(4):
            assert choices(state) == codes
            state = follow(state, [CODE])
        assert choices(state) == [EOL]
        state = follow(state, [EOL])
    assert choices(state) == [EOI]
    state = follow(state, [EOI])
    assert state.remaining[0] == 100 - GRID.length(2, 4) and WORD in choices(state)
    assert choices(follow(state, [BOI])) == [side_id(h) for h in SIDES]  # nothing is left of the first size


def test_rows_of_a_batch_have_sizes_of_their_own():
    spans = [ids_of(*size)[0] for size in ((2, 6), (8, 2), (4, 4))]
    opened = np.full(3, OUTSIDE)
    state = grammar.start(VOCAB, GenerationConfig(mode="image", max_spans={"image": 1}), np.array([50, 28, 24]), opened)
    for step in range(max(map(len, spans))):
        tokens = np.array([span[step] if step < len(span) else VOCAB.pad for span in spans])
        assert np.asarray(allowed(state, VOCAB, VOCAB.size))[np.arange(3), tokens].all()
        state = advance(state, tokens, VOCAB)
    assert state.finish.tolist() == [FinishReason.SPANS] * 3


@pytest.mark.parametrize("stops", [True, False])
def test_the_end_of_a_turn_ends_the_output_only_where_it_is_asked_for(stops):
    state = start(100, stop_at_turn_end=stops)
    assert (VOCAB.end_of_turn in choices(state)) == stops
    assert VOCAB.end_of_turn not in choices(follow(state, [BOI]))
    assert VOCAB.end_of_turn not in choices(start(100, mode="image", stop_at_turn_end=stops))
    if stops:
        assert follow(state, [WORD, VOCAB.end_of_turn]).finish[0] == FinishReason.EOS


@pytest.mark.parametrize("size", [(2, 2), (4, 6), (8, 2)])
@pytest.mark.parametrize("in_prompt", [0, 1, 2, 3])
def test_a_grid_is_read_back_with_its_size_even_when_its_beginning_stands_in_the_prompt(size, in_prompt):
    ids, codes = ids_of(*size)
    image, text = split_spans([*ids[in_prompt:], WORD], VOCAB)
    assert (image.modality, image.complete, image.grid) == (IMAGE, True, size)
    np.testing.assert_array_equal(PICTURE.codes(image.content).reshape(image.grid), codes)
    assert text.ids.tolist() == [WORD]


WHOLE = ids_of(2, 4)[0]
BROKEN = {
    "no end marker": WHOLE[:-1],
    "only the begin marker": [BOI],
    "no width": [BOI, side_id(2), *WHOLE[3:]],
    "no sizes": [BOI, *WHOLE[3:]],
    "another height": [BOI, side_id(4), *WHOLE[2:]],
    "another width": [BOI, side_id(2), side_id(2), *WHOLE[3:]],
    "a row too long": [*WHOLE[:4], CODE, *WHOLE[4:]],
    "a row missing": [*WHOLE[:3], *WHOLE[8:]],
    "no row ends": [i for i in WHOLE if i != EOL],
    "nothing between": [BOI, side_id(2), side_id(2), EOI],
    "text in a row": [*WHOLE[:5], WORD, *WHOLE[5:]],
    "an odd side": [EOL, CODE, *WHOLE[3:]],
    "too many codes": [BOI, side_id(8), side_id(8), *([CODE] * 8 + [EOL]) * 8, EOI],
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_grid_is_never_complete(case):
    spans = split_spans(BROKEN[case], VOCAB)
    assert not any(span.complete for span in spans if span.modality == IMAGE)
    assert np.concatenate([span.ids for span in spans]).tolist() == BROKEN[case]


def test_no_id_is_lost_in_any_stream():
    rng = np.random.default_rng(3)
    likely = np.array(
        [BOI, EOI, EOL, CODE, CODE + 1, WORD, VOCAB.eos, *[GRID.size_base + n for n in range(LONGEST + 1)]]
    )
    for _ in range(300):
        ids = rng.choice(likely, size=rng.integers(1, 40))
        assert np.array_equal(np.concatenate([span.ids for span in split_spans(ids, VOCAB)]), ids)
