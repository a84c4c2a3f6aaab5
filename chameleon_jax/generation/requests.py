"""What goes into an engine and what comes back: a request, and how it ended. All in ids: words and pictures are the business of
`generation.prompt`.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np
from jaxtyping import Int, UInt8

from chameleon_jax.configs import GenerationConfig
from chameleon_jax.errors import GenerationError
from chameleon_jax.generation.keep import Keep
from chameleon_jax.generation.logprobs import Logprobs


class QueueFull(GenerationError):
    """As many requests wait as may wait; `retry_after` is a guess in seconds of when one will be taken."""

    def __init__(self, message: str, retry_after: float):
        super().__init__(message)
        self.retry_after = retry_after


class EngineStopped(GenerationError):
    """The engine has failed or is closing: no request is served any more."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """A prompt in ids (without padding, beginning with `bos`) and how to continue it. `row_id` is added to the seed's draws.

    `pictures` are those that the prompt's spans of patches stand for, in order. `logprobs` asks for the log-probability of every
    id that comes, and of so many of the most likely ids in its place (0 to `logprobs.MOST_TOP`); None asks for none.
    `keep` gives codes of the first span of a modality that comes.
    """

    prompt: Int[np.ndarray, "n"]
    config: GenerationConfig
    row_id: int = 0
    pictures: tuple[UInt8[np.ndarray, "side side 3"], ...] = ()
    logprobs: int | None = None
    keep: Keep | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generated:
    """One request's output: ids without the prompt (the id that ended it included), and why it stopped.

    `spans` means that all spans asked for are there; `length` that no position was left for more. `logprobs` are of the ids, if the
    request asks for them.
    """

    ids: Int[np.ndarray, "n"]
    finish_reason: Literal["eos", "length", "spans", "cancelled"]
    logprobs: Logprobs | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class EngineStats:
    """What a page or a monitor shows. `tokens_per_second` is over the last few seconds, all requests together."""

    slots: int
    running: int
    queued: int
    requests: int  # taken since the start
    tokens: int  # generated since the start
    tokens_per_second: float
    cache_bytes: int
    failed: str | None = None  # why the engine has ended, if by itself; it takes no more requests
