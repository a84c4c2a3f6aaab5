"""Lets a trained run write captions and draw pictures, for numbers and for the eye."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image

from chameleon_jax.configs import GenerationConfig, GuidanceConfig, SamplingConfig
from chameleon_jax.evaluation import page
from chameleon_jax.evaluation.captions import Captioned
from chameleon_jax.generation.engine import generate
from chameleon_jax.generation.loading import Run
from chameleon_jax.generation.prompt import SpanOutput, TextOutput, encode_turns, read_output
from chameleon_jax.tokenizers.images import to_image
from chameleon_jax.vocab import FixedSpan, Modality

DRAWING = SamplingConfig(temperature=0.7, top_p=0.9)  # Meta's settings for images


def write_captions(
    run: Run,
    codes: Sequence[Int[np.ndarray, "..."]],
    items: Sequence[UInt8[np.ndarray, "side side 3"]] = (),
    *,
    max_tokens: int = 32,
) -> list[str]:
    """The most likely text after each picture, word by word (greedy).

    `codes` are those of the modality that pictures of prompts belong to, `items` their pixels where these are patches.
    """
    vocab = run.bundle.vocab
    greedy = {vocab.text.name: SamplingConfig(temperature=0.0)}
    config = GenerationConfig(mode=vocab.text.name, max_tokens=max_tokens, sampling=greedy)
    prompts = [vocab.begun(run.bundle.image_input[0], c) for c in codes]
    seen = [(item,) for item in items] or None
    outputs = generate(run.params, run.model, vocab, prompts, config, pictures=seen)
    return [
        "".join(part.text for part in read_output(o.ids, run.bundle) if isinstance(part, TextOutput)) for o in outputs
    ]


def draw_pictures(
    run: Run, captions: list[str], *, guidance: GuidanceConfig | None = None, seed: int
) -> list[Float[np.ndarray, "H W 3"]]:
    """One picture in [-1, 1] for each caption."""
    pictures = _pictures(run)
    grammar, name = pictures.grammar, pictures.name
    room = grammar.length + 2 if isinstance(grammar, FixedSpan) else run.model.max_seq_len
    config = GenerationConfig(
        mode=name, max_tokens=room, max_spans={name: 1}, sampling={name: DRAWING}, guidance=guidance, seed=seed
    )
    prompts = [encode_turns([[caption]], run.bundle) for caption in captions]
    outputs = generate(run.params, run.model, run.bundle.vocab, prompts, config)
    return [_first_picture(run, o.ids) for o in outputs]


def _pictures(run: Run) -> Modality:
    vocab = run.bundle.vocab
    return vocab.modalities[vocab.row(run.bundle.image_output[0])]


def _first_picture(run: Run, ids: Int[np.ndarray, "n"]) -> Float[np.ndarray, "H W 3"]:
    return next(part.item for part in read_output(ids, run.bundle) if isinstance(part, SpanOutput))


def draw_page(run: Run, data: Captioned, path: str | Path, *, title: str, subtitle: str, seed: int) -> None:
    """A page of held-out pictures with the captions that the model gives them, and of pictures drawn from captions."""
    shown = np.linspace(0, len(data.captions) - 1, 12).astype(int)
    codes, items = [data.codes[i] for i in shown], [data.items[i] for i in shown] if data.items else []
    decoded = [] if items else [_first_picture(run, _pictures(run).span(c)) for c in codes]
    pictures = [*map(Image.fromarray, items), *map(to_image, decoded)]
    written = write_captions(run, codes, items)
    prompts = [data.captions[i] for i in shown[::2]]
    drawn = draw_pictures(run, [prompt for prompt in prompts for _ in range(len(shown))], seed=seed)
    rows = [
        page.Row(prompt, [to_image(p) for p in drawn[i * len(shown) : (i + 1) * len(shown)]])
        for i, prompt in enumerate(prompts)
    ]
    sections = [
        page.Section(
            "Image to text: held-out pictures as the model sees them, and what it writes",
            [page.Row("greedy captions", pictures, written)],
        ),
        page.Section("Text to image: drawn from held-out captions, each with another draw", rows),
    ]
    page.draw(path, title, subtitle, sections, picture_size=96)
