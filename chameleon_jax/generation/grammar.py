"""Which ids may come next: the modality table as a state machine on the device, one state a row of the batch.

The one idea: the rules are read off the table of vocab.py. A FreeSpan's ids may come anywhere outside of fixed spans; a FixedSpan
is its begin marker, exactly N content ids, its end marker, and begins only where all of it fits. What a request wants (mode,
number of images, length) is data in the state, so one compiled program serves every mode, and a further modality is a further row
of the table.

`split_spans` is the same grammar on the host, for reading what came out.
"""

from __future__ import annotations

import dataclasses
import enum

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from chameleon_jax.vocab import FixedSpan, Modality, ModalityId, Vocab

OUTSIDE = -1  # of every fixed span

# Modalities that each mode of GenerationConfig may write.
MODES = {
    "text": (ModalityId.TEXT,),
    "image": (ModalityId.IMAGE,),
    "interleaved": (ModalityId.TEXT, ModalityId.IMAGE),
}


class FinishReason(enum.IntEnum):
    """Why a row stopped; RUNNING while it has not."""

    RUNNING = 0
    EOS = 1
    LENGTH = 2  # no positions left, or none left for what the mode would have to write
    IMAGES = 3  # all images that were asked for are there


@flax.struct.dataclass
class GrammarState:
    """Where each of B rows stands; M is the number of rows of the modality table.

    `open` is the ModalityId of the fixed span that the next id belongs to, or OUTSIDE; `emitted` counts its content ids so far.
    `begins_left` is how many more spans of a fixed modality may begin, `writes` which free modalities may be written, `may_end`
    whether end-of-sequence may come. `remaining` counts the ids that may still come.
    """

    open: Int[Array, "B"]
    emitted: Int[Array, "B"]
    begins_left: Int[Array, "B M"]
    writes: Bool[Array, "B M"]
    may_end: Bool[Array, "B"]
    remaining: Int[Array, "B"]
    finish: Int[Array, "B"]

    @property
    def modality(self) -> Int[Array, "B"]:
        """ModalityId whose sampling settings rule the next id; outside of fixed spans that of text."""
        return jnp.where(self.open == OUTSIDE, int(ModalityId.TEXT), self.open)


def span_tokens(modality: Modality) -> int:
    """Ids of a whole fixed span, markers included."""
    return modality.grammar.length + 2


def fixed_rows(vocab: Vocab) -> list[tuple[int, Modality]]:
    """Rows of the table whose spans have markers and a fixed length."""
    return [(row, m) for row, m in enumerate(vocab.modalities) if isinstance(m.grammar, FixedSpan)]


def start(
    vocab: Vocab, mode: str, max_images: int, remaining: Int[np.ndarray, "B"], opened: Int[np.ndarray, "B"]
) -> GrammarState:
    """The state behind the prompts. `opened` is the ModalityId of a fixed span that a prompt has just begun, or OUTSIDE.

    Such a span counts as one of `max_images`. A row without remaining ids is finished from the start.
    """
    rows, fixed = len(remaining), dict(fixed_rows(vocab))
    begins_left = np.zeros((rows, len(vocab.modalities)), np.int32)
    writes = np.zeros((rows, len(vocab.modalities)), bool)
    for modality in MODES[mode]:
        if modality in fixed:
            begins_left[:, modality] = max_images - (opened == modality)
        else:
            writes[:, modality] = True
    return GrammarState(
        open=jnp.asarray(opened, jnp.int32),
        emitted=jnp.zeros(rows, jnp.int32),
        begins_left=jnp.asarray(begins_left),
        writes=jnp.asarray(writes),
        may_end=jnp.asarray(writes.any(axis=1)),
        remaining=jnp.asarray(remaining, jnp.int32),
        finish=jnp.where(jnp.asarray(remaining) > 0, int(FinishReason.RUNNING), int(FinishReason.LENGTH)),
    )


def _may_begin(state: GrammarState, row: int, modality: Modality) -> Bool[Array, "B"]:
    fits = state.remaining >= span_tokens(modality)
    return (state.open == OUTSIDE) & (state.begins_left[:, row] > 0) & fits


def allowed(state: GrammarState, vocab: Vocab, width: int) -> Bool[Array, "B V"]:
    """The ids that may come next, out of `width` >= vocab.size logits; a finished row may write the pad id only."""
    ids = jnp.arange(width)[None, :]
    outside = state.open == OUTSIDE
    mask = (outside & state.may_end)[:, None] & (ids == vocab.eos)
    for row, modality in enumerate(vocab.modalities):
        content = (ids >= modality.start) & (ids < modality.stop)
        if isinstance(modality.grammar, FixedSpan):
            inside, full = state.open == row, state.emitted >= modality.grammar.length
            mask |= (inside & ~full)[:, None] & content
            mask |= (inside & full)[:, None] & (ids == modality.end_marker)
            mask |= _may_begin(state, row, modality)[:, None] & (ids == modality.begin_marker)
        else:
            mask |= (outside & state.writes[:, row])[:, None] & content
    running = state.finish == FinishReason.RUNNING
    return jnp.where(running[:, None], mask, ids == vocab.pad)


