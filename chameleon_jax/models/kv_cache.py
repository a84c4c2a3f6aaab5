"""Keys and values of the tokens already seen, one slot a token and row."""

from __future__ import annotations

import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from chameleon_jax.configs import TransformerConfig


@flax.struct.dataclass
class KVCache:
    """S slots for each of B rows; `segments` is 1 where a slot is filled, 0 where not.

    Keys are held after QK-norm and RoPE, values as projected.
    """

    keys: Float[Array, "L B S K H"]
    values: Float[Array, "L B S K H"]
    segments: Int[Array, "B S"]


def create(config: TransformerConfig, batch: int, slots: int) -> KVCache:
    """An empty cache in the compute dtype."""
    shape = (config.n_layers, batch, slots, config.n_kv_heads, config.head_dim)
    empty = jnp.zeros(shape, config.compute_dtype)
    return KVCache(keys=empty, values=empty, segments=jnp.zeros((batch, slots), jnp.int32))


def write(
    cache: Float[Array, "B S K H"], new: Float[Array, "B T K H"], slots: Int[Array, "B T"]
) -> Float[Array, "B S K H"]:
    """Put new entries into their rows' slots; a slot beyond the cache (padding) is dropped."""
    rows = jnp.arange(cache.shape[0])[:, None]
    return cache.at[rows, slots].set(new.astype(cache.dtype), mode="drop")
