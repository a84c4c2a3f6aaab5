"""Does the model understand pictures? It chooses a picture's caption among others by likelihood.

The one idea: a caption is scored as the continuation of `<s> <begin image> codes <end image>`, exactly as it stands in training
documents, so the score is the model's own probability and nothing is tuned for the test.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from chameleon_jax.configs import TransformerConfig
from chameleon_jax.evaluation import likelihood
from chameleon_jax.tokenizers.bundle import TokenizerBundle


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
    codes: Int[np.ndarray, "n C"],
    captions: list[str],
    *,
    choices: int,
    seed: int,
) -> CaptionChoice:
    """Score each picture's caption and `choices - 1` different captions of other pictures, drawn with `seed`."""
    random = np.random.default_rng(seed)
    sequences, starts = [], []
    for index, caption in enumerate(captions):
        others = np.array(sorted(set(captions) - {caption}))
        wrong = random.choice(others, choices - 1, replace=False)
        for text in (caption, *wrong):
            ids, start = _captioned(bundle, codes[index], str(text))
            sequences.append(ids)
            starts.append(start)
    scores = likelihood.score(params, config, sequences, starts)
    return CaptionChoice(log_likelihood=np.asarray(scores).reshape(len(captions), choices))


def picture_gain(
    params: Any,
    config: TransformerConfig,
    bundle: TokenizerBundle,
    codes: Int[np.ndarray, "n C"],
    captions: list[str],
    *,
    seed: int,
) -> PictureGain:
    """NLL(caption | another picture) - NLL(caption | its picture), in nats, over all captions."""
    count = len(captions)
    random = np.random.default_rng(seed)
    other = (np.arange(count) + random.integers(1, count, count)) % count
    pairs = [_captioned(bundle, codes[i], captions[i]) for i in range(count)]
    pairs += [_captioned(bundle, codes[other[i]], captions[i]) for i in range(count)]
    scores = np.asarray(likelihood.score(params, config, [p[0] for p in pairs], [p[1] for p in pairs]))
    gain = scores[:count] - scores[count:]
    return PictureGain(nats=float(gain.mean()), standard_error=float(gain.std(ddof=1) / np.sqrt(count)))


def _captioned(bundle: TokenizerBundle, codes: Int[np.ndarray, "C"], caption: str) -> tuple[np.ndarray, int]:
    """Ids of picture, caption and end, and where the caption begins."""
    vocab = bundle.vocab
    picture = [vocab.bos, vocab.begin_of_image, *vocab.codes_to_ids(codes), vocab.end_of_image]
    return np.array([*picture, *bundle.text.encode(caption), vocab.eos], np.int32), len(picture)
