"""What a model makes during its training, for people to look at: the hook that the loop calls, and nothing of how it is made.

Training does not know generation. Whoever starts a run passes in a function from parameters to samples; it is called between two
steps on the process that writes metrics, with random numbers of its own, so the run's numbers are what they are without it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt8

FOLDER = "samples"  # of a run


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sound:
    """A WAV file of one channel."""

    file: bytes
    rate: int
    seconds: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Samples:
    """A page of pictures with words beside them, the same words as Markdown, and sounds by name."""

    page: UInt8[np.ndarray, "H W 3"]
    words: str
    sounds: dict[str, Sound] = dataclasses.field(default_factory=dict)


# Parameters that lie on this process's devices, whole, and the step after which they are so.
Sampler = Callable[[Any, int], Samples]


def held_here(params: Any) -> Any | None:
    """The same values as this process alone may use them; None where it does not hold all of every parameter."""
    leaves = jax.tree.leaves(params)
    if all(leaf.is_fully_addressable for leaf in leaves):
        return params
    if all(leaf.is_fully_replicated for leaf in leaves):
        return jax.tree.map(lambda leaf: leaf.addressable_data(0), params)
    return None
