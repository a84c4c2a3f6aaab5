"""Tables of modalities other than text and images: layouts, spans, records and bundles of any rows, and what no table can say."""

import concurrent.futures
import dataclasses
import json

import jax
import numpy as np
import pytest

from chameleon_jax.configs import (
    ImageConfig,
    ModalityConfig,
    PretrainConfig,
    SourceConfig,
    TokenizeConfig,
    VocabConfig,
    VQConfig,
    text_and_image,
)
from chameleon_jax.data.shard_tokens import tokenize_records
from chameleon_jax.data.sources import Reject, read_documents
from chameleon_jax.errors import ConfigError, DataError, TokenizerError
from chameleon_jax.tokenizers import vqgan
from chameleon_jax.tokenizers.bundle import TokenizerBundle
from chameleon_jax.tokenizers.documents import Document, Segment, Span, assemble, order_pair
from chameleon_jax.tokenizers.pictures import PictureCodec
from chameleon_jax.tokenizers.text import train_bpe
from chameleon_jax.training.pretraining import PretrainTask
from chameleon_jax.vocab import FixedSpan, GridSpan, Vocab

WORDS = ModalityConfig(name="words", ids=300, span="free", codec="bpe", may_cut=True)
DRAWINGS = ModalityConfig(name="drawings", ids=16, span="fixed", length=16, codec="vqgan")
GRIDS = ModalityConfig(name="picture", ids=16, span="grid", length=24, max_grids=4, grid_unit=2, codec="vqgan")
SOUND = ModalityConfig(name="sound", ids=32, span="fixed", length=5)
MOVES = ModalityConfig(name="moves", ids=64, span="free")

TABLES = {
    "text alone": VocabConfig(modalities=(WORDS,), reserved=4),
    "words and pictures": VocabConfig(modalities=(WORDS, DRAWINGS), reserved=4),
    "four rows": VocabConfig(modalities=(WORDS, GRIDS, SOUND, MOVES), reserved=12, added=("<a>", "<b>")),
    "two grids": VocabConfig(modalities=(WORDS, GRIDS, dataclasses.replace(GRIDS, name="sketch")), reserved=12),
    "no codec but text": VocabConfig(modalities=(WORDS, MOVES, SOUND), reserved=4, added=("<a>",)),
}


def owned(modality):
    """All ids of a row, from the definitions of its parts."""
    ids = list(range(modality.start, modality.stop))
    if modality.marked:
        ids += [modality.begin_marker, modality.end_marker]
    if isinstance(grid := modality.grammar, GridSpan):
        ids += [grid.newline, *(grid.size_base + n for n in range(grid.max_units + 1))]
    return ids


@pytest.mark.parametrize("case", TABLES)
def test_every_id_belongs_to_one_thing_and_none_is_left_over(case):
    config = TABLES[case]
    vocab = Vocab.from_config(config)
    assert vocab.names == config.names and [m.stop - m.start for m in vocab.modalities] == [
        row.ids for row in config.modalities
    ]
    ids = [vocab.bos, vocab.pad, vocab.eos, vocab.unk, vocab.end_of_turn, vocab.placeholder]
    ids += [i for modality in vocab.modalities for i in owned(modality)]
    ids += range(vocab.size - len(config.added), vocab.size)
    assert len(set(ids)) == len(ids)
    # What is left are reserved ids: as many as the table says, but for those that a role took.
    left = sorted(set(range(vocab.size)) - set(ids))
    first = next((m for m in vocab.modalities if m.marked), None)
    low = 4 + (len(range(first.start, first.stop)) + 2 if first else 0)
    taken = 2 + (isinstance(first.grammar, GridSpan) and 2 + first.grammar.max_units if first else 0)
    assert len(left) == config.reserved - taken and all(low <= i < low + config.reserved for i in left)
    assert vocab.text.start == low + config.reserved == len(vocab.special_names())
    assert max(ids) == vocab.size - 1 and min(ids) == 0


@pytest.mark.parametrize("case", TABLES)
def test_numpy_and_a_traced_program_agree_whose_each_id_is(case):
    vocab = Vocab.from_config(TABLES[case])
    ids = np.arange(vocab.size)
    rows = vocab.modality_of(ids)
    assert rows.dtype == np.int8
    np.testing.assert_array_equal(jax.jit(vocab.modality_of)(ids), rows)
    for row, modality in enumerate(vocab.modalities[1:], 1):
        counted = set(owned(modality)) - {modality.begin_marker, modality.end_marker}
        assert set(np.flatnonzero(rows == row)) == counted
    assert rows[vocab.text.start] == rows[vocab.bos] == rows[-1 if TABLES[case].added else vocab.eos] == 0


