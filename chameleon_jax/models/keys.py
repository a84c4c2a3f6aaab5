"""Random keys by name: what draws from a name keeps its numbers when other draws are added, removed or reordered."""

from __future__ import annotations

import zlib

import jax


def fold_name(key: jax.Array, name: str) -> jax.Array:
    """The key of the draws called `name` under `key`."""
    return fold_number(key, zlib.crc32(name.encode()))


def fold_number(key: jax.Array, number: int | jax.Array) -> jax.Array:
    """The key of the draws numbered so under `key`; of each, where `key` has an axis of them."""
    fold = jax.random.fold_in
    return jax.vmap(fold, (0, None))(key, number) if key.ndim else fold(key, number)
