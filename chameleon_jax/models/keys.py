"""Random keys by name: what draws from a name keeps its numbers when other draws are added, removed or reordered."""

from __future__ import annotations

import zlib

import jax


def fold_name(key: jax.Array, name: str) -> jax.Array:
    """The key of the draws called `name` under `key`."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()))
