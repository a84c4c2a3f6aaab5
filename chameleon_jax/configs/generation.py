"""Sampling, generation requests and evaluation."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

from chameleon_jax.config_base import Config
from chameleon_jax.configs.data import SourceConfig
from chameleon_jax.configs.vocab import LARGEST_INT, SamplingConfig

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


# (text, everything else) settings of the released decoders: facebookresearch/chameleon, `inference/chameleon.py` (Options);
# GAIR-NLP/anole, its fork of that file; Alpha-VLLM/Lumina-mGPT, `lumina_mgpt/inference_solver.py`.
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


def parse_size(text: str) -> tuple[int, int]:
    """Width and height in pixels of `768x512`. Raises ValueError."""
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise ValueError("no width and height in pixels like 768x512")
    return int(width), int(height)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GuidanceConfig(Config):
    """Classifier-free guidance of spans with markers: fp32 logits of several contexts are mixed, before the grammar's mask.

    `f` are the logits of the whole context, and the next id goes into every context; what has no markers, as text, is not guided.

    `meta`: u + image * (i - u) + text * (f - i). `i` sees bos and spans with markers, `u` bos and the span under way. Without
    an earlier span in the context i = u, which leaves u + text * (f - u). Source: facebookresearch/chameleon,
    `inference/logits_processor.py`, InBatchInstructCFGLogitsProcessor, whose spans are images.

    `lumina`: u + text * (f - u). `u` sees the span under way alone: its ids from the begin marker on, without bos, positions
    from 0. The two sizes of a grid are not guided. `image` has no part in it. Source: Alpha-VLLM/Lumina-mGPT,
    `lumina_mgpt/inference_solver.py`.

    A scale of 1 does not guide.
    """

    text: float = 3.0
    image: float = 1.2
    scheme: Literal["meta", "lumina"] = "meta"

    def validate(self):
        for name in ("text", "image"):
            scale = getattr(self, name)
            self.require(scale >= 0 and math.isfinite(scale), f"{name} must be finite and >= 0, got {scale}")


MAX_SPANS = 4  # of a modality for which a request does not say, and that is not all that it asks for


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerationConfig(Config):
    """One generation request.

    `mode` masks the modalities that may come out: the name of one, several joined by `+`, or `interleaved` for all;
    `unrestricted` masks nothing but padding. Maps are by modality.

    An id of `stop_ids` ends the output wherever the mode allows that id outside of marked spans; it allows no further id.
    """

    mode: str = "interleaved"
    max_tokens: int = 4096  # the model's context is the other limit
    max_spans: dict[str, int] = dataclasses.field(
        default_factory=dict
    )  # with markers; of one not named as `most_spans` says
    # Height and width in codes of every span of a grid modality; the model's choice for one not named.
    grids: dict[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    stop_at_turn_end: bool = False  # the end-of-turn id may come, and ends the output as end of sequence does
    stop_ids: tuple[int, ...] = ()
    sampling: dict[str, SamplingConfig] = dataclasses.field(default_factory=dict)  # of one not named, the vocabulary's
    guidance: GuidanceConfig | None = None
    seed: int = 0

    def most_spans(self, modality: str) -> int:
        """Spans with markers that the output may have: who asks for pictures alone, and not how many, means one."""
        return self.max_spans.get(modality, 1 if self.mode == modality else MAX_SPANS)

    def validate(self):
        counts = {"max_tokens": self.max_tokens} | {f"max_spans of '{name}'": n for name, n in self.max_spans.items()}
        for what, count in counts.items():
            self.require(1 <= count < LARGEST_INT, f"{what} must be at least 1 and below {LARGEST_INT}, got {count}")
        self.require(0 <= self.seed < 2**32, f"seed must be in 0..{2**32 - 1}, got {self.seed}")
        for name, grid in self.grids.items():
            self.require(
                len(grid) == 2 and all(side >= 1 for side in grid),
                f"the grid of '{name}' must be a height and a width in codes, got {grid}",
            )
        self.require(
            len(self.stop_ids) <= MAX_STOP_IDS and all(0 <= i < LARGEST_INT for i in self.stop_ids),
            f"stop_ids must be at most {MAX_STOP_IDS} ids, none negative nor beyond {LARGEST_INT}, got {self.stop_ids}",
        )


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
