"""The quickstart's examination of a model on held-out digits, in both directions, and its picture page.

Image to text: the model writes a caption of a held-out picture, and the digit that it names must be right. Text to image: the model
draws what a caption says, and a classifier that never saw the model must recognise it.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from chameleon_jax.configs import GuidanceConfig
from chameleon_jax.demo import digits
from chameleon_jax.evaluation import page, samples
from chameleon_jax.generation.engine import MOST_LANES
from chameleon_jax.generation.loading import Run
from chameleon_jax.tokenizers.images import to_image

DRAWN_OF_EACH = 40  # pictures generated of each digit
SHOWN = 10  # of them, of each digit on the page
# Meta's scale. Half of the documents have the picture first, so the model knows what a picture without words is like. The tail of a
# small model is noise; guided, its pictures are recognised more often and stay as different as they were.
GUIDANCE = GuidanceConfig()


@dataclasses.dataclass(frozen=True)
class Examination:
    """caption_accuracy over all held-out pictures, recognised over 10 x DRAWN_OF_EACH generated ones."""

    caption_accuracy: float
    recognised: float


def examine(run: Run, page_path: str | Path, *, subtitle: str = "", seed: int = 0) -> Examination:
    """Run both directions and draw the page."""
    held_out = digits.load(held_out=True)
    pictures = np.repeat(held_out.pictures[..., None].astype(np.float32) / 127.5 - 1, 3, axis=-1)
    codes = run.bundle.pictures.encode(pictures)
    given, items = codes, np.zeros((0, 1))
    if run.bundle.vocab.perceived is not None:  # the prompt's picture is its pixels then
        items = np.repeat(held_out.pictures[..., None], 3, axis=-1)
        given = run.bundle.image_input[1].encode(items)
    labels = np.repeat(np.arange(10), DRAWN_OF_EACH)
    # As many rows as run at a time, the first pictures once more at the end: both directions run one compiled program.
    again = np.arange(MOST_LANES) % len(codes)
    captions = samples.write_captions(run, given[again], items[again] if len(items) else ())[: len(codes)]
    named = [digits.read_label(caption) for caption in captions]
    accuracy = float(np.mean([n == label for n, label in zip(named, held_out.labels, strict=True)]))

    prompts = [digits.caption(int(label), i) for i, label in enumerate(labels)]
    drawn = samples.draw_pictures(run, prompts, guidance=GUIDANCE, seed=seed)
    seen = digits.recognise(digits.classifier(), np.stack(drawn))
    recognised = float(np.mean(seen == labels))

    shown = [int(np.flatnonzero(held_out.labels == digit)[0]) for digit in range(10)]
    # One at a time, as drawn pictures are decoded: the same compiled program.
    rebuilt = [run.bundle.pictures.decode(codes[i : i + 1])[0] for i in shown]
    in_order = [np.flatnonzero(labels == digit)[:SHOWN] for digit in range(10)]
    sections = [
        page.Section(
            f"Image to text: captions of held-out digits ({accuracy:.1%} of {len(captions)} name the right digit)",
            [
                page.Row(
                    "the first held-out picture of each digit, and the caption that the model wrote",
                    [to_image(pictures[i]) for i in shown],
                    [captions[i] for i in shown],
                ),
                page.Row("the same pictures, decoded from 16 codes", [to_image(p) for p in rebuilt]),
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
