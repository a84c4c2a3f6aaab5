"""Whether a prompt can be continued, and what of it matters for how: said before anything is compiled."""

from __future__ import annotations

import dataclasses

import numpy as np

from chameleon_jax.configs import GenerationConfig
from chameleon_jax.errors import GenerationError
from chameleon_jax.generation import grammar
from chameleon_jax.generation.grammar import MODES, OUTSIDE, TokenSpan
from chameleon_jax.vocab import MODALITY_NAMES, GridSpan, SpanGrammar, Vocab


@dataclasses.dataclass(frozen=True)
class Checked:
    """What checking a prompt found: ids that may come, the marked span that it leaves open, and the sizes said there."""

    remaining: int
    opened: int = OUTSIDE
    grid: tuple[int, int] = (0, 0)


def check_grid(vocab: Vocab, config: GenerationConfig) -> None:
    """Raise GenerationError when images cannot have the size that is asked for."""
    grammar = vocab.image.grammar
    if not config.image_grid:
        return
    if not isinstance(grammar, GridSpan):
        raise GenerationError(
            f"image_grid asks for {config.image_grid} codes, but every image of this vocabulary has {grammar.length} codes: "
            "leave it out"
        )
    if problem := grammar.problem(*config.image_grid):
        raise GenerationError(f"image_grid asks for {problem}")


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
        raise GenerationError(f"{where} has {len(prompt)} ids; the context of {context} leaves no room to continue")
    if config.mode == "unrestricted" and config.guidance is not None:
        raise GenerationError(f"{where} asks for guidance, which mode 'unrestricted' has not: it knows no images")
    opened = None if config.mode == "unrestricted" else _opened(where, prompt, vocab, config)
    remaining = min(config.max_tokens, context - len(prompt))
    needed, wanted = 0, config.image_grid or (0, 0)
    if opened is not None:
        grid = tuple(said or asked for said, asked in zip(opened.grid, wanted, strict=True))
        needed = grammar.span_tokens(vocab.modalities[opened.modality], grid) - len(opened.ids)
    elif config.mode == "image":
        needed = grammar.span_tokens(vocab.image, wanted)
    if remaining < needed:
        raise GenerationError(
            f"{where} has {len(prompt)} ids and leaves room for {remaining} (max_tokens {config.max_tokens}, context "
            f"{context}); an image needs {needed}"
        )
    return Checked(remaining) if opened is None else Checked(remaining, int(opened.modality), opened.grid)


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
                f"{where} has a cut {modality.name} at id {at - len(span.ids)}: {_measure(span, modality.grammar)}; give whole "
                "spans with both markers"
            )
    if opened is None:
        return None
    name = MODALITY_NAMES[opened.modality]
    if opened.modality not in MODES[config.mode]:
        raise GenerationError(f"{where} ends in the beginning of an {name}, which mode '{config.mode}' cannot write")
    grid = vocab.modalities[opened.modality].grammar
    if isinstance(grid, GridSpan) and opened.grid[0]:
        height, width = opened.grid
        if problem := grid.problem(height, width or grid.unit):
            raise GenerationError(f"{where} ends in the beginning of an {name} of {problem}")
        if config.image_grid and any(
            said not in (0, asked) for said, asked in zip(opened.grid, config.image_grid, strict=True)
        ):
            raise GenerationError(
                f"{where} ends in the beginning of an {name} of {opened.grid} codes (height, width), image_grid asks for "
                f"{config.image_grid}"
            )
    return opened


def _measure(span: TokenSpan, grammar: SpanGrammar) -> str:
    """What a cut span holds, for the reader of an error."""
    if isinstance(grammar, GridSpan):
        return f"{len(span.content)} codes that do not fill {span.grid[0]} rows of {span.grid[1]}"
    return f"{len(span.content)} of {grammar.length} codes"
