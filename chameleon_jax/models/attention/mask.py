"""Which keys a query sees, as a specification: what every attention backend takes and gives back.

Callers never build a mask array. A backend lowers the specification in its own way or says that it cannot (`registry`).
"""

from __future__ import annotations

import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

HIDDEN_LOGIT = float(jnp.finfo(jnp.float32).min)  # of a key that a query does not see
SAVED_NAME = "attention_values"  # checkpoint name of what the remat policy "attention" keeps


@flax.struct.dataclass
class MaskSpec:
    """Query t sees key s if they are of one segment and s <= query_slots[t].

    `query_slots` are the key slots of the queries; None says that query t sits at key slot t (and T == S). Padding is segment 0
    and sees padding, so no softmax is empty.
    """

    query_segments: Int[Array, "B T"]
    key_segments: Int[Array, "B S"]
    query_slots: Int[Array, "B T"] | None = None

    def block(self, start: int, stop: int, keys: int) -> Bool[Array, "B t s"]:
        """The dense mask of queries start..stop and the first `keys` keys."""
        same = self.query_segments[:, start:stop, None] == self.key_segments[:, None, :keys]
        if self.query_slots is None:
            causal = jnp.arange(start, stop)[:, None] >= jnp.arange(keys)[None, :]
        else:
            causal = self.query_slots[:, start:stop, None] >= jnp.arange(keys)[None, None, :]
        return same & causal


@flax.struct.dataclass
class AttentionOutput:
    """values [B T N H]; the largest visible attention logit (fp32, no gradient) where it was asked for."""

    values: Float[Array, "B T N H"]
    max_logit: Float[Array, ""] | None = None
