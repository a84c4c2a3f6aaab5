"""A picture of which some codes are given and the others drawn anew: in-painting, as far as a model that reads one way can.

The given codes are the only ids that the grammar allows in their places. A code that is drawn sees what stands before it, kept
codes included, and nothing behind it. It works for every span with markers, whatever its modality.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Int

from chameleon_jax.configs import GenerationConfig
from chameleon_jax.errors import GenerationError
from chameleon_jax.generation import grammar
from chameleon_jax.generation.grammar import UNRESTRICTED
from chameleon_jax.vocab import GridSpan, Vocab

REDRAW = -1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Keep:
    """The codes of the first span of a modality in an output; REDRAW where the model draws one. Of a grid row by row."""

    modality: str
    codes: Int[np.ndarray, "n"]


def kept_ids(
    keep: Keep, vocab: Vocab, config: GenerationConfig, opened_grid: tuple[int, int] = (0, 0)
) -> tuple[int, Int[np.ndarray, "m"]]:
    """Row of the modality table, and of every id behind the span's begin marker the one that must come, or REDRAW.

    `opened_grid` is the height and width that the prompt has said, 0 where it has not. Raises GenerationError for codes that cannot
    be kept.
    """
    row = vocab.row(keep.modality, GenerationError)
    modality, codes = vocab.modalities[row], np.asarray(keep.codes)
    if row not in vocab.marked:
        raise GenerationError(f"codes of '{keep.modality}' cannot be kept: it has no spans with markers")
    if config.mode == UNRESTRICTED or row not in grammar.written_rows(vocab, config.mode):
        raise GenerationError(f"codes of '{keep.modality}' cannot be kept: mode '{config.mode}' writes no such spans")
    if codes.ndim != 1 or not np.issubdtype(codes.dtype, np.integer):
        raise GenerationError(f"kept codes are one list of integers, not {codes.dtype} of shape {codes.shape}")
    asked = config.grids.get(keep.modality, (0, 0))
    height, width = (said or other for said, other in zip(opened_grid, asked, strict=True))
    is_grid = isinstance(modality.grammar, GridSpan)
    if is_grid and not (height and width):
        raise GenerationError(
            f"codes of '{keep.modality}' are kept in a span of a given size: say its height and width"
        )
    length = height * width if is_grid else modality.grammar.length
    if len(codes) != length:
        size = f" of {height}x{width}" if is_grid else ""
        raise GenerationError(
            f"{len(codes)} codes of '{keep.modality}' are kept or left to draw; a span{size} has {length}"
        )
    ids = modality.stop - modality.start
    if codes.min() < REDRAW or codes.max() >= ids:
        at = int(np.argmax((codes < REDRAW) | (codes >= ids)))
        raise GenerationError(f"kept code {codes[at]} of '{keep.modality}', number {at}, is outside 0..{ids - 1}")
    if (codes >= 0).all():
        raise GenerationError(f"all {length} codes of '{keep.modality}' are kept: leave some to draw")
    wanted = np.where(codes == REDRAW, REDRAW, codes + modality.start).astype(np.int32)
    if is_grid:  # two sizes first; behind each row stands its end
        wanted = np.pad(wanted.reshape(height, width), ((0, 0), (0, 1)), constant_values=REDRAW).reshape(-1)
        wanted = np.concatenate([np.full(2, REDRAW, np.int32), wanted])
    return row, wanted
