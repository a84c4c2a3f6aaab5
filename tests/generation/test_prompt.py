"""Prompts and outputs with a real, small tokenizer bundle."""

import dataclasses

import jax
import numpy as np
import pytest

from chameleon_jax.configs import GenerationConfig, ImageConfig, VQConfig, text_and_image
from chameleon_jax.errors import GenerationError
from chameleon_jax.generation.grammar import split_spans
from chameleon_jax.generation.prompt import (
    SpanOutput,
    TextOutput,
    build_request,
    encode_turns,
    image_grid,
    place,
    read_output,
)
from chameleon_jax.tokenizers import vqgan
from chameleon_jax.tokenizers.bundle import TokenizerBundle
from chameleon_jax.tokenizers.documents import Segment
from chameleon_jax.tokenizers.pictures import PictureCodec
from chameleon_jax.tokenizers.text import train_bpe

TEXT, IMAGE = 0, 1  # rows of the modality table


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
    vocab = text_and_image(image_codes=16, reserved=4, text_tokens=300, codes_per_image=VQ.codes_per_image)
    text = train_bpe(["a red heart on a white ground", "a blue heart"], vocab)
    codec = vqgan.Codec(params=vqgan.init(jax.random.key(0), VQ), config=VQ)
    return TokenizerBundle.of_pictures(images=ImageConfig(resolution=8), text=text, vqgan=codec)


@pytest.fixture(scope="module")
def grid_bundle(bundle):
    """A grid unit is 2 codes or 8 pixels; sides go up to 4 units, images up to 16 codes."""
    sizes = {"image_span": "grid", "codes_per_image": 16, "max_grids": 4, "grid_unit": 2}
    vocab = text_and_image(image_codes=16, reserved=9, text_tokens=300, **sizes)
    text = train_bpe(["a red heart on a white ground", "a blue heart"], vocab)
    images = ImageConfig(resolution=16, preprocessing="lumina", grid_pixels=8)
    return TokenizerBundle.of_pictures(images=images, text=text, vqgan=bundle.pictures.vqgan)


PICTURES = list(np.random.default_rng(0).uniform(-1, 1, size=(2, 8, 8, 3)).astype(np.float32))


def _parts(text, pictures):
    return place(text, [Segment("image", picture) for picture in pictures])


def _prompt(text, pictures, bundle):
    return encode_turns([_parts(text, pictures)], bundle)


def _form(ids, bundle):
    """`T` for a run of text, the words in it, `I` for a whole image."""
    parts = []
    for span in split_spans(ids, bundle.vocab):
        assert span.complete
        parts.append("I" if span.modality == IMAGE else bundle.text.decode(span.content))
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
    ids = _prompt(text, PICTURES[:pictures], bundle)
    assert ids[0] == bundle.vocab.bos and _form(ids, bundle) == form


def test_pictures_keep_their_order(bundle):
    codes = bundle.pictures.encode(np.stack(PICTURES))
    spans = [s for s in split_spans(_prompt("x", PICTURES, bundle), bundle.vocab) if s.modality == IMAGE]
    assert [bundle.vocab.modalities[IMAGE].codes(s.content).tolist() for s in spans] == codes.tolist()


@pytest.mark.parametrize("text, pictures", [("<image>", 2), ("<image> <image>", 1), ("<image> <image> <image>", 2)])
def test_places_and_pictures_must_agree(bundle, text, pictures):
    with pytest.raises(
        GenerationError, match=f"{text.count('<image>')} <image> placeholders and {pictures} of 'image'"
    ):
        _prompt(text, PICTURES[:pictures], bundle)


@pytest.mark.parametrize(
    "text", ["</s><racm3:break>", "<eoss>", "IMGIMGAZ", "<s>", "\x00", "\ud800", "<reserved08706>"]
)
def test_text_never_becomes_a_special_id(bundle, text):
    ids = _prompt(text, [], bundle)
    assert (ids[1:] >= bundle.vocab.text.start).all()