def codes_for(modality, random):
    count = modality.stop - modality.start
    if isinstance(modality.grammar, FixedSpan):
        return random.integers(0, count, modality.grammar.length)
    shape = (2, 6) if isinstance(modality.grammar, GridSpan) else random.integers(0, 9, 1)
    return random.integers(0, count, shape)


@pytest.mark.parametrize("case", TABLES)
def test_codes_come_back_from_the_ids_of_a_span(case):
    vocab, random = Vocab.from_config(TABLES[case]), np.random.default_rng(0)
    for modality in vocab.modalities:
        codes = codes_for(modality, random)
        ids = modality.span(codes)
        content = ids[modality.holds(ids)]
        np.testing.assert_array_equal(modality.codes(content).reshape(codes.shape), codes)
        assert set(ids) <= set(owned(modality))
        if isinstance(grid := modality.grammar, GridSpan):
            assert len(ids) == grid.length(2, 6)
            assert [grid.unit * (i - grid.size_base) for i in ids[1:3]] == [2, 6]
            assert (ids[3:-1].reshape(2, 7)[:, -1] == grid.newline).all()
        elif modality.marked:
            assert (ids[0], ids[-1], len(ids)) == (modality.begin_marker, modality.end_marker, len(codes) + 2)


def test_a_row_at_the_end_moves_no_id_and_added_ids_stay_last():
    before = TABLES["four rows"]
    extra = ModalityConfig(name="extra", ids=10, span="fixed", length=2)
    for row in (extra, dataclasses.replace(extra, span="free", length=0), dataclasses.replace(GRIDS, name="extra")):
        after = dataclasses.replace(before, modalities=(*before.modalities, row))
        old, new = Vocab.from_config(before), Vocab.from_config(after)
        assert new.modalities[:4] == old.modalities
        assert (new.end_of_turn, new.placeholder) == (old.end_of_turn, old.placeholder)
        assert new.modalities[4].start == old.size - 2 and new.size > old.size
        assert new.size - 2 == max(owned(new.modalities[4])) + 1
        assert new.fingerprint() != old.fingerprint()


def test_training_and_sampling_settings_change_no_layout():
    table = TABLES["four rows"]
    other = table.with_row("sound", loss_weight=0.5, may_cut=True).with_row(
        "moves", sampling=dataclasses.replace(MOVES.sampling, temperature=0.1)
    )
    assert other != table and other.layout() == table.layout()
    assert Vocab.from_config(other).fingerprint() == Vocab.from_config(table).fingerprint()
    assert Vocab.from_config(table.with_row("sound", length=6)).fingerprint() != Vocab.from_config(table).fingerprint()


def test_chameleons_table_under_other_names_has_chameleons_ids():
    plain = text_and_image(image_codes=16, reserved=4, text_tokens=300, codes_per_image=16)
    ours, theirs = Vocab.from_config(TABLES["words and pictures"]), Vocab.from_config(plain)
    assert ours.special_names() == theirs.special_names() and ours.size == theirs.size
    for mine, its in zip(ours.modalities, theirs.modalities, strict=True):
        assert dataclasses.replace(mine, name=its.name) == its


def test_documents_hold_spans_of_every_row():
    vocab = Vocab.from_config(TABLES["four rows"])
    parts = {"words": [5], "picture": [[1, 2], [3, 4]], "sound": [0, 1, 2, 3, 31], "moves": [63, 0]}
    order = ["moves", "moves", "sound", "words", "picture"]
    document = Document("d", "s", tuple(Segment(name, None) for name in order))
    made = assemble(document, [np.array(parts[name]) for name in order], vocab)
    # Free spans beside each other are one; those with markers are not.
    assert made.spans == (
        Span(0, 1, True),
        Span(3, 4, True),
        Span(2, 7, True),
        Span(0, 1, True),
        Span(1, 10, True),
        Span(0, 1, True),
    )
    moves = vocab.modalities[3].start
    assert made.ids[1:5].tolist() == [moves + 63, moves, moves + 63, moves]
    by_span = np.repeat([span.modality for span in made.spans], [span.length for span in made.spans])
    marked = np.isin(made.ids, [i for m in vocab.marked.values() for i in (m.begin_marker, m.end_marker)])
    np.testing.assert_array_equal(vocab.modality_of(made.ids)[~marked], by_span[~marked])


