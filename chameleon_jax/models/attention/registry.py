"""The attention backends, what each can do, and the one call behind which they stand.

A backend states its capabilities, and asking for what it lacks is an error: a kernel that ignores the segments of packed rows gives
plausible and wrong values.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

from chameleon_jax.errors import ConfigError, did_you_mean
from chameleon_jax.models.attention import chunked, reference, splash, triton
from chameleon_jax.models.attention.mask import AttentionOutput, MaskSpec
from chameleon_jax.parallel.mesh import TRAINING, ShardingRules, divided, platform


@dataclasses.dataclass(frozen=True, kw_only=True)
class Backend:
    """`attend(query, key, value, mask, chunk=, max_logit=, rules=)` and what it can express."""

    attend: Callable[..., AttentionOutput]
    slots: bool = True  # queries at given slots of a cache
    uneven: bool = True  # rows and heads that are no multiple of the devices over which they are divided
    length_multiple: int = 1  # of T
    dtypes: tuple[str, ...] = ("float32", "bfloat16")
    platforms: tuple[str, ...] = ("cpu", "gpu", "tpu")
    automatic: bool = True  # whether "auto" may take it

    def lacks(
        self,
        query: Float[Array, "B T N H"],
        key: Float[Array, "B K S H"],
        mask: MaskSpec,
        rules: ShardingRules,
    ) -> str:
        """What is asked for and not offered, in words; empty if nothing is missing."""
        if mask.query_slots is not None and not self.slots:
            return "queries at the slots of a cache"
        if query.shape[1] % self.length_multiple:
            return f"rows of {query.shape[1]} tokens, which is not a multiple of {self.length_multiple}"
        if not self.uneven and not (divided(query, "B T N H", rules) and divided(key, "B K S H", rules)):
            return "rows or heads that are not a multiple of the devices over which the mesh divides them"
        dtype = jnp.dtype(query.dtype).name
        if dtype not in self.dtypes:
            return f"dtype {dtype}"
        return "" if platform() in self.platforms else f"platform {platform()}"


# In the order in which "auto" tries them for more than one query.
BACKENDS: dict[str, Backend] = {
    "splash": Backend(
        attend=splash.attend,
        slots=False,
        uneven=False,
        length_multiple=splash.LENGTH_MULTIPLE,
        platforms=("tpu",),
    ),
    # By name alone, until someone has measured it on the GPU that is meant.
    "triton": Backend(
        attend=triton.attend,
        slots=False,
        uneven=False,
        length_multiple=triton.LENGTH_MULTIPLE,
        platforms=("gpu",),
        automatic=False,
    ),
    "chunked": Backend(attend=chunked.attend),
    "reference": Backend(attend=reference.attend),
}


def over_cache(backend: str) -> str:
    """The backend for queries over a cache in a run that names `backend`: a kernel for packed rows leaves them to "auto"."""
    return backend if backend in BACKENDS and BACKENDS[backend].slots else "auto"


def attention(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B K S H"],
    value: Float[Array, "B K S H"],
    mask: MaskSpec,
    *,
    backend: str,
    chunk: int,
    max_logit: bool = False,
    rules: ShardingRules = TRAINING,
) -> AttentionOutput:
    """Softmax attention with scale 1/sqrt(H); query head n uses key/value head n // (N/K).

    Heads come before tokens in keys and values, as products read them and a cache holds them. Softmax in fp32. `backend` is a name
    of BACKENDS or "auto": the first that can do what is asked on the platform for which the program is made, and the reference for
    a single query. `max_logit` asks for the largest visible logit too. `rules` say how the arrays lie on the mesh in use. Raises
    ConfigError for an unknown backend and for one that cannot do what is asked.
    """
    needs = (query, key, mask, rules)
    if backend == "auto":
        names = [name for name, one in BACKENDS.items() if one.automatic] if query.shape[1] > 1 else ["reference"]
        backend = next((name for name in names if not BACKENDS[name].lacks(*needs)), names[-1])
    if backend not in BACKENDS:
        raise ConfigError(f"unknown attention backend '{backend}'{did_you_mean(backend, list(BACKENDS))}")
    chosen = BACKENDS[backend]
    if missing := chosen.lacks(*needs):
        raise ConfigError(f"attention backend '{backend}' cannot do {missing}; use 'auto' or another backend")
    return chosen.attend(query, key, value, mask, chunk=chunk, max_logit=max_logit, rules=rules)
