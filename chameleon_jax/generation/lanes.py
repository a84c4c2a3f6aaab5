"""The state of all running sequences on the device, and the compiled functions that move it on.

A lane is one sequence with its own cache row, and guidance is lanes that follow another. A follower holds the context's marked
spans (`SPANS`) or nothing but the one under way (`BARE`); it takes the ids that its leader draws and gives logits that are
mixed into the leader's. As contexts of spans only ever grow with the leader, and a bare one begins anew by going back to its
first slot, no switch between text and spans needs a prefill, a copy or a word from the host.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
from collections.abc import Sequence

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, UInt8

from chameleon_jax.configs import TransformerConfig
from chameleon_jax.generation import grammar
from chameleon_jax.generation.grammar import OUTSIDE, FinishReason, GrammarState
from chameleon_jax.generation.logprobs import BlockLogprobs
from chameleon_jax.generation.sampling import SamplingArrays, sample, seen_ids
from chameleon_jax.models import kv_cache, perception, transformer
from chameleon_jax.models.kv_cache import KVCache
from chameleon_jax.models.transformer import Params
from chameleon_jax.parallel.mesh import DECODING, constrain
from chameleon_jax.vocab import GridSpan, Vocab


class Role(enum.IntEnum):
    """What a lane's context holds."""

    LEADER = 0  # everything
    SPANS = 1  # bos and marked spans
    BARE = 2  # the span under way, behind bos or nothing


@flax.struct.dataclass
class Rows:
    """Everything of N lanes but their caches; S slots.

    `ids` holds prompt and output, `length` counts both, `fed` how many have been through the model. `leader` is the lane that a
    lane follows, itself for a leader; `spans` and `bare` are the lanes that guide a leader, itself without. Where
    `sizes_unguided`, the two sizes of a grid are not guided; a bare lane keeps `kept` ids before the begin marker. `finite`
    turns False where the model gave logits that are not numbers, which ends the row.
    """

    ids: Int[Array, "N S"]
    length: Int[Array, "N"]
    fed: Int[Array, "N"]
    role: Int[Array, "N"]
    leader: Int[Array, "N"]
    spans: Int[Array, "N"]
    bare: Int[Array, "N"]
    scale_text: Float[Array, "N"]
    scale_image: Float[Array, "N"]
    sizes_unguided: Bool[Array, "N"]
    kept: Int[Array, "N"]
    grammar: GrammarState
    settings: SamplingArrays
    seen: Bool[Array, "N V"]
    keys: Key[Array, "N"]
    finite: Bool[Array, "N"]


@flax.struct.dataclass
class LaneState:
    """All lanes of an engine."""

    cache: KVCache
    rows: Rows


@flax.struct.dataclass
class Progress:
    """What a block did, for the host: `new[n, :length[n] - before[n]]` are the ids that lane n took, `logprobs` what a leader
    thought of them, where the block tells.
    """

    before: Int[Array, "N"]
    length: Int[Array, "N"]
    new: Int[Array, "N K"]
    finish: Int[Array, "N"]
    finite: Bool[Array, "N"]
    logprobs: BlockLogprobs | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shapes:
    """What a compiled function depends on beside its arguments."""

    model: TransformerConfig
    vocab: Vocab


def empty(shapes: Shapes, rows: Rows) -> LaneState:
    """Lanes with nothing in them; `rows` (see `scheduler.idle_rows`) gives their number and slots."""
    lanes, slots = rows.ids.shape
    # Copies: what is donated later must not be memory that NumPy, or another leaf, holds as well.
    rows = jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), rows)
    cache = jax.jit(kv_cache.create, static_argnums=(0, 1, 2, 3))(shapes.model, lanes, slots, DECODING)
    return _placed(LaneState(cache=cache, rows=rows))


def _placed(lanes: LaneState) -> LaneState:
    """Lanes divided over the mesh in use, always in one way: every function takes and gives them so, and is compiled once."""
    cache = jax.tree.map(lambda leaf: constrain(leaf, "B K S H", DECODING), lanes.cache)
    rows = jax.tree.map(lambda leaf: constrain(leaf, " ".join("B" + "." * (leaf.ndim - 1)), DECODING), lanes.rows)
    return LaneState(cache=cache, rows=rows)


@functools.partial(jax.jit, static_argnames=("shapes", "width"), donate_argnames=("lanes",))
def admit(
    weights: Params,
    lanes: LaneState,
    places: Int[Array, "b"],
    rows: Rows,
    shapes: Shapes,
    width: int,
    pictures: UInt8[Array, "b I side side 3"] | None = None,
) -> LaneState:
    """Put `rows` into lanes `places` (one beyond the last is dropped), keys and values of all their ids but the last.

    `width` is how many ids are run, at least the longest row less one. `pictures` are those that each row perceives, and then
    any others; None where no row does.
    """
    count = rows.ids.shape[0]
    positions = jnp.broadcast_to(jnp.arange(width), (count, width))
    segments = (positions < rows.fed[:, None]).astype(jnp.int32)
    filled = kv_cache.create(shapes.model, count, width, DECODING)
    ids = rows.ids[:, :width]
    filled = transformer.forward(
        weights,
        ids,
        positions,
        segments,
        shapes.model,
        modality=shapes.vocab.modality_of(ids),
        **perception.inputs(weights, ids, pictures, shapes.model, shapes.vocab, DECODING),
        cache=filled,
        rules=DECODING,
    ).cache

    def put(whole: Array, part: Array) -> Array:
        return whole.at[places].set(part, mode="drop")

    def put_cache(whole: Array, part: Array) -> Array:
        return whole.at[places, :, :width].set(part, mode="drop")

    return _placed(
        LaneState(cache=jax.tree.map(put_cache, lanes.cache, filled), rows=jax.tree.map(put, lanes.rows, rows))
    )


