"""Keys and values of the tokens already seen, one slot a token and row.

The one idea: a row fills its slots in order and a token sees no slot behind its own, so what lies there, of an earlier sequence
perhaps, needs no clearing. Taking a row back to an earlier position is a matter of positions alone.
"""

from __future__ import annotations

import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from chameleon_jax.configs import TransformerConfig
from chameleon_jax.parallel.mesh import constrain


@flax.struct.dataclass
class LayerCache:
    """S slots for each of B rows. Keys are held after QK-norm and RoPE, values as projected."""

    keys: Float[Array, "B K S H"]
    values: Float[Array, "B K S H"]


@flax.struct.dataclass
class KVCache:
    """One entry a layer: arrays of their own are written in place, where slices of one array would be copied out and in."""

    layers: tuple[LayerCache, ...]

    @property
    def slots(self) -> int:
        return self.layers[0].keys.shape[2]


def create(config: TransformerConfig, batch: int, slots: int) -> KVCache:
    """An empty cache in the compute dtype."""

    def zeros() -> Float[Array, "B K S H"]:
        shape = (batch, config.n_kv_heads, slots, config.head_dim)
        return constrain(jnp.zeros(shape, config.compute_dtype), "B K S H")

    return KVCache(layers=tuple(LayerCache(keys=zeros(), values=zeros()) for _ in range(config.n_layers)))


def write(
    cache: LayerCache, keys: Float[Array, "B K T H"], values: Float[Array, "B K T H"], slots: Int[Array, "B T"]
) -> LayerCache:
    """Put new entries into their rows' slots; a slot beyond the cache (padding) is dropped."""
    rows = jnp.arange(slots.shape[0])[:, None]

    def put(old: Array, new: Array) -> Array:
        return old.at[rows[:, None], jnp.arange(old.shape[1])[:, None], slots[:, None]].set(
            new.astype(old.dtype), mode="drop"
        )

    return LayerCache(keys=put(cache.keys, keys), values=put(cache.values, values))


def read(cache: LayerCache, slots: int) -> tuple[Float[Array, "B K s H"], Float[Array, "B K s H"]]:
    """Keys and values of the first `slots` slots."""
    return tuple(constrain(whole[:, :, :slots], "B K S H") for whole in (cache.keys, cache.values))
