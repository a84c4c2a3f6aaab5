"""From logits to ids: mask, repetition penalty, top-k, temperature, top-p, a draw; all fp32, on the device, row by row.

Cuts need no sort. A cut keeps everything from some threshold up, and the bits of floats are ordered as integers
are, so that halving finds the threshold exactly. What no row asks for is not computed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from chameleon_jax.configs import GenerationConfig
from chameleon_jax.vocab import Vocab


@flax.struct.dataclass
class SamplingArrays:
    """SamplingConfig as arrays: one element a row for a draw, or `[B M]`, one a row and modality, for a whole request."""

    temperature: Float[Array, "*B"]
    top_p: Float[Array, "*B"]
    top_k: Int[Array, "*B"]
    repetition_penalty: Float[Array, "*B"]

    @classmethod
    def of(cls, configs: Sequence[GenerationConfig], vocab: Vocab) -> SamplingArrays:
        """`[B M]` in NumPy: row b as `configs[b]` says for each modality, else as the table does."""

        def stack(name: str, dtype: type) -> np.ndarray:
            rows = [[getattr(c.sampling.get(m.name, m.sampling), name) for m in vocab.modalities] for c in configs]
            return np.array(rows, dtype)

        return cls(
            temperature=stack("temperature", np.float32),
            top_p=stack("top_p", np.float32),
            top_k=stack("top_k", np.int32),
            repetition_penalty=stack("repetition_penalty", np.float32),
        )

    def at(self, modality: Int[Array, "B"]) -> SamplingArrays:
        """`[B]`: of `[B M]`, each row's settings for its modality."""
        return jax.tree.map(lambda values: values[jnp.arange(len(modality)), modality], self)


def seen_ids(ids: Int[Array, "B S"], lengths: Int[Array, "B"], vocab_size: int) -> Bool[Array, "B V"]:
    """Which ids are among the first `lengths` of each row."""
    rows, slots = ids.shape
    ids = jnp.where(jnp.arange(slots) < lengths[:, None], ids, vocab_size)  # beyond the end, where writes are dropped
    return jnp.zeros((rows, vocab_size), bool).at[jnp.arange(rows)[:, None], ids].set(True, mode="drop")


def sample(
    logits: Float[Array, "B V"],
    mask: Bool[Array, "B V"],
    settings: SamplingArrays,
    seen: Bool[Array, "B V"],
    keys: Key[Array, "B"],
) -> Int[Array, "B"]:
    """One id a row, always one of the row's mask; temperature 0 takes the most likely, of equals the lowest id.

    `seen` marks the ids that the row holds already, prompt included. A row's draw depends on its own logits, settings, seen ids
    and key alone. Order of processors: Chameleon's (facebookresearch/chameleon, `inference/chameleon.py`), with top-k where
    transformers has it. The logits must be finite.
    """
    has_choice = jnp.sum(mask, axis=-1) > 1  # a forced id costs nothing, nor does a finished row
    sampled = has_choice & (settings.temperature > 0)
    logits = logits.astype(jnp.float32)
    logits = _where_needed(
        has_choice & (settings.repetition_penalty != 1), lambda: _penalised(logits, seen, settings), logits
    )
    logits = jnp.where(mask, logits, -jnp.inf)
    greedy = jnp.argmax(logits, axis=-1)

    def draw() -> Int[Array, "B"]:
        kept = mask
        kept &= _where_needed(sampled & (settings.top_k > 0), lambda: top_k_mask(logits, settings.top_k), mask)
        # From the maximum down, so that a small temperature cannot overflow.
        gaps = jnp.where(kept, logits, -jnp.inf) - jnp.max(logits, axis=-1, keepdims=True)
        scaled = gaps / jnp.where(sampled, settings.temperature, 1.0)[:, None]
        kept &= _where_needed(
            sampled & (settings.top_p < 1), lambda: top_p_mask(jax.nn.softmax(scaled, axis=-1), settings.top_p), kept
        )
        # Gumbel-max: the argmax of logits plus Gumbel noise is a draw from their softmax.
        noise = jax.vmap(lambda key: jax.random.gumbel(key, logits.shape[1:], jnp.float32))(keys)
        return jnp.where(sampled, jnp.argmax(jnp.where(kept, scaled + noise, -jnp.inf), axis=-1), greedy)

    return _where_needed(sampled, draw, greedy).astype(jnp.int32)


