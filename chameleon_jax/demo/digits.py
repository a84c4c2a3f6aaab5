"""Handwritten digits with written captions: the smallest real mixed-modal data set, for the quickstart and the smoke run.

The 1,797 pictures of 8 x 8 pixels come with scikit-learn (UCI "Optical recognition of handwritten digits").
"""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TEMPLATES = (
    "a handwritten {word}",
    "the digit {number}",
    "this is the number {word}",
    "a picture of a {number}",
    "someone wrote the digit {word} by hand",
    "here you see {number}",
)
HELD_OUT_EVERY = 5  # every fifth picture is held out
COPIES = 8  # of each training picture: as it is, and slightly moved, turned and scaled


@dataclasses.dataclass(frozen=True)
class Digits:
    """Pictures uint8 [n, 8, 8], ink 255 on 0, and their labels 0..9."""

    pictures: Int[np.ndarray, "n 8 8"]
    labels: Int[np.ndarray, "n"]


def load(*, held_out: bool) -> Digits:
    """One of the two parts of the data set."""
    from sklearn.datasets import load_digits

    data = load_digits()
    chosen = (np.arange(len(data.target)) % HELD_OUT_EVERY == 0) == held_out
    pictures = np.round(data.images[chosen] * (255 / 16)).astype(np.uint8)
    return Digits(pictures=pictures, labels=data.target[chosen])


def caption(label: int, variant: int) -> str:
    """One of the written forms of a label."""
    return TEMPLATES[variant % len(TEMPLATES)].format(word=WORDS[label], number=label)


def read_label(text: str) -> int | None:
    """The digit that a caption names, as word or number; None if it names none or more than one."""
    words = re.findall(rf"\b({'|'.join(WORDS)})\b", text.lower())
    named = {WORDS.index(word) for word in words} | {int(number) for number in re.findall(r"\d", text)}
    return named.pop() if len(named) == 1 else None


def write(folder: str | Path, *, seed: int = 0) -> None:
    """Write PNG files with `train.jsonl` and `heldout.jsonl` manifests (source kind `folder`) below `folder`."""
    from PIL import Image

    folder = Path(folder)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    for part, held_out in (("train", False), ("heldout", True)):
        digits = load(held_out=held_out)
        records = []
        for index, (picture, label) in enumerate(zip(digits.pictures, digits.labels, strict=True)):
            for copy in range(1 if held_out else COPIES):
                name = f"images/{part}-{index:04d}-{copy}.png"
                Image.fromarray(picture if copy == 0 else _moved(picture, random)).save(folder / name)
                text = caption(int(label), int(random.integers(len(TEMPLATES))))
                records.append({"id": f"{part}-{index:04d}-{copy}", "image": name, "text": text, "label": int(label)})
        (folder / f"{part}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def _moved(picture: Int[np.ndarray, "8 8"], random: np.random.Generator) -> Int[np.ndarray, "8 8"]:
    """The picture turned by up to 10 degrees, scaled by up to 8 % and shifted by up to 0.7 pixels."""
    from scipy import ndimage

    angle, scale = np.deg2rad(random.uniform(-10, 10)), random.uniform(0.92, 1.08)
    matrix = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) / scale
    centre = np.array([3.5, 3.5])
    offset = centre - matrix @ (centre + random.uniform(-0.7, 0.7, 2))
    moved = ndimage.affine_transform(picture.astype(np.float64), matrix, offset, order=1)
    return np.clip(np.round(moved), 0, 255).astype(np.uint8)


def classifier():
    """An independent judge: a scikit-learn support vector machine trained on the real training pictures only."""
    from sklearn.svm import SVC

    digits = load(held_out=False)
    judge = SVC(gamma=0.001, C=10.0)
    judge.fit(digits.pictures.reshape(len(digits.labels), -1) * (16 / 255), digits.labels)
    return judge


def recognise(judge, pictures: Float[np.ndarray, "n 8 8 3"]) -> Int[np.ndarray, "n"]:
    """Labels that the judge gives to pictures in [-1, 1]."""
    grey = (np.clip(pictures, -1, 1).mean(axis=-1) + 1) * 8
    return judge.predict(grey.reshape(len(grey), -1))
