"""Training of the sound codec: it learns, uses its codes, and a stopped run goes on to the same bits."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from chameleon_jax.configs import SoundConfig, SoundTrainConfig
from chameleon_jax.errors import DataError
from chameleon_jax.evaluation import sound as measures
from chameleon_jax.tokenizer_training import sound as training
from chameleon_jax.tokenizers.sound import SoundCodec
from chameleon_jax.training.signals import Stopped

CONFIG = SoundConfig(
    seconds=0.16, hop=40, codes=32, embed_dim=8, channels=32, encoder_blocks=1, decoder_blocks=1, phase_steps=2
)
TRAIN = SoundTrainConfig(
    steps=120,
    batch_size=8,
    learning_rate=5e-3,
    ema_decay=0.9,
    warmup_steps=5,
    dead_code_steps=5,
    log_every=1,
    jitter=20,
)


def _tones(count, seed=0):
    """Two tones one after the other, out of four."""
    random = np.random.default_rng(seed)
    times = np.arange(CONFIG.samples // 2) / CONFIG.rate
    pitches = random.integers(1, 5, (count, 2)) * 800
    return (0.14 * np.sin(2 * np.pi * pitches[:, :, None] * times)).reshape(count, -1).astype(np.float32)


def _pitches(waveforms):
    """Which of the four tones is the loudest in each half."""
    halves = np.abs(np.fft.rfft(waveforms.reshape(len(waveforms), 2, -1)))
    return np.round(np.argmax(halves, axis=-1) * CONFIG.rate / (CONFIG.samples // 2) / 800)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sound")
    made = training.train_sound(_tones(40), CONFIG, TRAIN, folder)
    return training.codec_of(made.state, CONFIG), folder


def test_training_lowers_the_error_and_reports_it(trained):
    made, folder = trained
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    errors = [line["l1"] for line in lines if "l1" in line]
    assert len(errors) == 120 and np.mean(errors[-5:]) < 0.6 * np.mean(errors[:5])
    real = _tones(20, seed=1)
    report = measures.evaluate(made, real)
    assert report.sounds == 20 and report.codebook_usage > 0.5
    same = _pitches(measures.reconstruct(made, real)[0]) == _pitches(real)
    assert np.mean(same) > 0.5, "chance is 0.25"
    made.save(folder)
    np.testing.assert_array_equal(SoundCodec.load(folder).encode(_tones(4)), made.encode(_tones(4)))


def test_a_run_that_was_stopped_twice_goes_on_to_the_same_bits(trained, tmp_path):
    for at in (37, 80):
        asked = []
        with pytest.raises(Stopped):
            training.train_sound(_tones(40), CONFIG, TRAIN, tmp_path, lambda: len(asked) == at or asked.append(at))  # noqa: B023
    made = training.train_sound(_tones(40), CONFIG, TRAIN, tmp_path)
    assert made.steps == 3
    jax.tree.map(np.testing.assert_array_equal, trained[0].params, training.codec_of(made.state, CONFIG).params)
    steps = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 121)), "each step is logged once, in order"


def test_batches_cover_every_sound_once_an_epoch_and_move_it_by_no_more_than_jitter():
    sounds = np.zeros((40, CONFIG.samples), np.float32)
    sounds[np.arange(40), 100] = np.arange(1, 41)  # one sample of its own each
    batches = np.concatenate([training.training_batch(sounds, TRAIN, step) for step in range(5)])
    assert sorted(batches.max(axis=1)) == list(range(1, 41))
    shifts = batches.argmax(axis=1) - 100
    assert np.abs(shifts).max() <= 20 and len(np.unique(shifts)) > 10
    np.testing.assert_array_equal(training.training_batch(sounds, TRAIN, 3), batches[24:32])
    assert not np.array_equal(training.training_batch(sounds, dataclasses.replace(TRAIN, seed=1), 3), batches[24:32])


def test_sounds_of_another_length_or_none_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"40 sounds to train on of shape \(1000,\): needs some of 1280 samples"):
        training.train_sound(_tones(40)[:, :1000], CONFIG, TRAIN, tmp_path)
    with pytest.raises(DataError, match="0 sounds held out"):
        training.require_sounds(_tones(2)[:0], CONFIG, "held out")
