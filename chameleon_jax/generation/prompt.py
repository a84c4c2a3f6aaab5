"""From words and pictures to a prompt, and from generated ids back to words and pictures.

The one idea: markers are ours. Text is encoded piece by piece and gives text ids only, so nothing that a user types can open an
image, end a turn or end the sequence.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from chameleon_jax.errors import GenerationError
from chameleon_jax.generation.grammar import split_spans
from chameleon_jax.tokenizers.bundle import TokenizerBundle
from chameleon_jax.vocab import ModalityId

PLACEHOLDER = "<image>"


def build_prompt(
    text: str, images: Sequence[Float[np.ndarray, "R R 3"]], bundle: TokenizerBundle
) -> Int[np.ndarray, "n"]:
    """`[bos]`, then text ids and whole image spans: each `<image>` of the text is one of the pictures, in order.

    Without a placeholder the pictures come before the text; without pictures the placeholder is a word like any other.

    Raises GenerationError when there are placeholders, but not as many as pictures.
    """
    pieces = text.split(PLACEHOLDER) if images else [text]
    if len(pieces) == 1:
        pieces = [""] * len(images) + pieces
    if len(pieces) != len(images) + 1:
        raise GenerationError(
            f"the prompt has {len(pieces) - 1} {PLACEHOLDER} placeholders and {len(images)} pictures; give one for each"
        )
    vocab = bundle.vocab
    parts = [np.array([vocab.bos]), bundle.text.encode(pieces[0])]
    codes = bundle.encode_images(np.stack(images)) if len(images) else []
    for picture, piece in zip(codes, pieces[1:], strict=True):
        parts += [[vocab.begin_of_image], vocab.codes_to_ids(picture), [vocab.end_of_image], bundle.text.encode(piece)]
    return np.concatenate(parts).astype(np.int32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextOutput:
    """A run of generated text."""

    text: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageOutput:
    """A generated picture in [-1, 1] (`tokenizers.images.to_image` makes a file of it), or None if its span is not whole."""

    pixels: Float[np.ndarray, "R R 3"] | None


def read_output(ids: Int[np.ndarray, "n"], bundle: TokenizerBundle) -> list[TextOutput | ImageOutput]:
    """Words and pictures of generated ids, in order; special ids say nothing, and text of special ids alone is left out."""
    spans = split_spans(ids, bundle.vocab)
    whole = [span for span in spans if span.modality == ModalityId.IMAGE and span.complete]
    codes = [bundle.vocab.ids_to_codes(span.content) for span in whole]
    pictures = iter(bundle.decode_images(np.stack(codes)) if codes else [])
    outputs: list[TextOutput | ImageOutput] = []
    for span in spans:
        if span.modality == ModalityId.IMAGE:
            outputs.append(ImageOutput(pixels=next(pictures) if span.complete else None))
        elif text := bundle.text.decode(span.content):
            outputs.append(TextOutput(text=text))
    return outputs
