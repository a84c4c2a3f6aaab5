"""How good an image codec is on pictures it has not seen: PSNR, SSIM, and how much of the codebook it uses.

Pictures are compared as a viewer gets them, 8-bit and clamped, never as raw network output.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image

from chameleon_jax.tokenizers import vqgan
from chameleon_jax.tokenizers.images import to_uint8
from chameleon_jax.tokenizers.vqgan import Codec

BATCH = 64  # pictures at a time, in measurement and grid alike: one compiled program


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReconstructionReport:
    """Averages over a set of pictures; `codebook_usage` and `perplexity` are those of the set's codes."""

    images: int
    psnr: float  # dB, mean of the pictures' own
    psnr_of_set: float  # dB, of the squared error averaged over the set: hard pictures weigh more
    ssim: float
    codebook_usage: float  # fraction of the codes that occur
    perplexity: float  # 2 ** entropy of the codes in bits: the number of equally frequent codes with the same entropy


def evaluate(codec: Codec, images: UInt8[np.ndarray, "N R R 3"], batch_size: int = BATCH) -> ReconstructionReport:
    """Encode and decode every picture, and compare."""
    if len(images) == 0:
        raise ValueError("no images to evaluate")
    errors, similarities = [], []
    counts = np.zeros(codec.config.codes, np.int64)
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        output, codes = reconstruct(codec, batch, batch_size)
        errors.append(squared_error(batch, output))
        similarities.append(ssim(batch, output))
        counts += np.bincount(codes.reshape(-1), minlength=codec.config.codes)
    mse = np.concatenate(errors)
    return ReconstructionReport(
        images=len(images),
        psnr=float(decibels(mse).mean()),
        psnr_of_set=float(decibels(mse.mean())),
        ssim=float(np.concatenate(similarities).mean()),
        codebook_usage=float(np.mean(counts > 0)),
        perplexity=perplexity(counts),
    )


def reconstruct(
    codec: Codec, images: UInt8[np.ndarray, "B R R 3"], batch_size: int
) -> tuple[UInt8[np.ndarray, "B R R 3"], Int[np.ndarray, "B h w"]]:
    """Pictures after the codec, and their codes; computed `batch_size` at a time, so that one program serves every set."""
    outputs, codes = [], []
    for start in range(0, len(images), batch_size):
        part = images[start : start + batch_size]
        padded = np.concatenate([part, np.repeat(part[:1], batch_size - len(part), axis=0)])
        pixels = (padded / 255.0 * 2.0 - 1.0).astype(np.float32)
        output, code = jax.device_get(_roundtrip(codec.params, pixels, codec.config))
        outputs.append(to_uint8(output)[: len(part)])
        codes.append(code[: len(part)])
    return np.concatenate(outputs), np.concatenate(codes)


def psnr(images: UInt8[np.ndarray, "B H W 3"], others: UInt8[np.ndarray, "B H W 3"]) -> Float[np.ndarray, "B"]:
    """Peak signal to noise ratio of each picture in dB, 10 log10(255^2 / mean squared error); equal pictures have infinity."""
    return decibels(squared_error(images, others))


def squared_error(images: UInt8[np.ndarray, "B H W 3"], others: UInt8[np.ndarray, "B H W 3"]) -> Float[np.ndarray, "B"]:
    """Mean squared difference of each pair of pictures, in 8-bit levels squared."""
    difference = images.astype(np.float64) - others.astype(np.float64)
    return np.mean(difference**2, axis=(1, 2, 3))


def decibels(mean_squared_error: Float[np.ndarray, "*B"] | float) -> Float[np.ndarray, "*B"]:
    """PSNR of a mean squared error of 8-bit levels."""
    with np.errstate(divide="ignore"):
        return 10 * np.log10(255.0**2 / np.asarray(mean_squared_error, np.float64))


def ssim(images: UInt8[np.ndarray, "B H W 3"], others: UInt8[np.ndarray, "B H W 3"]) -> Float[np.ndarray, "B"]:
    """Structural similarity of each picture, mean over windows and channels (Wang et al. 2004, eq. 13).

    Gaussian windows of 11x11 pixels with sigma 1.5 that lie wholly inside the picture; K1 0.01, K2 0.03, L 255. A side of less than
    11 pixels gets the largest odd window that fits.
    """
    x, y = (a.transpose(0, 3, 1, 2).astype(np.float64) for a in (images, others))
    rows, columns = _window_matrix(x.shape[2]), _window_matrix(x.shape[3])

    def mean(values: np.ndarray) -> np.ndarray:
        return rows @ values @ columns.T

    mean_x, mean_y = mean(x), mean(y)
    variance_x, variance_y = mean(x * x) - mean_x**2, mean(y * y) - mean_y**2
    covariance = mean(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    similarity = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    similarity /= (mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2)
    return similarity.mean(axis=(1, 2, 3))


def perplexity(counts: Int[np.ndarray, "C"]) -> float:
    """exp of the entropy of the frequencies of codes: between 1 and the number of codes."""
    share = counts[counts > 0] / counts.sum()
    return math.exp(-float(np.sum(share * np.log(share))))


def picture_grid(
    codec: Codec, images: UInt8[np.ndarray, "N R R 3"], *, columns: int = 12, scale: int = 1
) -> Image.Image:
    """Rows of originals, each with the row of their reconstructions below it, `scale` screen pixels to a pixel."""
    output, _ = reconstruct(codec, images, BATCH)
    side, gap = images.shape[1] * scale, 4
    rows = -(-len(images) // columns)
    canvas = Image.new("RGB", (columns * (side + gap) + gap, rows * (2 * side + 2 * gap) + gap), (200, 200, 200))
    for i in range(len(images)):
        left, top = gap + (i % columns) * (side + gap), gap + (i // columns) * (2 * side + 2 * gap)
        for offset, picture in ((0, images[i]), (side, output[i])):
            tile = Image.fromarray(picture).resize((side, side), Image.Resampling.NEAREST)
            canvas.paste(tile, (left, top + offset))
    return canvas


@functools.cache
def _window_matrix(side: int) -> np.ndarray:
    """Row i holds the Gaussian window at position i, so that a matrix product is a valid convolution along one axis."""
    width = min(11, side - 1 + side % 2)
    offsets = np.arange(width) - (width - 1) / 2
    window = np.exp(-(offsets**2) / (2 * 1.5**2))
    matrix = np.zeros((side - width + 1, side))
    for i in range(len(matrix)):
        matrix[i, i : i + width] = window / window.sum()
    return matrix


@functools.partial(jax.jit, static_argnums=2)
def _roundtrip(params, pixels, config):
    codes = vqgan.encode(params, pixels, config)
    return vqgan.decode(params, codes, config), codes
