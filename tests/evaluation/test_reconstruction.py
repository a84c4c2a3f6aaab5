"""PSNR and SSIM against independent implementations, and the statistics of codes against hand-made counts."""

import jax
import numpy as np
import pytest
from scipy import ndimage

from chameleon_jax.configs import VQConfig
from chameleon_jax.evaluation import reconstruction
from chameleon_jax.tokenizers import vqgan
from chameleon_jax.tokenizers.images import to_uint8

CONFIG = VQConfig(
    resolution=16,
    patch_size=4,
    channels=8,
    channel_multipliers=(1,),
    res_blocks=1,
    latent_channels=8,
    embed_dim=4,
    codes=16,
    norm_groups=4,
)


def _pair(side=24, count=3):
    generator = np.random.default_rng(0)
    smooth = ndimage.gaussian_filter(generator.uniform(0, 255, (count, side, side, 3)), (0, 2, 2, 0))
    images = np.clip((smooth - 127) * 4 + 127, 0, 255).astype(np.uint8)
    noisy = np.clip(images + generator.normal(0, [[[[5]]], [[[20]]], [[[60]]]], images.shape), 0, 255).astype(np.uint8)
    return images, noisy


def test_psnr_is_ten_decades_of_peak_over_squared_error():
    images = np.zeros((2, 4, 4, 3), np.uint8)
    others = images.copy()
    others[0] += 255
    others[1, 0, 0, 0] = 48
    expected = [0.0, 10 * np.log10(255**2 / (48**2 / 48))]
    np.testing.assert_allclose(reconstruction.psnr(images, others), expected, atol=1e-9)
    assert np.isinf(reconstruction.psnr(images, images)).all()


def test_ssim_equals_the_definition_computed_with_scipy():
    images, noisy = _pair()

    def mean(values):  # truncate 10/3: radius 5, an 11x11 window
        return ndimage.gaussian_filter(values, 1.5, truncate=10 / 3)[5:-5, 5:-5]

    for image, other, found in zip(images, noisy, reconstruction.ssim(images, noisy), strict=True):
        values = []
        for channel in range(3):
            x, y = image[..., channel].astype(float), other[..., channel].astype(float)
            mx, my = mean(x), mean(y)
            vx, vy, cov = mean(x**2) - mx**2, mean(y**2) - my**2, mean(x * y) - mx * my
            c1, c2 = 6.5025, 58.5225
            values.append((2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2)))
        assert found == pytest.approx(np.mean(values), abs=1e-9)


def test_ssim_is_one_for_equal_pictures_and_falls_with_noise():
    images, noisy = _pair()
    np.testing.assert_allclose(reconstruction.ssim(images, images), 1.0)
    first, second, third = reconstruction.ssim(images, noisy)
    assert 1 > first > second > third > 0


def test_ssim_of_pictures_smaller_than_the_window_uses_a_smaller_window():
    images, noisy = _pair(side=8)
    assert np.all(reconstruction.ssim(images, noisy) < 1)
    np.testing.assert_allclose(reconstruction.ssim(images, images), 1.0)


def test_perplexity_is_the_number_of_equally_likely_codes():
    assert reconstruction.perplexity(np.array([5, 5, 5, 5, 0])) == pytest.approx(4)
    assert reconstruction.perplexity(np.array([0, 9])) == pytest.approx(1)
    assert reconstruction.perplexity(np.array([1, 3])) == pytest.approx(2 ** (0.25 * 2 + 0.75 * np.log2(4 / 3)))


@pytest.mark.parametrize("batch_size", [2, 7])
def test_evaluation_does_not_depend_on_the_batch_size_and_agrees_with_the_codec(batch_size):
    params = jax.jit(vqgan.init, static_argnums=1)(jax.random.key(0), CONFIG)
    book = np.random.default_rng(0).normal(0, 1, (16, 4)).astype(np.float32)
    codec = vqgan.Codec(params=params | {"quantize": {"embedding": book}}, config=CONFIG)
    images = np.random.default_rng(1).integers(0, 256, (7, 16, 16, 3), dtype=np.uint8)
    pixels = (images / 255 * 2 - 1).astype(np.float32)
    codes = np.asarray(jax.jit(vqgan.encode, static_argnums=2)(codec.params, pixels, CONFIG))
    outputs = to_uint8(jax.jit(vqgan.decode, static_argnums=2)(codec.params, codes, CONFIG))
    report = reconstruction.evaluate(codec, images, batch_size)
    assert report.images == 7
    assert report.codebook_usage == len(np.unique(codes)) / 16
    assert report.psnr == pytest.approx(reconstruction.psnr(images, outputs).mean(), abs=1e-3)
    assert report.psnr_of_set == pytest.approx(
        10 * np.log10(255**2 / np.mean((images - outputs.astype(float)) ** 2)), abs=1e-3
    )
    assert report.ssim == pytest.approx(reconstruction.ssim(images, outputs).mean(), abs=1e-4)


def test_grid_shows_every_original_above_its_reconstruction():
    codec = vqgan.Codec(params=jax.jit(vqgan.init, static_argnums=1)(jax.random.key(0), CONFIG), config=CONFIG)
    images = np.random.default_rng(1).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)
    grid = np.asarray(reconstruction.picture_grid(codec, images, columns=3, scale=2))
    assert grid.shape == (2 * (64 + 8) + 4, 3 * 36 + 4, 3)
    top, left = 4 + 64 + 8, 4 + 36  # the fifth picture: second row, second column
    np.testing.assert_array_equal(grid[top : top + 32 : 2, left : left + 32 : 2], images[4])
    output, _ = reconstruction.reconstruct(codec, images, 5)
    np.testing.assert_array_equal(grid[top + 32 : top + 64 : 2, left : left + 32 : 2], output[4])
