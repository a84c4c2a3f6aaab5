"""Sampling, generation requests and evaluation."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

from chameleon_jax.config_base import Config
from chameleon_jax.configs.data import SourceConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class CaptionEvalConfig(Config):
    """Choice of a picture's caption among others, by likelihood, on documents of one picture and one text."""

    source: SourceConfig
    pictures: int = 500  # evenly spaced over the source
    choices: int = 10
    seed: int = 0

    def validate(self):
        self.require(self.pictures >= 2, f"pictures must be at least 2, got {self.pictures}")
        self.require(self.choices >= 2, f"choices must be at least 2, got {self.choices}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingConfig(Config):
    """How one modality is sampled; temperature 0 is greedy."""

    temperature: float = 0.7
    top_p: float = 0.9

    def validate(self):
        self.require(
            self.temperature >= 0 and math.isfinite(self.temperature),
            f"temperature must be finite and >= 0, got {self.temperature}",
        )
        self.require(0 < self.top_p <= 1, f"top_p must be in (0, 1], got {self.top_p}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerationConfig(Config):
    """One generation request; `mode` masks the modalities that may come out."""

    mode: Literal["text", "image", "interleaved"] = "interleaved"
    max_tokens: int = 4096  # the model's context is the other limit
    max_images: int = 4
    image_grid: tuple[
        int, ...
    ] = ()  # height and width of every image in codes, for grid vocabularies; () = the model's choice
    stop_at_turn_end: bool = False  # the end-of-turn id may come, and ends the output as end of sequence does
    text: SamplingConfig = dataclasses.field(default_factory=SamplingConfig)
    image: SamplingConfig = dataclasses.field(default_factory=SamplingConfig)
    seed: int = 0

    def validate(self):
        self.require(self.max_tokens >= 1, f"max_tokens must be at least 1, got {self.max_tokens}")
        self.require(self.max_images >= 1, f"max_images must be at least 1, got {self.max_images}")
        self.require(
            len(self.image_grid) in (0, 2) and all(side >= 1 for side in self.image_grid),
            f"image_grid must be empty or a height and a width in codes, got {self.image_grid}",
        )
