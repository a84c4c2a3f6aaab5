"""The pictures and texts that a tokenizer is trained on, read whole into memory.

The one idea: the codec sees every different picture once, however many records show it; the texts count as often as they occur.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8

from chameleon_jax.configs import ImageConfig, SourceConfig, VocabConfig
from chameleon_jax.data.sources import Reject, estimate_records, read_documents
from chameleon_jax.errors import DataError
from chameleon_jax.progress import progress
from chameleon_jax.tokenizers.images import load_pixels


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Different pictures at the codec's resolution, 8-bit; all texts; and why records or pictures were left out."""

    images: UInt8[np.ndarray, "N R R 3"]
    texts: tuple[str, ...]
    rejects: tuple[str, ...]

    def split(self, every: int) -> tuple[Corpus, Corpus]:
        """Training and held-out corpora, with each `every`-th picture, the first included, held out."""
        held_out = np.arange(len(self.images)) % every == 0
        return (
            dataclasses.replace(self, images=self.images[~held_out]),
            Corpus(images=self.images[held_out], texts=(), rejects=()),
        )


def read_corpus(sources: Sequence[SourceConfig], config: ImageConfig, vocab: VocabConfig) -> Corpus:
    """Read texts and pictures of every document of the sources. Raises DataError for a source that cannot be read at all."""
    images: list[np.ndarray] = []
    texts: list[str] = []
    rejects: list[str] = []
    seen: set[bytes] = set()
    pictures = [row.name for row in vocab.modalities if row.codec == "vqgan"]
    for source in sources:
        with progress(f"Reading {source.name}", total=estimate_records(source), unit="documents") as bar:
            for document in read_documents(source, vocab=vocab):
                bar.advance()
                if isinstance(document, Reject):
                    rejects.append(f"{document.source}, {document.record}: {document.reason}")
                    continue
                for segment in document.segments:
                    if segment.modality == vocab.text.name:
                        texts.append(segment.data)
                    elif segment.modality in pictures and (digest := hashlib.sha256(segment.data).digest()) not in seen:
                        seen.add(digest)
                        try:
                            pixels = load_pixels(segment.data, config)
                        except DataError as error:
                            rejects.append(f"{document.id}, {segment.reference}: {error}")
                        else:
                            images.append(np.round((pixels + 1) * 127.5).astype(np.uint8))
    shape = (0, config.resolution, config.resolution, 3)
    return Corpus(np.stack(images) if images else np.zeros(shape, np.uint8), tuple(texts), tuple(rejects))
