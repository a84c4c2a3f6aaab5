"""Pictures of several sizes, encoded in batches of one size, come back as codes in their order."""

import types

import numpy as np
import pytest

from chameleon_jax.configs import ImageConfig, VQConfig, text_and_image
from chameleon_jax.tokenizers.code_queue import CodeQueue
from chameleon_jax.vocab import Vocab

SIZES = [(8, 8), (8, 24), (16, 16), (32, 8), (24, 16)]


class Encoder:
    """Stands in for a bundle: the code of 4x4 pixels is their mean, and every call is remembered."""

    vocab = Vocab.from_config(
        text_and_image(
            image_codes=256,
            reserved=9,
            text_tokens=256,
            image_span="grid",
            codes_per_image=64,
            max_grids=5,
            grid_unit=2,
        )
    )
    image_config = ImageConfig(preprocessing="lumina", resolution=16, grid_pixels=8)
    codec = types.SimpleNamespace(config=VQConfig(resolution=16, channel_multipliers=(1, 1, 1)))

    def __init__(self):
        self.calls = []

    def encode_images(self, pixels):
        self.calls.append(pixels.shape)
        batch, height, width, _ = pixels.shape
        return pixels.reshape(batch, height // 4, 4, width // 4, 4, 3).mean((2, 4, 5)).astype(int).reshape(batch, -1)


class Fixed(Encoder):
    vocab = Vocab.from_config(text_and_image(image_codes=256, reserved=9, text_tokens=256, codes_per_image=4))
    image_config = ImageConfig(resolution=8)


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
        queue.add(part)
    codes = queue.finish()
    assert len(codes) == 50
    for code, picture in zip(codes, given, strict=True):
        np.testing.assert_array_equal(code, expected(picture))
        Encoder.vocab.modalities[1].span(code)
    assert set(encoder.calls) == {(batch, *size, 3) for size in SIZES}


def test_codes_do_not_depend_on_what_else_is_in_the_queue():
    given = pictures(40)
    order = np.random.default_rng(1).permutation(40)
    forward, shuffled = CodeQueue(Encoder(), 4), CodeQueue(Encoder(), 4)
    forward.add(given)
    shuffled.add([given[i] for i in order])
    codes, others = forward.finish(), shuffled.finish()
    for place, i in enumerate(order):
        np.testing.assert_array_equal(others[place], codes[i])


def test_a_picture_that_comes_again_is_encoded_once():
    encoder, (first, *_) = Encoder(), pictures(1)
    queue = CodeQueue(encoder, 2)
    queue.add([first, first.copy(), first])
    codes = queue.finish()
    assert len(encoder.calls) == 1 and len(codes) == 3 and all(code is codes[0] for code in codes)


def test_equal_bytes_of_another_shape_are_another_picture():
    picture = np.zeros((8, 24, 3), np.float32)
    queue = CodeQueue(Encoder(), 2)
    queue.add([picture, picture.reshape(24, 8, 3)])
    assert [code.shape for code in queue.finish()] == [(2, 6), (6, 2)]


def test_few_pictures_wait_however_many_sizes_there_are():
    encoder = Encoder()
    queue = CodeQueue(encoder, 4)
    for i, picture in enumerate(np.zeros((4 * i, 4, 3), np.float32) for i in range(1, 101)):
        queue.add([picture + i])
        assert i + 1 - len(encoder.calls) <= 16
    assert len(queue.finish()) == 100


def test_fixed_vocabularies_give_flat_codes():
    queue = CodeQueue(Fixed(), 4)
    queue.add([np.full((8, 8, 3), 7, np.float32)])
    assert [code.tolist() for code in queue.finish()] == [[7, 7, 7, 7]]
