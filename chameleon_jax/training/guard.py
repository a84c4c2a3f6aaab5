"""Keeps a bad step out of the weights."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool


def keep_if(good: Bool[Array, ""], new: Any, old: Any) -> Any:
    """`new` where `good` holds, else `old` bit for bit, leaf by leaf."""
    return jax.tree.map(lambda n, o: jnp.where(good, n, o), new, old)
