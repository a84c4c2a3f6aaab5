"""What a tokenizer is trained on, read whole into memory.

A codec sees every different file once, however many records hold it; texts count as often as they occur.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from chameleon_jax.configs import SourceConfig, TrainTokenizerConfig, VocabConfig
from chameleon_jax.data.sources import Reject, estimate_records, read_documents
from chameleon_jax.errors import DataError
from chameleon_jax.progress import progress
from chameleon_jax.tokenizers.images import load_pixels, to_8_bits
from chameleon_jax.tokenizers.waveforms import load_waveform
from chameleon_jax.training.signals import Stopped

Prepare = Callable[[bytes], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Corpus:
    """All texts; the different items of each modality with a codec, as `preparers` make them; and why something was left out."""

    texts: tuple[str, ...]
    items: Mapping[str, np.ndarray]
    rejects: tuple[str, ...]

    def split(self, every: int) -> tuple[Corpus, Corpus]:
        """Training and held-out corpora, with each `every`-th item, the first included, held out."""
        held_out = {name: np.arange(len(items)) % every == 0 for name, items in self.items.items()}
        kept = {name: items[~held_out[name]] for name, items in self.items.items()}
        rest = {name: items[held_out[name]] for name, items in self.items.items()}
        return dataclasses.replace(self, items=kept), Corpus((), rest, ())


def preparers(config: TrainTokenizerConfig) -> dict[str, Prepare]:
    """How a file of each modality with a codec to be trained becomes an item: 8-bit pixels [R, R, 3], or a waveform [samples]."""

    def pixels(data: bytes) -> np.ndarray:
        return to_8_bits(load_pixels(data, config.image))

    by_kind: dict[str, Prepare] = {"vqgan": pixels, "sound": lambda data: load_waveform(data, config.sound)}
    return {row.name: by_kind[row.codec] for row in config.vocab.modalities[1:] if row.codec in by_kind}


def read_corpus(
    sources: Sequence[SourceConfig],
    vocab: VocabConfig,
    prepare: Mapping[str, Prepare],
    stop: Callable[[], bool] = lambda: False,
) -> Corpus:
    """Texts, and items of the modalities in `prepare`, of every document.

    Raises DataError for a source that cannot be read, and Stopped as soon as `stop` says so: there is nothing to save yet.
    """
    items: dict[str, list[np.ndarray]] = {name: [] for name in prepare}
    texts: list[str] = []
    rejects: list[str] = []
    seen: set[bytes] = set()
    for source in sources:
        with progress(f"Reading {source.name}", total=estimate_records(source), unit="documents") as bar:
            for document in read_documents(source, vocab=vocab):
                if stop():
                    raise Stopped
                bar.advance()
                if isinstance(document, Reject):
                    rejects.append(f"{document.source}, {document.record}: {document.reason}")
                    continue
                for segment in document.segments:
                    name = segment.modality
                    if name == vocab.text.name:
                        texts.append(segment.data)
                    if name not in prepare:
                        continue
                    digest = hashlib.sha256(name.encode() + segment.data).digest()
                    if digest in seen:
                        continue
                    seen.add(digest)
                    try:
                        items[name].append(prepare[name](segment.data))
                    except DataError as error:
                        rejects.append(f"{document.id}, {segment.reference}: {error}")
    return Corpus(
        tuple(texts), {name: np.stack(found) if found else np.zeros(0) for name, found in items.items()}, tuple(rejects)
    )
