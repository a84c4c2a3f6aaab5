"""The sound codec: spectra as SciPy has them, phases that fit, codes that depend on their sound alone, files that fit."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import signal

from chameleon_jax.configs import SoundConfig
from chameleon_jax.errors import ConfigError, TokenizerError
from chameleon_jax.tokenizers import sound, spectrum, waveforms
from chameleon_jax.tokenizers.sound import SoundCodec

CONFIG = SoundConfig(
    seconds=0.16, hop=40, codes=32, embed_dim=4, channels=16, encoder_blocks=1, decoder_blocks=1, phase_steps=8
)


@pytest.fixture(scope="module")
def codec():
    @jax.jit
    def make(sounds):
        params = sound.init(jax.random.key(0), CONFIG)
        latents = sound.encode_latents(params, sound.features(sounds, CONFIG), CONFIG).reshape(-1, CONFIG.embed_dim)
        return params | {"quantize": {"embedding": latents[:32]}}

    return SoundCodec(params=jax.device_get(make(_chirps(4))), config=CONFIG)


def _chirps(count, samples=CONFIG.samples):
    """Harmonic sounds that glide, each in its own way, at the loudness of prepared ones."""
    random, times = np.random.default_rng(0), np.arange(samples) / 8000
    made = []
    for _ in range(count):
        base, glide = random.uniform(120, 250), random.uniform(-200, 200)
        phase = 2 * np.pi * (base * times + glide * times**2)
        made.append(sum(np.sin(k * phase) / k for k in range(1, 12)))
    return np.stack([waveforms.level(one) for one in made]).astype(np.float32)


def test_spectra_are_those_of_scipy():
    samples, hop = _chirps(2, 5120), 80
    ours = np.exp(np.asarray(spectrum.log_magnitudes(samples, hop))) - spectrum.FLOOR
    window = np.sin(np.pi * (np.arange(320) + 0.5) / 320) ** 2
    transform = signal.ShortTimeFFT(window, hop, fs=8000, scale_to=None, phase_shift=None)
    padded = np.pad(samples, ((0, 0), (120, 120)))
    # Their slice p is centred on sample p * hop: ours begin with the one whose window begins at the first padded sample.
    theirs = np.abs(transform.stft(padded, p0=2, p1=66)).transpose(0, 2, 1)
    assert ours.shape == (2, 64, 161)
    np.testing.assert_allclose(ours, theirs, atol=2e-3)


def test_griffin_lim_finds_a_waveform_with_the_spectrogram_it_was_given_and_more_steps_come_nearer():
    samples = _chirps(4, 5120)
    wanted = spectrum.log_magnitudes(samples, 80)

    def decibels(steps):
        rebuilt = jax.jit(lambda x: spectrum.waveforms(x, 80, steps))(wanted)
        assert rebuilt.shape == samples.shape
        return float(20 / np.log(10) * jnp.sqrt(jnp.mean((spectrum.log_magnitudes(rebuilt, 80) - wanted) ** 2)))

    far, near = decibels(0), decibels(48)
    assert near < 2 and near < 0.4 * far


def test_silence_stays_silent():
    silent = spectrum.log_magnitudes(jnp.zeros((1, 800)), 40)
    np.testing.assert_allclose(jax.jit(lambda x: spectrum.waveforms(x, 40, 4))(silent), 0, atol=1e-6)


def test_codes_and_sounds_have_the_promised_shapes_and_types(codec):
    codes = codec.encode(list(_chirps(3)))
    assert codes.shape == (3, CONFIG.codes_per_sound) == (3, codec.length) and codes.dtype == np.int32
    assert codec.length == 16 and codes.min() >= 0 and codes.max() < codec.codes == 32
    assert len(np.unique(codes)) > 8
    rebuilt = codec.decode(codes)
    assert rebuilt.shape == (3, CONFIG.samples) and rebuilt.dtype == np.float32 and np.isfinite(rebuilt).all()
    read, rate = waveforms.read(codec.to_file(rebuilt[0]), 1.0)
    assert rate == 8000
    np.testing.assert_allclose(read, np.clip(rebuilt[0], -1, 1), atol=1e-4)


def test_what_comes_of_a_sound_depends_on_it_alone(codec):
    sounds = _chirps(5)
    together = codec.encode(sounds)
    np.testing.assert_array_equal(np.concatenate([codec.encode(sounds[i : i + 1]) for i in range(5)]), together)
    alone = np.concatenate([codec.decode(together[i : i + 1]) for i in range(5)])
    np.testing.assert_allclose(alone, codec.decode(together), atol=1e-3)


def test_a_code_depends_on_few_frames(codec):
    sounds = _chirps(1)
    changed = sounds.copy()
    changed[:, 800:] = 0
    same = codec.encode(sounds)[0] == codec.encode(changed)[0]
    # The window reaches a code of 80 samples further, each block of the encoder another one.
    assert same[:7].all() and not same[10:].all()


def test_a_saved_codec_is_the_same_and_another_is_not(codec, tmp_path):
    assert SoundCodec.load(tmp_path) is None
    codec.save(tmp_path / "saved")
    loaded = SoundCodec.load(tmp_path / "saved")
    assert loaded.config == CONFIG
    np.testing.assert_array_equal(loaded.encode(_chirps(2)), codec.encode(_chirps(2)))
    parts = [bytes(part) for part in codec.identity()]
    assert [bytes(part) for part in loaded.identity()] == parts
    book = np.array(sound.codebook(codec.params))
    book[0, 0] += 1
    other = dataclasses.replace(codec, params=codec.params | {"quantize": {"embedding": book}})
    assert [bytes(part) for part in other.identity()] != parts


def test_files_that_do_not_belong_together_are_one_line(codec, tmp_path):
    codec.save(tmp_path / "good")
    for name, damage, reason in (
        ("cut", lambda p: (p / sound.WEIGHTS).write_bytes(b"123"), "is damaged"),
        ("alone", lambda p: (p / sound.WEIGHTS).unlink(), "does not exist"),
        ("bare", lambda p: (p / sound.CONFIG).unlink(), "does not exist"),
        ("other", lambda p: _rewrite(p / sound.CONFIG, codes=64), "asks for float32"),
        ("deeper", lambda p: _rewrite(p / sound.CONFIG, encoder_blocks=2), "lacks tensor encoder.block_1"),
        ("typo", lambda p: _rewrite(p / sound.CONFIG, hopp=1), "did you mean 'hop'"),
    ):
        shutil.copytree(tmp_path / "good", tmp_path / name)
        damage(tmp_path / name)
        with pytest.raises(TokenizerError, match=reason) as caught:
            SoundCodec.load(tmp_path / name)
        assert "\n" not in str(caught.value)


def _rewrite(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_wrong_shapes_and_codes_are_refused(codec):
    with pytest.raises(TokenizerError, match=r"\(2, 100\), the codec wants \(batch, 1280 samples\)"):
        codec.encode(np.zeros((2, 100)))
    with pytest.raises(TokenizerError, match=r"\(1, 15\), expected \(batch, 16\)"):
        codec.decode(np.zeros((1, 15), int))
    for code in (-1, 32):
        with pytest.raises(TokenizerError, match=r"outside 0\.\.31"):
            codec.decode(np.full((1, 16), code))


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"seconds": 0.65}, "not a multiple of the 160 of a code"),
        ({"hop": 81, "seconds": 0.648}, "hop must be even"),
        ({"rate": 10}, "rate must be in 1000"),
        ({"codes": 0}, "codes must be at least 1"),
        ({"max_seconds": 0.1}, "max_seconds 0.1 is less"),
    ],
)
def test_configs_that_contradict_themselves_are_refused(values, reason):
    with pytest.raises(ConfigError, match=reason):
        SoundConfig(**values)
