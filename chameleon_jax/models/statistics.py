"""Per-layer numbers that are watched in training, kept as sums so that they can be joined over microbatches and devices.

A root mean square cannot be averaged or maximised into that of the whole; its sum of squares and its number of tokens can.
"""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@flax.struct.dataclass
class Statistics:
    """`squares`: name -> sum over tokens of the mean square of a token's features; `tokens`: how many; `maxima`: name -> maximum.

    fp32, without gradient; scalars for one layer, [L] for a model, [M L] for microbatches that are yet to be joined.
    """

    squares: dict[str, Float[Array, "*L"]]
    tokens: Float[Array, "*L"]
    maxima: dict[str, Float[Array, "*L"]]

    def joined(self) -> Statistics:
        """The statistics of the whole from those of its parts along the first axis."""
        return Statistics(
            squares={name: jnp.sum(parts, axis=0) for name, parts in self.squares.items()},
            tokens=jnp.sum(self.tokens, axis=0),
            maxima={name: jnp.max(parts, axis=0) for name, parts in self.maxima.items()},
        )

    def named(self) -> dict[str, Float[Array, "*L"]]:
        """Name -> root mean square or maximum."""
        tokens = jnp.maximum(self.tokens, 1.0)
        return {name: jnp.sqrt(squares / tokens) for name, squares in self.squares.items()} | self.maxima


def sum_of_squares(x: Float[Array, "B T *rest"], real: Float[Array, "B T"]) -> Float[Array, ""]:
    """Sum over the tokens with `real` 1 of the mean square of their features, fp32, without gradient."""
    x = jax.lax.stop_gradient(x).astype(jnp.float32)
    return jnp.sum(jnp.mean(jnp.square(x), axis=tuple(range(2, x.ndim))) * real)
