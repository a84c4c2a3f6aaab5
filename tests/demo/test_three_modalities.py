"""Digits as words, pictures and sounds: documents that pair them, and the whole way from data to a generated sound."""

import json

import numpy as np
import pytest

from chameleon_jax import gin_utils
from chameleon_jax.configs import GenerationConfig, PretrainConfig, TokenizeConfig, TrainTokenizerConfig
from chameleon_jax.demo import digit_pairs, digits, directions, espeak, spoken_digits, three_modalities
from chameleon_jax.demo.digit_pairs import DIRECTIONS
from chameleon_jax.tokenizers.documents import Document, Segment, order_pair
from chameleon_jax.vocab import Vocab

synthesised = pytest.mark.skipif(not espeak.available(), reason="needs the extra [demo]")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A few voices, and the pictures without their moved copies."""
    folder = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spoken_digits, "VOICES", ("m1", "f2"))
        patch.setattr(spoken_digits, "HELD_OUT_VOICES", ("f4",))
        patch.setattr(digits, "COPIES", 1)
        patch.setattr(digit_pairs, "TAKES", 5)
        digit_pairs.write(folder, documents={"train": 300, "heldout": 60})
    return folder


def _records(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


@synthesised
def test_documents_pair_forms_of_one_digit_in_all_orders(data):
    labels = {}
    for kind, field in (("drawn", "image"), ("spoken", "sound")):
        for part in ("train", "heldout"):
            labels |= {f"{kind}/{r[field]}": (r["label"], part) for r in _records(data / kind / f"{part}.jsonl")}
    for part in ("train", "heldout"):
        orders, losses = set(), set()
        for record in _records(data / f"{part}.jsonl"):
            segments = [next(iter(segment.items())) for segment in record["segments"]]
            losses.add(tuple(segment.get("loss", True) for segment in record["segments"]))
            said = {digits.read_label(value) if form == "text" else labels[value][0] for form, value in segments}
            assert len(said) == 1
            assert all(form == "text" or labels[value][1] == part for form, value in segments)
            orders.add(tuple(form for form, _ in segments))
        assert orders == set(DIRECTIONS)
        assert losses == {(False, True), (True, True)}


def test_a_pair_of_which_one_is_given_keeps_its_order():
    table = gin_utils.load(
        TrainTokenizerConfig, ["gin_configs/runs/three_modalities_tokenizer.gin"], ["DATA = 'data'"]
    ).config.vocab
    vocab = Vocab.from_config(table)
    for first, second in DIRECTIONS:
        given = tuple(
            Document(f"d/{n}", "d", (Segment(first, b"", loss=False), Segment(second, b""))) for n in range(20)
        )
        assert all(order_pair(document, vocab, 0, 0.5) is document for document in given)
        free = [Document(f"d/{n}", "d", (Segment(first, b""), Segment(second, b""))) for n in range(20)]
        assert len({order_pair(document, vocab, 0, 0.5).segments[0].modality for document in free}) == 2


@synthesised
@pytest.mark.slow
def test_from_data_to_a_generated_sound(data, tmp_path):
    from chameleon_jax.data.pipeline import tokenize
    from chameleon_jax.generation.engine import generate
    from chameleon_jax.generation.loading import load_run
    from chameleon_jax.generation.prompt import encode_turns, read_output
    from chameleon_jax.tokenizer_training.bundle import train_bundle
    from chameleon_jax.training.loop import pretrain

    def load(root, name, *bindings):
        return gin_utils.load(root, [f"gin_configs/runs/{name}"], bindings).config

    short = ("VQTrainConfig.steps = 20", "VQTrainConfig.eval_every = 20", "SoundTrainConfig.steps = 20")
    file = "three_modalities_tokenizer.gin"
    train_bundle(load(TrainTokenizerConfig, file, f"DATA = '{data}'", *short), tmp_path / "tokenizer")
    for part in ("train", "heldout"):
        bindings = (f"MANIFEST = '{data / part}.jsonl'", f"TOKENIZER = '{tmp_path / 'tokenizer'}'")
        tokenize(load(TokenizeConfig, "three_modalities_tokenize.gin", *bindings), tmp_path / part)
    stores = (f"TRAIN = '{tmp_path / 'train'}'", f"HELDOUT = '{tmp_path / 'heldout'}'")
    few = (
        "TrainConfig.steps = 4",
        "TrainConfig.log_every = 1",
        "TrainConfig.eval_batches = 1",
        "TrainConfig.batch_size = 8",
    )
    small = ("TransformerConfig.n_layers = 1", "TransformerConfig.scan_unroll = 1")
    assert pretrain(load(PretrainConfig, "three_modalities.gin", *stores, *few, *small), tmp_path / "model") == 0

    logged = [record for record in _records(tmp_path / "model" / "metrics.jsonl") if "loss" in record][-1]
    assert all(np.isfinite(logged[f"loss/{form}"]) for form in ("text", "image", "sound"))
    run = load_run(tmp_path / "model")
    config = GenerationConfig(mode="sound", max_tokens=40, max_spans={"sound": 1})
    (output,) = generate(run.params, run.model, run.bundle.vocab, [encode_turns([["seven"]], run.bundle)], config)
    (span,) = read_output(output.ids, run.bundle)
    codec = run.bundle.codecs["sound"]
    assert span.modality == "sound" and span.codes.shape == (codec.length,)
    np.testing.assert_array_equal(span.item, codec.decode(span.codes[None])[0])

    examination, forms = directions.examine(run, data, queries=2)
    assert set(examination.to_dict()) == {f"{source} to {target}" for source, target in DIRECTIONS}
    three_modalities.draw_page(tmp_path / "page.png", run, examination, forms, subtitle="untrained")
    waves = three_modalities.write_sounds(tmp_path / "sounds", run, examination)
    assert len(waves) == 10 * 2 * 2  # digits, directions that end in a sound, questions
    assert codec.prepare(waves[0].read_bytes()).shape == (codec.config.samples,)
