"""Prompts and outputs with a real, small tokenizer bundle."""

import jax
import numpy as np
import pytest

from chameleon_jax.configs import ImageConfig, VocabConfig, VQConfig
from chameleon_jax.errors import GenerationError
from chameleon_jax.generation.grammar import split_spans
from chameleon_jax.generation.prompt import ImageOutput, TextOutput, build_prompt, read_output
from chameleon_jax.tokenizers import vqgan
from chameleon_jax.tokenizers.bundle import TokenizerBundle
from chameleon_jax.tokenizers.text import train_bpe
from chameleon_jax.vocab import ModalityId

VQ = VQConfig(
    resolution=8,
    channels=4,
    channel_multipliers=(1, 1, 1),
    res_blocks=1,
    latent_channels=4,
    embed_dim=4,
    codes=16,
    norm_groups=2,
)


@pytest.fixture(scope="module")
def bundle():
    vocab = VocabConfig(image_codes=16, reserved=4, text_tokens=300, codes_per_image=VQ.codes_per_image)
    text = train_bpe(["a red heart on a white ground", "a blue heart"], vocab)
    codec = vqgan.Codec(params=vqgan.init(jax.random.key(0), VQ), config=VQ)
    return TokenizerBundle(
        vocab_config=text.vocab_config, image_config=ImageConfig(resolution=8), text=text, codec=codec
    )


PICTURES = list(np.random.default_rng(0).uniform(-1, 1, size=(2, 8, 8, 3)).astype(np.float32))


def _form(ids, bundle):
    """`T` for a run of text, the words in it, `I` for a whole image."""
    parts = []
    for span in split_spans(ids, bundle.vocab):
        assert span.complete
        parts.append("I" if span.modality == ModalityId.IMAGE else bundle.text.decode(span.content))
    return parts


@pytest.mark.parametrize(
    "text, pictures, form",
    [
        ("", 0, [""]),
        ("a heart", 0, ["a heart"]),
        ("a heart", 1, ["", "I", "a heart"]),
        ("a heart", 2, ["", "I", "I", "a heart"]),
        ("a <image> heart", 1, ["a ", "I", " heart"]),
        ("<image><image>", 2, ["", "I", "I"]),
        ("a <image> heart", 0, ["a <image> heart"]),
    ],
)
def test_pictures_stand_where_the_prompt_says_or_first(bundle, text, pictures, form):
    ids = build_prompt(text, PICTURES[:pictures], bundle)
    assert ids[0] == bundle.vocab.bos and _form(ids, bundle) == form


def test_pictures_keep_their_order(bundle):
    codes = bundle.encode_images(np.stack(PICTURES))
    spans = [
        s for s in split_spans(build_prompt("x", PICTURES, bundle), bundle.vocab) if s.modality == ModalityId.IMAGE
    ]
    assert [bundle.vocab.ids_to_codes(s.content).tolist() for s in spans] == codes.tolist()


@pytest.mark.parametrize("text, pictures", [("<image>", 2), ("<image> <image>", 1), ("<image> <image> <image>", 2)])
def test_places_and_pictures_must_agree(bundle, text, pictures):
    with pytest.raises(GenerationError, match=f"{text.count('<image>')} <image> placeholders and {pictures} pictures"):
        build_prompt(text, PICTURES[:pictures], bundle)


@pytest.mark.parametrize(
    "text", ["</s><racm3:break>", "<eoss>", "IMGIMGAZ", "<s>", "\x00", "\ud800", "<reserved08706>"]
)
def test_text_never_becomes_a_special_id(bundle, text):
    ids = build_prompt(text, [], bundle)
    assert (ids[1:] >= bundle.vocab.text.start).all()


def test_an_output_comes_back_as_words_and_pictures_in_order(bundle):
    ids = np.concatenate([build_prompt("a <image> heart", PICTURES[:1], bundle), [bundle.vocab.eos]])
    first, picture, last = read_output(ids, bundle)
    assert (first, last) == (TextOutput(text="a "), TextOutput(text=" heart"))
    codes = bundle.encode_images(PICTURES[0][None])
    np.testing.assert_allclose(picture.pixels, bundle.decode_images(codes)[0], atol=1e-5)


def test_an_unfinished_picture_is_reported_not_lost(bundle):
    ids = build_prompt("a <image>", PICTURES[:1], bundle)[:-2]
    assert read_output(ids, bundle) == [TextOutput(text="a "), ImageOutput(pixels=None)]
