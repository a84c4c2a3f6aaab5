"""Words, moves, beeps, drawings and calls: a table without text or image, from prompts to outputs."""

import io

import numpy as np
import pytest
from PIL import Image

from chameleon_jax.configs import EngineConfig, GenerationConfig, SamplingConfig
from chameleon_jax.errors import ChameleonError, DataError, GenerationError
from chameleon_jax.generation.api import Generator
from chameleon_jax.generation.engine import generate
from chameleon_jax.generation.prompt import SpanOutput, TextOutput, build_request, encode_turns, place, read_output
from chameleon_jax.generation.reader import OutputReader, Pieces, TextPiece
from chameleon_jax.tokenizers.documents import Segment
from chameleon_jax.tokenizers.waveforms import to_wav
from tests.tiny_run import SOUND, make_other_run

NAMES = ("words", "moves", "beeps", "drawings", "calls")
RANDOM = dict.fromkeys(NAMES, SamplingConfig(temperature=50.0, top_p=1.0))
BEEPS, MOVES = (1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2), (4, 0, 0, 3)


@pytest.fixture(scope="module")
def run():
    return make_other_run()


def drawing_file():
    file = io.BytesIO()
    Image.new("RGB", (8, 24), "red").save(file, "PNG")
    return file.getvalue()


def call_file():
    tone = 0.3 * np.sin(np.arange(SOUND.samples) * 0.7)
    return to_wav(tone.astype(np.float32), SOUND.rate)


def parts_of_all():
    data = {"beeps": BEEPS, "drawings": drawing_file(), "moves": MOVES, "calls": call_file()}
    return ["a red ", *[Segment(name, item) for name, item in data.items()], "heart"]


def plain(outputs):
    """What can be compared of an output: words, or name and numbers."""
    return [o.text if isinstance(o, TextOutput) else (o.modality, np.asarray(o.codes).tolist()) for o in outputs]


def test_a_prompt_has_the_spans_of_the_table_and_is_read_back(run):
    bundle, vocab = run.bundle, run.bundle.vocab
    words, moves, beeps, drawings, calls = vocab.modalities
    ids = encode_turns([parts_of_all()], bundle)
    drawing, call = bundle.codes("drawings", drawing_file()), bundle.codes("calls", call_file())
    assert drawing.shape[0] > drawing.shape[1] and call.shape == (8,)
    by_hand = [
        [vocab.bos],
        bundle.text.encode("a red "),
        [beeps.begin_marker, *(beeps.start + code for code in BEEPS), beeps.end_marker],
        drawings.span(drawing),
        [moves.start + code for code in MOVES],
        calls.span(call),
        bundle.text.encode("heart"),
    ]
    assert ids.tolist() == np.concatenate(by_hand).tolist() and words is vocab.text
    outputs = read_output(ids, bundle)
    assert plain(outputs) == [
        "a red ",
        ("beeps", list(BEEPS)),
        ("drawings", drawing.tolist()),
        ("moves", list(MOVES)),
        ("calls", call.tolist()),
        "heart",
    ]
    assert [getattr(output, "item", None) is None for output in outputs] == [True, True, False, True, False, True]
    assert outputs[4].item.shape == (SOUND.samples,)
    turns = encode_turns([["a"], [Segment("moves", MOVES)], ["b"]], bundle, format="chat")
    assert (turns == vocab.end_of_turn).sum() == 3 and moves.holds(turns).sum() == len(MOVES)


def test_places_have_the_names_of_the_table(run):
    first, second = Segment("moves", (1, 2)), Segment("beeps", BEEPS)
    assert place("<beeps> then <moves>, no <image>", [first, second]) == [second, " then ", first, ", no <image>"]
    with pytest.raises(GenerationError, match="1 <moves> placeholders and 2 of 'moves'"):
        place("<moves>", [first, first])


@pytest.mark.parametrize(
    "segment, told",
    [
        (Segment("beeps", (1, 2)), "a span of 'beeps' has codes of shape"),
        (Segment("beeps", (10,) * 12), "'beeps' has numbers 10..10, which must be in 0..9"),
        (Segment("moves", (0, -1)), "'moves' has numbers -1..0"),
        (Segment("moves", "left"), "'moves' must be a list of whole numbers"),
        (Segment("calls", b"RIFF"), "not a WAV file"),
        (Segment("drawings", b"abc"), "."),
        (Segment("drawnigs", b""), r"did you mean 'drawings'\?"),
    ],
)
def test_data_that_cannot_be_used_are_refused_in_a_line(run, segment, told):
    with pytest.raises(ChameleonError, match=told) as error:
        encode_turns([[segment]], run.bundle)
    assert "\n" not in str(error.value)
    assert not isinstance(segment.data, bytes) or segment.modality == "drawnigs" or isinstance(error.value, DataError)


