"""The words "zero" to "nine" in many synthetic voices, and a judge that recognises them: sounds for a small mixed-modal run.

A voice is a speaker: no voice of the training part is heard in the held-out part. Accent, speed, pitch, place in time, loudness and
noise change from sound to sound.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from chameleon_jax.demo import espeak
from chameleon_jax.demo.digits import WORDS

RATE = 8_000  # samples a second, as on the telephone
SAMPLES = 7_200  # of every sound: 0.9 s
TAKES, HELD_OUT_TAKES = 5, 3  # of each word by each voice

# Variants of eSpeak NG that speak clearly; whispers, robots and copies of one another are left out.
VOICES = (
    "max", "Mike", "grandpa", "john", "croak", "Mario", "Reed", "adam", "edward", "mike2", "david", "Jacky",
    "quincy", "rob", "robert", "sandro", "pablo", "marcelo", "miguel", "michel", "Diogo", "Hugo", "victor", "iven",
    "iven4", "m1", "m2", "m3", "m4", "m6", "m8", "f1", "f2", "f3", "f5", "linda", "Annie", "steph",
)  # fmt: skip
# Each of them differs more from all voices of training than many of those differ from one another.
HELD_OUT_VOICES = ("m5", "m7", "f4", "aunty", "belinda", "Denis", "Storm", "pedro", "gustave", "grandma")
_ACCENTS = tuple(
    f"gmw/{name}"
    for name in (
        "en",
        "en-US",
        "en-GB-scotland",
        "en-GB-x-gbclan",
        "en-GB-x-gbcwmd",
        "en-GB-x-rp",
        "en-US-nyc",
        "en-029",
    )
)
_LOUDEST = 0.9
_AUDIBLE = 1e-3  # of the loudest 20 ms, in power: -30 dB


@dataclasses.dataclass(frozen=True)
class SpokenDigits:
    """Waveforms in [-1, 1] at `RATE`, the digit 0..9 that each says, and who says it."""

    waveforms: Float[np.ndarray, "n samples"]
    labels: Int[np.ndarray, "n"]
    voices: tuple[str, ...]


def load(*, held_out: bool, seed: int = 0, takes: int = TAKES) -> SpokenDigits:
    """One of the two parts, the same for the same seed; `takes` of each word by each voice of training.

    Raises DataError when the synthesiser is not installed.
    """
    from scipy import signal

    random = np.random.default_rng((seed, int(held_out)))
    voices, takes = (HELD_OUT_VOICES, HELD_OUT_TAKES) if held_out else (VOICES, takes)
    asked = [(voice, label) for voice in voices for label in range(10) for _ in range(takes)]
    utterances = [
        espeak.Utterance(
            text=WORDS[label],
            voice=f"{random.choice(_ACCENTS)}+{voice}",
            words_per_minute=int(random.integers(165, 216)),
            pitch=int(random.integers(35, 66)),
        )
        for voice, label in asked
    ]
    waveforms = np.zeros((len(asked), SAMPLES), np.float32)
    for row, spoken in zip(waveforms, espeak.speak(utterances), strict=True):
        word = active(signal.resample_poly(spoken / 2.0**15, 160, 441), RATE)[
            :SAMPLES
        ]  # 22,050 to 8,000 samples a second
        word = word / np.abs(word).max() * _LOUDEST * random.uniform(0.3, 1.0)
        start = random.integers(0, SAMPLES - len(word) + 1)
        row[start : start + len(word)] = word
        noise = 10 ** (-random.uniform(35, 50) / 20) * np.sqrt(np.mean(word**2))
        row += noise * random.standard_normal(SAMPLES)
    labels = np.asarray([label for _, label in asked])
    return SpokenDigits(np.clip(waveforms, -1, 1), labels, tuple(voice for voice, _ in asked))


def write(folder: str | Path, *, seed: int = 0, takes: int = TAKES) -> None:
    """Write 16-bit WAV files and `train.jsonl` and `heldout.jsonl` with id, sound, text, label and voice below `folder`."""
    from scipy.io import wavfile

    folder = Path(folder)
    (folder / "sounds").mkdir(parents=True, exist_ok=True)
    for part, held_out in (("train", False), ("heldout", True)):
        digits = load(held_out=held_out, seed=seed, takes=takes)
        records = []
        for index, (waveform, label) in enumerate(zip(digits.waveforms, digits.labels.tolist(), strict=True)):
            name = f"sounds/{part}-{index:04d}.wav"
            wavfile.write(folder / name, RATE, np.round(waveform * 32767).astype(np.int16))
            record = {"id": f"{part}-sound-{index:04d}", "sound": name, "text": WORDS[label], "label": label}
            records.append(record | {"voice": digits.voices[index]})
        (folder / f"{part}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def classifier(train: SpokenDigits):
    """An independent judge: a scikit-learn support vector machine trained on real training sounds only."""
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC

    judge = make_pipeline(StandardScaler(), SVC(C=10.0))
    judge.fit(features(train.waveforms), train.labels)
    return judge


def recognise(judge, waveforms: Float[np.ndarray, "n samples"]) -> Int[np.ndarray, "n"]:
    """Labels that the judge gives to waveforms at `RATE`, wherever in them the word is said and however loudly."""
    return judge.predict(features(waveforms))


def features(waveforms: Float[np.ndarray, "n samples"]) -> Float[np.ndarray, "n features"]:
    """Cepstra of the word at 20 moments evenly spread from its beginning to its end, its contour of loudness, and its length.

    The mean of the cepstrum over the word is taken away, and with it much of who speaks (Furui 1981).
    """
    from scipy import fft, signal

    filters = _mel_filters()
    rows = []
    for waveform in np.asarray(waveforms, np.float64):
        word = active(waveform, RATE)
        word = np.pad(word / np.sqrt(np.mean(word**2) + 1e-12), 128)
        _, _, spectrum = signal.stft(word, nperseg=256, noverlap=176, boundary=None)
        mel = np.log(filters @ np.abs(spectrum) ** 2 + 1e-7)  # [bands, frames]
        at = np.linspace(0, mel.shape[1] - 1, 20)
        lower = np.minimum(at.astype(int), mel.shape[1] - 2)
        mel = mel[:, lower] * (1 - at + lower) + mel[:, lower + 1] * (at - lower)
        cepstrum = fft.dct(mel, axis=0, norm="ortho")[:13]
        cepstrum -= cepstrum.mean(axis=1, keepdims=True)
        rows.append(np.concatenate([cepstrum.ravel(), [np.log(len(word))]]))
    return np.asarray(rows)


def active(waveform: Float[np.ndarray, "samples"], rate: int) -> Float[np.ndarray, "_"]:
    """The part from the first to the last moment that is audible beside the loudest."""
    width = rate // 50
    power = np.convolve(waveform**2, np.ones(width) / width, mode="same")
    audible = np.flatnonzero(power >= _AUDIBLE * power.max())
    return waveform[audible[0] : audible[-1] + 1]


def _mel_filters(bands: int = 26, size: int = 256) -> Float[np.ndarray, "bands bins"]:
    """Triangles that are evenly spaced in mel, 2595 log10(1 + f / 700) (O'Shaughnessy 1987)."""
    top = 2595 * np.log10(1 + RATE / 2 / 700)
    corners = 700 * (10 ** (np.linspace(0, top, bands + 2) / 2595) - 1)
    bins = np.arange(size // 2 + 1) * RATE / size
    rising = (bins - corners[:-2, None]) / np.diff(corners)[:-1, None]
    falling = (corners[2:, None] - bins) / np.diff(corners)[1:, None]
    return np.maximum(0, np.minimum(rising, falling))
