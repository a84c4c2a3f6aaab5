"""Pictures of several sizes, encoded in batches of one size, come back as codes in their order."""

import numpy as np
import pytest

from chameleon_jax.configs import text_and_image
from chameleon_jax.errors import DataError
from chameleon_jax.tokenizers.code_queue import CodeQueue
from chameleon_jax.tokenizers.codec import plain_codes
from chameleon_jax.vocab import Vocab

SIZES = [(8, 8), (8, 24), (16, 16), (32, 8), (24, 16)]


class Encoder:
    """Stands in for a bundle and its codec of pictures: the code of 4x4 pixels is their mean, and every call is remembered."""

    image = Vocab.from_config(
        text_and_image(
            image_codes=256,
            reserved=9,
            text_tokens=256,
            image_span="grid",
            codes_per_image=64,
            max_grids=5,
            grid_unit=2,
        )
    ).modalities[1]

    def __init__(self):
        self.calls, self.codecs = [], {"image": self}

    def prepare(self, data):
        return np.frombuffer(data, np.uint8).reshape(8, 8, 3).astype(np.float32)

    def encode(self, pixels):
        self.calls.append(pixels.shape)
        batch, height, width, _ = pixels.shape
        return pixels.reshape(batch, height // 4, 4, width // 4, 4, 3).mean((2, 4, 5)).astype(int)

    def codes(self, modality, data):
        return plain_codes(modality, data, 256)


class Flat(Encoder):
    def encode(self, pixels):
        return super().encode(pixels).reshape(len(pixels), -1)


def pictures(count, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (*SIZES[rng.integers(len(SIZES))], 3)).astype(np.float32) for _ in range(count)]


def expected(picture):
    height, width, _ = picture.shape
    return picture.reshape(height // 4, 4, width // 4, 4, 3).mean((1, 3, 4)).astype(int)


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_codes_keep_order_and_shape_and_every_size_is_compiled_once(batch):
    encoder, given = Encoder(), pictures(50)
    queue = CodeQueue(encoder, batch)
    for part in (given[:1], given[1:20], given[20:]):
        queue.add("image", part)
    codes = queue.finish()
    assert len(codes) == 50
    for code, picture in zip(codes, given, strict=True):
        np.testing.assert_array_equal(code, expected(picture))
        Encoder.image.span(code)
    assert set(encoder.calls) == {(batch, *size, 3) for size in SIZES}


def test_codes_do_not_depend_on_what_else_is_in_the_queue():
    given = pictures(40)
    order = np.random.default_rng(1).permutation(40)
    forward, shuffled = CodeQueue(Encoder(), 4), CodeQueue(Encoder(), 4)
    forward.add("image", given)
    shuffled.add("image", [given[i] for i in order])
    codes, others = forward.finish(), shuffled.finish()
    for place, i in enumerate(order):
        np.testing.assert_array_equal(others[place], codes[i])


def test_a_picture_that_comes_again_is_encoded_once():
    encoder, (first, *_) = Encoder(), pictures(1)
    queue = CodeQueue(encoder, 2)
    queue.add("image", [first, first.copy(), first])
    codes = queue.finish()
    assert len(encoder.calls) == 1 and len(codes) == 3 and all(code is codes[0] for code in codes)


def test_equal_bytes_of_another_shape_are_another_picture():
    picture = np.zeros((8, 24, 3), np.float32)
    queue = CodeQueue(Encoder(), 2)
    queue.add("image", [picture, picture.reshape(24, 8, 3)])
    assert [code.shape for code in queue.finish()] == [(2, 6), (6, 2)]


def test_few_pictures_wait_however_many_sizes_there_are():
    encoder = Encoder()
    queue = CodeQueue(encoder, 4)
    for i, picture in enumerate(np.zeros((4 * i, 4, 3), np.float32) for i in range(1, 101)):
        queue.add("image", [picture + i])
        assert i + 1 - len(encoder.calls) <= 16
    assert len(queue.finish()) == 100


def test_codes_keep_the_shape_that_the_codec_gives_them():
    queue = CodeQueue(Flat(), 4)
    queue.add("image", [np.full((8, 8, 3), 7, np.float32)])
    assert [code.tolist() for code in queue.finish()] == [[7, 7, 7, 7]]


def test_data_without_a_codec_are_codes_and_keep_their_place_among_items():
    encoder, (picture, *_) = Encoder(), pictures(1)
    queue = CodeQueue(encoder, 2)
    for modality, item in (("moves", [5, 0]), ("image", picture), ("moves", [5, 0]), ("image", picture)):
        queue.add(modality, [queue.prepare(modality, item)])
    first, code, again, same = queue.finish()
    assert first.tolist() == again.tolist() == [5, 0] and same is code
    np.testing.assert_array_equal(code, expected(picture))
    with pytest.raises(DataError, match=r"'moves' has numbers 3\.\.256, which must be in 0\.\.255"):
        queue.prepare("moves", [3, 256])


def test_files_are_prepared_and_arrays_are_items_already():
    queue = CodeQueue(Encoder(), 2)
    pixels = np.full((8, 8, 3), 9, np.uint8)
    np.testing.assert_array_equal(queue.prepare("image", pixels.tobytes()), pixels)
    assert queue.prepare("image", pixels) is pixels


def test_equal_items_of_two_modalities_are_two():
    encoder, other, (picture, *_) = Encoder(), Flat(), pictures(1)
    encoder.codecs["sketch"] = other
    queue = CodeQueue(encoder, 2)
    for modality in ("image", "sketch"):
        queue.add(modality, [picture])
    grid, flat = queue.finish()
    assert grid.ndim == 2 and flat.tolist() == grid.reshape(-1).tolist() and len(encoder.calls) == len(other.calls) == 1