def advance(state: GrammarState, tokens: Int[Array, "B"], vocab: Vocab) -> GrammarState:
    """The state after the ids `tokens`, each of them allowed before; finished rows do not change."""
    outside = state.open == OUTSIDE
    is_open, emitted = state.open, state.emitted + ~outside
    begins_left = state.begins_left
    for row, modality in fixed_rows(vocab):
        begins = outside & (tokens == modality.begin_marker)
        ends = (state.open == row) & (tokens == modality.end_marker)
        is_open = jnp.where(begins, row, jnp.where(ends, OUTSIDE, is_open))
        emitted = jnp.where(begins | ends, 0, emitted)
        begins_left = begins_left.at[:, row].add(-begins.astype(jnp.int32))
    moved = state.replace(open=is_open, emitted=emitted, begins_left=begins_left, remaining=state.remaining - 1)

    outside = is_open == OUTSIDE
    can_begin = jnp.zeros_like(outside)
    for row, modality in fixed_rows(vocab):
        can_begin |= _may_begin(moved, row, modality)
    stuck = outside & ~moved.may_end & ~moved.writes.any(axis=1) & ~can_begin
    reasons = (
        ((state.open == OUTSIDE) & (tokens == vocab.eos), FinishReason.EOS),
        (stuck & (begins_left <= 0).all(axis=1), FinishReason.IMAGES),
        (stuck | (moved.remaining <= 0), FinishReason.LENGTH),
    )
    finish = jnp.select([when for when, _ in reasons], [jnp.int32(why) for _, why in reasons], FinishReason.RUNNING)
    moved = moved.replace(finish=finish.astype(jnp.int32))
    running = state.finish == FinishReason.RUNNING

    def keep(new: Array, old: Array) -> Array:
        return jnp.where(running.reshape(-1, *[1] * (new.ndim - 1)), new, old)

    return jax.tree.map(keep, moved, state)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenSpan:
    """A run of ids of one modality, markers included, and its content ids without them.

    `complete` is False for a fixed span that lacks a marker or content ids. Special ids outside of fixed spans count as text.
    """

    modality: ModalityId
    ids: Int[np.ndarray, "n"]
    content: Int[np.ndarray, "m"]
    complete: bool


def split_spans(ids: Int[np.ndarray, "n"], vocab: Vocab) -> list[TokenSpan]:
    """Cut a stream of ids into spans; their `ids`, joined, are the stream again, whatever it holds.

    A stream may begin inside a fixed span whose begin marker stands in the prompt: that span counts as complete without it.
    """
    ids = np.asarray(ids, np.int32).reshape(-1)
    owner = np.full(len(ids), int(ModalityId.TEXT))
    for row, modality in fixed_rows(vocab):
        content = (ids >= modality.start) & (ids < modality.stop)
        owner[content | (ids == modality.begin_marker) | (ids == modality.end_marker)] = row
    spans, fixed, at = [], dict(fixed_rows(vocab)), 0
    while at < len(ids):
        row = int(owner[at])
        if row in fixed:
            span = _fixed_span(ids[at:], ModalityId(row), fixed[row], begun=at == 0)
        else:
            change = np.flatnonzero(owner[at:] != row)
            text = ids[at : at + change[0]] if len(change) else ids[at:]
            content = text[(text >= vocab.modalities[row].start) & (text < vocab.modalities[row].stop)]
            span = TokenSpan(modality=ModalityId(row), ids=text, content=content, complete=True)
        spans.append(span)
        at += len(span.ids)
    return spans


def _fixed_span(ids: Int[np.ndarray, "n"], row: ModalityId, modality: Modality, begun: bool) -> TokenSpan:
    """The fixed span, perhaps a broken one, at the front of ids that belong to it."""
    marked = ids[0] == modality.begin_marker
    first = int(marked)
    body = ids[first : first + modality.grammar.length]
    foreign = np.flatnonzero((body < modality.start) | (body >= modality.stop))
    content = body[: foreign[0]] if len(foreign) else body
    stop = first + len(content)
    ended = stop < len(ids) and ids[stop] == modality.end_marker
    complete = bool((marked or begun) and ended and len(content) == modality.grammar.length)
    return TokenSpan(modality=row, ids=ids[: stop + int(ended)], content=content, complete=complete)