def _written(ids, bundle):
    """The ids as a reader would write them down, whole images as I."""
    vocab, out = bundle.vocab, []
    names = {
        vocab.bos: "[bos]",
        vocab.eos: "[eos]",
        vocab.end_of_turn: "[eot]",
        vocab.modalities[IMAGE].begin_marker: "[boi]",
    }
    for span in split_spans(ids, vocab):
        if span.modality == IMAGE:
            out.append("I" if span.complete else "?")
        else:
            out += [names[i] if i in names else bundle.text.decode(np.array([i])) for i in span.ids]
    return "".join(out)


CHATS = {
    "one turn": ([("hi", 0)], "[bos]hi[eot]"),
    "three turns": (
        [("hi", 0), ("a red heart", 0), ("no ", 0)],
        "[bos]hi[eot]a red heart[eot]no [eot]",
    ),
    "pictures stand in their own turns": (
        [("what is <image>?", 1), ("a heart", 0), ("and this?", 1)],
        "[bos]what is I?[eot]a heart[eot]Iand this?[eot]",
    ),
    "the model's pictures": (
        [("draw", 0), ("<image>", 1), ("again", 0)],
        "[bos]draw[eot]I[eot]again[eot]",
    ),
    "markers spelled out": ([("</s><reserved08706>", 0)], "[bos]</s><reserved08706>[eot]"),
}


@pytest.mark.parametrize("case", CHATS)
def test_a_chat_ends_every_turn_the_last_one_too(bundle, case):
    turns, written = CHATS[case]
    pictures = iter(PICTURES)
    ids = encode_turns([_parts(t, [next(pictures) for _ in range(n)]) for t, n in turns], bundle, format="chat")
    assert _written(ids, bundle) == written and ids.dtype == np.int32


def test_neighbouring_words_are_encoded_as_one(bundle):
    """Where a client cuts them changes nothing, and data stay between them."""
    picture = Segment("image", PICTURES[0])
    cut = encode_turns([["a r", "ed", " heart", picture, "", "a blue ", "heart"]], bundle)
    assert cut.tolist() == encode_turns([["a red heart", picture, "a blue heart"]], bundle).tolist()


@pytest.mark.parametrize("form", ["chat", "lumina"])
@pytest.mark.parametrize("count", [0, 2, 4])
def test_a_chat_that_the_user_does_not_begin_and_end_is_refused(bundle, form, count):
    with pytest.raises(GenerationError, match=f"user, assistant, ..., user; there are {count} turns"):
        encode_turns([["a"]] * count, bundle, format=form)


@pytest.mark.parametrize("count", [0, 2, 3])
def test_a_completion_has_one_turn(bundle, count):
    with pytest.raises(GenerationError, match=f"continues one turn, not {count}"):
        encode_turns([["a"]] * count, bundle)


def test_data_of_a_modality_that_there_is_not_are_refused(bundle):
    with pytest.raises(GenerationError, match=r"no modality 'imgae' \(did you mean 'image'\?\)"):
        encode_turns([["a", Segment("imgae", b"")]], bundle)


REQUESTS = {
    "completion": ({}, "[bos]a heart", False),
    "chat": ({"format": "chat"}, "[bos]a heart[eot]", True),
    "lumina": ({"format": "lumina"}, "[bos]a heart[eot]", True),
    "lumina with a size": (
        {"format": "lumina", "image_size": (8, 16)},
        "[bos]Generate an image of 8x16 according to the following prompt:\na heart[eot]",
        True,
    ),
}


@pytest.mark.parametrize("case", REQUESTS)
def test_a_request_has_the_form_of_its_release(grid_bundle, case):
    settings, written, stops = REQUESTS[case]
    request = build_request(["a heart"], grid_bundle, GenerationConfig(max_tokens=9), **settings)
    config = request.config
    assert _written(request.prompt, grid_bundle) == written and request.pictures == ()
    assert config.stop_at_turn_end == stops and config.max_tokens == 9
    assert config.grids == ({"image": (4, 2)} if "image_size" in settings else {})


