"""The word, the picture and the sound of a digit in one stream: documents in which one is given and another follows.

Any of the three can so be learned from any other. Pictures and sounds of a digit are paired at random, so that each tells of the
other the digit alone. Pictures and voices of the held-out part are in no document of the training part.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np

from chameleon_jax.demo import digits, spoken_digits
from chameleon_jax.demo.digits import WORDS
from chameleon_jax.files import atomic_write

FORMS = ("text", "image", "sound")  # names of modalities
DIRECTIONS = tuple(itertools.permutations(FORMS, 2))
_HARD = tuple(direction for direction in DIRECTIONS if "text" not in direction)
_EASY = tuple(direction for direction in DIRECTIONS if "text" in direction)
DOCUMENTS = {"train": 24_000, "heldout": 1_500}
FREE = 0.15  # of the documents have both forms predicted: this teaches what a form is like when nothing is given
HARD = 0.6  # of the documents go from picture to sound or back, which is learned last
TAKES = 10  # of each word by each voice of training


def write(folder: str | Path, *, seed: int = 0, documents: dict[str, int] = DOCUMENTS) -> None:
    """Write pictures, sounds, and `train.jsonl` and `heldout.jsonl` (source kind `folder`) below `folder`.

    Raises DataError when the speech synthesiser is not installed.
    """
    folder = Path(folder)
    spoken_digits.write(folder / "spoken", seed=seed, takes=TAKES)
    digits.write(folder / "drawn", seed=seed)
    random = np.random.default_rng(seed)
    for part, count in documents.items():
        files = {
            "image": _files(folder, f"drawn/{part}.jsonl", "image"),
            "sound": _files(folder, f"spoken/{part}.jsonl", "sound"),
        }
        records = []
        for index in range(count):
            label = int(random.integers(10))
            among = _HARD if random.random() < HARD else _EASY
            forms = among[random.integers(len(among))]
            segments = [{f: WORDS[label] if f == "text" else str(random.choice(files[f][label]))} for f in forms]
            if random.random() >= FREE:
                segments[0]["loss"] = False
            records.append({"id": f"{part}-{index:05d}", "segments": segments})
        atomic_write(folder / f"{part}.jsonl", "".join(json.dumps(record) + "\n" for record in records))


def _files(folder: Path, manifest: str, field: str) -> list[list[str]]:
    """References of the files of each digit, relative to `folder`."""
    found: list[list[str]] = [[] for _ in WORDS]
    for line in (folder / manifest).read_text().splitlines():
        record = json.loads(line)
        found[record["label"]].append(str(Path(manifest).parent / record[field]))
    return found
