"""What goes into the engine and what comes back: a request, a stream of ids while it runs, and how it ended.

The one idea: callers speak to an `Engine` in ids and from any thread; words and pictures are `generation.prompt`'s business.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Literal, Protocol

import numpy as np
from jaxtyping import Int

from chameleon_jax.configs import GenerationConfig, TransformerConfig
from chameleon_jax.errors import GenerationError
from chameleon_jax.vocab import Vocab


class QueueFull(GenerationError):
    """As many requests wait as may wait; `retry_after` is a guess in seconds of when one will be taken."""

    def __init__(self, message: str, retry_after: float):
        super().__init__(message)
        self.retry_after = retry_after


class EngineStopped(GenerationError):
    """The engine has failed or is closing: no request is served any more."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """A prompt in ids (without padding, beginning with `bos`) and how to continue it. `row_id` is added to the seed's draws."""

    prompt: Int[np.ndarray, "n"]
    config: GenerationConfig
    row_id: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generated:
    """One request's output: ids without the prompt (the id that ended it included), and why it stopped.

    `spans` means that all spans asked for are there; `length` that no position was left for more.
    """

    ids: Int[np.ndarray, "n"]
    finish_reason: Literal["eos", "length", "spans", "cancelled"]


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


class Stream(Protocol):
    """A request on its way. Iterating gives pieces of new ids as they come and ends when the request has; one reader only."""

    def __iter__(self) -> Iterator[Int[np.ndarray, "n"]]: ...

    def cancel(self) -> None:
        """Stop as soon as the block under way is done, and free the slot. Iteration ends; no error if it has ended already."""

    def result(self) -> Generated:
        """Wait for the end. Raises GenerationError if the engine failed."""


class Engine(Protocol):
    """Takes requests from any thread and runs them together."""

    model: TransformerConfig
    vocab: Vocab

    def submit(self, request: Request) -> Stream:
        """Check and queue a request. Raises GenerationError at once for one that cannot be served, QueueFull for one too many."""

    def stats(self) -> EngineStats: ...

    def close(self, drain: bool = True) -> None:
        """Take no more requests; finish those that run and wait (`drain`) or cancel them."""
