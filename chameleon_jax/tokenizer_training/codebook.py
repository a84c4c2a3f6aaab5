"""The codebook's own update, the same for every codec: running means of the latents that chose each code, restarts of dead codes.

Van den Oord et al. 2017, appendix A.1; Razavi et al. 2019. The optimiser does not see such a codebook.
"""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int


@flax.struct.dataclass
class Usage:
    """Decayed number [C] and sum [C D] of the latents that chose each code; steps since a code was last chosen, `idle` [C]."""

    counts: Float[Array, "C"]
    sums: Float[Array, "C D"]
    idle: Int[Array, "C"]


def draw(key_rows: Array, key_noise: Array, latents: Float[Array, "N D"], codes: int) -> Float[Array, "C D"]:
    """A first codebook: rows of `latents` at random, with a little noise so that no two codes are equal."""
    rows = jax.random.choice(key_rows, latents.shape[0], (codes,), replace=latents.shape[0] < codes)
    return latents[rows] + jax.random.normal(key_noise, (codes, latents.shape[1])) * latents.std() * 1e-2


def fresh_usage(book: Float[Array, "C D"]) -> Usage:
    """As if every code had been chosen once, by a latent equal to it."""
    return Usage(counts=jnp.ones(book.shape[0]), sums=book, idle=jnp.zeros(book.shape[0], jnp.int32))


def update(
    book: Float[Array, "C D"],
    usage: Usage,
    latents: Float[Array, "N D"],
    codes: Int[Array, "N"],
    key: Array,
    *,
    decay: float,
    dead_after: int,
    running_mean: bool = True,
) -> tuple[Float[Array, "C D"], Usage, Int[Array, ""]]:
    """The codebook after a batch whose `latents` chose `codes`, its usage, and how many codes the batch chose.

    Codes idle for `dead_after` steps restart (0: never). Without `running_mean` only they change.
    """
    size = book.shape[0]
    chosen = jax.ops.segment_sum(jnp.ones(codes.shape), codes, size)
    counts = decay * usage.counts + (1 - decay) * chosen
    sums = decay * usage.sums + (1 - decay) * jax.ops.segment_sum(latents, codes, size)
    updated = sums / jnp.maximum(counts, 1e-6)[:, None] if running_mean else book
    idle = jnp.where(chosen > 0, 0, usage.idle + 1)
    if dead_after:
        # The dead move to latents that the codebook serves badly, each to another one: drawn without replacement in proportion to
        # the squared error, by the Gumbel trick.
        error = jnp.sum((latents - book[codes]) ** 2, axis=1)
        scores = jnp.log(error + 1e-12) + jax.random.gumbel(key, error.shape)
        candidates = latents[lax.top_k(scores, min(size, latents.shape[0]))[1]]
        dead = idle >= dead_after
        rank = jnp.cumsum(dead) - 1
        restart = dead & (rank < candidates.shape[0])
        fresh = candidates[jnp.clip(rank, 0, candidates.shape[0] - 1)]
        updated = jnp.where(restart[:, None], fresh, updated)
        sums = jnp.where(restart[:, None], fresh, sums)
        counts = jnp.where(restart, 1.0, counts)
        idle = jnp.where(restart, 0, idle)
    return updated, Usage(counts=counts, sums=sums, idle=idle), jnp.sum(chosen > 0)
