"""Keys and values of the tokens already seen, one slot a token and row.

The one idea: a row fills its slots in order and a token sees no slot behind its own, so what lies there, of an earlier sequence
perhaps, needs no clearing. Taking a row back to an earlier position is a matter of positions alone.
"""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from chameleon_jax.configs import TransformerConfig
from chameleon_jax.parallel.mesh import constrain


@flax.struct.dataclass
class KVCache:
    """S slots for each of B rows. Keys are held after QK-norm and RoPE, values as projected."""

    keys: Float[Array, "L B S K H"]
    values: Float[Array, "L B S K H"]

    @property
    def slots(self) -> int:
        return self.keys.shape[2]


def create(config: TransformerConfig, batch: int, slots: int) -> KVCache:
    """An empty cache in the compute dtype."""
    shape = (config.n_layers, batch, slots, config.n_kv_heads, config.head_dim)
    keys, values = (constrain(jnp.zeros(shape, config.compute_dtype), "L B S K H") for _ in range(2))
    return KVCache(keys=keys, values=values)


def write(
    cache: Float[Array, "L B S K H"], new: Float[Array, "B T K H"], layer: Int[Array, ""], slots: Int[Array, "B T"]
) -> Float[Array, "L B S K H"]:
    """Put new entries of one layer into their rows' slots; a slot beyond the cache (padding) is dropped."""
    rows = jnp.arange(cache.shape[1])[:, None]
    return cache.at[layer, rows, slots].set(new.astype(cache.dtype), mode="drop")


def read(cache: Float[Array, "L B S K H"], layer: Int[Array, ""], slots: int) -> Float[Array, "B s K H"]:
    """The first `slots` slots of one layer."""
    whole = jax.lax.dynamic_index_in_dim(cache, layer, keepdims=False)
    return constrain(whole[:, :slots], "B S K H")
