"""The modality grammar, driven by random choices among what it allows."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chameleon_jax.configs import GenerationConfig, ModalityConfig, SamplingConfig, text_and_image
from chameleon_jax.generation import grammar
from chameleon_jax.generation.grammar import OUTSIDE, FinishReason, split_spans
from chameleon_jax.generation.sampling import SamplingArrays, sample
from chameleon_jax.vocab import Vocab

TEXT, IMAGE = 0, 1  # rows of the modality table

CODES = 4
VOCAB = Vocab.from_config(text_and_image(image_codes=8, reserved=4, text_tokens=256, codes_per_image=CODES))
PICTURE = VOCAB.modalities[IMAGE]
BOI, EOI = PICTURE.begin_marker, PICTURE.end_marker

allowed = jax.jit(grammar.allowed, static_argnums=(1, 2))
advance = jax.jit(grammar.advance, static_argnums=2)


def _start(mode, remaining, opened=OUTSIDE, max_images=2, vocab=VOCAB, grid=None, **config):
    remaining = np.atleast_1d(remaining)
    config = GenerationConfig(**{"mode": mode, "max_spans": {"image": max_images}} | config)
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
CODE_IDS = set(range(PICTURE.start, PICTURE.stop))


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
        state = advance(state, np.array([PICTURE.start]), VOCAB)
    assert _ids(_allowed(state)[0]) == {EOI}


def test_an_image_may_begin_only_where_all_of_it_fits():
    masks = _allowed(_start("interleaved", np.array([CODES + 1, CODES + 2, CODES + 3])))
    assert masks[:, BOI].tolist() == [False, True, True]


def test_no_more_images_begin_than_were_asked_for():
    state = _start("interleaved", 100, max_images=1)
    for token in [BOI, *[PICTURE.start] * CODES, EOI]:
        state = advance(state, np.array([token]), VOCAB)
    assert _ids(_allowed(state)[0]) == TEXT_IDS | {VOCAB.eos}


def test_ids_beyond_the_vocabulary_are_never_allowed():
    assert not np.asarray(allowed(_start("interleaved", 9), VOCAB, VOCAB.size + 7))[:, VOCAB.size :].any()


def test_image_mode_stops_when_all_images_are_there():
    ids, why = _random_walk("image", 100, np.random.default_rng(0), max_images=3)
    assert why == FinishReason.SPANS and len(ids) == 3 * (CODES + 2)


def test_all_images_there_at_the_last_position_is_not_a_cut():
    _, why = _random_walk("image", 2 * (CODES + 2), np.random.default_rng(0), max_images=2)
    assert why == FinishReason.SPANS


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


def _choices(state):
    return _ids(_allowed(state)[0])


def _after(state, *tokens):
    for token in tokens:
        state = advance(state, np.array([token]), VOCAB)
    return state


def test_unrestricted_rows_may_write_every_id_but_padding_and_open_no_spans():
    state = _start("unrestricted", 100, max_images=1)
    every = set(range(VOCAB.size)) - {VOCAB.pad}
    assert _ids(np.asarray(allowed(state, VOCAB, VOCAB.size + 7))[0]) == every
    for token in (BOI, BOI, EOI, PICTURE.start, VOCAB.bos, VOCAB.end_of_turn):
        state = _after(state, token)
        assert _choices(state) == every and state.modality[0] == TEXT


def test_unrestricted_rows_begin_outside_of_what_their_prompt_has_begun():
    state = _start("unrestricted", 100, opened=IMAGE, grid=(4, 0))
    jax.tree.map(np.testing.assert_array_equal, state, _start("unrestricted", 100))


def test_unrestricted_rows_end_at_end_of_sequence_at_stop_ids_and_at_length():
    config = {"stop_ids": (EOI, WORD), "stop_at_turn_end": True}
    for token in (VOCAB.eos, EOI, WORD, VOCAB.end_of_turn):
        assert _after(_start("unrestricted", 9, **config), BOI, token).finish[0] == FinishReason.EOS
    assert _after(_start("unrestricted", 9), VOCAB.end_of_turn, EOI, WORD).finish[0] == FinishReason.RUNNING
    assert _after(_start("unrestricted", 2), WORD, WORD).finish[0] == FinishReason.LENGTH


def test_a_stop_id_ends_the_row_outside_of_images_only():
    stops = (PICTURE.start, EOI, WORD)
    state = _start("interleaved", 100, stop_ids=stops)
    state = _after(state, *_image())
    assert state.finish[0] == FinishReason.RUNNING
    assert _after(state, WORD + 1).finish[0] == FinishReason.RUNNING
    assert _after(state, WORD).finish[0] == FinishReason.EOS


def test_the_begin_marker_of_an_image_may_be_a_stop_id():
    for mode in ("interleaved", "image"):
        assert _after(_start(mode, 100, stop_ids=(BOI,)), BOI).finish[0] == FinishReason.EOS


@pytest.mark.parametrize("mode", ["text", "image", "interleaved"])
def test_stop_ids_allow_nothing_that_the_mode_does_not(mode):
    stops = (BOI, EOI, VOCAB.bos, VOCAB.pad, VOCAB.end_of_turn, VOCAB.eos, WORD, PICTURE.start)
    assert _choices(_start(mode, 100, stop_ids=stops)) == _choices(_start(mode, 100))


def test_a_row_can_be_started_alone_and_put_among_others():
    configs = [
        GenerationConfig(mode="image", max_spans={"image": 1}),
        GenerationConfig(mode="text", stop_ids=(WORD,)),
        GenerationConfig(mode="unrestricted", stop_at_turn_end=True),
    ]
    remaining, opened = np.array([30, 20, 10]), np.array([IMAGE, OUTSIDE, OUTSIDE])
    together = grammar.start(VOCAB, configs, remaining, opened)
    slots = _start("interleaved", np.array([5, 6, 7]))
    for i, config in enumerate(configs):
        row = grammar.start(VOCAB, [config], remaining[i : i + 1], opened[i : i + 1])
        for batch, one in zip(jax.tree.leaves(slots), jax.tree.leaves(row), strict=True):
            batch[i] = one[0]
    jax.tree.map(np.testing.assert_array_equal, slots, together)


GRIDS = Vocab.from_config(
    text_and_image(
        image_codes=8, reserved=9, text_tokens=256, image_span="grid", codes_per_image=12, max_grids=3, grid_unit=2
    )
)
SIDES = [(h, w) for h in (2, 4, 6) for w in (2, 4, 6) if h * w <= 12]


def _span_length(vocab, size):
    return 4 + size[0] * (size[1] + 1) if vocab is GRIDS else CODES + 2


@dataclasses.dataclass
class _Row:
    config: GenerationConfig
    remaining: int
    opened: int = OUTSIDE
    said: tuple[int, int] = (0, 0)


def _random_row(rng, vocab, cuts):
    """A request that the engine takes: what it must write fits. Ids are cut in some of the rows, or in none, which is faster."""

    def sampling():
        return SamplingConfig(
            temperature=float(rng.choice([0.0, 0.7, 1.0, 3.0])),
            top_p=float(rng.choice([0.5, 0.9, 1.0])) if cuts else 1.0,
            top_k=int(rng.choice([0, 3, 50])) if cuts else 0,
            repetition_penalty=float(rng.choice([1.0, 1.2])),
        )

    mode = str(rng.choice(["text", "image", "interleaved", "unrestricted"]))
    size = SIDES[rng.integers(len(SIDES))] if vocab is GRIDS and rng.random() < 0.5 else ()
    opened = IMAGE if mode != "text" and rng.random() < 0.4 else OUTSIDE
    said = (0, 0)
    if vocab is GRIDS and opened == IMAGE:
        height, width = size or SIDES[rng.integers(len(SIDES))]
        said = [(0, 0), (height, 0), (height, width)][rng.integers(3)]
    least = 1
    if mode == "image" or opened == IMAGE:
        first = tuple(s or w for s, w in zip(said, size or (2, 2), strict=True))
        least = _span_length(vocab, first) - (opened == IMAGE) - np.count_nonzero(said)
    config = GenerationConfig(
        mode=mode,
        max_spans={"image": int(rng.integers(1, 4))},
        grids={"image": size} if size else {},
        stop_at_turn_end=bool(rng.random() < 0.5),
        stop_ids=tuple(rng.integers(0, vocab.size, rng.choice([0, 1, 8])).tolist()),
        sampling={"text": sampling(), "image": sampling()},
    )
    return _Row(config, int(rng.integers(least, 61)), opened, said)


@functools.partial(jax.jit, static_argnames=("vocab",))
def _write(state, settings, key, vocab):
    """61 ids a row from random logits, in which markers and ends are likelier than other ids, and the state behind them."""
    picture = vocab.modalities[IMAGE]
    likely = jnp.zeros(vocab.size).at[jnp.array([picture.begin_marker, picture.end_marker])].set(3.0)
    likely = likely.at[jnp.array([vocab.eos, vocab.end_of_turn])].set(1.0)

    def step(carry, key):
        state, seen = carry
        logits = likely + 3 * jax.random.normal(key, seen.shape)
        mask = grammar.allowed(state, vocab, vocab.size)
        tokens = sample(logits, mask, settings.at(state.modality), seen, jax.random.split(key, len(seen)))
        seen = seen.at[jnp.arange(len(seen)), tokens].set(True)
        return (grammar.advance(state, tokens, vocab), seen), tokens

    seen = jnp.zeros((len(state.open), vocab.size), bool)
    (state, _), tokens = jax.lax.scan(step, (state, seen), jax.random.split(key, 61))
    return state, tokens.T


def _read_image(vocab, ids, said, wanted):
    """Read the rest of an image off the front of `ids`, a list; returns its size."""
    picture, size = vocab.modalities[IMAGE], ()
    if vocab is GRIDS:
        grid = picture.grammar
        size = tuple(side or (ids.pop(0) - grid.size_base) * grid.unit for side in said)
        assert size in SIDES and size == (wanted or size)
    rows, columns = size or (1, CODES)
    for _ in range(rows):
        assert all(picture.start <= ids.pop(0) < picture.stop for _ in range(columns))
        assert not size or ids.pop(0) == picture.grammar.newline
    assert ids.pop(0) == picture.end_marker
    return size


def _check(vocab, row, ids, why):
    """Read the ids one after the other by the rules of the request; an IndexError is an image that was cut."""
    config, ids, count, images = row.config, list(ids), len(ids), 0
    most, grid = config.max_spans["image"], config.grids.get("image")
    ends = {vocab.eos, *config.stop_ids} | ({vocab.end_of_turn} if config.stop_at_turn_end else set())
    writes, draws, free = config.mode != "image", config.mode != "text", config.mode == "unrestricted"
    assert count <= row.remaining and vocab.pad not in ids
    ended = False
    if row.opened == IMAGE and not free:
        _read_image(vocab, ids, row.said, grid)
        images = 1
    while ids:
        assert not ended
        token = ids.pop(0)
        ended = token in ends
        if free:
            assert 0 <= token < vocab.size
        elif token == vocab.modalities[IMAGE].begin_marker:
            images += 1
            assert draws and images <= most
            assert ended or _read_image(vocab, ids, (0, 0), grid) is not None
        else:
            turn = {vocab.end_of_turn} if config.stop_at_turn_end else set()
            assert writes and (vocab.text.start <= token < vocab.text.stop or token in {vocab.eos} | turn)
    if ended:
        assert why == FinishReason.EOS
    elif writes:
        assert why == FinishReason.LENGTH and count == row.remaining
    else:
        assert why == (FinishReason.SPANS if images == most else FinishReason.LENGTH)
        room = row.remaining - count
        assert images == most or room < _span_length(vocab, grid or (2, 2))
    return images


@pytest.mark.parametrize("vocab", [VOCAB, GRIDS], ids=["fixed", "grid"])
def test_thousands_of_mixed_rows_from_random_logits_never_leave_the_grammar(vocab):
    rng, reasons, images = np.random.default_rng(7), set(), 0
    for batch in range(8):
        rows = [_random_row(rng, vocab, cuts=batch == 0) for _ in range(256)]
        state = grammar.start(
            vocab,
            [row.config for row in rows],
            np.array([row.remaining for row in rows]),
            np.array([row.opened for row in rows]),
            np.array([row.said for row in rows]),
        )
        state, tokens = _write(
            state, SamplingArrays.of([row.config for row in rows], vocab), jax.random.key(batch), vocab
        )
        counts = [row.remaining - int(left) for row, left in zip(rows, state.remaining, strict=True)]
        for row, ids, count, why in zip(rows, tokens.tolist(), counts, state.finish.tolist(), strict=True):
            images += _check(vocab, row, ids[:count], why)
            assert set(ids[count:]) <= {vocab.pad}
            reasons.add((row.config.mode, FinishReason(why).name))
    assert images > 1000
    assert reasons == {(mode, why) for mode in ("text", "interleaved", "unrestricted") for why in ("EOS", "LENGTH")} | {
        ("image", why) for why in ("EOS", "LENGTH", "SPANS")
    }


def test_a_further_fixed_modality_is_a_further_row_of_the_table():
    sound = ModalityConfig(name="sound", ids=2, length=2)
    table = text_and_image(image_codes=8, reserved=4, text_tokens=256, codes_per_image=CODES)
    vocab = Vocab.from_config(dataclasses.replace(table, modalities=(*table.modalities, sound)))
    row = vocab.modalities[2]
    assert vocab.modalities[:2] == VOCAB.modalities and row.start == VOCAB.size
    state, out = _start("sound", 9, vocab=vocab, max_spans={"sound": 1}), []
    while state.finish[0] == FinishReason.RUNNING:
        token = int(np.flatnonzero(np.asarray(allowed(state, vocab, vocab.size))[0])[-1])
        out.append(token)
        state = advance(state, np.array([token]), vocab)
    assert out == [row.begin_marker, row.stop - 1, row.stop - 1, row.end_marker]


def _image(codes=CODES):
    return [BOI, *[PICTURE.start] * codes, EOI]


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
        ([*_image()[:-1], PICTURE.start, EOI], [(IMAGE, 5, False), (IMAGE, 2, False)]),
        ([EOI, EOI], [(IMAGE, 1, False), (IMAGE, 1, False)]),
        ([BOI, WORD], [(IMAGE, 1, False), (TEXT, 1, True)]),
    ],
)
def test_spans_are_cut_at_markers_and_broken_images_are_reported(ids, expected):
    spans = split_spans(np.array(ids, np.int32), VOCAB)
    assert [(span.modality, len(span.ids), span.complete) for span in spans] == expected


def test_no_id_is_lost_in_any_stream():
    rng = np.random.default_rng(3)
    likely = np.array([BOI, EOI, PICTURE.start, PICTURE.start + 1, WORD, VOCAB.eos, VOCAB.end_of_turn])
    for _ in range(200):
        ids = rng.choice(likely, size=rng.integers(1, 40))
        assert np.array_equal(np.concatenate([span.ids for span in split_spans(ids, VOCAB)]), ids)
