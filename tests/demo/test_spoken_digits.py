"""The spoken digits: the same for a seed, other speakers held out, and a judge that knows the truth."""

import json

import numpy as np
import pytest
from scipy.io import wavfile

from chameleon_jax.demo import digits, espeak, spoken_digits
from chameleon_jax.errors import DataError

synthesised = pytest.mark.skipif(not espeak.available(), reason="needs the extra [demo]")


@pytest.fixture(scope="module")
def parts():
    return spoken_digits.load(held_out=False), spoken_digits.load(held_out=True)


@synthesised
def test_the_judge_recognises_voices_it_never_heard_and_not_noise(parts):
    train, held_out = parts
    assert not set(train.voices) & set(held_out.voices)
    judge = spoken_digits.classifier(train)
    assert np.mean(spoken_digits.recognise(judge, held_out.waveforms) == held_out.labels) > 0.97
    noise = np.random.default_rng(0).normal(0, 0.1, held_out.waveforms.shape)
    assert np.mean(spoken_digits.recognise(judge, noise) == held_out.labels) < 0.25


@synthesised
def test_the_judge_cares_neither_for_the_place_of_the_word_nor_for_its_loudness(parts):
    train, held_out = parts
    judge = spoken_digits.classifier(train)
    moved = 0.1 * np.pad(held_out.waveforms, ((0, 0), (700, 100)))
    assert np.mean(spoken_digits.recognise(judge, moved) == held_out.labels) > 0.9


@synthesised
def test_sounds_are_whole_loud_enough_and_of_every_digit_and_voice(parts):
    for part, voices, takes in zip(parts, (spoken_digits.VOICES, spoken_digits.HELD_OUT_VOICES), (5, 3), strict=True):
        assert part.waveforms.shape == (len(voices) * 10 * takes, spoken_digits.SAMPLES)
        assert set(zip(part.voices, part.labels.tolist(), strict=True)) == {(v, d) for v in voices for d in range(10)}
        peaks = np.abs(part.waveforms).max(axis=1)
        assert peaks.min() > 0.2 and peaks.max() <= 1
        lengths = [len(spoken_digits.active(waveform, spoken_digits.RATE)) for waveform in part.waveforms]
        assert min(lengths) > 0.1 * spoken_digits.RATE and max(lengths) < 0.64 * spoken_digits.RATE


@synthesised
def test_written_files_are_those_of_the_seed(tmp_path, parts, monkeypatch):
    monkeypatch.setattr(spoken_digits, "VOICES", ("m1", "f2"))
    monkeypatch.setattr(spoken_digits, "HELD_OUT_VOICES", ("f4",))
    for name, seed in (("first", 3), ("again", 3), ("other", 4)):
        spoken_digits.write(tmp_path / name, seed=seed)
    first, again, other = (
        {path.name: path.read_bytes() for path in (tmp_path / name).rglob("*.*")}
        for name in ("first", "again", "other")
    )
    assert first == again
    assert first["train-0000.wav"] != other["train-0000.wav"]
    records = [json.loads(line) for line in first["heldout.jsonl"].splitlines()]
    assert len(records) == 30 and {record["voice"] for record in records} == {"f4"}
    for record in records[:3]:
        rate, samples = wavfile.read(tmp_path / "first" / record["sound"])
        assert (rate, samples.dtype, samples.shape) == (8000, np.int16, (spoken_digits.SAMPLES,))
        assert digits.read_label(record["text"]) == record["label"]


def test_a_missing_synthesiser_and_a_missing_voice_are_one_line(monkeypatch):
    if espeak.available():
        with pytest.raises(DataError, match="no voice 'gmw/nowhere'"):
            espeak.speak([espeak.Utterance("one", "gmw/nowhere", 160, 50)])
    monkeypatch.setattr(espeak, "available", lambda: False)
    with pytest.raises(DataError, match=r"chameleon-jax\[demo\]"):
        espeak.speak([espeak.Utterance("one", "gmw/en", 160, 50)])
