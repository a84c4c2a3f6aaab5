"""A document before and after tokenising: ordered text and pictures, and one stream of ids with spans.

The one idea: order is explicit and markers are ours. A reader gives segments in the order of the document; `assemble` alone puts
special ids between them (Chameleon, section 2.2: `[bos] text [boi] codes [eoi] text ... [eos]`).
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from chameleon_jax.errors import TokenizerError
from chameleon_jax.vocab import ModalityId, Vocab


@dataclasses.dataclass(frozen=True)
class TextSegment:
    """A piece of text. `loss` is whether training predicts it; `ends_turn` puts the end-of-turn id behind it."""

    text: str
    loss: bool = True
    ends_turn: bool = False


@dataclasses.dataclass(frozen=True)
class ImageSegment:
    """A picture file's bytes, not yet checked, and the name by which the record refers to it."""

    data: bytes
    reference: str
    loss: bool = True


Segment = TextSegment | ImageSegment


@dataclasses.dataclass(frozen=True)
class Document:
    """One record of a source, in order."""

    id: str
    source: str
    segments: tuple[Segment, ...]


@dataclasses.dataclass(frozen=True)
class Span:
    """A run of ids of one modality; markers, sizes and row ends of an image belong to its span, all other special ids to text."""

    modality: ModalityId
    length: int
    loss: bool


@dataclasses.dataclass(frozen=True)
class TokenDocument:
    """A document as ids. Span lengths sum to the number of ids; an image span is never cut."""

    id: str
    ids: Int[np.ndarray, "n"]
    spans: tuple[Span, ...]


def assemble(
    document: Document,
    text_ids: Sequence[Int[np.ndarray, "_"]],
    image_codes: Sequence[Int[np.ndarray, "n"] | Int[np.ndarray, "h w"]],
    vocab: Vocab,
) -> TokenDocument:
    """Join the ids of a document's texts and the codes of its images, each in order, to one stream.

    `[bos]` and `[eos]` take the loss role of the segment that they touch. Neighbouring text of equal role makes one span.
    Codes of an image are [codes_per_image], or [height, width] for a grid vocabulary.

    Raises TokenizerError when numbers of parts disagree, a text holds an id that is not text, or the codes of an image have
    another shape than the vocabulary says.
    """
    texts = sum(isinstance(segment, TextSegment) for segment in document.segments)
    images = len(document.segments) - texts
    if (texts, images) != (len(text_ids), len(image_codes)):
        raise TokenizerError(
            f"document {document.id} has {texts} texts and {images} images, got ids of {len(text_ids)} and codes of "
            f"{len(image_codes)}"
        )
    next_text, next_image = iter(text_ids), iter(image_codes)
    parts = [(ModalityId.TEXT, np.array([vocab.bos]), _loss(document, 0))]
    for segment in document.segments:
        if isinstance(segment, ImageSegment):
            try:
                span = vocab.image_span(next(next_image))
            except TokenizerError as error:
                raise TokenizerError(f"document {document.id}: {error}") from error
            parts.append((ModalityId.IMAGE, span, segment.loss))
            continue
        ids = np.asarray(next(next_text), np.int64)
        if ids.size and (ids.min() < vocab.text.start or ids.max() >= vocab.text.stop):
            raise TokenizerError(
                f"document {document.id}: a text has ids outside {vocab.text.start}..{vocab.text.stop - 1}"
            )
        if segment.ends_turn:
            ids = np.append(ids, vocab.end_of_turn)
        parts.append((ModalityId.TEXT, ids, segment.loss))
    parts.append((ModalityId.TEXT, np.array([vocab.eos]), _loss(document, -1)))

    spans: list[Span] = []
    for modality, ids, loss in parts:
        last = spans[-1] if spans else None
        if last and modality == last.modality == ModalityId.TEXT and last.loss == loss:
            spans[-1] = Span(modality, last.length + len(ids), loss)
        elif len(ids):
            spans.append(Span(modality, len(ids), loss))
    return TokenDocument(document.id, np.concatenate([ids for _, ids, _ in parts]).astype(np.int32), tuple(spans))


def order_pair(document: Document, seed: int, image_first_probability: float) -> Document:
    """Put the image of a pair first or last by a coin that depends on the seed and the document's id alone.

    Chameleon, section 2.2: the image comes first in half of the pairs. Documents of another form, conversations among them, keep
    their order.
    """
    kinds = [type(segment) for segment in document.segments]
    if sorted(kind.__name__ for kind in kinds) != ["ImageSegment", "TextSegment"]:
        return document
    text, image = sorted(document.segments, key=lambda segment: isinstance(segment, ImageSegment))
    if text.ends_turn:
        return document
    digest = hashlib.sha256(f"{seed}\n{document.id}".encode()).digest()
    image_first = int.from_bytes(digest[:8], "big") / 2**64 < image_first_probability
    return dataclasses.replace(document, segments=(image, text) if image_first else (text, image))


def valid_text(text: str) -> str:
    """The same text, with surrogate pairs joined and lone surrogates replaced by U+FFFD: UTF-8 has no form for them."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def _loss(document: Document, index: int) -> bool:
    return document.segments[index].loss if document.segments else True