@functools.partial(jax.jit, donate_argnames=("lanes",))
def stop(lanes: LaneState, stopped: Bool[Array, "N"]) -> LaneState:
    """Let the marked leaders write no more."""
    state = lanes.rows.grammar
    finish = jnp.where(stopped, jnp.int32(FinishReason.LENGTH), state.finish)
    return _placed(lanes.replace(rows=lanes.rows.replace(grammar=state.replace(finish=finish))))


@functools.partial(jax.jit, static_argnames=("shapes", "steps", "visible", "tells"), donate_argnames=("lanes",))
def run_block(
    weights: Params, lanes: LaneState, shapes: Shapes, steps: int, visible: int, tells: bool = False
) -> tuple[LaneState, Progress]:
    """Up to `steps` more ids for every running leader, without a word to the host; stops early when none runs.

    No lane may come to slot `visible`: the caches behind it are not looked at. With `tells` the progress has log-probabilities.
    """
    before = lanes.rows.length

    def unfinished(carry: tuple[Array, LaneState, BlockLogprobs | None]) -> Bool[Array, ""]:
        step, lanes, _ = carry
        return (step < steps) & jnp.any(_running(lanes.rows))

    def step_on(carry: tuple[Array, LaneState, BlockLogprobs | None]) -> tuple[Array, LaneState, BlockLogprobs | None]:
        step, lanes, logprobs = carry
        lanes, drawn = _step(weights, lanes, shapes, visible)
        if logprobs is not None:
            logprobs = logprobs.put(
                drawn.logits, drawn.token, places=drawn.at - before, takes=drawn.draws, vocab_size=shapes.vocab.size
            )
        return step + 1, _placed(lanes), logprobs

    logprobs = BlockLogprobs.empty(len(before), steps, shapes.vocab.size) if tells else None
    _, lanes, logprobs = jax.lax.while_loop(unfinished, step_on, (jnp.int32(0), lanes, logprobs))
    rows = lanes.rows
    places = jnp.minimum(before[:, None] + jnp.arange(steps), rows.ids.shape[1] - 1)
    progress = Progress(
        before=before,
        length=rows.length,
        new=jnp.take_along_axis(rows.ids, places, axis=1),
        finish=rows.grammar.finish,
        finite=rows.finite,
        logprobs=logprobs,
    )
    return lanes, progress


def _running(rows: Rows) -> Bool[Array, "N"]:
    return (rows.grammar.finish == FinishReason.RUNNING) & (rows.role == Role.LEADER)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Drawn:
    """What a step drew: the lanes that `draws` put `token` at slot `at`; `logits` are the model's, before guidance."""

    logits: Float[Array, "N V"]
    token: Int[Array, "N"]
    at: Int[Array, "N"]
    draws: Bool[Array, "N"]


def _step(weights: Params, lanes: LaneState, shapes: Shapes, visible: int) -> tuple[LaneState, _Drawn]:
    """Every lane that has an id for the model feeds it; every leader that has fed all draws the next."""
    rows = lanes.rows
    lane = jnp.arange(rows.length.shape[0])
    # A leader has always one id that the model has not seen, a follower one or none: nobody takes two in a step.
    feeds = _running(rows)[rows.leader] & (rows.fed < rows.length)

    place = jnp.clip(rows.fed, 0, rows.length - 1)
    ids = rows.ids[lane, place][:, None]
    out = transformer.forward(
        weights,
        ids,
        place[:, None],
        feeds.astype(jnp.int32)[:, None],
        shapes.model,
        modality=shapes.vocab.modality_of(ids),
        cache=lanes.cache,
        visible=visible,
        rules=DECODING,
    )
    # Sampling searches its thresholds in tens of passes over a row: one gather of the logits costs less than a sum over devices
    # in each.
    logits = constrain(transformer.logits(weights, out.hidden, shapes.model, DECODING)[:, 0], "B .", DECODING)
    draws = feeds & (rows.role == Role.LEADER)
    finite = rows.finite & (~draws | jnp.isfinite(logits).all(axis=-1))
    logits = jnp.nan_to_num(logits)

    state = rows.grammar
    token = sample(
        _guided(logits, rows, draws, shapes.vocab),
        grammar.allowed(state, shapes.vocab, shapes.model.vocab_size),
        rows.settings.at(state.modality),
        rows.seen,
        jax.vmap(jax.random.fold_in)(rows.keys, rows.length),
    )
    moved = grammar.advance(state, token, shapes.vocab)
    moved = jax.tree.map(lambda new, old: jnp.where(_like(draws, new), new, old), moved, state)
    moved = moved.replace(finish=jnp.where(finite, moved.finish, jnp.int32(FinishReason.LENGTH)))
    drawn = _Drawn(logits=logits, token=token, at=rows.length, draws=draws)
    rows = rows.replace(fed=rows.fed + feeds, grammar=moved, finite=finite)
    rows = _take(rows, token, draws, was_open=state.open, vocab=shapes.vocab)
    return LaneState(cache=out.cache, rows=rows), drawn


