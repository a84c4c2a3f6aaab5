"""Training of the sound codec: it learns, is the same for a seed, uses its codes, and says how good it became."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from PIL import Image

from chameleon_jax.configs import SoundConfig, SoundTrainConfig
from chameleon_jax.errors import DataError
from chameleon_jax.tokenizer_training import sound as training
from chameleon_jax.tokenizers import spectrum
from chameleon_jax.tokenizers.sound import SoundCodec

CONFIG = SoundConfig(
    seconds=0.16, hop=40, codes=32, embed_dim=4, channels=16, encoder_blocks=1, decoder_blocks=1, phase_steps=2
)
TRAIN = SoundTrainConfig(
    steps=80, batch_size=8, learning_rate=1e-2, warmup_steps=5, dead_code_steps=5, log_every=1, jitter=20
)


def _tones(count, seed=0):
    """Two tones one after the other, out of eight."""
    random = np.random.default_rng(seed)
    times = np.arange(CONFIG.samples // 2) / CONFIG.rate
    pitches = random.integers(1, 9, (count, 2)) * 400
    return (0.14 * np.sin(2 * np.pi * pitches[:, :, None] * times)).reshape(count, -1).astype(np.float32)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sound")
    return training.train_sound(_tones(40), _tones(20, seed=1), CONFIG, TRAIN, folder), folder


def test_training_lowers_the_error_and_reports_it(trained):
    made, folder = trained
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    errors = [line["l1"] for line in lines if "l1" in line]
    assert len(errors) == 80 and np.mean(errors[-5:]) < 0.6 * np.mean(errors[:5])
    report = json.loads((folder / training.REPORT).read_text())
    assert report["sounds"] == 20 and report["codebook_usage"] > 0.5
    real = spectrum.log_magnitudes(_tones(20, seed=1), CONFIG.hop)
    mean = 20 / np.log(10) * np.sqrt(np.mean((real - real.mean(axis=(0, 1))) ** 2))
    assert report["distance_of_spectrum"] < 0.7 * mean
    assert Image.open(folder / training.PICTURE).size[0] > 300
    saved = SoundCodec.load(folder)
    np.testing.assert_array_equal(saved.encode(_tones(4)), made.codec.encode(_tones(4)))


def test_the_same_call_gives_the_same_codec(trained, tmp_path):
    again = training.train_sound(_tones(40), _tones(4), CONFIG, TRAIN, tmp_path)
    jax.tree.map(np.testing.assert_array_equal, trained[0].codec.params, again.codec.params)


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
        training.train_sound(_tones(40)[:, :1000], _tones(2), CONFIG, TRAIN, tmp_path)
    with pytest.raises(DataError, match="0 sounds held out"):
        training.train_sound(_tones(40), _tones(2)[:0], CONFIG, TRAIN, tmp_path)
