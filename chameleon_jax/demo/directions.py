"""Examination of a model of words, pictures and sounds of digits: each from each other, by likelihood and by generation.

By likelihood: one candidate of each digit, drawn from held-out data; the right one must score best. `raw` is log p(y | x), which
prefers what is likely by itself. `gain` is log p(y | x) - log p(y), which does not (Holtzman et al. 2021, section 4); p(y) is the
mean of p(y | x') over a few x' of every digit, the model's own marginal. (What it predicts with nothing given is another context,
and one that is seldom trained.)

By generation: what the model writes is read, and what it draws and says is recognised by classifiers that know real data only.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy.io import wavfile
from scipy.special import logsumexp

from chameleon_jax.configs import GenerationConfig, GuidanceConfig, SamplingConfig
from chameleon_jax.demo import digits, spoken_digits
from chameleon_jax.demo.digit_pairs import DIRECTIONS
from chameleon_jax.demo.digits import WORDS
from chameleon_jax.demo.proportions import Proportion
from chameleon_jax.demo.spoken_digits import SpokenDigits
from chameleon_jax.evaluation import likelihood
from chameleon_jax.generation.engine import generate
from chameleon_jax.generation.loading import Run
from chameleon_jax.generation.prompt import SpanOutput, TextOutput, read_output

QUERIES = 30  # of each digit and direction
MARGINAL = 5  # contexts of each digit that p(y) is the mean over
# The tail of a small model is noise: guided, what it draws and says is recognised more often.
SAMPLING = SamplingConfig(temperature=0.7, top_p=0.9)
GUIDANCE = GuidanceConfig(text=3.0, image=3.0)

Direction = tuple[str, str]  # names of modalities: of what is given, of what is asked for


@dataclasses.dataclass(frozen=True)
class Forms:
    """Held-out data of each form: the ids of a span or word, the item that a person sees or hears, and the digit."""

    ids: dict[str, list[Int[np.ndarray, "_"]]]
    items: dict[str, list[Any]]
    labels: dict[str, Int[np.ndarray, "_"]]

    def of_digit(self, form: str, digit: int) -> Int[np.ndarray, "_"]:
        """Indices of the data of one digit."""
        return np.flatnonzero(self.labels[form] == digit)


@dataclasses.dataclass(frozen=True)
class Generated:
    """What came out of one direction: the query that each answers, by index, and the digit that was recognised, -1 for none."""

    queries: Int[np.ndarray, "n"]
    asked: Int[np.ndarray, "n"]
    recognised: Int[np.ndarray, "n"]
    items: list[Any]

    @property
    def right(self) -> Proportion:
        return Proportion.of(self.recognised == self.asked)


@dataclasses.dataclass(frozen=True)
class Examination:
    """Of each direction: choice among ten by both scores, and generation."""

    raw: dict[Direction, Proportion]
    gain: dict[Direction, Proportion]
    generated: dict[Direction, Generated]

    def to_dict(self) -> dict[str, Any]:
        """For JSON files."""
        return {
            f"{source} to {target}": {
                "by_likelihood": self.raw[source, target].to_dict(),
                "by_gain": self.gain[source, target].to_dict(),
                "generated": self.generated[source, target].right.to_dict(),
            }
            for source, target in DIRECTIONS
        }


def examine(run: Run, data: str | Path, *, seed: int = 0, queries: int = QUERIES) -> tuple[Examination, Forms]:
    """All six directions with `queries` of each digit; `data` is the folder that `digit_pairs.write` wrote."""
    forms = held_out(run, data)
    judge = spoken_digits.classifier(spoken(Path(data) / "spoken", "train"))
    raw, gain, generated = {}, {}, {}
    for i, (source, target) in enumerate(DIRECTIONS):
        random = np.random.default_rng((seed, i))
        asked = _queries(forms, source, queries, random)
        raw[source, target], gain[source, target] = choose(run, forms, source, target, asked, random)
        generated[source, target] = answer(run, forms, source, target, asked, judge, seed=seed)
    return Examination(raw, gain, generated), forms


def held_out(run: Run, data: str | Path) -> Forms:
    """The held-out pictures and sounds, and the ten words, as the model reads them."""
    vocab, folder = run.bundle.vocab, Path(data)
    ids: dict[str, list[np.ndarray]] = {"text": [run.bundle.text.encode(word) for word in WORDS]}
    items: dict[str, list[Any]] = {"text": list(WORDS)}
    labels = {"text": np.arange(len(WORDS))}
    for form, place in (("image", folder / "drawn"), ("sound", folder / "spoken")):
        records = _records(place / "heldout.jsonl")
        codec, modality = run.bundle.codecs[form], vocab.modalities[vocab.row(form)]
        items[form] = [codec.prepare((place / record[form]).read_bytes()) for record in records]
        ids[form] = [modality.span(codes) for codes in codec.encode(np.stack(items[form]))]
        labels[form] = np.array([record["label"] for record in records])
    return Forms(ids=ids, items=items, labels=labels)


def spoken(folder: Path, part: str) -> SpokenDigits:
    """The sounds that `spoken_digits.write` wrote."""
    records = _records(folder / f"{part}.jsonl")
    waveforms = np.stack([wavfile.read(folder / record["sound"])[1] for record in records]) / np.float32(32767)
    return SpokenDigits(waveforms, np.array([r["label"] for r in records]), tuple(r["voice"] for r in records))


def choose(
    run: Run, forms: Forms, source: str, target: str, queries: Int[np.ndarray, "n"], random: np.random.Generator
) -> tuple[Proportion, Proportion]:
    """How often the candidate of the right digit has the highest likelihood, and the highest gain."""
    candidates = np.stack([random.choice(forms.of_digit(target, digit), len(queries)) for digit in range(10)], axis=1)
    given = _scores(
        run, forms, source, target, {(int(q), int(c)) for q, row in zip(queries, candidates, strict=True) for c in row}
    )
    drawn = np.unique(candidates)
    contexts = np.unique(_queries(forms, source, MARGINAL, random))
    across = _scores(run, forms, source, target, {(int(x), int(c)) for x in contexts for c in drawn})
    # Up to a constant, which changes no order.
    alone = {int(c): logsumexp([across[int(x), int(c)] for x in contexts]) for c in drawn}
    labels = forms.labels[source][queries]
    raw = np.array([[given[int(q), int(c)] for c in row] for q, row in zip(queries, candidates, strict=True)])
    marginal = np.array([[alone[int(c)] for c in row] for row in candidates])
    return Proportion.of(raw.argmax(axis=1) == labels), Proportion.of((raw - marginal).argmax(axis=1) == labels)


def answer(
    run: Run,
    forms: Forms,
    source: str,
    target: str,
    queries: Int[np.ndarray, "n"],
    judge: Any,
    *,
    seed: int,
    guidance: GuidanceConfig | None = GUIDANCE,
    sampling: SamplingConfig = SAMPLING,
) -> Generated:
    """One answer to each query: text greedily, pictures and sounds drawn; and the digits in them."""
    vocab = run.bundle.vocab
    prompts = [np.array([vocab.bos, *forms.ids[source][q]], np.int32) for q in queries]
    most = {target: 1}
    if target == vocab.text.name:
        guidance, sampling, most = None, SamplingConfig(temperature=0.0), {}
    config = GenerationConfig(
        mode=target,
        max_tokens=run.model.max_seq_len - max(map(len, prompts)),
        max_spans=most,
        sampling={target: sampling},
        guidance=guidance,
        seed=seed,
    )
    outputs = generate(run.params, run.model, vocab, prompts, config)
    read = [read_output(output.ids, run.bundle) for output in outputs]
    if target == vocab.text.name:
        items: list[Any] = ["".join(part.text for part in parts if isinstance(part, TextOutput)) for parts in read]
        named = [digits.read_label(text) for text in items]
        found = np.array([-1 if digit is None else digit for digit in named])
    else:
        items = [next(part.item for part in parts if isinstance(part, SpanOutput)) for parts in read]
        found = (
            _picture_judge(np.stack(items)) if target == "image" else spoken_digits.recognise(judge, np.stack(items))
        )
    return Generated(queries=queries, asked=forms.labels[source][queries], recognised=found, items=items)


def _picture_judge(pictures: Float[np.ndarray, "n 8 8 3"]) -> Int[np.ndarray, "n"]:
    return digits.recognise(_picture_classifier(), pictures)


@functools.cache
def _picture_classifier():
    return digits.classifier()


def _queries(forms: Forms, source: str, each: int, random: np.random.Generator) -> Int[np.ndarray, "n"]:
    """`each` data of every digit; of words, of which there is one, as often as asked for."""
    of_digits = [forms.of_digit(source, digit) for digit in range(10)]
    return np.concatenate([random.choice(found, each, replace=len(found) < each) for found in of_digits])


def _scores(
    run: Run, forms: Forms, source: str, target: str, wanted: Collection[tuple[int, int]]
) -> dict[tuple[int, int], float]:
    """log p(target | source) in nats of pairs of indices. A word ends with the end of the sequence, a span with its own marker."""
    vocab, pairs = run.bundle.vocab, sorted(wanted)
    end = [vocab.eos] if target == vocab.text.name else []
    prompts = [[vocab.bos, *forms.ids[source][q]] for q, _ in pairs]
    sequences = [np.array([*p, *forms.ids[target][c], *end]) for p, (_, c) in zip(prompts, pairs, strict=True)]
    starts = [len(prompt) for prompt in prompts]
    scores = likelihood.score(run.params, run.model, sequences, starts, batch_size=64, vocab=vocab)
    return dict(zip(pairs, map(float, scores), strict=True))


def _records(manifest: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in manifest.read_text().splitlines()]
