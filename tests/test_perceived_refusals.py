"""Which pictures are perceived, and what of a run with perceived pictures does not fit together."""

import dataclasses
import json

import pytest

from chameleon_jax.configs import ModalityConfig, PatchEncoderConfig, SourceConfig, TokenizeConfig
from chameleon_jax.data.loader import Loader
from chameleon_jax.data.pipeline import tokenize
from chameleon_jax.errors import ConfigError
from chameleon_jax.generation import asked
from chameleon_jax.tokenizers.bundle import TokenizerBundle
from chameleon_jax.tokenizers.documents import Document, Segment, perceive
from chameleon_jax.tokenizers.text import train_bpe
from chameleon_jax.training.loop import pretrain
from tests.test_perceived_pictures import MODEL, TABLE, make_bundle, root, run_config  # noqa: F401

BAD_RUNS = {
    "no encoder": ({"perception": None}, r"pictures in patches \('seen'\), but model.perception is None"),
    "other patches": (
        {"perception": PatchEncoderConfig(patch_size=2)},
        "pictures of 4x4 pixels, the token stores have 8x8; set PatchEncoderConfig.patch_size=4",
    ),
}


@pytest.mark.parametrize("case", BAD_RUNS)
def test_a_model_of_other_pictures_is_refused(root, case):  # noqa: F811
    changes, reason = BAD_RUNS[case]
    with pytest.raises(ConfigError, match=reason):
        pretrain(run_config(root, dataclasses.replace(MODEL, **changes)), str(root / "refused"))


def test_an_encoder_is_not_left_untrained(root, tmp_path):  # noqa: F811
    """A table with patches, and stores that were tokenised into codes alone."""
    source = SourceConfig(name="all", kind="jsonl", path=str(root / "data.jsonl"))
    codes = TokenizeConfig(sources=(source,), tokenizer=str(root / "tokenizer"), codec_batch=4)
    (tmp_path / "data.jsonl").write_text("".join(json.dumps({"text": f"number {i}"}) + "\n" for i in range(9)))
    words = dataclasses.replace(source, path=str(tmp_path / "data.jsonl"))
    tokenize(dataclasses.replace(codes, sources=(words,)), tmp_path / "store")
    with pytest.raises(
        ConfigError, match=r"hold none that it could learn from: tokenise with TokenizeConfig\.image_input"
    ):
        pretrain(run_config(tmp_path), str(tmp_path / "model"))


def turn(name, data, loss):
    return Segment(name, data, loss=loss, ends_turn=True)


PERCEIVED = {
    "all but a last picture": (
        [Segment("drawings", b"1"), Segment("words", "x"), Segment("drawings", b"2")], "seen words drawings"
    ),
    "a picture before words": ([Segment("drawings", b"1"), Segment("words", "x")], "seen words"),
    "an answer that draws": (
        [Segment("words", "draw", loss=False, ends_turn=True), Segment("drawings", b"1"), turn("words", "", True)],
        "words drawings words",
    ),
    "a question with a picture": (
        [Segment("drawings", b"1", loss=False), turn("words", "what?", False), turn("words", "a one", True)],
        "seen words words",
    ),
    "a given picture and one to draw": ([Segment("drawings", b"1", loss=False), Segment("drawings", b"2")], "seen drawings"),
    "given words": ([Segment("words", "one", loss=False), Segment("drawings", b"1")], "words drawings"),
}  # fmt: skip


@pytest.mark.parametrize("case", PERCEIVED)
def test_what_nobody_is_to_draw_is_perceived(case):
    segments, expected = PERCEIVED[case]
    made = perceive(Document("d", "s", tuple(segments)), TABLE)
    assert " ".join(segment.modality for segment in made.segments) == expected
    assert [s.data for s in made.segments] == [s.data for s in segments]


def test_stores_know_what_is_only_taken_in():
    """It decides which tokens are learned, so it is part of what made a store."""

    def fingerprint(output):
        moves = ModalityConfig(name="moves", ids=4, span="free", output=output)
        table = dataclasses.replace(TABLE, modalities=(*TABLE.modalities, moves))
        text = train_bpe([f"number {i}" for i in range(9)], table)
        return dataclasses.replace(make_bundle(), vocab_config=text.vocab_config, text=text).fingerprint()

    assert fingerprint(True) != fingerprint(False)


@pytest.mark.parametrize("prompt", ["<image> is", "<seen> is"])
def test_a_prompt_may_say_image(root, prompt):  # noqa: F811
    bundle = make_bundle()
    parts = asked.parts_of(f"what {prompt}", [str(root / "1.png")], [], bundle)
    assert [p if isinstance(p, str) else p.modality for p in parts] == ["what ", "seen", " is"]


def test_an_encoder_without_pictures_is_refused(root, tmp_path):  # noqa: F811
    bundle = make_bundle()
    table = dataclasses.replace(TABLE, modalities=TABLE.modalities[:2])
    text = train_bpe([f"number {i}" for i in range(9)], table)
    plain = TokenizerBundle(vocab_config=text.vocab_config, text=text, codecs={"drawings": bundle.codecs["drawings"]})
    plain.save(tmp_path / "tokenizer")
    source = SourceConfig(name="all", kind="jsonl", path=str(root / "data.jsonl"))
    plan = TokenizeConfig(
        sources=(source,), tokenizer=str(tmp_path / "tokenizer"), codec_batch=4, max_reject_fraction=0.1
    )
    with pytest.raises(ConfigError, match="has no modality with codec 'patches'"):
        tokenize(dataclasses.replace(plan, image_input="patches"), tmp_path / "store")
    (tmp_path / "data.jsonl").write_text("".join(json.dumps({"text": f"number {i}"}) + "\n" for i in range(9)))
    source = SourceConfig(name="all", kind="jsonl", path=str(tmp_path / "data.jsonl"))
    tokenize(dataclasses.replace(plan, sources=(source,)), tmp_path / "store")
    with pytest.raises(ConfigError, match=r"model\.perception is set, but the vocabulary has no modality"):
        pretrain(run_config(tmp_path), str(tmp_path / "model"))
    assert Loader(run_config(tmp_path).data, 8, 1).host_batch(0).pictures is None
