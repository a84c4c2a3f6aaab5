"""WAV files of every usual format become the same sound; silence, damage and other files are refused with the reason."""

import io
import struct
import wave

import numpy as np
import pytest

from chameleon_jax.configs import SoundConfig
from chameleon_jax.errors import DataError
from chameleon_jax.tokenizers import waveforms

CONFIG = SoundConfig(max_seconds=3.0)
TONE = 0.5 * np.sin(2 * np.pi * 440 * np.arange(2400) / 8000)  # 0.3 s


def pcm(samples, *, rate=8000, width=2):
    """A WAV file of whole numbers, written by the standard library; [n] or [n, channels]."""
    scaled = np.round(samples * (2 ** (8 * width - 1) - 1)).astype(np.int64)
    if width == 1:
        data = (scaled + 128).astype(np.uint8).tobytes()
    else:
        data = b"".join(int(value).to_bytes(width, "little", signed=True) for value in scaled.ravel())
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1 if samples.ndim == 1 else samples.shape[1])
        writer.setsampwidth(width)
        writer.setframerate(rate)
        writer.writeframes(data)
    return file.getvalue()


def floats(samples, *, rate=8000, dtype="<f4"):
    """A WAV file of floats (format 3), packed by hand."""
    data = samples.astype(dtype).tobytes()
    width = np.dtype(dtype).itemsize
    header = struct.pack("<4sIHHIIHH", b"fmt ", 16, 3, 1, rate, rate * width, width, 8 * width)
    body = b"WAVE" + header + struct.pack("<4sI", b"data", len(data)) + data
    return struct.pack("<4sI", b"RIFF", len(body)) + body


@pytest.mark.parametrize("width", [1, 2, 3, 4])
@pytest.mark.parametrize("channels", [1, 2])
def test_whole_numbers_of_every_width_are_read(width, channels):
    samples = TONE if channels == 1 else np.stack([1.5 * TONE, 0.5 * TONE], axis=1)
    read, rate = waveforms.read(pcm(samples, width=width), 3.0)
    assert rate == 8000
    np.testing.assert_allclose(read, TONE, atol=2.0 ** (2 - 8 * width) + 1e-9)


@pytest.mark.parametrize("dtype", ["<f4", "<f8"])
def test_floats_are_read(dtype):
    read, _ = waveforms.read(floats(TONE, dtype=dtype), 3.0)
    np.testing.assert_allclose(read, TONE, atol=1e-7)


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 22050, 44100, 48000, 44101])
def test_a_tone_keeps_pitch_and_length_at_any_rate(rate):
    tone = 0.3 * np.sin(2 * np.pi * 440 * np.arange(int(0.4 * rate)) / rate)
    sound = waveforms.load_waveform(pcm(tone, rate=rate), CONFIG)
    assert sound.dtype == np.float32 and sound.shape == (5120,)
    spectrum = np.abs(np.fft.rfft(sound[:3200]))
    assert np.argmax(spectrum) * 8000 / 3200 == pytest.approx(440, abs=2.5)
    assert abs(np.flatnonzero(sound)[-1] - 3200) < 100


def test_a_sound_begins_with_what_is_heard_and_has_one_loudness():
    quiet = np.concatenate([np.zeros(6000), 0.01 * TONE, np.zeros(4000)])
    loud = np.concatenate([np.zeros(300), 1.9 * TONE])
    first, second = (waveforms.load_waveform(floats(samples), CONFIG) for samples in (quiet, loud))
    np.testing.assert_allclose(first[100:2300], second[100:2300], atol=0.01)
    assert np.sqrt(np.mean(first[:2400] ** 2)) == pytest.approx(waveforms.LOUDNESS, rel=0.1)
    assert not first[2700:].any()


def test_of_a_longer_sound_the_loudest_stretch_is_kept():
    samples = 0.1 * np.sin(2 * np.pi * 300 * np.arange(16000) / 8000)
    samples[9000:14120] = 0.8 * np.sin(2 * np.pi * 600 * np.arange(5120) / 8000)
    sound = waveforms.load_waveform(pcm(samples), CONFIG)
    frequencies = np.argmax(np.abs(np.fft.rfft(sound.reshape(4, 1280))), axis=1) * 8000 / 1280
    np.testing.assert_allclose(frequencies, 600, atol=7)


def test_a_click_does_not_clip():
    samples = np.concatenate([0.01 * TONE, [1.0], 0.01 * TONE])
    assert np.abs(waveforms.load_waveform(pcm(samples), CONFIG)).max() <= 1


def test_files_that_are_written_are_read_again():
    data = waveforms.to_wav(np.append(TONE, [2.0, -2.0]), 8000)
    with wave.open(io.BytesIO(data)) as reader:
        assert (reader.getnchannels(), reader.getsampwidth(), reader.getframerate()) == (1, 2, 8000)
    np.testing.assert_allclose(waveforms.read(data, 3.0)[0], np.append(TONE, [1.0, -1.0]), atol=1e-4)


GOOD = pcm(TONE)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><p>404", "HTML page"),
        (b'{"error": 1}', "JSON"),
        (b"ID3\x04" + bytes(50), "begins like MP3"),
        (b"fLaC" + bytes(50), "begins like FLAC"),
        (b"OggS" + bytes(50), "begins like Ogg"),
        (b"\x89PNG\r\n\x1a\n" + bytes(50), "PNG picture"),
        (b"\0\0\0\x20ftypM4A " + bytes(50), "M4A"),
        (b"RIFF\x10\0\0\0AVI " + bytes(50), "RIFF file of kind b'AVI '"),
        (bytes(range(200, 250)), "no known sound format"),
        (GOOD[:30], "cannot be read"),
        (GOOD[:-400], "truncated"),
        (GOOD[:36], "cannot be read"),
        (GOOD[:20] + b"\x11\x00" + GOOD[22:], "cannot be read"),  # ADPCM
        (GOOD[:24] + struct.pack("<I", 0) + GOOD[28:], "cannot be read"),
        (pcm(TONE, rate=500), "500 samples a second"),
        (pcm(TONE, rate=400_000), "400000 samples a second"),
        (pcm(np.zeros(0)), "no samples"),
        (pcm(np.zeros(4000)), "silent"),
        (floats(np.full(4000, 0.5)), "silent: it holds a constant"),
        (floats(np.append(TONE, np.nan)), "not finite"),
        (floats(np.append(TONE, np.inf)), "not finite"),
        (pcm(np.tile(TONE, 11)), r"3\.3 s exceeds max_seconds 3"),
    ],
)
def test_what_is_no_sound_is_refused_with_the_reason(data, reason):
    with pytest.raises(DataError, match=reason) as caught:
        waveforms.load_waveform(data, CONFIG)
    assert "\n" not in str(caught.value)


def test_no_damage_gives_anything_but_a_sound_or_a_data_error():
    random = np.random.default_rng(0)
    for _ in range(300):
        data = bytearray(GOOD[: random.integers(12, len(GOOD) + 1)])
        for place in random.integers(0, min(60, len(data)), 3):
            data[place] = random.integers(256)
        try:
            sound = waveforms.load_waveform(bytes(data), CONFIG)
        except DataError:
            continue
        assert sound.shape == (5120,) and np.isfinite(sound).all() and np.abs(sound).max() <= 1
