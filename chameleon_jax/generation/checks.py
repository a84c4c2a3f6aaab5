"""Whether a prompt can be continued, and what of it matters for how: said before anything is compiled."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from chameleon_jax.configs import GenerationConfig, TransformerConfig
from chameleon_jax.errors import GenerationError, PromptTooLong
from chameleon_jax.generation import grammar
from chameleon_jax.generation.grammar import OUTSIDE, UNRESTRICTED, TokenSpan
from chameleon_jax.generation.logprobs import MOST_TOP
from chameleon_jax.models import perception
from chameleon_jax.vocab import GridSpan, SpanGrammar, Vocab


@dataclasses.dataclass(frozen=True)
class Checked:
    """What checking a prompt found: ids that may come, the marked span that it leaves open, and the sizes said there."""

    remaining: int
    opened: int = OUTSIDE
    grid: tuple[int, int] = (0, 0)


def check_names(vocab: Vocab, config: GenerationConfig) -> None:
    """Raise GenerationError for a modality that the vocabulary lacks, for spans that cannot have the size that is
    asked for, and for a number of spans of one that has none.
    """
    grammar.written_rows(vocab, config.mode)
    for name in (*config.sampling, *config.max_spans, *config.grids):
        row = vocab.row(name, GenerationError)
        if not vocab.modalities[row].output and name in (*config.max_spans, *config.grids):
            raise GenerationError(f"'{name}' is only taken in: ask for none of its spans")
        if name in config.max_spans and row not in vocab.marked:
            raise GenerationError(f"max_spans of '{name}' is asked for, which has no spans to count: leave it out")
    for name, grid in config.grids.items():
        spans = vocab.modalities[vocab.row(name)].grammar
        if not isinstance(spans, GridSpan):
            raise GenerationError(
                f"a grid of {grid} codes is asked for, but '{name}' of this vocabulary has no spans of many sizes: leave it out"
            )
        if problem := spans.problem(*grid):
            raise GenerationError(f"'{name}' is asked for with {problem}")


def check_pictures(
    where: str, prompt: np.ndarray, pictures: Sequence[np.ndarray], vocab: Vocab, model: TransformerConfig
) -> None:
    """Raise GenerationError unless a prompt has as many pictures as spans of patches, each of the size that the model perceives."""
    row = vocab.perceived
    if row is None:
        if pictures:
            raise GenerationError(
                f"{where} has {len(pictures)} pictures in patches, which this model has no modality for"
            )
        return
    held, length = int(row.holds(prompt).sum()), row.grammar.length
    if held != len(pictures) * length:
        raise GenerationError(
            f"{where} has {held} ids of '{row.name}', {length} for a picture, and {len(pictures)} pictures; give one for each span"
        )
    side = perception.picture_side(model, vocab)
    for picture in pictures:
        if picture.shape != (side, side, 3) or picture.dtype != np.uint8:
            raise GenerationError(
                f"{where} has a picture of shape {picture.shape} and {picture.dtype}; this model perceives {side}x{side}x3 of uint8"
            )


def check_logprobs(where: str, asked: int | None, vocab: Vocab) -> None:
    """Raise GenerationError for a number of alternatives that cannot be told."""
    most = min(MOST_TOP, vocab.size)
    if asked is not None and not 0 <= asked <= most:
        raise GenerationError(f"{where} asks for logprobs of {asked} alternatives; 0 to {most} can be told")


def check_prompt(where: str, prompt: np.ndarray, vocab: Vocab, context: int, config: GenerationConfig) -> Checked:
    """What is left for a prompt (named `where`) in a context of so many ids.

    Raises GenerationError for one that cannot be continued in this mode.
    """
    if prompt.ndim != 1 or len(prompt) == 0:
        raise GenerationError(
            f"{where} is empty or not a list of ids (shape {prompt.shape}); begin with id {vocab.bos}"
        )
    if not np.issubdtype(prompt.dtype, np.integer):
        raise GenerationError(f"{where} holds {prompt.dtype} numbers; ids are integers")
    if prompt.min() < 0 or prompt.max() >= vocab.size:
        raise GenerationError(
            f"{where} has ids {int(prompt.min())}..{int(prompt.max())}; the vocabulary ends at {vocab.size - 1}"
        )
    if (prompt == vocab.pad).any():
        raise GenerationError(f"{where} holds the padding id {vocab.pad}; pass it without padding")
    if len(prompt) >= context:
        raise PromptTooLong(f"{where} has {len(prompt)} ids; the context of {context} leaves no room to continue")
    if config.mode == UNRESTRICTED and config.guidance is not None:
        raise GenerationError(f"{where} asks for guidance, which mode '{UNRESTRICTED}' has not: it knows no spans")
    opened = None if config.mode == UNRESTRICTED else _opened(where, prompt, vocab, config)
    remaining = min(config.max_tokens, context - len(prompt))
    rows = grammar.written_rows(vocab, config.mode)
    needed, name = 0, ""
    if opened is not None:
        modality = vocab.modalities[opened.modality]
        asked = config.grids.get(modality.name, (0, 0))
        grid = tuple(said or other for said, other in zip(opened.grid, asked, strict=True))
        needed, name = grammar.span_tokens(modality, grid) - len(opened.ids), modality.name
    elif all(row in vocab.marked for row in rows):  # without room for a span there is nothing to write
        needed, name = min(
            (grammar.span_tokens(m, config.grids.get(m.name, (0, 0))), m.name)
            for m in map(vocab.modalities.__getitem__, rows)
        )
    if remaining < needed:
        kind = PromptTooLong if config.max_tokens >= needed else GenerationError
        raise kind(
            f"{where} has {len(prompt)} ids and leaves room for {remaining} (max_tokens {config.max_tokens}, context "
            f"{context}); a span of '{name}' needs {needed}"
        )
    return Checked(remaining) if opened is None else Checked(remaining, opened.modality, opened.grid)


def _opened(where: str, prompt: np.ndarray, vocab: Vocab, config: GenerationConfig) -> TokenSpan | None:
    """The marked span whose beginning ends the prompt, or None; raises GenerationError for a span that is cut."""
    at, opened = 0, None
    for span in grammar.split_spans(prompt, vocab):
        modality = vocab.modalities[span.modality]
        at += len(span.ids)
        begun = modality.begin_marker is None or span.ids[0] == modality.begin_marker
        sizes = sum(side > 0 for side in span.grid)
        if at == len(prompt) and begun and not span.complete and len(span.ids) == 1 + sizes:
            opened = span
        elif not (span.complete and begun):
            raise GenerationError(
                f"{where} has a cut span of '{modality.name}' at id {at - len(span.ids)}: {_measure(span, modality.grammar)}; give "
                "whole spans with both markers"
            )
    if opened is None:
        return None
    modality = vocab.modalities[opened.modality]
    begun = f"{where} ends in the beginning of a span of '{modality.name}'"
    if opened.modality not in grammar.written_rows(vocab, config.mode):
        raise GenerationError(f"{begun}, which mode '{config.mode}' cannot write")
    grid, asked = modality.grammar, config.grids.get(modality.name)
    if isinstance(grid, GridSpan) and opened.grid[0]:
        height, width = opened.grid
        if problem := grid.problem(height, width or grid.unit):
            raise GenerationError(f"{begun} of {problem}")
        if asked and any(said not in (0, other) for said, other in zip(opened.grid, asked, strict=True)):
            raise GenerationError(f"{begun} of {opened.grid} codes (height, width), the request asks for {asked}")
    return opened


def _measure(span: TokenSpan, grammar: SpanGrammar) -> str:
    """What a cut span holds, for the reader of an error."""
    if isinstance(grammar, GridSpan):
        return f"{len(span.content)} codes that do not fill {span.grid[0]} rows of {span.grid[1]}"
    return f"{len(span.content)} of {grammar.length} codes"
