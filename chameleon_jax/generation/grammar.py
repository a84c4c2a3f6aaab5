"""Which ids may come next: the modality table as a state machine on the device, one state a row of the batch.

The rules are read off the table of vocab.py. A FreeSpan's ids may come anywhere outside of marked spans; a marked span
(FixedSpan, GridSpan) is its begin marker, what its grammar says, its end marker, and begins only where all of it fits. What a
request wants (mode, number and size of spans, length, ids to stop at) is data in the state, so one compiled program serves
every request, each row of a batch its own, and a further modality is a further row of the table.

A row of mode "unrestricted" has no spans: whatever it writes, it stands outside.

`split_spans` is the same grammar on the host, for reading what came out.
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
from jaxtyping import Array, Bool, Int

from chameleon_jax.configs import MAX_STOP_IDS, GenerationConfig
from chameleon_jax.errors import GenerationError, did_you_mean
from chameleon_jax.vocab import TEXT, FreeSpan, GridSpan, Modality, Vocab

OUTSIDE = -1  # of every marked span

UNRESTRICTED = "unrestricted"
_ALL = ("interleaved", UNRESTRICTED)


class FinishReason(enum.IntEnum):
    """Why a row stopped; RUNNING while it has not."""

    RUNNING = 0
    EOS = 1  # end of sequence, or of the turn, or an id that the request stops at
    LENGTH = 2  # no positions left, or none left for what the mode would have to write
    SPANS = 3  # all spans that were asked for are there


@flax.struct.dataclass
class GrammarState:
    """Where each of B rows stands; M is the number of rows of the modality table.

    `open` is the row of the marked span that the next id belongs to, or OUTSIDE; `emitted` counts the ids of that span behind
    its begin marker, and `grid` is its height and width, 0 while not yet said. `wanted` is the height and width that every grid
    of a modality must have, 0 where the model chooses. `begins_left` is how many more spans of a marked modality may begin,
    `writes` which free modalities may be written, `may_end` and `may_end_turn` whether end of sequence and end of turn may
    come; in `unrestricted` rows every id may. `stop_ids` end the row where they come outside of marked spans; -1 fills them up.
    `free` is the free modality that was written last. `remaining` counts the ids that may still come. In the next span of row
    `keep_row` (OUTSIDE for none) id number n behind the begin marker must be `keep[n]`, where that is not negative.
    """

    open: Int[Array, "B"]
    free: Int[Array, "B"]
    emitted: Int[Array, "B"]
    grid: Int[Array, "B 2"]
    wanted: Int[Array, "B M 2"]
    begins_left: Int[Array, "B M"]
    writes: Bool[Array, "B M"]
    may_end: Bool[Array, "B"]
    may_end_turn: Bool[Array, "B"]
    unrestricted: Bool[Array, "B"]
    stop_ids: Int[Array, "B I"]
    remaining: Int[Array, "B"]
    finish: Int[Array, "B"]
    keep: Int[Array, "B F"]
    keep_row: Int[Array, "B"]

    @property
    def modality(self) -> Int[Array, "B"]:
        """Row whose sampling settings rule the next id."""
        return jnp.where(self.open == OUTSIDE, self.free, self.open)


def span_tokens(modality: Modality, grid: tuple[int, int] = (0, 0)) -> int:
    """Ids of a whole marked span, markers included; of the smallest where a side of `grid` (height, width) is 0."""
    grammar = modality.grammar
    if isinstance(grammar, GridSpan):
        height, width = (side or grammar.unit for side in grid)
        return grammar.length(height, width)
    return grammar.length + 2


@functools.cache
def longest_body(vocab: Vocab) -> int:
    """Ids between the markers of the longest span that the vocabulary has, at least 1."""
    longest = 1
    for modality in vocab.marked.values():
        spans = modality.grammar
        if isinstance(spans, GridSpan):
            sides = [units * spans.unit for units in range(1, spans.max_units + 1)]
            sizes = [(height, width) for height in sides for width in sides if height * width <= spans.max_codes]
            longest = max(longest, *(spans.length(*size) - 2 for size in sizes))
        else:
            longest = max(longest, spans.length)
    return longest


def written_rows(vocab: Vocab, mode: str) -> tuple[int, ...]:
    """The modalities that a mode of GenerationConfig may write.

    Raises GenerationError for a name that there is not, or that is only taken in.
    """
    if mode in _ALL:
        return tuple(row for row, modality in enumerate(vocab.modalities) if modality.output)
    known = [*vocab.names, *_ALL]
    for name in mode.split("+"):
        if name not in vocab.names:
            raise GenerationError(
                f"this model has no mode '{name}'{did_you_mean(name, known)}; it has {', '.join(known)}, and names joined by +"
            )
        if not vocab.modalities[vocab.row(name)].output:
            raise GenerationError(f"mode '{mode}' asks for '{name}', which this model only takes in: leave it out")
    return tuple(vocab.row(name) for name in dict.fromkeys(mode.split("+")))


def start(
    vocab: Vocab,
    configs: GenerationConfig | Sequence[GenerationConfig],
    remaining: Int[np.ndarray, "B"],
    opened: Int[np.ndarray, "B"],
    grid: Int[np.ndarray, "B 2"] | None = None,
    kept: Sequence[tuple[int, Int[np.ndarray, "_"]] | None] | None = None,
) -> GrammarState:
    """The state behind the prompts, in NumPy arrays. `configs` is one for each row, or the one of all.

    `opened` is the row of a marked span that a prompt has just begun, or OUTSIDE. `grid` is the height and width that such
    a prompt has said, 0 where it has not. The begun span counts as one of `max_spans`. `kept` is what `keep.kept_ids` gives for
    each row, or None. A row without remaining ids is finished from the start.
    """
    rows, modalities, marked = len(remaining), len(vocab.modalities), vocab.marked
    configs = [configs] * rows if isinstance(configs, GenerationConfig) else configs
    unrestricted = np.array([config.mode == UNRESTRICTED for config in configs])
    opened = np.where(unrestricted, OUTSIDE, opened)
    grid = np.zeros((rows, 2), np.int32) if grid is None else np.where(unrestricted[:, None], 0, grid)
    wanted = np.zeros((rows, modalities, 2), np.int32)
    begins_left, writes = np.zeros((rows, modalities), np.int32), np.zeros((rows, modalities), bool)
    stop_ids = np.full((rows, MAX_STOP_IDS), -1, np.int32)
    for row, config in enumerate(configs):
        for name, grid_wanted in config.grids.items():
            wanted[row, vocab.row(name, GenerationError)] = grid_wanted
        for modality in written_rows(vocab, config.mode):
            if modality in marked:
                most = config.most_spans(vocab.names[modality])
                begins_left[row, modality] = most - (opened[row] == modality)
            else:
                writes[row, modality] = True
        stop_ids[row, : len(config.stop_ids)] = config.stop_ids
    keep, keep_row = np.full((rows, longest_body(vocab)), -1, np.int32), np.full(rows, OUTSIDE, np.int32)
    for row, given in enumerate(kept or ()):
        if given is not None:
            keep_row[row], keep[row, : len(given[1])] = given
    may_end = writes.any(axis=1)
    int32 = functools.partial(np.asarray, dtype=np.int32)
    return GrammarState(
        open=int32(opened),
        free=int32(writes.argmax(axis=1)),
        emitted=int32(np.count_nonzero(grid, axis=1)),
        grid=int32(grid),
        wanted=wanted,
        begins_left=begins_left,
        writes=writes,
        may_end=may_end,
        may_end_turn=may_end & [config.stop_at_turn_end for config in configs],
        unrestricted=unrestricted,
        stop_ids=stop_ids,
        remaining=int32(remaining),
        finish=int32(np.where(np.asarray(remaining) > 0, FinishReason.RUNNING, FinishReason.LENGTH)),
        keep=keep,
        keep_row=keep_row,
    )


def allowed(state: GrammarState, vocab: Vocab, width: int) -> Bool[Array, "B V"]:
    """The ids that may come next, out of `width` >= vocab.size logits; a finished row may write the pad id only."""
    ids = jnp.arange(width)[None, :]
    outside = state.open == OUTSIDE
    mask = (outside & state.may_end)[:, None] & (ids == vocab.eos)
    mask |= (outside & state.may_end_turn)[:, None] & (ids == vocab.end_of_turn)
    for row, modality in enumerate(vocab.modalities):
        if isinstance(modality.grammar, FreeSpan):
            mask |= (outside & state.writes[:, row])[:, None] & modality.holds(ids)
        else:
            inside = _inside_grid if isinstance(modality.grammar, GridSpan) else _inside_fixed
            mask |= (state.open == row)[:, None] & inside(state, row, modality, ids)
            mask |= _may_begin(state, row, modality)[:, None] & (ids == modality.begin_marker)
    place = jnp.minimum(state.emitted, state.keep.shape[1] - 1)[:, None]
    wanted = jnp.take_along_axis(state.keep, place, axis=1)
    # The end marker stands behind all that is kept.
    is_kept = (state.open != OUTSIDE) & (state.open == state.keep_row) & (state.emitted < state.keep.shape[1])
    mask = jnp.where(is_kept[:, None] & (wanted >= 0), ids == wanted, mask)
    known = (ids < vocab.size) & (ids != vocab.pad)
    for modality in vocab.modalities:
        if not modality.output:
            known &= ~modality.holds(ids) & (ids != modality.begin_marker) & (ids != modality.end_marker)
    mask |= state.unrestricted[:, None] & known
    running = state.finish == FinishReason.RUNNING
    return jnp.where(running[:, None], mask, ids == vocab.pad)


def _may_begin(state: GrammarState, row: int, modality: Modality) -> Bool[Array, "B"]:
    if isinstance(modality.grammar, GridSpan):
        height, width = jnp.maximum(state.wanted[:, row], modality.grammar.unit).T
        fits = state.remaining >= modality.grammar.length(height, width)
    else:
        fits = state.remaining >= span_tokens(modality)
    return (state.open == OUTSIDE) & (state.begins_left[:, row] > 0) & fits


def _inside_fixed(state: GrammarState, row: int, modality: Modality, ids: Int[Array, "1 V"]) -> Bool[Array, "B V"]:
    full = state.emitted >= modality.grammar.length
    return jnp.where(full[:, None], ids == modality.end_marker, modality.holds(ids))


def _inside_grid(state: GrammarState, row: int, modality: Modality, ids: Int[Array, "1 V"]) -> Bool[Array, "B V"]:
    """Height, width, rows of codes, end: a size may come where the smallest grid that it leaves open fits."""
    grammar = modality.grammar
    emitted, remaining = state.emitted[:, None], state.remaining[:, None]
    height, width = state.grid[:, :1], state.grid[:, 1:]
    wanted_height, wanted_width = state.wanted[:, row, :1], state.wanted[:, row, 1:]
    units = ids - grammar.size_base
    side = units * grammar.unit  # meant by an id that says a size
    is_size = (units >= 1) & (units <= grammar.max_units)

    def possible(height: Array, width: Array) -> Bool[Array, "B V"]:
        to_come = grammar.length(height, width) - 1 - emitted  # behind the begin marker and what is there
        return is_size & (height * width <= grammar.max_codes) & (remaining >= to_come)

    heights = possible(side, jnp.maximum(wanted_width, grammar.unit)) & ((wanted_height == 0) | (side == wanted_height))
    widths = possible(height, side) & ((wanted_width == 0) | (side == wanted_width))
    place = emitted - 2  # in the rows, which are `width` codes and a row end long
    row_is_full = place % (width + 1) == width
    is_last = place >= height * (width + 1)
    body = jnp.where(row_is_full, ids == grammar.newline, modality.holds(ids))
    body = jnp.where(is_last, ids == modality.end_marker, body)
    return jnp.where(emitted == 0, heights, jnp.where(emitted == 1, widths, body))


def advance(state: GrammarState, tokens: Int[Array, "B"], vocab: Vocab) -> GrammarState:
    """The state after the ids `tokens`, each of them allowed before; finished rows do not change."""
    outside = state.open == OUTSIDE
    is_open, emitted, grid = state.open, state.emitted + ~outside, state.grid
    begins_left, keep_row = state.begins_left, state.keep_row
    for row, modality in vocab.marked.items():
        begins = outside & ~state.unrestricted & (tokens == modality.begin_marker)
        ends = (state.open == row) & (tokens == modality.end_marker)
        is_open = jnp.where(begins, row, jnp.where(ends, OUTSIDE, is_open))
        emitted = jnp.where(begins | ends, 0, emitted)
        begins_left = begins_left.at[:, row].add(-begins.astype(jnp.int32))
        keep_row = jnp.where(ends & (keep_row == row), OUTSIDE, keep_row)
        if isinstance(modality.grammar, GridSpan):
            said = (tokens - modality.grammar.size_base) * modality.grammar.unit
            says = (state.open == row)[:, None] & (state.emitted[:, None] == jnp.arange(2))  # height first, then width
            grid = jnp.where(ends[:, None], 0, jnp.where(says, said[:, None], grid))
    free = state.free
    for row, modality in enumerate(vocab.modalities):
        if not modality.marked:
            free = jnp.where(outside & modality.holds(tokens), row, free)
    moved = state.replace(
        open=is_open,
        free=free,
        emitted=emitted,
        grid=grid,
        begins_left=begins_left,
        remaining=state.remaining - 1,
        keep_row=keep_row,
    )

    outside = is_open == OUTSIDE
    can_begin = jnp.zeros_like(outside)
    for row, modality in vocab.marked.items():
        can_begin |= _may_begin(moved, row, modality)
    stuck = outside & ~moved.may_end & ~moved.writes.any(axis=1) & ~can_begin
    is_end = (tokens == vocab.eos) | (state.may_end_turn & (tokens == vocab.end_of_turn))
    is_end |= (tokens[:, None] == state.stop_ids).any(axis=1)
    reasons = (
        ((state.open == OUTSIDE) & is_end, FinishReason.EOS),
        (stuck & (begins_left <= 0).all(axis=1), FinishReason.SPANS),
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
    """A run of ids of one modality, markers included, and its content ids without markers, sizes and row ends.

    `complete` is False for a marked span that lacks a marker or content ids, or whose rows and sizes disagree. `grid` is the
    height and width of a grid span, 0 where no id says it and the span is not complete. Special ids outside of marked spans
    count as text.
    """

    modality: int
    ids: Int[np.ndarray, "n"]
    content: Int[np.ndarray, "m"]
    complete: bool
    grid: tuple[int, int] = (0, 0)


def split_spans(ids: Int[np.ndarray, "n"], vocab: Vocab) -> list[TokenSpan]:
    """Cut a stream of ids into spans; their `ids`, joined, are the stream again, whatever it holds.

    A stream may begin inside a marked span whose begin marker, and sizes, stand in the prompt: that span counts as complete
    without them.
    """
    ids = np.asarray(ids, np.int32).reshape(-1)
    owner = vocab.modality_of(ids).astype(np.int64)
    for row, modality in vocab.marked.items():
        owner[(ids == modality.begin_marker) | (ids == modality.end_marker)] = row
        if isinstance(grid := modality.grammar, GridSpan):
            owner[ids == grid.size_base] = TEXT  # no grid says size 0
    spans, marked, at = [], vocab.marked, 0
    while at < len(ids):
        row = int(owner[at])
        if row in marked:
            read = _grid_span if isinstance(marked[row].grammar, GridSpan) else _fixed_span
            span = read(ids[at:], row, marked[row], begun=at == 0)
        else:
            change = np.flatnonzero(owner[at:] != row)
            run = ids[at : at + change[0]] if len(change) else ids[at:]
            span = TokenSpan(modality=row, ids=run, content=run[vocab.modalities[row].holds(run)], complete=True)
        spans.append(span)
        at += len(span.ids)
    return spans


def _fixed_span(ids: Int[np.ndarray, "n"], row: int, modality: Modality, begun: bool) -> TokenSpan:
    """The fixed span, perhaps a broken one, at the front of ids that belong to it."""
    marked = ids[0] == modality.begin_marker
    first = int(marked)
    body = ids[first : first + modality.grammar.length]
    content = body[: _run(modality.holds(body))]
    stop = first + len(content)
    ended = stop < len(ids) and ids[stop] == modality.end_marker
    complete = bool((marked or begun) and ended and len(content) == modality.grammar.length)
    return TokenSpan(modality=row, ids=ids[: stop + int(ended)], content=content, complete=complete)


def _grid_span(ids: Int[np.ndarray, "n"], row: int, modality: Modality, begun: bool) -> TokenSpan:
    """The grid span, perhaps a broken one, at the front of ids that belong to it; sizes that are not said are counted."""
    grammar = modality.grammar
    marked = ids[0] == modality.begin_marker
    first = int(marked)
    sizes = ids[first : first + 2]
    sizes = sizes[: _run(_is_size(grammar, sizes))]
    rest = ids[first + len(sizes) :]
    body = rest[: _run(modality.holds(rest) | (rest == grammar.newline))]
    stop = first + len(sizes) + len(body)
    ended = stop < len(ids) and ids[stop] == modality.end_marker
    said = [int(size - grammar.size_base) * grammar.unit for size in sizes]
    if begun and not marked:  # the height, or both, may stand in the prompt
        said = [0] * (2 - len(said)) + said
    said += [0] * (2 - len(said))

    row_ends = np.flatnonzero(body == grammar.newline)
    counted = (len(row_ends), int(row_ends[0]) if len(row_ends) else 0)
    even = len(body) == counted[0] * (counted[1] + 1) and np.all(np.diff(row_ends) == counted[1] + 1)
    agrees = all(a in ((b,) if marked else (0, b)) for a, b in zip(said, counted, strict=True))
    complete = bool((marked or begun) and ended and even and agrees and not grammar.problem(*counted))
    return TokenSpan(
        modality=row,
        ids=ids[: stop + int(ended)],
        content=body[body != grammar.newline],
        complete=complete,
        grid=counted if complete else (said[0], said[1]),
    )


def _is_size(grammar: GridSpan, ids: Int[np.ndarray, "n"]) -> Bool[np.ndarray, "n"]:
    return (ids > grammar.size_base) & (ids <= grammar.size_base + grammar.max_units)


def _run(holds: Bool[np.ndarray, "n"]) -> int:
    """Number of leading elements that hold."""
    return len(holds) if holds.all() else int(np.argmin(holds))
