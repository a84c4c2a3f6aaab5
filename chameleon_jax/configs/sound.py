"""The codec of short sounds and its training."""

from __future__ import annotations

import dataclasses

from chameleon_jax.config_base import Config


@dataclasses.dataclass(frozen=True, kw_only=True)
class SoundConfig(Config):
    """What a sound is, and the shape of the codec; the defaults are for single spoken words.

    Every sound is `seconds` long at `rate` samples a second. One code stands for `frames_per_code` frames of a spectrogram, which
    are `hop` samples apart.
    """

    rate: int = 8_000
    seconds: float = 0.64
    hop: int = 80
    frames_per_code: int = 2
    codes: int = 256
    embed_dim: int = 16
    channels: int = 128
    encoder_blocks: int = 2
    decoder_blocks: int = 3
    # Iterations of the Griffin-Lim algorithm, which turns a spectrogram without phases into a waveform.
    phase_steps: int = 32
    # Longer files are refused before they are resampled.
    max_seconds: float = 30.0

    @property
    def samples(self) -> int:
        """Length of a sound."""
        return round(self.rate * self.seconds)

    @property
    def frames(self) -> int:
        return self.samples // self.hop

    @property
    def window(self) -> int:
        """Samples that a frame looks at, centred on the `hop` samples that it stands for."""
        return 4 * self.hop

    @property
    def bins(self) -> int:
        """Frequencies of a frame, from 0 to half the rate."""
        return self.window // 2 + 1

    @property
    def codes_per_sound(self) -> int:
        return self.frames // self.frames_per_code

    def validate(self):
        for name in ("hop", "frames_per_code", "codes", "embed_dim", "channels"):
            self.require(getattr(self, name) >= 1, f"{name} must be at least 1, got {getattr(self, name)}")
        self.require(1_000 <= self.rate <= 192_000, f"rate must be in 1000..192000 samples a second, got {self.rate}")
        self.require(self.hop % 2 == 0, f"hop must be even, got {self.hop}")
        unit = self.hop * self.frames_per_code
        self.require(
            self.samples >= unit and self.samples % unit == 0,
            f"{self.seconds} s at {self.rate} samples a second are {self.samples} samples, not a multiple of the {unit} of a code",
        )
        self.require(
            self.max_seconds >= self.seconds,
            f"max_seconds {self.max_seconds} is less than the {self.seconds} s of a sound",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SoundTrainConfig(Config):
    """Training of the sound codec: reconstruction of the log spectrogram + commitment loss (van den Oord et al. 2017)."""

    steps: int = 1_500
    batch_size: int = 32
    learning_rate: float = 2e-3
    warmup_steps: int = 50
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    # Of the squared error of the spectral envelope: pitch takes few of the codes then, and what is said most of them.
    envelope_weight: float = 4.0
    commitment_weight: float = 0.25
    ema_decay: float = 0.99
    # A code that is unused for so many steps is restarted from the batch; 0 = never.
    dead_code_steps: int = 20
    # Random shifts of training sounds in time, in samples either way.
    jitter: int = 80
    log_every: int = 50
    # Steps between two saves; a run that was stopped goes on from the last.
    save_every: int = 500
    seed: int = 0

    def validate(self):
        for name in ("steps", "batch_size", "log_every", "save_every"):
            self.require(getattr(self, name) >= 1, f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("learning_rate", "clip_norm"):
            self.require(getattr(self, name) > 0, f"{name} must be positive, got {getattr(self, name)}")
        self.require(0 < self.ema_decay < 1, f"ema_decay must be in (0, 1), got {self.ema_decay}")
        self.require(self.jitter >= 0, f"jitter must be at least 0, got {self.jitter}")
