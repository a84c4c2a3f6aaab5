"""The run of three modalities as the commands that a user would type, and what is drawn and written of its examination."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float
from PIL import Image

from chameleon_jax.demo import journey
from chameleon_jax.demo.digit_pairs import DIRECTIONS, FORMS
from chameleon_jax.demo.digits import WORDS
from chameleon_jax.demo.directions import Examination, Forms, Generated
from chameleon_jax.demo.journey import Command
from chameleon_jax.evaluation import page
from chameleon_jax.evaluation.sound import picture as spectrogram_picture
from chameleon_jax.evaluation.sound import spectrogram
from chameleon_jax.files import atomic_write
from chameleon_jax.generation.loading import Run
from chameleon_jax.tokenizers.images import to_image

SIDE = 88  # of pictures on the page
WAVES = 3  # WAV files of each digit and direction
NAMES = {"text": "word", "image": "picture", "sound": "sound"}


def commands(root: Path, *, seed: int, steps: int | None) -> list[Command]:
    """From nothing to a trained model in `root/model`; steps that are None are as in the gin files."""
    return journey.from_data_to_model(
        root,
        "three_modalities",
        data=("write drawn, spoken and written digits", "digit_pairs"),
        tokenizer="train the tokenizer: text pieces, picture codec and sound codec",
        model="pretrain the transformer on pairs in both orders",
        seed=seed,
        steps=steps,
    )


def write_sounds(folder: Path, run: Run, examination: Examination) -> list[Path]:
    """WAV files of the first sounds that were made of each digit, from words and from pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    codec, written = run.bundle.codecs["sound"], []
    for source, target in DIRECTIONS:
        if target != "sound":
            continue
        made = examination.generated[source, target]
        for digit in range(10):
            for number, i in enumerate(np.flatnonzero(made.asked == digit)[:WAVES]):
                file = folder / f"{WORDS[digit]}_from_{NAMES[source]}_{number}{codec.suffix}"
                atomic_write(file, codec.to_file(made.items[i]))
                written.append(file)
    return written


def draw_page(path: Path, run: Run, examination: Examination, forms: Forms, *, subtitle: str) -> None:
    """One section for each direction: what was given, and what came out, a digit in each column."""
    sections = []
    for source, target in sorted(DIRECTIONS, key=lambda direction: FORMS.index(direction[0])):
        made = examination.generated[source, target]
        shown = [int(np.flatnonzero(made.asked == digit)[0]) for digit in range(10)]
        title = f"{NAMES[source].capitalize()} to {NAMES[target]}: {made.right} are right"
        sections.append(page.Section(title, _rows(run, forms, source, target, made, shown)))
    page.draw(path, "One stream of words, pictures and sounds", subtitle, sections, picture_size=SIDE)


def _rows(run: Run, forms: Forms, source: str, target: str, made: Generated, shown: Sequence[int]) -> list[page.Row]:
    given = [forms.items[source][made.queries[i]] for i in shown]
    rows = []
    if source != "text":
        rows.append(page.Row(f"given: a held-out {NAMES[source]}", _seen(run, source, given)))
    if target == "text":
        rows[-1] = dataclasses.replace(rows[-1], captions=[made.items[i] for i in shown])
        return [dataclasses.replace(rows[-1], label=rows[-1].label + ", and the word that the model wrote")]
    words = given if source == "text" else ()
    label = "the model's, from the word below" if source == "text" else "the model's"
    rows.append(page.Row(label, _seen(run, target, [made.items[i] for i in shown]), words))
    if source == "text":
        again = [int(np.flatnonzero(made.asked == digit)[1]) for digit in range(10)]
        rows.append(page.Row("another draw", _seen(run, target, [made.items[i] for i in again])))
    return rows


def _seen(run: Run, form: str, items: Sequence[Float[np.ndarray, "..."]]) -> list[Image.Image]:
    """Pictures as they are, sounds as spectrograms."""
    if form == "image":
        return [to_image(item) for item in items]
    spectra = spectrogram(run.bundle.codecs[form], np.stack(items))
    return [Image.fromarray(spectrogram_picture(s)).resize((SIDE, SIDE), Image.Resampling.LANCZOS) for s in spectra]
