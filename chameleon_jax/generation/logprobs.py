"""What the model thought of the ids that came: the log-probability of each, and the most likely ids in its place.

They are the model's own, of its whole vocabulary and the whole context: log-softmax of the fp32 logits, before guidance, the
grammar's mask, repetition penalty, temperature and cuts. So the sum over an output is `evaluation.likelihood.score` of it, however
it was drawn. An id that the grammar forces, as an end marker, has the probability that the model gave it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

MOST_TOP = (
    20  # alternatives of an id; all are computed for whoever asks for some, so that one program serves every request
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Logprobs:
    """Of n ids in nats: `chosen` of the ids themselves, `top` of the k most likely `top_ids` in their place, highest first.

    The id itself is among the `top_ids` only if it is one of the k most likely.
    """

    chosen: Float[np.ndarray, "n"]
    top_ids: Int[np.ndarray, "n k"]
    top: Float[np.ndarray, "n k"]

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, places: slice) -> Logprobs:
        return Logprobs(chosen=self.chosen[places], top_ids=self.top_ids[places], top=self.top[places])

    @classmethod
    def join(cls, pieces: Sequence[Logprobs], count: int) -> Logprobs:
        """The pieces one after the other; `count` is k where there are none."""
        none = cls(chosen=np.zeros(0, np.float32), top_ids=np.zeros((0, count), np.int32), top=np.zeros((0, count)))
        names = [field.name for field in dataclasses.fields(cls)]
        return cls(**{n: np.concatenate([getattr(p, n) for p in pieces or [none]]) for n in names})


@flax.struct.dataclass
class BlockLogprobs:
    """Of the ids of N lanes in one block, on the device; of each lane the first that it took stands first."""

    chosen: Float[Array, "N K"]
    top_ids: Int[Array, "N K k"]
    top: Float[Array, "N K k"]

    @classmethod
    def empty(cls, lanes: int, steps: int, vocab_size: int) -> BlockLogprobs:
        shape = (lanes, steps, min(MOST_TOP, vocab_size))
        return cls(chosen=jnp.zeros(shape[:2]), top_ids=jnp.zeros(shape, jnp.int32), top=jnp.zeros(shape))

    def put(
        self,
        logits: Float[Array, "N V"],
        token: Int[Array, "N"],
        *,
        places: Int[Array, "N"],
        takes: Bool[Array, "N"],
        vocab_size: int,
    ) -> BlockLogprobs:
        """With what the lanes that take a token think of it. A head may be wider than the vocabulary: such ids count in the
        softmax, as they do in the loss, and are no alternatives.
        """
        lane = jnp.arange(len(token))
        total = jax.nn.logsumexp(logits, axis=-1)
        known = jnp.where(jnp.arange(logits.shape[-1]) < vocab_size, logits, -jnp.inf)
        top, top_ids = jax.lax.top_k(known, self.top.shape[-1])
        places = jnp.where(takes, places, self.chosen.shape[1])  # beyond the end, where writes are dropped
        return BlockLogprobs(
            chosen=self.chosen.at[lane, places].set(logits[lane, token] - total, mode="drop"),
            top_ids=self.top_ids.at[lane, places].set(top_ids, mode="drop"),
            top=self.top.at[lane, places].set(top - total[:, None], mode="drop"),
        )

    def of_lane(self, lane: int, count: int, top: int) -> Logprobs:
        """Of one lane's first `count` ids with `top` alternatives, when all is on the host."""
        return Logprobs(
            chosen=self.chosen[lane, :count],
            top_ids=self.top_ids[lane, :count, :top],
            top=self.top[lane, :count, :top],
        )
