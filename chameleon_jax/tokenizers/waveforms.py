"""From the bytes of a WAV file to the waveform that the sound codec reads, and back.

A file is not trusted before its header has been read; all that cannot become a sound is a `DataError` with a reason.
"""

from __future__ import annotations

import io
import math
import warnings

import numpy as np
from jaxtyping import Float

from chameleon_jax.configs import SoundConfig
from chameleon_jax.errors import DataError

LOUDNESS = 0.1  # root mean square of a prepared sound, over the part where there is something to hear
_PEAK = 0.99
_AUDIBLE = 10 ** (-35 / 10)  # of the loudest 20 ms, in power
_SILENT = 1e-4  # peak of a file that holds nothing: less than four steps of 16 bits
_RATES = range(1_000, 192_001)


def load_waveform(data: bytes, config: SoundConfig) -> Float[np.ndarray, "samples"]:
    """The sound of a WAV file: mono, at `config.rate`, `config.seconds` long, trimmed of silence, at one loudness, in [-1, 1].

    What is heard begins at the first sample, and zeros fill the end. Of a longer sound the stretch with the most energy is kept.

    Raises DataError, with the reason, for anything but a readable WAV file of PCM or floats with something to hear in it.
    """
    if not isinstance(data, bytes):
        raise DataError(f"a sound is the bytes of a WAV file; {type(data).__name__} was given")
    waveform, rate = read(data, config.max_seconds)
    return prepare(waveform, rate, config)


def read(data: bytes, max_seconds: float) -> tuple[Float[np.ndarray, "n"], int]:
    """Mono samples in [-1, 1] and their number a second. Raises DataError as `load_waveform` does."""
    from scipy.io import wavfile

    if not data:
        raise DataError("sound is empty (0 bytes)")
    if not (data[:4] in (b"RIFF", b"RIFX", b"RF64") and data[8:12] == b"WAVE"):
        raise DataError(f"not a WAV file: {_describe_foreign(data)}")
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always", wavfile.WavFileWarning)  # of chunks besides the samples, such as tags, too
            rate, samples = wavfile.read(io.BytesIO(data))
    except Exception as error:  # damaged headers raise many kinds of exception
        raise DataError(f"WAV file cannot be read: {_one_line(error)}") from error
    if any("prematurely" in str(warning.message) for warning in told):
        raise DataError("WAV file is truncated: it ends before its samples do")
    if rate not in _RATES:
        raise DataError(f"WAV file has {rate} samples a second, which must be {_RATES[0]}..{_RATES[-1]}")
    if len(samples) == 0:
        raise DataError("WAV file has no samples")
    if len(samples) > max_seconds * rate:
        raise DataError(f"sound of {len(samples) / rate:.1f} s exceeds max_seconds {max_seconds:g}: cut it first")
    if samples.dtype == np.uint8:
        samples = samples.astype(np.float64) / 128 - 1
    elif samples.dtype.kind == "i":
        samples = samples / -float(np.iinfo(samples.dtype).min)
    mono = samples.reshape(len(samples), -1).mean(axis=1, dtype=np.float64)
    if not np.isfinite(mono).all():
        raise DataError("WAV file has samples that are not finite")
    return mono, rate


def prepare(waveform: Float[np.ndarray, "n"], rate: int, config: SoundConfig) -> Float[np.ndarray, "samples"]:
    """Mono samples at `rate` as `load_waveform` gives them. Raises DataError for silence."""
    from scipy import signal

    peak = np.abs(waveform).max()
    if peak < _SILENT:
        raise DataError("sound is silent")
    waveform = waveform / peak
    waveform = waveform - waveform.mean()
    if rate != config.rate:
        common = math.gcd(rate, config.rate)
        waveform = signal.resample_poly(waveform, config.rate // common, rate // common)
    width = max(1, config.rate // 50)
    power = np.convolve(waveform**2, np.ones(width) / width, mode="same")[: len(waveform)]
    if not power.max() > 0:
        raise DataError("sound is silent: it holds a constant")
    audible = np.flatnonzero(power >= _AUDIBLE * power.max())
    heard = waveform[audible[0] : audible[-1] + 1]
    if len(heard) > config.samples:
        energy = np.concatenate([[0.0], np.cumsum(heard**2)])
        start = int(np.argmax(energy[config.samples :] - energy[: -config.samples]))
        heard = heard[start : start + config.samples]
    heard = level(heard)
    return np.pad(heard, (0, config.samples - len(heard))).astype(np.float32)


def level(waveform: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
    """The waveform at `LOUDNESS`, less loud where its peaks would be clipped."""
    loudness, peak = np.sqrt(np.mean(waveform**2)), np.abs(waveform).max()
    return waveform * min(LOUDNESS / max(loudness, 1e-9), _PEAK / max(peak, 1e-9))


def to_wav(waveform: Float[np.ndarray, "samples"], rate: int) -> bytes:
    """A WAV file of 16 bits, clipped to [-1, 1]."""
    from scipy.io import wavfile

    file = io.BytesIO()
    wavfile.write(file, rate, np.round(np.clip(waveform, -1, 1) * 32767).astype(np.int16))
    return file.getvalue()


def _describe_foreign(data: bytes) -> str:
    """Say what the bytes look like, so that the reader of a rejects file knows what to mend."""
    for magic, name in (
        (b"fLaC", "FLAC"), (b"OggS", "Ogg"), (b"ID3", "MP3"), (b"\xff\xfb", "MP3"), (b"\xff\xf3", "MP3"), (b"\xff\xf1", "AAC"),
        (b"FORM", "AIFF"), (b"caff", "CAF"), (b".snd", "AU"), (b"\x1aE\xdf\xa3", "WebM or Matroska"), (b"%PDF", "PDF"),
        (b"\x89PNG", "a PNG picture"), (b"\xff\xd8\xff", "a JPEG picture"), (b"GIF8", "a GIF picture"), (b"PK", "a ZIP archive"),
    ):  # fmt: skip
        if data.startswith(magic):
            return f"it begins like {name}; convert it to WAV first"
    if data[4:8] == b"ftyp":
        return "it begins like MP4 or M4A; convert it to WAV first"
    if data[:4] == b"RIFF":
        return f"it is a RIFF file of kind {data[8:12]!r}"
    head = data[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if head.startswith((b"<!doctype", b"<html", b"<head", b"<body")):
        return "it is an HTML page"
    if head.startswith((b"<?xml", b"{", b"[")):
        return "it is XML or JSON text"
    return "its content is of no known sound format"


def _one_line(error: BaseException) -> str:
    return " ".join(f"{error or type(error).__name__}".split())[:200]
