"""A document before and after tokenising: ordered segments of data, and one stream of ids with spans.

Order is explicit and markers are ours. A reader gives segments in the order of the document; `assemble` alone puts special ids
between them (Chameleon, section 2.2: `[bos] text [boi] codes [eoi] text ... [eos]`).
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8

from chameleon_jax.configs import VocabConfig
from chameleon_jax.errors import TokenizerError
from chameleon_jax.vocab import TEXT, Vocab


@dataclasses.dataclass(frozen=True)
class Segment:
    """A piece of data of one modality.

    `data` is a str of text, the bytes of a file, not yet checked, of a modality with another codec, and whole numbers of one
    without. `loss` is whether training predicts it; `ends_turn` puts the end-of-turn id behind it; `reference` is the name by
    which the record refers to a file.
    """

    modality: str
    data: Any
    loss: bool = True
    ends_turn: bool = False
    reference: str = ""


@dataclasses.dataclass(frozen=True)
class Document:
    """One record of a source, in order."""

    id: str
    source: str
    segments: tuple[Segment, ...]


@dataclasses.dataclass(frozen=True)
class Span:
    """A run of ids of one row of the modality table; markers, sizes and row ends belong to it, all other special ids to text."""

    modality: int
    length: int
    loss: bool


@dataclasses.dataclass(frozen=True)
class TokenDocument:
    """A document as ids. Span lengths sum to the number of ids; `items` are the pixels of its perceived spans, in order."""

    id: str
    ids: Int[np.ndarray, "n"]
    spans: tuple[Span, ...]
    items: tuple[UInt8[np.ndarray, "H W 3"], ...] = ()


def assemble(
    document: Document,
    codes: Sequence[Int[np.ndarray, "n"] | Int[np.ndarray, "h w"]],
    vocab: Vocab,
    items: tuple[UInt8[np.ndarray, "H W 3"], ...] = (),
) -> TokenDocument:
    """Join the codes of a document's segments, one array for each in order, to one stream.

    `[bos]` and `[eos]` take the loss role of the segment that they touch. Neighbouring spans without markers, of one modality
    and role, are one. Codes are [n], or [height, width] of a grid. What is only taken in is never learned. `items` are the pixels
    of the segments that are perceived.

    Raises TokenizerError when numbers of parts disagree, a code is outside its modality, or codes have another shape than the
    vocabulary says.
    """
    if len(document.segments) != len(codes):
        raise TokenizerError(f"document {document.id} has {len(document.segments)} segments, got codes of {len(codes)}")
    parts = [(TEXT, np.array([vocab.bos]), _loss(document, 0))]
    for segment, own in zip(document.segments, codes, strict=True):
        try:
            row = vocab.row(segment.modality)
            ids = vocab.modalities[row].span(own)
        except TokenizerError as error:
            raise TokenizerError(f"document {document.id}: {error}") from error
        parts.append((row, ids, segment.loss and vocab.modalities[row].output))
        if segment.ends_turn:
            parts.append((TEXT, np.array([vocab.end_of_turn]), segment.loss))
    parts.append((TEXT, np.array([vocab.eos]), _loss(document, -1)))

    spans: list[Span] = []
    for row, ids, loss in parts:
        last = spans[-1] if spans else None
        if last and row == last.modality and not vocab.modalities[row].marked and last.loss == loss:
            spans[-1] = Span(row, last.length + len(ids), loss)
        elif len(ids):
            spans.append(Span(row, len(ids), loss))
    ids = np.concatenate([ids for _, ids, _ in parts]).astype(np.int32)
    return TokenDocument(document.id, ids, tuple(spans), items)


def order_pair(document: Document, vocab: Vocab, seed: int, later_first_probability: float) -> Document:
    """Order a pair of segments of two modalities by a coin that depends on the seed and the document's id alone.

    The one whose modality stands later in the table comes first with this probability; of text and images that is Chameleon's,
    section 2.2: the image comes first in half of the pairs. Documents of another form keep their order, conversations and
    pairs of which one alone is predicted among them: there the other is given. What is only taken in always comes first: nothing
    before it could be learned from it.
    """
    segments = sorted(document.segments, key=lambda segment: vocab.row(segment.modality))
    if len(segments) != 2 or segments[0].modality == segments[1].modality or any(s.ends_turn for s in segments):
        return document
    if segments[0].loss != segments[1].loss:
        return document
    taken_in = [segment for segment in segments if not vocab.modalities[vocab.row(segment.modality)].output]
    if taken_in:
        return dataclasses.replace(document, segments=(taken_in[0], *(s for s in segments if s is not taken_in[0])))
    digest = hashlib.sha256(f"{seed}\n{document.id}".encode()).digest()
    later_first = int.from_bytes(digest[:8], "big") / 2**64 < later_first_probability
    return dataclasses.replace(document, segments=tuple(segments[::-1] if later_first else segments))


def perceive(document: Document, vocab: VocabConfig) -> Document:
    """The document with the pictures that nobody is to draw in patches instead of codes.

    Where segments say what is predicted, as in conversations and pairs of which one is given, those are the pictures that are not.
    Elsewhere they are all but a picture that ends the document.
    """
    segments, seen = document.segments, vocab.of_codec("patches")
    drawn = {row.name for row in vocab.modalities if row.codec == "vqgan"}
    says = any(s.ends_turn for s in segments) or len({s.loss for s in segments}) > 1

    def perceived(place: int) -> bool:
        segment = segments[place]
        return segment.modality in drawn and (not segment.loss if says else place < len(segments) - 1)

    changed = (dataclasses.replace(s, modality=seen.name) if perceived(i) else s for i, s in enumerate(segments))
    return dataclasses.replace(document, segments=tuple(changed))


def valid_text(text: str) -> str:
    """The same text, with surrogate pairs joined and lone surrogates replaced by U+FFFD: UTF-8 has no form for them."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def _loss(document: Document, index: int) -> bool:
    return document.segments[index].loss if document.segments else True