def test_of_a_pair_the_row_that_stands_later_comes_first_as_often_as_asked():
    vocab = Vocab.from_config(TABLES["four rows"])
    pair = (Segment("moves", (1,)), Segment("sound", (1,) * 5))
    for given in (pair, pair[::-1]):
        document = Document("s/1", "s", given)
        assert order_pair(document, vocab, 0, 1.0).segments == pair
        assert order_pair(document, vocab, 0, 0.0).segments == pair[::-1]


# --- records ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def numbers():
    """A tokenizer without a codec but text's."""
    text = train_bpe(["a few words"], TABLES["no codec but text"])
    return TokenizerBundle(vocab_config=text.vocab_config, text=text, codecs={})


def read(folder, records, vocab):
    (folder / "r.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return list(read_documents(SourceConfig(name="s", kind="jsonl", path=str(folder / "r.jsonl")), vocab=vocab))


def tokenized(records, bundle, **settings):
    source = SourceConfig(name="s", kind="jsonl", path="unread.jsonl")
    config = TokenizeConfig(sources=(source,), tokenizer="unread", later_first_probability=0.0, **settings)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        return tokenize_records(records, bundle, config, pool, lambda rejected: None)


def test_records_name_modalities_by_their_fields(numbers, tmp_path):
    records = [
        {"words": "a", "moves": [0, 63]},
        {"text": "a", "sound": [1, 2, 3, 4, 5]},  # `text` is the first row, whatever it is called
        {"moves": [7]},
        {"segments": [{"moves": [1]}, {"words": "a", "loss": False}, {"sound": [0] * 5}, {"text": "a"}]},
    ]
    documents = read(tmp_path, records, numbers.vocab_config)
    assert [[(s.modality, s.data) for s in d.segments] for d in documents] == [
        [("words", "a"), ("moves", (0, 63))],
        [("words", "a"), ("sound", (1, 2, 3, 4, 5))],
        [("moves", (7,))],
        [("moves", (1,)), ("words", "a"), ("sound", (0,) * 5), ("words", "a")],
    ]
    made = tokenized(documents, numbers)
    assert not made.rejects
    vocab, (a,) = numbers.vocab, numbers.text.encode("a")
    moves, sound = vocab.modalities[1:]
    assert made.documents[0].ids.tolist() == [vocab.bos, a, moves.start, moves.start + 63, vocab.eos]
    assert made.documents[1].ids.tolist() == [vocab.bos, a, *sound.span([1, 2, 3, 4, 5]), vocab.eos]


BAD_RECORDS = {
    "a picture": ({"image": "a.png"}, "field 'image', but the tokenizer has no modality of pictures"),
    "a picture among texts": ({"texts": ["a", None], "images": [None, "a.png"]}, "no modality of pictures"),
    "a picture as a segment": ({"segments": [{"image": "a.png"}]}, "either 'text' or 'words' or 'moves' or 'sound'"),
    "no field that is known": ({"video": [1]}, "none of the known fields"),
    "a text for numbers": ({"moves": "1 2"}, "field 'moves' must be a list of whole numbers: '1 2'"),
    "halves": ({"moves": [1, 2.5]}, "field 'moves' must be a list of whole numbers"),
    "truth values": ({"moves": [True]}, "field 'moves' must be a list of whole numbers"),
    "numbers for words": ({"words": [1]}, "field 'words' is a list, not a string"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_RECORDS)
def test_a_record_that_does_not_fit_the_table_is_a_reject(case, numbers, tmp_path):
    record, reason = BAD_RECORDS[case]
    (found,) = read(tmp_path, [record], numbers.vocab_config)
    assert isinstance(found, Reject) and reason in found.reason and "\n" not in found.reason, found


BAD_DATA = {
    "a number above": ([Segment("moves", (3, 64))], "'moves' has numbers 3..64, which must be in 0..63"),
    "a number below": ([Segment("sound", (0, 1, 2, 3, -1))], "'sound' has numbers -1..3, which must be in 0..31"),
    "a span too short": ([Segment("sound", (1, 2))], "'sound' has 2 numbers, a span has 5"),
    "a span too long": ([Segment("sound", (0,) * 5), Segment("sound", (0,) * 6)], "'sound' has 6 numbers, a span has 5"),
    "a foreign modality": ([Segment("video", b"")], "the tokenizer has no modality 'video'; it has words, moves, sound"),
    "more spans than allowed": ([Segment("sound", (0,) * 5)] * 3, "document has 3 of 'sound', max_spans is 2"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_DATA)
def test_data_that_do_not_fit_the_table_cost_their_record_alone(case, numbers):
    segments, reason = BAD_DATA[case]
    good = Document("s/good", "s", (Segment("moves", (1,)),))
    made = tokenized([good, Document("s/bad", "s", tuple(segments)), good], numbers, max_spans={"sound": 2})
    assert len(made.documents) == 2
    assert made.rejects == [Reject("s", "bad", reason)]


# --- bundles ---------------------------------------------------------------------------------------------------------

SMALL = {"channels": 8, "channel_multipliers": (1, 2), "res_blocks": 1, "latent_channels": 8, "norm_groups": 4}


def codec_of(resolution=8, codes=16, seed=0):
    """A codec of pictures with random weights, without compiling the initialisers."""
    config, random = VQConfig(resolution=resolution, codes=codes, embed_dim=4, **SMALL), np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda key: vqgan.init(key, config), jax.random.key(0))
    params = jax.tree.map(lambda leaf: random.normal(0, 0.3, leaf.shape).astype(leaf.dtype), shapes)
    return PictureCodec(config=ImageConfig(resolution=resolution), vqgan=vqgan.Codec(params=params, config=config))


def bundle_of(table, **codecs):
    text = train_bpe(["a few words"], table)
    return TokenizerBundle(vocab_config=text.vocab_config, text=text, codecs=codecs)


SKETCHES = ModalityConfig(name="sketches", ids=8, span="fixed", length=4, codec="vqgan")
TWO = VocabConfig(modalities=(WORDS, DRAWINGS, MOVES, SKETCHES), reserved=4)


@pytest.fixture(scope="module")
def two():
    return bundle_of(TWO, drawings=codec_of(), sketches=codec_of(resolution=4, codes=8, seed=1))


def test_two_codecs_of_one_kind_are_kept_apart(two, tmp_path):
    two.save(tmp_path)
    assert (tmp_path / "vqgan.json").is_file() and (tmp_path / "sketches" / "vqgan.json").is_file()
    loaded = TokenizerBundle.load(tmp_path)
    assert loaded.vocab_config == two.vocab_config and loaded.fingerprint() == two.fingerprint()
    for name, side in (("drawings", 8), ("sketches", 4)):
        pixels = np.random.default_rng(0).uniform(-1, 1, (2, side, side, 3)).astype(np.float32)
        codes = loaded.codecs[name].encode(pixels)
        np.testing.assert_array_equal(codes, two.codecs[name].encode(pixels))
        assert codes.max() < loaded.codecs[name].codes and codes.shape == (2, loaded.codecs[name].length)
    assert loaded.pictures is loaded.codecs["drawings"]  # the first of its kind
    swapped = dataclasses.replace(two, codecs=two.codecs | {"sketches": codec_of(resolution=4, codes=8, seed=2)})
    assert swapped.fingerprint() != two.fingerprint()


@pytest.mark.parametrize("name", ["images.json", "sketches/images.json"])
def test_a_lost_part_of_either_codec_is_named(two, tmp_path, name):
    two.save(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(TokenizerError, match=rf"lacks {name}: make it with"):
        TokenizerBundle.load(tmp_path)


def test_text_alone_makes_a_bundle(tmp_path):
    alone = bundle_of(TABLES["text alone"])
    alone.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tokenizer.json", "vocab.json"]
    loaded = TokenizerBundle.load(tmp_path)
    assert loaded.fingerprint() == alone.fingerprint() and loaded.pictures is None and loaded.codecs == {}
    assert loaded.vocab.size == 4 + 4 + loaded.vocab_config.text.ids
    assert loaded.text.decode(loaded.text.encode("a few words")) == "a few words"


def test_codes_of_any_modality(two):
    np.testing.assert_array_equal(two.codes("words", "a few"), two.text.encode("a few") - two.vocab.text.start)
    assert two.codes("moves", (3, 0)).tolist() == [3, 0]
    with pytest.raises(DataError, match="'moves' must be a list of whole numbers"):
        two.codes("moves", "30")
    with pytest.raises(TokenizerError, match=r"no modality 'sketch' \(did you mean 'sketches'\?\)"):
        two.codes("sketch", b"")


MISFITS = {
    "a codec is missing": ({"drawings": codec_of}, "wants codecs of drawings, sketches, there are those of drawings"),
    "a codec too many": (
        {"drawings": codec_of, "sketches": lambda: codec_of(4, 8), "moves": codec_of},
        "there are those of drawings, moves, sketches",
    ),
    "another number of codes": (
        {"drawings": codec_of, "sketches": lambda: codec_of(4, 9)},
        "'sketches' has 8 codes in the table but 9 in its codec",
    ),
    "another length": (
        {"drawings": codec_of, "sketches": lambda: codec_of(8, 8)},
        "'sketches' has 4 codes in a span in the table but 16 in its codec",
    ),
}


@pytest.mark.parametrize("case", MISFITS)
def test_codecs_that_contradict_the_table_are_refused(case, two, tmp_path):
    codecs, reason = MISFITS[case]
    wrong = dataclasses.replace(two, codecs={name: make() for name, make in codecs.items()})
    with pytest.raises(TokenizerError, match=reason) as caught:
        wrong.save(tmp_path)
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


# --- tables that cannot be -------------------------------------------------------------------------------------------


def with_row(**changes):
    return lambda: ModalityConfig(**{"name": "x", "ids": 4, "span": "fixed", "length": 2} | changes)


def table(*rows, **changes):
    return lambda: VocabConfig(modalities=rows, **{"reserved": 12} | changes)


WRONG = {
    "a name with a space": (with_row(name="a b"), "the name of a modality is letters, digits and _, no digit first, got 'a b'"),
    "a name with a slash": (with_row(name="../x"), "letters, digits and _"),
    "no name": (with_row(name=""), "letters, digits and _, no digit first, got ''"),
    "the name of a mode": (with_row(name="interleaved"), "cannot be called 'interleaved'"),
    "the name of the added ids": (with_row(name="added"), "cannot be called 'added'"),
    "no ids": (with_row(ids=0), "'x': ids must be at least 1, got 0"),
    "a negative weight": (with_row(loss_weight=-1.0), "loss_weight must be finite and not negative"),
    "an endless weight": (with_row(loss_weight=float("inf")), "loss_weight must be finite"),
    "an unknown codec": (with_row(codec="mp3"), "one of '', 'bpe', 'vqgan', 'sound', 'patches', got 'mp3'"),
    "an unknown span": (with_row(span="ring"), "one of 'free', 'fixed', 'grid', got 'ring'"),
    "a fixed span without length": (with_row(length=0), "length of a span must be at least 1, got 0"),
    "a free span with a length": (with_row(span="free"), "a free span has no length, got 2"),
    "text between markers": (with_row(codec="bpe", ids=256), "text has free spans, not 'fixed' ones"),
    "text of few bytes": (with_row(codec="bpe", ids=255, span="free", length=0), "at least 256 ids .all bytes., got 255"),
    "a grid of numbers": (with_row(span="grid", length=16), "a grid span needs a codec"),
    "no rows": (table(), "modalities is empty"),
    "no text": (table(SOUND, WORDS), "the first modality is that of text, with codec 'bpe'; got ''"),
    "two texts": (table(WORDS, dataclasses.replace(WORDS, name="more")), "words, more all have codec 'bpe'"),
    "one name twice": (table(WORDS, SOUND, SOUND), "two modalities have one name: words, sound, sound"),
    "an added id called as a row": (table(WORDS, SOUND, added=("sound",)), "added id cannot be called 'sound'"),
    "too few reserved ids": (table(WORDS, SOUND, reserved=1), "reserved must be at least 2"),
    "too few for a grid": (table(WORDS, GRIDS, reserved=7), "up to 4 units needs 8 reserved ids .* got 7"),
    "a row that is none": (lambda: TABLES["four rows"].row("picturs"), r"no modality 'picturs' \(did you mean 'picture'\?\)"),
    "a change of a row that is none": (lambda: TWO.with_row("sound", ids=3), "no modality 'sound'.* there are words, drawings"),
    "a value for a row that is none": (lambda: TWO.by_row({"sketch": 1.0}, (1.0,) * 4), "did you mean 'sketches'"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_tables_that_cannot_be_are_refused_in_one_line(case):
    make, reason = WRONG[case]
    with pytest.raises(ConfigError, match=reason) as caught:
        make()
    assert "\n" not in str(caught.value)


def pretraining(weights):
    values = {
        "model": {},
        "data": {"stores": [{"path": "unread"}]},
        "train": {"steps": 1, "batch_size": 8},
        "loss": {"weights": weights},
    }
    return PretrainTask(
        config=PretrainConfig.from_dict(values), vocab=TABLES["four rows"].with_row("moves", loss_weight=0.25)
    )


def test_loss_weights_are_those_of_the_run_then_those_of_the_table():
    assert pretraining({}).modality_weights == (1.0, 1.0, 1.0, 0.25)
    assert pretraining({"sound": 0.5, "words": 0.0}).modality_weights == (0.0, 1.0, 0.5, 0.25)
    with pytest.raises(ConfigError, match=r"no modality 'sounds' \(did you mean 'sound'\?\)"):
        _ = pretraining({"sounds": 1.0}).modality_weights
    with pytest.raises(ConfigError, match="nothing to learn"):
        _ = pretraining(dict.fromkeys(("words", "picture", "sound", "moves"), 0.0)).modality_weights
