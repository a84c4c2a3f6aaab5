"""Sampling, generation requests and evaluation."""

from __future__ import annotations

import dataclasses
import math
import typing
from typing import Any, Literal

from chameleon_jax.config_base import Config
from chameleon_jax.configs.data import SourceConfig

MAX_STOP_IDS = 8  # of one request: a fixed number, so that rows of any request share one compiled program


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


# What the device holds settings in: int32, and normal float32.
_INTEGERS, _SMALLEST_FLOAT = 2**31, 1.2e-38


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingConfig(Config):
    """How one modality is sampled; temperature 0 is greedy. `generation.sampling` says in which order, and what comes of ties."""

    temperature: float = 0.7
    top_p: float = 0.9  # keep the smallest set of ids whose mass reaches it; 1 = all
    top_k: int = 0  # keep the k most likely ids; 0 = all
    repetition_penalty: float = 1.0  # of ids that the prompt or the output holds already; 1 = none

    def validate(self):
        self.require(
            self.temperature >= 0 and math.isfinite(self.temperature),
            f"temperature must be finite and >= 0, got {self.temperature}",
        )
        self.require(
            _SMALLEST_FLOAT <= self.top_p <= 1,
            f"top_p must be in (0, 1] and no smaller than {_SMALLEST_FLOAT}, got {self.top_p}",
        )
        self.require(0 <= self.top_k < _INTEGERS, f"top_k must be in 0..{_INTEGERS - 1}, got {self.top_k}")
        self.require(
            self.repetition_penalty > 0 and math.isfinite(self.repetition_penalty),
            f"repetition_penalty must be finite and positive, got {self.repetition_penalty}",
        )


# (text, image) settings of the released decoders: facebookresearch/chameleon, `inference/chameleon.py` (Options); GAIR-NLP/anole,
# its fork of that file; Alpha-VLLM/Lumina-mGPT, `lumina_mgpt/inference_solver.py`.
SAMPLING_PRESETS = {
    "meta": (
        SamplingConfig(temperature=0.7, top_p=0.9, repetition_penalty=1.2),
        SamplingConfig(temperature=0.7, top_p=0.9),
    ),
    "anole": (
        SamplingConfig(temperature=1.0, top_p=0.9, repetition_penalty=1.2),
        SamplingConfig(temperature=0.7, top_p=0.9),
    ),
    "lumina": (
        SamplingConfig(temperature=1.0, top_p=1.0, top_k=5),
        SamplingConfig(temperature=1.0, top_p=1.0, top_k=2000),
    ),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class GuidanceConfig(Config):
    """Classifier-free guidance of image ids: fp32 logits of several contexts are mixed, before the grammar's mask.

    `f` are the logits of the whole context, and the next id goes into every context; text is not guided.

    `meta`: u + image * (i - u) + text * (f - i). `i` sees what is no text (image codes, bos, begin and end markers), `u` sees
    bos and the begin marker. Without an image in the context i = u, which leaves u + text * (f - u). Source:
    facebookresearch/chameleon, `inference/logits_processor.py`, InBatchInstructCFGLogitsProcessor.

    `lumina`: u + text * (f - u). `u` sees the image alone: its ids from the begin marker on, without bos, positions from 0. The
    two sizes are not guided. `image` has no part in it. Source: Alpha-VLLM/Lumina-mGPT, `lumina_mgpt/inference_solver.py`.

    A scale of 1 does not guide.
    """

    text: float = 3.0
    image: float = 1.2
    scheme: Literal["meta", "lumina"] = "meta"

    def validate(self):
        for name in ("text", "image"):
            scale = getattr(self, name)
            self.require(scale >= 0 and math.isfinite(scale), f"{name} must be finite and >= 0, got {scale}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerationConfig(Config):
    """One generation request; `mode` masks the modalities that may come out, `unrestricted` masks nothing but padding.

    An id of `stop_ids` ends the output wherever the mode allows that id outside of images; it allows no further id.
    """

    mode: Literal["text", "image", "interleaved", "unrestricted"] = "interleaved"
    max_tokens: int = 4096  # the model's context is the other limit
    max_images: int = 4
    image_grid: tuple[
        int, ...
    ] = ()  # height and width of every image in codes, for grid vocabularies; () = the model's choice
    stop_at_turn_end: bool = False  # the end-of-turn id may come, and ends the output as end of sequence does
    stop_ids: tuple[int, ...] = ()
    text: SamplingConfig = dataclasses.field(default_factory=SamplingConfig)
    image: SamplingConfig = dataclasses.field(default_factory=SamplingConfig)
    guidance: GuidanceConfig | None = None
    seed: int = 0

    def validate(self):
        for name in ("max_tokens", "max_images"):
            value = getattr(self, name)
            self.require(1 <= value < _INTEGERS, f"{name} must be at least 1 and below {_INTEGERS}, got {value}")
        self.require(0 <= self.seed < 2**32, f"seed must be in 0..{2**32 - 1}, got {self.seed}")
        self.require(
            len(self.image_grid) in (0, 2) and all(side >= 1 for side in self.image_grid),
            f"image_grid must be empty or a height and a width in codes, got {self.image_grid}",
        )
        self.require(
            len(self.stop_ids) <= MAX_STOP_IDS and all(0 <= i < _INTEGERS for i in self.stop_ids),
            f"stop_ids must be at most {MAX_STOP_IDS} ids, none negative nor beyond {_INTEGERS}, got {self.stop_ids}",
        )

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> typing.Self:
        if isinstance(guidance := values.get("guidance"), dict):
            values = values | {"guidance": GuidanceConfig.from_dict(guidance)}
        return super().from_dict(values)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EngineConfig(Config):
    """How much an engine runs at a time. A request takes one slot, with guidance of pictures two or three."""

    slots: int = 8
    context: int = 0  # ids of one slot, prompt and output; 0 = the model's context
    block: int = 16  # ids that every request gets before the host looks: more is faster, fewer come sooner
    max_queued: int = 32  # requests that wait for slots
    weights: Literal["compute", "bfloat16", "int8"] = "compute"  # compute: cast to the model's compute dtype

    def validate(self):
        for name in ("slots", "block", "max_queued"):
            self.require(getattr(self, name) >= 1, f"{name} must be at least 1, got {getattr(self, name)}")
        self.require(self.context >= 0, f"context must not be negative, got {self.context}")