def _where_needed(rows: Bool[Array, "B"], compute: Callable[[], Array], otherwise: Array) -> Array:
    """What `compute` gives if any of the rows needs it. It must give `otherwise` for the rows that do not."""
    return jax.lax.cond(jnp.any(rows), compute, lambda: otherwise)


def _penalised(logits: Float[Array, "B V"], seen: Bool[Array, "B V"], settings: SamplingArrays) -> Float[Array, "B V"]:
    """Seen ids made less likely (Keskar et al. 2019, CTRL, section 4.1; negative logits multiplied, as transformers does)."""
    penalty = settings.repetition_penalty[:, None]
    penalised = jnp.where(logits < 0, logits * penalty, logits / penalty)
    largest = jnp.finfo(jnp.float32).max
    return jnp.where(seen, jnp.clip(penalised, -largest, largest), logits)


def top_k_mask(logits: Float[Array, "B V"], top_k: Int[Array, "B"]) -> Bool[Array, "B V"]:
    """The `top_k` highest logits and all that equal the last of them; all where top_k is 0 or at least V."""
    wanted = jnp.where(top_k > 0, jnp.minimum(top_k, logits.shape[-1]), logits.shape[-1])

    def enough(threshold: Float[Array, "B"]) -> Bool[Array, "B"]:
        return jnp.sum(logits >= threshold[:, None], axis=-1) >= wanted

    return logits >= _last_that(enough, jnp.full(wanted.shape, -jnp.inf), jnp.inf)[:, None]


def top_p_mask(probabilities: Float[Array, "B V"], top_p: Float[Array, "B"]) -> Bool[Array, "B V"]:
    """The smallest set of ids whose mass reaches `top_p` (Holtzman et al. 2020); of equal probabilities lower ids come first.

    That is: an id stays if the mass of the ids before it, in order of falling probability, is below top_p. At least one stays.
    """

    def mass_from(threshold: Float[Array, "B"]) -> Float[Array, "B"]:
        return jnp.sum(jnp.where(probabilities >= threshold[:, None], probabilities, 0.0), axis=-1)

    threshold = _last_that(lambda t: mass_from(t) >= top_p, jnp.zeros_like(top_p), 1.0)[:, None]
    tied = probabilities == threshold
    above = probabilities > threshold
    mass_above = jnp.sum(jnp.where(above, probabilities, 0.0), axis=-1, keepdims=True)
    earlier_ties = jnp.cumsum(tied, axis=-1) - 1
    stays = tied & (mass_above + earlier_ties * probabilities < top_p[:, None])
    return above | stays | (top_p >= 1)[:, None]


def _last_that(holds: Callable[[Array], Array], low: Float[Array, "B"], high: float) -> Float[Array, "B"]:
    """The highest float32 in `low`..`high` for which `holds`, which must hold at `low` and change once, row by row."""

    def halve(bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds  # it holds at `low`, not behind `high`
        middle = (low | high) - ((low ^ high) >> 1)  # the mean, rounded up, without overflow
        holds_there = holds(_float(middle))
        return jnp.where(holds_there, middle, low), jnp.where(holds_there, high, middle - 1)

    bounds = _order(low), _order(jnp.full_like(low, high))
    return _float(jax.lax.while_loop(lambda bounds: jnp.any(bounds[0] < bounds[1]), halve, bounds)[0])


def _order(values: Float[Array, "B"]) -> Int[Array, "B"]:
    """Integers in the order of float32 values: of negative ones the bits below the sign count down."""
    bits = jax.lax.bitcast_convert_type(values, jnp.int32)
    return jnp.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


def _float(order: Int[Array, "B"]) -> Float[Array, "B"]:
    """Inverse of `_order`."""
    return jax.lax.bitcast_convert_type(jnp.where(order < 0, order ^ 0x7FFFFFFF, order), jnp.float32)