def _guided(logits: Float[Array, "N V"], rows: Rows, draws: Bool[Array, "N"], vocab: Vocab) -> Float[Array, "N V"]:
    """Classifier-free guidance, fp32, before any mask: u + g_image (i - u) + g_text (f - i); see `GuidanceConfig`."""
    state = rows.grammar
    inside = state.open != OUTSIDE
    for row, modality in vocab.marked.items():
        if isinstance(modality.grammar, GridSpan):
            inside &= ~((state.open == row) & rows.sizes_unguided & (state.emitted < 2))
    guided = draws & inside & (rows.bare != jnp.arange(len(rows.length)))

    def mixed() -> Array:
        bare, spans = logits[rows.bare], logits[rows.spans]
        text, image = rows.scale_text[:, None], rows.scale_image[:, None]
        mix = bare + image * (spans - bare) + text * (logits - spans)
        return jnp.where(guided[:, None], mix, logits)

    return jax.lax.cond(jnp.any(guided), mixed, lambda: logits)


def _take(
    rows: Rows, token: Int[Array, "N"], draws: Bool[Array, "N"], *, was_open: Int[Array, "N"], vocab: Vocab
) -> Rows:
    """Leaders take what they drew; followers what of it belongs to their contexts."""
    lane = jnp.arange(len(rows.length))
    seen = rows.seen.at[lane, token].max(draws)
    token, draws, was_open = token[rows.leader], draws[rows.leader], was_open[rows.leader]
    restricted = ~rows.grammar.unrestricted[rows.leader]
    begins, ends = jnp.zeros_like(restricted), jnp.zeros_like(restricted)
    for row, modality in vocab.marked.items():
        begins |= restricted & (was_open == OUTSIDE) & (token == modality.begin_marker)
        ends |= (was_open == row) & (token == modality.end_marker)
    inside = was_open != OUTSIDE
    takes = draws & jnp.select(
        [rows.role == Role.LEADER, rows.role == Role.SPANS],
        [jnp.ones_like(draws), begins | inside],
        begins | (inside & ~ends),
    )
    anew = draws & begins & (rows.role == Role.BARE)
    length = jnp.where(anew, rows.kept, rows.length)
    fed = jnp.where(anew, jnp.minimum(rows.fed, rows.kept), rows.fed)
    slot = jnp.where(takes, length, rows.ids.shape[1])
    return rows.replace(ids=rows.ids.at[lane, slot].set(token, mode="drop"), length=length + takes, fed=fed, seen=seen)


def _like(mask: Bool[Array, "N"], array: Array) -> Array:
    return mask.reshape(-1, *[1] * (array.ndim - 1))


def make_rows(
    contexts: Sequence[np.ndarray],
    slots: int,
    shapes: Shapes,
    *,
    seeds: Int[np.ndarray, "b"],
    row_ids: Int[np.ndarray, "b"],
    grammar_state: GrammarState,
    settings: SamplingArrays,
    **fields: np.ndarray,
) -> Rows:
    """Rows of `b` contexts, all ids but the last to be fed by `admit`; `fields` are the other fields of `Rows`.

    A row draws by its seed and its row id. Nearly all stays in NumPy: operations on the device, one by one, take longer than a
    block of tokens.
    """
    ids = np.full((len(contexts), slots), shapes.vocab.pad, np.int32)
    for row, context in zip(ids, contexts, strict=True):
        row[: len(context)] = context
    lengths = np.array([len(context) for context in contexts], np.int32)
    seen, keys = _seen_and_keys(
        ids, lengths, seeds.astype(np.uint32), row_ids.astype(np.uint32), shapes.model.vocab_size
    )
    return Rows(
        ids=ids,
        length=lengths,
        fed=np.maximum(lengths - 1, 0),
        grammar=grammar_state,
        settings=settings,
        seen=seen,
        keys=keys,
        finite=np.ones(len(contexts), bool),
        **fields,
    )


@functools.partial(jax.jit, static_argnames="vocab_size")
def _seen_and_keys(ids: Array, lengths: Array, seeds: Array, row_ids: Array, vocab_size: int) -> tuple[Array, Array]:
    keys = jax.vmap(lambda seed, row: jax.random.fold_in(jax.random.key(seed), row))(seeds, row_ids)
    return seen_ids(ids, lengths, vocab_size), keys
