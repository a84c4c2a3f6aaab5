"""Does the model understand pictures? It chooses a picture's caption among others by likelihood.

A caption is scored as the continuation of `<s> <begin image> codes <end image>`, exactly as it stands in training
documents (in patches where the vocabulary has them), so the score is the model's own probability and nothing is tuned for the test.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8

from chameleon_jax.configs import SourceConfig, TransformerConfig
from chameleon_jax.data.sources import Reject, read_documents
from chameleon_jax.errors import DataError
from chameleon_jax.evaluation import likelihood
from chameleon_jax.tokenizers.bundle import TokenizerBundle
from chameleon_jax.tokenizers.code_queue import CodeQueue

ENCODED_AT_ONCE = 64


@dataclasses.dataclass(frozen=True)
class Captioned:
    """Pictures of a source as a prompt holds them, with their captions.

    `items` are pixels in patches, of which `codes` are placeholders; empty where the codes are all that the model sees.
    """

    modality: str
    codes: list[Int[np.ndarray, "C"] | Int[np.ndarray, "h w"]]  # flat for fixed spans
    items: list[UInt8[np.ndarray, "side side 3"]]
    captions: list[str]

    def seen(self, index: int) -> tuple[np.ndarray, ...]:
        """What a sequence with this picture perceives."""
        return (self.items[index],) if self.items else ()


def read_captioned(source: SourceConfig, bundle: TokenizerBundle, count: int) -> Captioned:
    """`count` captioned pictures, evenly spaced over those of the source that have one picture and one text.

    Raises DataError when there are fewer than two.
    """
    vocab, (pictures, _) = bundle.vocab_config, bundle.image_output
    pairs = []
    for document in read_documents(source, vocab=vocab):
        if isinstance(document, Reject) or len(document.segments) != 2:
            continue
        held = {segment.modality: segment.data for segment in document.segments}
        if held.keys() == {vocab.text.name, pictures}:
            pairs.append((held[pictures], held[vocab.text.name]))
    if len(pairs) < 2:
        raise DataError(
            f"source '{source.name}' has {len(pairs)} documents of one picture and one text; 2 are the least"
        )
    chosen = [pairs[i] for i in np.linspace(0, len(pairs) - 1, min(count, len(pairs))).astype(int)]
    queue, name = CodeQueue(bundle, ENCODED_AT_ONCE), bundle.image_input[0]
    items = [queue.prepare(name, picture) for picture, _ in chosen]
    queue.add(name, items)
    is_seen = bundle.vocab.perceived is not None
    return Captioned(name, queue.finish(), items if is_seen else [], [text for _, text in chosen])


@dataclasses.dataclass(frozen=True)
class CaptionChoice:
    """Result over n pictures with k candidates each; `log_likelihood[i, 0]` is of the picture's own caption."""

    log_likelihood: Float[np.ndarray, "n k"]

    @property
    def accuracy(self) -> float:
        """Fraction of pictures whose own caption is the most likely; chance is 1 / k."""
        return float(np.mean(np.argmax(self.log_likelihood, axis=1) == 0))


@dataclasses.dataclass(frozen=True)
class PictureGain:
    """Mean nats by which a caption is likelier given its own picture than given another one."""

    nats: float
    standard_error: float


def choose_captions(
    params: Any,
    config: TransformerConfig,
    bundle: TokenizerBundle,
    data: Captioned,
    *,
    choices: int,
    seed: int,
) -> CaptionChoice:
    """Score each picture's caption and `choices - 1` different captions of other pictures, drawn with `seed`.

    Raises DataError when there are fewer than `choices` different captions.
    """
    if len(set(data.captions)) < choices:
        raise DataError(f"{len(set(data.captions))} different captions are not enough for {choices} choices")
    random = np.random.default_rng(seed)
    sequences, starts, seen = [], [], []
    for index, caption in enumerate(data.captions):
        others = np.array(sorted(set(data.captions) - {caption}))
        wrong = random.choice(others, choices - 1, replace=False)
        for text in (caption, *wrong):
            ids, start = _captioned(bundle, data, index, str(text))
            sequences.append(ids)
            starts.append(start)
            seen.append(data.seen(index))
    scores = likelihood.score(params, config, sequences, starts, vocab=bundle.vocab, pictures=seen)
    return CaptionChoice(log_likelihood=np.asarray(scores).reshape(len(data.captions), choices))


def picture_gain(
    params: Any,
    config: TransformerConfig,
    bundle: TokenizerBundle,
    data: Captioned,
    *,
    seed: int,
) -> PictureGain:
    """NLL(caption | another picture) - NLL(caption | its picture), in nats, over all captions."""
    count = len(data.captions)
    random = np.random.default_rng(seed)
    other = (np.arange(count) + random.integers(1, count, count)) % count
    shown = [*range(count), *other.tolist()]
    pairs = [_captioned(bundle, data, i, data.captions[at % count]) for at, i in enumerate(shown)]
    sequences, starts = zip(*pairs, strict=True)
    seen = [data.seen(i) for i in shown]
    scores = np.asarray(likelihood.score(params, config, sequences, starts, vocab=bundle.vocab, pictures=seen))
    gain = scores[:count] - scores[count:]
    return PictureGain(nats=float(gain.mean()), standard_error=float(gain.std(ddof=1) / np.sqrt(count)))


def _captioned(bundle: TokenizerBundle, data: Captioned, index: int, caption: str) -> tuple[np.ndarray, int]:
    """Ids of picture, caption and end, and where the caption begins."""
    vocab = bundle.vocab
    picture = vocab.begun(data.modality, data.codes[index])
    return np.array([*picture, *bundle.text.encode(caption), vocab.eos], np.int32), len(picture)
