"""The same captioned pictures in each of the eight forms that people's data have."""

import csv
import io
import json
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet
from PIL import Image

COLOURS = {"red": (200, 30, 30), "green": (20, 160, 60), "blue": (40, 60, 210), "yellow": (230, 210, 40)}
PLACES = ("left", "right", "top", "bottom")


def records(count=200, side=16):
    """(PNG bytes, caption) pairs: a bar of one of four colours on one of four sides, with noise so that no two are alike."""
    random, found = np.random.default_rng(0), []
    for i in range(count):
        colour, place = list(COLOURS)[i % 4], PLACES[i // 4 % 4]
        pixels = np.full((side, side, 3), 235, np.int64)
        half = slice(0, side // 3) if place in ("left", "top") else slice(side - side // 3, side)
        pixels[(half, slice(None)) if place in ("top", "bottom") else (slice(None), half)] = COLOURS[colour]
        file = io.BytesIO()
        noisy = np.clip(pixels + random.integers(-12, 13, pixels.shape), 0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(file, "PNG")
        found.append((file.getvalue(), f"a {colour} bar on the {place}"))
    return found


def _pictures(folder, given):
    (folder / "images").mkdir(parents=True)
    for i, (data, _) in enumerate(given):
        (folder / "images" / f"{i:04d}.png").write_bytes(data)


def _lines(given, name=lambda i: f"images/{i:04d}.png"):
    return "".join(json.dumps({"image": name(i), "text": text}) + "\n" for i, (_, text) in enumerate(given))


def write_pictures(folder, given):
    """A folder for each class, named after what its pictures show."""
    for i, (data, text) in enumerate(given):
        place = folder / text.replace(" ", "_")
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{i:04d}.png").write_bytes(data)
    return folder


def write_manifest(folder, given):
    _pictures(folder, given)
    (folder / "manifest.jsonl").write_text(_lines(given))
    return folder


def write_tars(folder, given):
    folder.mkdir()
    for shard in range(2):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for i in range(shard, len(given), 2):
                for ending, data in (("png", given[i][0]), ("txt", given[i][1].encode())):
                    info = tarfile.TarInfo(f"{i:06d}.{ending}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    return folder


def write_parquet(folder, given):
    (folder / "data").mkdir(parents=True)
    for shard in range(2):
        rows = [{"image": {"bytes": d, "path": None}, "caption": t} for d, t in given[shard::2]]
        pa.parquet.write_table(pa.Table.from_pylist(rows), folder / "data" / f"train-{shard:05d}-of-00002.parquet")
    return folder


def write_jsonl(folder, given):
    _pictures(folder, given)
    (folder / "train.jsonl").write_text(_lines(given))
    return folder / "train.jsonl"


def write_csv(folder, given):
    _pictures(folder, given)
    with open(folder / "captions.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["file_name", "caption"])
        rows.writerows([f"images/{i:04d}.png", f"{text}, somewhat noisy"] for i, (_, text) in enumerate(given))
    return folder


def write_pairs(folder, given):
    folder.mkdir()
    for i, (data, text) in enumerate(given):
        (folder / f"{i:04d}.png").write_bytes(data)
        (folder / f"{i:04d}.txt").write_text(text + "\n")
    return folder


def write_saved(folder, given):
    """What `datasets.Dataset.save_to_disk` writes of an image and a class label, in two shards."""
    folder.mkdir()
    names = sorted({text for _, text in given})
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    files = [f"data-{shard:05d}-of-00002.arrow" for shard in range(2)]
    features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
    schema = pa.schema([("image", image), ("label", pa.int64())])
    schema = schema.with_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    for shard, file in enumerate(files):
        rows = [{"image": {"bytes": d, "path": None}, "label": names.index(t)} for d, t in given[shard::2]]
        with pa.ipc.new_stream(str(folder / file), schema) as writer:
            for begin in range(0, len(rows), 40):
                writer.write_batch(pa.RecordBatch.from_pylist(rows[begin : begin + 40], schema=schema))
    state = {"_data_files": [{"filename": file} for file in files], "_fingerprint": "0", "_split": None}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text(json.dumps({"description": "", "features": features}))
    return folder


# Name of a form -> (what writes it and returns the path to give, the kind of source that it is).
FORMS = {
    "folders of classes": (write_pictures, "classes"),
    "manifest": (write_manifest, "folder"),
    "tars": (write_tars, "webdataset"),
    "parquet": (write_parquet, "parquet"),
    "jsonl": (write_jsonl, "jsonl"),
    "csv": (write_csv, "csv"),
    "pairs": (write_pairs, "pairs"),
    "hugging face": (write_saved, "huggingface"),
}