def outputs_of(run, mode, count=8, **settings):
    prompt = encode_turns([["a red heart"]], run.bundle)
    config = GenerationConfig(**{"mode": mode, "max_tokens": 120, "sampling": RANDOM} | settings)
    return generate(run.params, run.model, run.bundle.vocab, [prompt] * count, config)


SPANS = ("beeps", "drawings", "calls")


@pytest.mark.parametrize(
    "mode", ["words", "moves", "words+moves", *SPANS, "beeps+calls", "moves+drawings", "interleaved"]
)
def test_every_mode_writes_what_it_names_and_whole_spans(run, mode):
    allowed = set(NAMES) if mode == "interleaved" else set(mode.split("+"))
    seen = set()
    for output in outputs_of(run, mode, max_spans={"beeps": 2}):
        made = read_output(output.ids, run.bundle)
        names = ["words" if isinstance(part, TextOutput) else part.modality for part in made]
        assert set(names) <= allowed and names.count("beeps") <= 2
        spans = [part for part in made if isinstance(part, SpanOutput)]
        assert all(part.codes is not None for part in spans)
        assert all(part.codes.shape == (12,) for part in spans if part.modality == "beeps")
        assert all(
            part.item.shape[:2] == tuple(4 * n for n in part.codes.shape)
            for part in spans
            if part.modality == "drawings"
        )
        assert allowed & {"words", "moves"} or output.finish_reason in ("spans", "length")
        seen |= set(names)
    assert seen == allowed or (mode == "interleaved" and {"words", "moves"} < seen)


def test_without_restrictions_every_modality_comes_and_nothing_fails(run):
    ids = np.concatenate([output.ids for output in outputs_of(run, "unrestricted", max_tokens=150)])
    assert {run.bundle.vocab.names[row] for row in run.bundle.vocab.modality_of(ids)} == set(NAMES)
    assert read_output(ids, run.bundle)


def test_sampling_and_sizes_are_those_of_the_modality(run):
    greedy = RANDOM | {"moves": SamplingConfig(temperature=0.0)}
    same = outputs_of(run, "moves", sampling=greedy, max_tokens=30)
    assert len({output.ids.tobytes() for output in same}) == 1
    assert len({output.ids.tobytes() for output in outputs_of(run, "moves", max_tokens=30)}) == 8
    tall = outputs_of(run, "drawings", grids={"drawings": (4, 2)}, max_spans={"drawings": 1}, count=2)
    assert all(read_output(output.ids, run.bundle)[0].codes.shape == (4, 2) for output in tall)


@pytest.mark.parametrize(
    "settings, told",
    [
        ({"mode": "drawigns"}, "no mode 'drawigns' (did you mean 'drawings'?)"),
        ({"mode": "words+move"}, "no mode 'move' (did you mean 'moves'?)"),
        ({"mode": "image"}, "no mode 'image'; it has words, moves, beeps, drawings, calls, interleaved, unrestricted"),
        ({"mode": "words", "max_spans": {"beep": 1}}, "no modality 'beep' (did you mean 'beeps'?)"),
        ({"mode": "words", "max_spans": {"moves": 1}}, "max_spans of 'moves'"),
        ({"mode": "beeps", "grids": {"beeps": (2, 2)}}, "'beeps' of this vocabulary has no spans of many sizes"),
        ({"mode": "beeps", "max_tokens": 13}, "a span of 'beeps' needs 14"),
        ({"mode": "beeps+calls", "max_tokens": 9}, "a span of 'calls' needs 10"),
    ],
)
def test_what_the_table_has_not_is_told(run, settings, told):
    with pytest.raises(GenerationError) as error:
        outputs_of(run, settings.pop("mode"), **settings)
    assert told in str(error.value) and "\n" not in str(error.value)


def joined(pieces):
    """Whole pieces of a stream as `plain` has them: words in a row are one, and so are the codes of a run."""
    out, last = [], None
    for piece in pieces:
        if isinstance(piece, TextPiece):
            if last == "text":
                out[-1] += piece.text
            else:
                out.append(piece.text)
            last = "text"
        elif not piece.partial:
            codes, key = piece.codes.tolist(), (piece.modality, piece.index)
            if last == key:
                out[-1][1].extend(codes)
            else:
                out.append((piece.modality, codes))
            assert piece.done == np.size(out[-1][1])
            last = key
    return out


