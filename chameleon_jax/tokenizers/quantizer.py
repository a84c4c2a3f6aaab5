"""Vector quantisation, the same for every codec: which code a latent has (van den Oord et al. 2017, section 3.1)."""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int


def nearest_codes(latents: Float[Array, "*grid D"], codebook: Float[Array, "C D"]) -> Int[Array, "*grid"]:
    """Index of the nearest row of the codebook by squared distance; the first of equals.

    The distance is summed as (|z|^2 + |e|^2) - 2 z.e in float32, in this order: near-ties are decided by its rounding, and the
    cheaper form without |z|^2 gives other codes now and then.
    """
    flat = latents.reshape(-1, latents.shape[-1])
    products = jnp.einsum("nd,cd->nc", flat, codebook, precision=lax.Precision.HIGHEST)
    distances = (jnp.sum(flat**2, axis=1, keepdims=True) + jnp.sum(codebook**2, axis=1)) - 2 * products
    return jnp.argmin(distances, axis=1).astype(jnp.int32).reshape(latents.shape[:-1])
