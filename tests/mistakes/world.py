"""What a newcomer has lying about, tiny: pictures, data, a tokenizer, a token store and a run, made once and only ever copied."""

import json
import types
import zlib
from pathlib import Path

import jax
import numpy as np
from PIL import Image

from chameleon_jax.checkpoints.stream import LeafStream, save_stream
from chameleon_jax.configs import TokenizeConfig
from chameleon_jax.configs.data import SourceConfig
from chameleon_jax.data.pipeline import tokenize
from tests.tiny_run import make_run

GIN_CONFIGS = Path(__file__).parents[2] / "gin_configs"
RECORDS = 6


def make(root):
    """A folder with all of it; the names are those that the tables use."""
    places = types.SimpleNamespace(
        root=root,
        data=root / "data",
        manifest=root / "data" / "records.jsonl",
        picture=root / "heart.png",
        text=root / "notes.txt",
        tokenizer=root / "tokenizer",
        store=root / "store",
        model=root / "model",
        release=root / "release",
        gin=GIN_CONFIGS / "runs",
    )
    made = make_run()
    _pictures(places)
    made.bundle.save(places.tokenizer)
    source = SourceConfig(name="hearts", kind="folder", path=str(places.manifest))
    tokenize(
        TokenizeConfig(sources=(source,), tokenizer=str(places.tokenizer), documents_per_shard=4), str(places.store)
    )
    _run(places.model, made)
    places.release.mkdir()
    (places.release / "config.json").write_text(json.dumps({"model_type": "chameleon"}))
    return places


def _pictures(places):
    places.data.mkdir()
    records = []
    for i in range(RECORDS):
        Image.new("RGB", (16, 16), (40 * i, 0, 90)).save(places.data / f"{i}.png")
        records.append({"id": f"r{i}", "image": f"{i}.png", "text": f"a red heart {i}"})
    places.manifest.write_text("".join(json.dumps(record) + "\n" for record in records))
    Image.new("RGB", (16, 16), "red").save(places.picture)
    places.text.write_text("no picture, only words\n")


def _run(folder, made):
    leaves = {}
    for path, leaf in jax.tree.leaves_with_path(made.params):
        values = np.asarray(leaf)
        name = f"params/{jax.tree_util.keystr(path, simple=True, separator='/')}"
        leaves[name] = LeafStream(values.shape, values.dtype, False, lambda _, values=values: values)
    folder.mkdir()
    save_stream(folder / "checkpoints", 3, leaves, {"config": {"model": made.model.to_dict()}})
    made.bundle.save(folder / "tokenizer")


def digests(*folders):
    """Checksum of every file below the folders; locks of workdirs, which every run writes anew, count as there."""
    return {
        path: None if path.name == ".lock" else zlib.crc32(path.read_bytes())
        for folder in folders
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file()
    }
