"""Records with pictures of several sizes become documents of grid spans, in order and independent of their neighbours."""

import concurrent.futures
import io

import jax
import numpy as np
import pytest
from PIL import Image

from chameleon_jax.configs import ImageConfig, SourceConfig, TokenizeConfig, VQConfig, text_and_image
from chameleon_jax.data.shard_tokens import tokenize_records
from chameleon_jax.generation.grammar import split_spans
from chameleon_jax.tokenizers import vqgan
from chameleon_jax.tokenizers.bundle import TokenizerBundle
from chameleon_jax.tokenizers.documents import Document, Segment
from chameleon_jax.tokenizers.images import load_pixels
from chameleon_jax.tokenizers.pictures import PictureCodec
from chameleon_jax.tokenizers.text import train_bpe

IMAGE = 1  # row of the modality table

CONFIG = TokenizeConfig(
    sources=(SourceConfig(name="s", kind="jsonl", path="unread.jsonl"),), tokenizer="unread", codec_batch=4
)
SHAPES = [(40, 40), (90, 30), (20, 61), (33, 47), (8, 100)]


@pytest.fixture(scope="module")
def bundle():
    """A code is 4x4 pixels, a grid unit 2 codes; pictures have up to 4x4 units."""
    narrow = {"channels": 8, "channel_multipliers": (1,), "res_blocks": 1, "latent_channels": 8, "embed_dim": 8}
    vq = VQConfig(resolution=32, patch_size=4, codes=32, norm_groups=4, **narrow)
    grid = {"image_span": "grid", "codes_per_image": 64, "max_grids": 8, "grid_unit": 2}
    text = train_bpe(["a picture", "words"], text_and_image(image_codes=32, reserved=12, text_tokens=270, **grid))
    return TokenizerBundle.of_pictures(
        images=ImageConfig(resolution=32, preprocessing="lumina", grid_pixels=8),
        text=text,
        vqgan=vqgan.Codec(params=vqgan.init(jax.random.key(0), vq), config=vq),
    )


def record(number):
    """A picture between two texts; the shape goes round."""
    width, height = SHAPES[number % len(SHAPES)]
    pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    segments = (
        Segment("text", "a picture"),
        Segment("image", buffer.getvalue(), reference="p.png"),
        Segment("text", f"words {number}"),
    )
    return Document(f"s/{number}", "s", segments)


def tokenized(numbers, bundle):
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        made = tokenize_records([record(n) for n in numbers], bundle, CONFIG, pool, lambda rejected: None)
    assert not made.rejects and len(made.documents) == len(numbers)
    return made.documents


def test_every_picture_becomes_a_grid_of_its_own_size(bundle):
    sizes = set()
    for number, document in enumerate(tokenized(range(23), bundle)):
        pixels = load_pixels(record(number).segments[1].data, bundle.pictures.config)
        (image,) = [span for span in split_spans(document.ids, bundle.vocab) if span.modality == IMAGE]
        assert image.complete and image.grid == (pixels.shape[0] // 4, pixels.shape[1] // 4)
        codes = bundle.pictures.encode(pixels[None])[0]
        np.testing.assert_array_equal(bundle.vocab.modalities[IMAGE].codes(image.content), codes.reshape(-1))
        assert [span.length for span in document.spans if span.modality == IMAGE] == [len(image.ids)]
        sizes.add(image.grid)
    assert len(sizes) == len(SHAPES)


def test_order_and_neighbours_change_no_id(bundle):
    numbers = np.random.default_rng(0).permutation(23).tolist()
    straight = tokenized(range(23), bundle)
    for number, document in zip(numbers, tokenized(numbers, bundle), strict=True):
        np.testing.assert_array_equal(document.ids, straight[number].ids)
    np.testing.assert_array_equal(tokenized([3], bundle)[0].ids, straight[3].ids)


def test_the_codec_is_compiled_once_for_each_size(bundle, monkeypatch):
    shapes, encode = [], PictureCodec.encode
    monkeypatch.setattr(
        PictureCodec, "encode", lambda self, pixels: (shapes.append(pixels.shape), encode(self, pixels))[1]
    )
    tokenized(range(23), bundle)
    assert len(set(shapes)) == len(SHAPES) and {shape[0] for shape in shapes} == {CONFIG.codec_batch}
