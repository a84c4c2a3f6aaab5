"""From logits to ids: mask, then temperature, then top-p, then a draw; all fp32, on the device, row by row.

The one idea: top-p needs no sort. The kept set is everything above a probability threshold, and the bits of positive floats are
ordered as integers are, so 31 halvings find the threshold exactly.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

_BITS_ABOVE_ONE = 0x3F800001  # of the smallest float32 above 1


def sample(
    logits: Float[Array, "B V"],
    mask: Bool[Array, "B V"],
    temperature: Float[Array, "B"],
    top_p: Float[Array, "B"],
    keys: Key[Array, "B"],
) -> Int[Array, "B"]:
    """One id a row, always one of the row's mask; temperature 0 takes the most likely, of equals the lowest id.

    A row's draw depends on its own logits, settings and key alone. Order of processors: Chameleon's (facebookresearch/chameleon,
    `inference/chameleon.py`). The logits must be finite.
    """
    logits = jnp.where(mask, logits.astype(jnp.float32), -jnp.inf)
    greedy = jnp.argmax(logits, axis=-1)
    # From the maximum down, so that a small temperature cannot overflow.
    gaps = logits - jnp.max(logits, axis=-1, keepdims=True)
    scaled = gaps / jnp.where(temperature > 0, temperature, 1.0)[:, None]
    kept = mask & top_p_mask(jax.nn.softmax(scaled, axis=-1), top_p)
    # Gumbel-max: the argmax of logits plus Gumbel noise is a draw from their softmax.
    noise = jax.vmap(lambda key: jax.random.gumbel(key, logits.shape[1:], jnp.float32))(keys)
    drawn = jnp.argmax(jnp.where(kept, scaled + noise, -jnp.inf), axis=-1)
    return jnp.where(temperature > 0, drawn, greedy).astype(jnp.int32)


def top_p_mask(probabilities: Float[Array, "B V"], top_p: Float[Array, "B"]) -> Bool[Array, "B V"]:
    """The smallest set of ids whose mass reaches `top_p` (Holtzman et al. 2020); of equal probabilities lower ids come first.

    That is: an id stays if the mass of the ids before it, in order of falling probability, is below top_p. At least one stays.
    """
    bits = jax.lax.bitcast_convert_type(probabilities.astype(jnp.float32), jnp.int32)

    def mass_from(threshold: Int[Array, "B"]) -> Float[Array, "B"]:
        return jnp.sum(jnp.where(bits >= threshold[:, None], probabilities, 0.0), axis=-1)

    def halve(_: int, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds  # the mass from `low` on reaches top_p, that from `high` on does not
        middle = low + (high - low) // 2
        reached = mass_from(middle) >= top_p
        return jnp.where(reached, middle, low), jnp.where(reached, high, middle)

    rows = probabilities.shape[0]
    bounds = jnp.zeros(rows, jnp.int32), jnp.full(rows, _BITS_ABOVE_ONE, jnp.int32)
    threshold, _ = jax.lax.fori_loop(0, 31, halve, bounds)
    tied = bits == threshold[:, None]
    above = bits > threshold[:, None]
    mass_above = jnp.sum(jnp.where(above, probabilities, 0.0), axis=-1, keepdims=True)
    earlier_ties = jnp.cumsum(tied, axis=-1) - 1
    stays = tied & (mass_above + earlier_ties * probabilities < top_p[:, None])
    return above | stays | (top_p >= 1)[:, None]
