"""Waveforms to log magnitudes of short-time spectra, and back by the Griffin-Lim algorithm; pure functions of arrays.

A window is four hops long, so that it and the overlap-add of its inverse are sums of four shifted arrays. Frame t is centred on the
samples t * hop ... (t + 1) * hop: there are exactly samples / hop frames.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Complex, Float

_OVERLAP = 4
# Magnitude below which a frequency counts as silent: about 50 dB below a tone of the loudness that sounds are prepared with.
FLOOR = 0.05
RANGE = (-3.0, 3.0)  # of log magnitudes: the floor, and the loudest frequencies of a prepared sound
_MOMENTUM = 0.99


def log_magnitudes(waveforms: Float[Array, "B samples"], hop: int) -> Float[Array, "B frames bins"]:
    """log(magnitude + floor) of each frame; within about `RANGE` for waveforms with a root mean square of 0.1."""
    return jnp.log(jnp.abs(_transform(waveforms, hop)) + FLOOR)


def waveforms(log_magnitudes: Float[Array, "B frames bins"], hop: int, steps: int) -> Float[Array, "B samples"]:
    """A waveform whose `log_magnitudes` come near to those given.

    `steps` iterations of the fast Griffin-Lim algorithm (Perraudin et al. 2013, algorithm 2), from phases of a fixed seed.
    """
    magnitudes = jnp.maximum(jnp.exp(log_magnitudes) - FLOOR, 0.0)
    # One random phase for each frequency and frame, the same for every sound: what comes of one depends on it alone.
    phases = jax.random.uniform(jax.random.key(0), magnitudes.shape[1:], maxval=2 * np.pi)

    def project(spectra: Complex[Array, "B frames bins"]) -> Complex[Array, "B frames bins"]:
        """The spectra of a real waveform that come nearest."""
        return _transform(_inverse(spectra, hop), hop)

    def step(_, carry):
        spectra, before = carry
        now = project(magnitudes * _direction(spectra))
        return now + _MOMENTUM * (now - before), now

    first = magnitudes * jnp.exp(1j * phases)
    spectra, _ = lax.fori_loop(0, steps, step, (first, project(first)))
    return _inverse(magnitudes * _direction(spectra), hop)


def _transform(waveforms: Float[Array, "B samples"], hop: int) -> Complex[Array, "B frames bins"]:
    around = (_OVERLAP - 1) * hop // 2
    padded = jnp.pad(waveforms, ((0, 0), (around, around)))
    chunks = padded.reshape(padded.shape[0], -1, hop)
    frames = chunks.shape[1] - _OVERLAP + 1
    windows = jnp.concatenate([chunks[:, i : i + frames] for i in range(_OVERLAP)], axis=-1)
    return jnp.fft.rfft(windows * _hann(hop))


def _inverse(spectra: Complex[Array, "B frames bins"], hop: int) -> Float[Array, "B samples"]:
    """Overlap-add divided by the sum of squared windows: the waveform of least squared error (Griffin and Lim 1984, eq. 6)."""
    frames = spectra.shape[1]
    windows = jnp.fft.irfft(spectra, _OVERLAP * hop) * _hann(hop)
    total = _overlap_add(windows, hop) / _overlap_add(np.broadcast_to(_hann(hop) ** 2, (1, *windows.shape[1:])), hop)
    around = (_OVERLAP - 1) * hop // 2
    return total[:, around : around + frames * hop]


def _overlap_add(windows: Float[Array, "B frames window"], hop: int) -> Float[Array, "B padded"]:
    parts = jnp.split(jnp.asarray(windows), _OVERLAP, axis=-1)
    # [B, frames + 3, hop]
    chunks = sum(jnp.pad(part, ((0, 0), (i, _OVERLAP - 1 - i), (0, 0))) for i, part in enumerate(parts))
    return chunks.reshape(chunks.shape[0], -1)


def _direction(spectra: Complex[Array, "*shape"]) -> Complex[Array, "*shape"]:
    return spectra / jnp.maximum(jnp.abs(spectra), 1e-12)


def _hann(hop: int) -> Float[np.ndarray, "window"]:
    """Positive everywhere, so that the overlap-add can be divided by it at the edges too."""
    size = _OVERLAP * hop
    return (0.5 - 0.5 * np.cos(2 * np.pi * (np.arange(size) + 0.5) / size)).astype(np.float32)