def test_pictures_of_several_sizes_stand_in_one_prompt_and_are_read_back(grid_bundle):
    pictures = [
        np.random.default_rng(i).uniform(-1, 1, (8 * h, 8 * w, 3)) for i, (h, w) in enumerate([(1, 2), (3, 1), (1, 2)])
    ]
    ids = _prompt("a <image><image> red <image>", [p.astype(np.float32) for p in pictures], grid_bundle)
    spans = [s for s in split_spans(ids, grid_bundle.vocab) if s.modality == IMAGE]
    assert [(s.grid, s.complete) for s in spans] == [((2, 4), True), ((6, 2), True), ((2, 4), True)]
    parts = read_output(ids, grid_bundle)
    assert [type(p) for p in parts] == [TextOutput, SpanOutput, SpanOutput, TextOutput, SpanOutput]
    for part, picture in zip([p for p in parts if isinstance(p, SpanOutput)], pictures, strict=True):
        codes = grid_bundle.pictures.encode(picture[None].astype(np.float32))
        assert part.modality == "image" and codes.shape[1:] == (picture.shape[0] // 4, picture.shape[1] // 4)
        np.testing.assert_array_equal(part.codes, codes[0])
        np.testing.assert_allclose(part.item, grid_bundle.pictures.decode(codes)[0], atol=1e-5)


@pytest.mark.parametrize(
    "size, told",
    [
        ((8, 12), "8x12 pixels .* multiples of 8"),
        ((40, 8), "40x8 pixels are 2x10 codes .* up to 8"),
        ((32, 32), "32x32 pixels are 8x8 = 64 codes, 16 are the most"),
    ],
)
def test_sizes_that_a_grid_cannot_have_are_refused(grid_bundle, size, told):
    assert image_grid((16, 8), grid_bundle) == ("image", (2, 4))
    with pytest.raises(GenerationError, match=told):
        image_grid(size, grid_bundle)


def test_a_tokenizer_of_one_size_refuses_to_be_asked_for_another(bundle):
    with pytest.raises(GenerationError, match="16x8 pixels are asked for, but this tokenizer has no size but 8x8"):
        build_request(["a heart"], bundle, GenerationConfig(), image_size=(16, 8))


@pytest.mark.parametrize("mode", ["image", "interleaved"])
def test_pictures_that_nothing_can_decode_are_refused_before_they_are_drawn(bundle, mode):
    halves = {name: part for name, part in bundle.pictures.vqgan.params.items() if "encoder" in name or "quant" in name}
    for codec in (None, vqgan.Codec(params=halves, config=VQ)):
        pictures = dataclasses.replace(bundle.pictures, vqgan=codec)
        blind = dataclasses.replace(bundle, codecs={"image": pictures})
        build_request(["a heart"], blind, GenerationConfig(mode="text"))
        with pytest.raises(GenerationError, match=f"mode '{mode}' may write 'image', .* no decoder"):
            build_request(["a heart"], blind, GenerationConfig(mode=mode))


def test_words_alone_decode_no_picture(bundle, monkeypatch):
    monkeypatch.setattr(PictureCodec, "decode", lambda *_, **__: pytest.fail("decoded"))
    assert read_output(_prompt("a heart", [], bundle), bundle) == [TextOutput(text="a heart")]


def test_an_output_comes_back_as_words_and_pictures_in_order(bundle):
    ids = np.concatenate([_prompt("a <image> heart", PICTURES[:1], bundle), [bundle.vocab.eos]])
    first, picture, last = read_output(ids, bundle)
    assert (first, last) == (TextOutput(text="a "), TextOutput(text=" heart"))
    codes = bundle.pictures.encode(PICTURES[0][None])
    assert picture.modality == "image" and picture.codes.tolist() == codes[0].tolist()
    np.testing.assert_allclose(picture.item, bundle.pictures.decode(codes)[0], atol=1e-5)


def test_an_unfinished_picture_is_reported_not_lost(bundle):
    ids = _prompt("a <image>", PICTURES[:1], bundle)[:-2]
    assert read_output(ids, bundle) == [TextOutput(text="a "), SpanOutput(modality="image")]
