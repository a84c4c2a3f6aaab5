"""The quickstart's data set: real digits, captions that can be read back, and a judge that knows the truth."""

import json

import numpy as np
import pytest
from PIL import Image

from chameleon_jax.demo import digits


@pytest.mark.parametrize("label", range(10))
def test_every_phrasing_names_its_digit_and_no_other(label):
    assert {digits.read_label(digits.caption(label, variant)) for variant in range(len(digits.TEMPLATES))} == {label}


@pytest.mark.parametrize("text", ["", "someone wrote it", "a 3 or an 8", "three and four", "seventeenth"])
def test_text_that_names_no_single_digit_has_no_label(text):
    assert digits.read_label(text) is None


def test_the_parts_share_no_picture_and_hold_the_whole_data_set():
    train, held_out = digits.load(held_out=False), digits.load(held_out=True)
    assert len(train.labels) + len(held_out.labels) == 1797
    seen = {picture.tobytes() for picture in train.pictures}
    assert sum(picture.tobytes() in seen for picture in held_out.pictures) == 0
    assert train.pictures.max() == 255 and train.pictures.min() == 0


def test_the_judge_recognises_real_held_out_digits_and_not_noise():
    held_out, judge = digits.load(held_out=True), digits.classifier()
    pixels = np.repeat(held_out.pictures[..., None] / 127.5 - 1, 3, axis=-1)
    assert np.mean(digits.recognise(judge, pixels) == held_out.labels) > 0.97
    noise = np.random.default_rng(0).uniform(-1, 1, pixels.shape)
    assert np.mean(digits.recognise(judge, noise) == held_out.labels) < 0.25


def test_written_files_are_a_folder_source_with_copies_for_training_only(tmp_path):
    digits.write(tmp_path)
    train, held_out = (
        [json.loads(line) for line in (tmp_path / f"{part}.jsonl").open()] for part in ("train", "heldout")
    )
    assert (len(train), len(held_out)) == (1437 * digits.COPIES, 360)
    assert len({record["id"] for record in train}) == len(train)
    for record in (train[0], train[1], held_out[-1]):
        assert Image.open(tmp_path / record["image"]).size == (8, 8)
        assert digits.read_label(record["text"]) == record["label"]


def test_a_seed_gives_the_same_files_again_and_another_seed_others(tmp_path):
    for name, seed in (("first", 3), ("again", 3), ("other", 4)):
        digits.write(tmp_path / name, seed=seed)
    first, again, other = (
        {path.name: path.read_bytes() for path in (tmp_path / name).rglob("*.*")}
        for name in ("first", "again", "other")
    )
    assert first == again
    assert first["train.jsonl"] != other["train.jsonl"]
    assert first["train-0000-0.png"] == other["train-0000-0.png"], "the first copy is the picture itself"
    assert first["train-0000-1.png"] != other["train-0000-1.png"]
