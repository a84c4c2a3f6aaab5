"""Keys and values of the tokens already seen, one slot a token and row.

A row fills its slots in order and a token sees no slot behind its own, so what lies there, of an earlier sequence
perhaps, needs no clearing. Taking a row back to an earlier position is a matter of positions alone.
"""

from __future__ import annotations

import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from chameleon_jax.configs import TransformerConfig
from chameleon_jax.parallel.mesh import ShardingRules, constrain, each_device


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


def create(config: TransformerConfig, batch: int, slots: int, rules: ShardingRules) -> KVCache:
    """An empty cache in the compute dtype, divided by rows and KV heads; under jit no device ever holds more than its part."""

    def zeros() -> Float[Array, "B K S H"]:
        shape = (batch, config.n_kv_heads, slots, config.head_dim)
        return constrain(jnp.zeros(shape, config.compute_dtype), "B K S H", rules)

    return KVCache(layers=tuple(LayerCache(keys=zeros(), values=zeros()) for _ in range(config.n_layers)))


def write(
    cache: LayerCache,
    keys: Float[Array, "B K T H"],
    values: Float[Array, "B K T H"],
    slots: Int[Array, "B T"],
    rules: ShardingRules,
) -> LayerCache:
    """Put new entries into their rows' slots; a slot beyond the cache (padding) is dropped."""

    def put(old: Float[Array, "B K S H"], new: Float[Array, "B K T H"], slots: Int[Array, "B T"]) -> Array:
        # By index in all dimensions but the last: with rows or heads in the window of the scatter, a TPU keeps slots outermost in
        # memory, for which it copies the whole cache twice and attends several times as long.
        rows, heads = jnp.arange(old.shape[0])[:, None, None], jnp.arange(old.shape[1])[:, None]
        return old.at[rows, heads, slots[:, None]].set(new.astype(old.dtype), mode="drop")

    # Every device its own part: rows and heads that are indexed XLA would ask the others for.
    run = each_device(put, ("B K S H", "B K T H", "B T"), "B K S H", rules)
    return LayerCache(keys=run(cache.keys, keys, slots), values=run(cache.values, values, slots))


def read(
    cache: LayerCache, slots: int, rules: ShardingRules
) -> tuple[Float[Array, "B K s H"], Float[Array, "B K s H"]]:
    """Keys and values of the first `slots` slots."""
    return tuple(constrain(whole[:, :, :slots], "B K S H", rules) for whole in (cache.keys, cache.values))
