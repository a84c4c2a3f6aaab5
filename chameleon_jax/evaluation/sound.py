"""How good a sound codec is on sounds it has not heard: distance of the spectra, and how much of the codebook it uses."""

from __future__ import annotations

import dataclasses
import math

import jax
import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image

from chameleon_jax.evaluation.reconstruction import perplexity
from chameleon_jax.tokenizers import sound, spectrum
from chameleon_jax.tokenizers.sound import SoundCodec

BATCH = 64  # sounds at a time: one compiled program
_GAP = 4
_DECIBELS = 20 / math.log(10)  # of one unit of the natural logarithm of a magnitude
# Luminance rises with loudness: black, violet, orange, white.
_COLOURS = np.array([[0, 0, 0], [70, 20, 110], [200, 50, 70], [250, 160, 40], [255, 255, 220]], np.float64)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SoundReport:
    """Averages over a set of sounds; usage and perplexity are those of the set's codes."""

    sounds: int
    # dB, root mean square over frames and frequencies, mean over sounds (Gray and Markel 1976), of the waveform that is heard.
    log_spectral_distance: float
    # The same for what the decoder writes, before a waveform is found for it.
    distance_of_spectrum: float
    codebook_usage: float
    perplexity: float


def evaluate(codec: SoundCodec, waveforms: Float[np.ndarray, "N samples"]) -> SoundReport:
    """Encode and decode every sound, and compare."""
    if len(waveforms) == 0:
        raise ValueError("no sounds to evaluate")
    rebuilt, codes = reconstruct(codec, waveforms)
    real, heard = spectrogram(codec, waveforms), spectrogram(codec, rebuilt)
    written = np.asarray(_written(codec.params, codes, codec.config))
    counts = np.bincount(codes.reshape(-1), minlength=codec.codes)
    return SoundReport(
        sounds=len(waveforms),
        log_spectral_distance=_distance(real, heard),
        distance_of_spectrum=_distance(real, written),
        codebook_usage=float(np.mean(counts > 0)),
        perplexity=perplexity(counts),
    )


def reconstruct(
    codec: SoundCodec, waveforms: Float[np.ndarray, "N samples"]
) -> tuple[Float[np.ndarray, "N samples"], Int[np.ndarray, "N n"]]:
    """Sounds after the codec, and their codes; computed `BATCH` at a time, so that one program serves every set."""
    codes, rebuilt = [], []
    for start in range(0, len(waveforms), BATCH):
        part = waveforms[start : start + BATCH]
        whole = codec.encode(np.concatenate([part, np.repeat(part[:1], BATCH - len(part), axis=0)]))
        codes.append(whole[: len(part)])
        rebuilt.append(codec.decode(whole)[: len(part)])
    return np.concatenate(rebuilt), np.concatenate(codes)


def spectrogram(codec: SoundCodec, waveforms: Float[np.ndarray, "N samples"]) -> Float[np.ndarray, "N frames bins"]:
    """Log magnitudes, as the codec sees them."""
    return np.asarray(_log_magnitudes(waveforms, codec.config.hop))


def spectrogram_grid(
    codec: SoundCodec, waveforms: Float[np.ndarray, "N samples"], *, columns: int = 10, scale: int = 2
) -> Image.Image:
    """Rows of spectrograms, time to the right and frequency upwards, each with the row of their reconstructions below it."""
    rebuilt, _ = reconstruct(codec, waveforms)
    real, heard = spectrogram(codec, waveforms), spectrogram(codec, rebuilt)
    pairs = [(picture(one), picture(other)) for one, other in zip(real, heard, strict=True)]
    height, width = (side * scale for side in pairs[0][0].shape[:2])
    rows = -(-len(pairs) // columns)
    canvas = Image.new("RGB", (columns * (width + _GAP) + _GAP, rows * (2 * height + 3 * _GAP) + _GAP), (200, 200, 200))
    for i, pair in enumerate(pairs):
        left, top = _GAP + (i % columns) * (width + _GAP), _GAP + (i // columns) * (2 * height + 3 * _GAP)
        for row, pixels in enumerate(pair):
            tile = Image.fromarray(pixels).resize((width, height), Image.Resampling.NEAREST)
            canvas.paste(tile, (left, top + row * (height + _GAP)))
    return canvas


def picture(log_magnitudes: Float[np.ndarray, "frames bins"]) -> UInt8[np.ndarray, "bins frames 3"]:
    """One spectrogram in colours, low frequencies at the bottom; the same colours for the same loudness in every picture."""
    silent, loud = spectrum.RANGE
    shade = np.clip((log_magnitudes.T[::-1] - silent) / (loud - silent), 0, 1) * (len(_COLOURS) - 1)
    stops = np.arange(len(_COLOURS))
    return np.stack([np.interp(shade, stops, channel) for channel in _COLOURS.T], axis=-1).astype(np.uint8)


def _distance(some: Float[np.ndarray, "N frames bins"], others: Float[np.ndarray, "N frames bins"]) -> float:
    return float(_DECIBELS * np.sqrt(np.mean((some - others) ** 2, axis=(1, 2))).mean())


_log_magnitudes = jax.jit(spectrum.log_magnitudes, static_argnums=1)
_written = jax.jit(sound.log_magnitudes, static_argnums=2)
