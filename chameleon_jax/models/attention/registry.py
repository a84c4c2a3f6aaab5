"""The attention backends, what each can do, and the one call behind which they stand.

A backend states its capabilities, and asking for what it lacks is an error: a kernel that ignores the segments of packed rows gives
plausible and wrong values.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from chameleon_jax.errors import ConfigError, did_you_mean
from chameleon_jax.models.attention import chunked, reference
from chameleon_jax.models.attention.mask import AttentionOutput, MaskSpec


@dataclasses.dataclass(frozen=True, kw_only=True)
class Backend:
    """`attend(query, key, value, mask, chunk)` and what it can express."""

    attend: Callable[[Array, Array, Array, MaskSpec, int], AttentionOutput]
    segments: bool  # packed rows: a mask by segment
    slots: bool  # queries at given slots of a cache
    max_logit: bool  # can report the largest logit
    dtypes: tuple[str, ...] = ("float32", "bfloat16")
    platforms: tuple[str, ...] = ("cpu", "gpu", "tpu")

    def lacks(self, mask: MaskSpec, *, max_logit: bool, dtype: str, platform: str) -> str:
        """What is asked for and not offered, in words; empty if nothing is missing."""
        if not self.segments:
            return "masks by segment"
        if mask.query_slots is not None and not self.slots:
            return "queries at the slots of a cache"
        if max_logit and not self.max_logit:
            return "the largest attention logit, a statistic"
        if dtype not in self.dtypes:
            return f"dtype {dtype}"
        return "" if platform in self.platforms else f"platform {platform}"


# In the order in which "auto" tries them for more than one query.
BACKENDS: dict[str, Backend] = {
    "chunked": Backend(attend=chunked.attend, segments=True, slots=True, max_logit=True),
    "reference": Backend(
        attend=lambda query, key, value, mask, chunk: reference.attend(query, key, value, mask),
        segments=True,
        slots=True,
        max_logit=True,
    ),
}


def attention(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B K S H"],
    value: Float[Array, "B K S H"],
    mask: MaskSpec,
    *,
    backend: str,
    chunk: int,
    max_logit: bool = False,
) -> AttentionOutput:
    """Softmax attention with scale 1/sqrt(H); query head n uses key/value head n // (N/K).

    Heads come before tokens in keys and values, as products read them and a cache holds them. Softmax in fp32. `backend` is a name
    of BACKENDS or "auto": the first that can do what is asked, and the reference for a single query. `max_logit` asks for the
    largest visible logit too. Raises ConfigError for an unknown backend and for one that cannot do what is asked.
    """
    needs = {"max_logit": max_logit, "dtype": jnp.dtype(query.dtype).name, "platform": jax.default_backend()}
    if backend == "auto":
        names = tuple(BACKENDS) if query.shape[1] > 1 else ("reference",)
        backend = next((name for name in names if not BACKENDS[name].lacks(mask, **needs)), names[-1])
    if backend not in BACKENDS:
        raise ConfigError(f"unknown attention backend '{backend}'{did_you_mean(backend, list(BACKENDS))}")
    chosen = BACKENDS[backend]
    if missing := chosen.lacks(mask, **needs):
        raise ConfigError(f"attention backend '{backend}' cannot do {missing}; use 'auto' or another backend")
    out = chosen.attend(query, key, value, mask, chunk)
    return out if max_logit else out.replace(max_logit=None)
