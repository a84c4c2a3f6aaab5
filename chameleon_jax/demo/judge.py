"""The quickstart's examination of a model on held-out digits, in both directions, and its picture page.

Image to text: the model writes a caption of a held-out picture, and the digit that it names must be right. Text to image: the model
draws what a caption says, and a classifier that never saw the model must recognise it.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
from jaxtyping import Float

from chameleon_jax.configs import GenerationConfig, SamplingConfig
from chameleon_jax.demo import digits, page
from chameleon_jax.generation.engine import generate
from chameleon_jax.generation.prompt import ImageOutput, TextOutput, build_prompt, read_output
from chameleon_jax.generation.run import Run
from chameleon_jax.tokenizers.images import to_image

DRAWN_OF_EACH = 40  # pictures generated of each digit
SHOWN = 10  # of them on the page


@dataclasses.dataclass(frozen=True)
class Examination:
    """caption_accuracy over all held-out pictures, recognised over 10 x DRAWN_OF_EACH generated ones."""

    caption_accuracy: float
    recognised: float


def examine(run: Run, page_path: str | Path, *, subtitle: str = "", seed: int = 0) -> Examination:
    """Run both directions and draw the page."""
    held_out = digits.load(held_out=True)
    pictures = np.repeat(held_out.pictures[..., None].astype(np.float32) / 127.5 - 1, 3, axis=-1)
    captions = _write_captions(run, pictures, seed)
    named = [digits.read_label(caption) for caption in captions]
    accuracy = float(np.mean([n == label for n, label in zip(named, held_out.labels, strict=True)]))

    labels = np.repeat(np.arange(10), DRAWN_OF_EACH)
    prompts = [digits.caption(int(label), i) for i, label in enumerate(labels)]
    drawn = _draw(run, prompts, seed)
    seen = digits.recognise(digits.classifier(), drawn)
    recognised = float(np.mean(seen == labels))

    rebuilt = run.bundle.decode_images(run.bundle.encode_images(pictures[:SHOWN]))
    in_order = [np.flatnonzero(labels == digit)[:SHOWN] for digit in range(10)]
    sections = [
        page.Section(
            f"Image to text: captions of held-out digits ({accuracy:.1%} of {len(captions)} name the right digit)",
            [
                page.Row(
                    "held-out picture and the caption the model wrote",
                    [to_image(p) for p in pictures[:SHOWN]],
                    captions[:SHOWN],
                ),
                page.Row("the same pictures after 16 codes each", [to_image(p) for p in rebuilt]),
            ],
        ),
        page.Section(
            f"Text to image: {recognised:.1%} of {len(labels)} are recognised by a classifier trained on real digits",
            [
                page.Row(f'"{digits.caption(digit, digit)}" and other phrasings', [to_image(drawn[i]) for i in chosen])
                for digit, chosen in enumerate(in_order)
            ],
        ),
    ]
    page.draw(
        page_path, "chameleon_jax quickstart: one model, one stream of tokens, both directions", subtitle, sections
    )
    return Examination(caption_accuracy=accuracy, recognised=recognised)


def _write_captions(run: Run, pictures: Float[np.ndarray, "n 8 8 3"], seed: int) -> list[str]:
    config = GenerationConfig(mode="text", max_tokens=24, text=SamplingConfig(temperature=0.0), seed=seed)
    codes = run.bundle.encode_images(pictures)
    vocab = run.bundle.vocab
    prompts = [
        np.array([vocab.bos, vocab.begin_of_image, *vocab.codes_to_ids(c), vocab.end_of_image], np.int32) for c in codes
    ]
    outputs = generate(run.params, run.config.model, vocab, prompts, config)
    return [
        "".join(part.text for part in read_output(o.ids, run.bundle) if isinstance(part, TextOutput)) for o in outputs
    ]


def _draw(run: Run, captions: list[str], seed: int) -> Float[np.ndarray, "n 8 8 3"]:
    config = GenerationConfig(
        mode="image", max_tokens=32, max_images=1, image=SamplingConfig(temperature=0.7, top_p=0.9), seed=seed
    )
    prompts = [build_prompt(caption, [], run.bundle) for caption in captions]
    outputs = generate(run.params, run.config.model, run.bundle.vocab, prompts, config)
    parts = [read_output(o.ids, run.bundle) for o in outputs]
    return np.stack([next(p.pixels for p in part if isinstance(p, ImageOutput)) for part in parts])
