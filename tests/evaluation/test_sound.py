"""Measures of sound codecs: distances in decibels, the use of codes, and pictures in which loud is bright and high is up."""

import dataclasses

import jax
import numpy as np
import pytest

from chameleon_jax.configs import SoundConfig
from chameleon_jax.evaluation import sound as measures
from chameleon_jax.tokenizers import sound, spectrum
from chameleon_jax.tokenizers.sound import SoundCodec

CONFIG = SoundConfig(
    seconds=0.16, hop=40, codes=4, embed_dim=2, channels=8, encoder_blocks=1, decoder_blocks=1, phase_steps=2
)
NOISE = np.random.default_rng(0).normal(0, 0.1, (70, CONFIG.samples)).astype(np.float32)


@pytest.fixture(scope="module")
def codec():
    params = jax.device_get(jax.jit(sound.init, static_argnums=1)(jax.random.key(0), CONFIG))
    book = np.random.default_rng(1).normal(size=(4, 2)).astype(np.float32)
    return SoundCodec(params=params | {"quantize": {"embedding": book}}, config=CONFIG)


def test_the_report_is_of_what_the_codec_makes_of_the_sounds(codec):
    report = measures.evaluate(codec, NOISE)
    # Twice the shape that is compiled already.
    codes = np.concatenate([codec.encode(NOISE[:64]), codec.encode(NOISE[6:])[-6:]])
    heard = np.concatenate([codec.decode(codes[:64]), codec.decode(codes[6:])[-6:]])
    distances = [
        np.sqrt(np.mean((20 * np.log10(_magnitudes(a) / _magnitudes(b))) ** 2))
        for a, b in zip(NOISE, heard, strict=True)
    ]
    assert report.sounds == 70
    assert report.log_spectral_distance == pytest.approx(np.mean(distances), rel=1e-3)
    used = np.bincount(codes.ravel(), minlength=4)
    assert report.codebook_usage == np.mean(used > 0)
    assert 1 <= report.perplexity <= 4 and report.distance_of_spectrum > 0


def _magnitudes(waveform):
    return np.exp(np.asarray(spectrum.log_magnitudes(waveform[None], CONFIG.hop))[0])


def test_a_codec_that_has_no_use_for_its_codes_shows_it(codec):
    book = np.full((4, 2), 1e6, np.float32)
    book[2] = 0
    lazy = dataclasses.replace(codec, params=codec.params | {"quantize": {"embedding": book}})
    report = measures.evaluate(lazy, NOISE)
    assert (report.codebook_usage, report.perplexity) == (0.25, pytest.approx(1.0))


def test_loud_is_bright_and_high_is_up():
    silent, loud = spectrum.RANGE
    frames = np.full((10, 5), silent)
    frames[3, 4] = loud  # one moment at the highest frequency
    picture = measures.picture(frames)
    assert picture.shape == (5, 10, 3)
    assert picture[0, 3].min() > 200
    assert picture.sum() == picture[0, 3].sum()


def test_the_grid_has_a_row_of_reconstructions_below_each_row_of_sounds(codec):
    grid = measures.spectrogram_grid(codec, NOISE[:3], columns=2, scale=1)
    assert grid.size == (2 * (32 + 4) + 4, 2 * (2 * 81 + 3 * 4) + 4)
    pixels = np.asarray(grid)
    first = measures.picture(measures.spectrogram(codec, NOISE[:1])[0])
    np.testing.assert_array_equal(pixels[4 : 4 + 81, 4 : 4 + 32], first)
