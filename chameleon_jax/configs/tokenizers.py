"""Pictures, the image codec and its training."""

from __future__ import annotations

import dataclasses
from typing import Literal

from chameleon_jax.config_base import Config


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageConfig(Config):
    """How a picture file becomes an array of pixels.

    `meta` is Chameleon's way and `hf` that of its port in Transformers, for comparing with it: both give squares, for vocabularies
    of fixed spans. `lumina` is Lumina-mGPT's: pictures keep about their shape, for vocabularies of grid spans.
    """

    resolution: int = 512  # side in pixels; with lumina the side of the square that no picture has more pixels than
    preprocessing: Literal["meta", "hf", "lumina"] = "meta"
    grid_pixels: int = 32  # lumina: sides are multiples of it; one grid unit of codes in pixels
    max_pixels: int = 50_000_000
    formats: tuple[str, ...] = ("JPEG", "PNG", "WEBP")

    def validate(self):
        self.require(self.resolution >= 1, f"resolution must be positive, got {self.resolution}")
        self.require(
            self.preprocessing != "lumina" or (self.grid_pixels >= 1 and self.resolution % self.grid_pixels == 0),
            f"resolution {self.resolution} is not a multiple of grid_pixels {self.grid_pixels}",
        )
        self.require(self.max_pixels >= 1, f"max_pixels must be positive, got {self.max_pixels}")
        self.require(len(self.formats) > 0, "formats must name at least one image format")


@dataclasses.dataclass(frozen=True, kw_only=True)
class VQConfig(Config):
    """Shape of the VQGAN image codec; the defaults are Chameleon's.

    `patch_size` > 1 folds pixels into channels before the first convolution and unfolds them after the last: the same net at a
    fraction of the cost, for small budgets.
    """

    resolution: int = 512
    in_channels: int = 3
    channels: int = 128
    channel_multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    res_blocks: int = 2
    latent_channels: int = 256
    embed_dim: int = 256
    codes: int = 8192
    attention_resolutions: tuple[int, ...] = ()
    norm_groups: int = 32
    dropout: float = 0.0
    patch_size: int = 1

    @property
    def downsampling(self) -> int:
        """Pixels per code along one side."""
        return self.patch_size * 2 ** (len(self.channel_multipliers) - 1)

    @property
    def grid(self) -> int:
        """Codes along one side of a picture at the trained resolution."""
        return self.resolution // self.downsampling

    @property
    def codes_per_image(self) -> int:
        return self.grid**2

    def validate(self):
        self.require(
            self.resolution % self.downsampling == 0,
            f"resolution {self.resolution} is not a multiple of the downsampling {self.downsampling}",
        )
        for multiplier in self.channel_multipliers:
            width = self.channels * multiplier
            self.require(
                width % self.norm_groups == 0,
                f"channels*{multiplier} = {width} is not a multiple of norm_groups {self.norm_groups}",
            )
        self.require(0.0 <= self.dropout < 1.0, f"dropout must be in [0, 1), got {self.dropout}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class VQTrainConfig(Config):
    """Training of the image codec: reconstruction + commitment (+ codebook) loss, van den Oord 2017 and Razavi 2019."""

    steps: int = 100_000
    batch_size: int = 64
    learning_rate: float = 3e-4
    warmup_steps: int = 500
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    l1_weight: float = 1.0
    l2_weight: float = 1.0
    commitment_weight: float = 0.25
    codebook: Literal["ema", "gradient"] = "ema"
    ema_decay: float = 0.99
    dead_code_steps: int = 200  # a code unused for so many steps is restarted from the batch; 0 = never
    flip: bool = False  # random left-right flips
    jitter: int = 0  # random shifts of up to so many pixels
    eval_images: int = 512
    eval_every: int = 1000
    log_every: int = 50
    memory_gb: float = 0.0  # of the device, 10^9 bytes; a run that needs far more does not start; 0 = as it says
    seed: int = 0

    def validate(self):
        for name in ("steps", "batch_size", "eval_images", "eval_every", "log_every"):
            self.require(getattr(self, name) >= 1, f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("learning_rate", "clip_norm"):
            self.require(getattr(self, name) > 0, f"{name} must be positive, got {getattr(self, name)}")
        self.require(0 < self.ema_decay < 1, f"ema_decay must be in (0, 1), got {self.ema_decay}")
        self.require(self.l1_weight + self.l2_weight > 0, "l1_weight and l2_weight are both 0: nothing to reconstruct")