def merged(outputs):
    """Without broken spans, words in a row as one."""
    out = []
    for item in plain(outputs):
        if isinstance(item, str) and out and isinstance(out[-1], str):
            out[-1] += item
        elif isinstance(item, str) or item[1] is not None:
            out.append(item)
    return out


@pytest.mark.parametrize("mode", ["interleaved", "words+moves", "beeps+drawings", "unrestricted"])
@pytest.mark.parametrize("step", [1, 7, 1000])
def test_a_stream_is_what_the_whole_output_is(run, mode, step):
    vocab, pieces = run.bundle.vocab, Pieces(run.bundle)
    moves = vocab.modalities[1]
    made = [output.ids for output in outputs_of(run, mode, max_tokens=150)]
    cut_run = [moves.span([1, 2]), [vocab.end_of_turn], moves.span([3]), encode_turns([parts_of_all()], run.bundle)]
    made.append(np.concatenate(cut_run))
    for ids in made:
        reader, read = OutputReader(pieces, partial_every=4), []
        for at in range(0, len(ids), step):
            read += reader.feed(ids[at : at + step])
        assert joined(read + reader.finish()) == merged(read_output(ids, run.bundle))
        assert sum(reader.tokens.values()) == len(ids)
        assert reader.tokens["moves"] == moves.holds(ids).sum()


def test_a_token_view_says_kind_and_modality(run):
    ids = encode_turns([parts_of_all()], run.bundle)
    shown = Pieces(run.bundle).describe(ids)
    kinds = {token["modality"]: token["kind"] for token in shown}
    assert kinds == {
        "marker": "marker", "words": "text", "moves": "codes", "beeps": "codes", "drawings": "image", "calls": "audio",
    }  # fmt: skip
    assert [token["piece"] for token in shown if token["modality"] == "moves"] == [str(code) for code in MOVES]
    assert {"[begin beeps]", "[end beeps]", "[begin calls]", "[row]"} <= {token["piece"] for token in shown}


@pytest.fixture(scope="module")
def generator(run):
    with Generator(run, EngineConfig(slots=4, block=4)) as generator:
        yield generator


def test_python_takes_and_gives_data_of_any_modality(generator):
    picture = Image.new("RGB", (8, 24), "red")
    prompt = ["a ", picture, Segment("moves", MOVES), Segment("calls", call_file()), "?"]
    config = GenerationConfig(
        mode="beeps+drawings+calls", max_tokens=120, sampling=RANDOM, max_spans=dict.fromkeys(SPANS, 1)
    )
    answer = generator.generate(prompt, config)
    assert len(answer) == 3
    by_name = {"drawings" if isinstance(part, Image.Image) else part.modality: part for part in answer}
    assert by_name["beeps"].codes.shape == (12,) and by_name["beeps"].item is None
    assert by_name["calls"].item.shape == (SOUND.samples,)
    request = build_request(["a ", Segment("drawings", drawing_file())], generator.bundle, config)
    assert request.prompt.tolist() == generator._request(["a ", picture], config, {}).prompt.tolist()
    pieces = list(generator.stream(prompt, config, partial_every=4))
    assert any(piece.partial for piece in pieces)
    whole = [piece.data for piece in pieces if not piece.partial]
    for ours, theirs in zip(whole, answer, strict=True):
        same = np.asarray(ours) if isinstance(ours, Image.Image) else ours.codes
        assert np.array_equal(same, np.asarray(theirs) if isinstance(theirs, Image.Image) else theirs.codes)


def test_a_run_without_markers_streams_in_pieces(generator):
    config = GenerationConfig(mode="moves", max_tokens=30, sampling=RANDOM)
    (whole,) = generator.generate(["a"], config)
    pieces = [piece.data.codes for piece in generator.stream(["a"], config)]
    assert len(pieces) > 1 and np.concatenate(pieces).tolist() == whole.codes.tolist()


def test_a_picture_has_the_size_that_is_asked_for(generator):
    config = GenerationConfig(mode="drawings", max_tokens=60, max_spans={"drawings": 1})
    (picture,) = generator.generate(["a"], config, format="lumina", image_size=(8, 16))
    assert picture.size == (8, 16)
