"""The layout of a token store on disk: names, array specs, and files that are either whole or absent.

```
store/
  plan.json                 what the tokenising run was asked to do, written first
  tokenizer/                a copy of the bundle that made the ids
  shards/00042/tokens       zarr3 [tokens] uint16 or uint32
              /offsets      zarr3 [documents + 1, 2] int64: first token and first span of each document
              /spans        zarr3 [spans, 3] int32: row of the modality table, length, loss (0 or 1)
              /document_ids zarr3 [documents] uint64: start of the sha256 of the document's id
              /pixels       zarr3 [pictures, height, width, 3] uint8: of the spans that are perceived, in order of the spans; only
                            in shards that have such spans
  rejects/00042.jsonl       records of this shard that could not be used, and why
  commits/00042.json        counts and checksums of the shard's files; written last, so a shard exists when this exists
  manifest.json             vocabulary, fingerprints and totals; written when every shard is committed
  packing/                  pack plans, made and remade from the rest
```

Data files first, then one small file that vouches for them, moved into place by a rename. Every array carries
crc32c per chunk, every commit the sha256 of its files, every JSON file the sha256 of itself.
"""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import shutil
from typing import Any

import numpy as np

from chameleon_jax.errors import StoreError
from chameleon_jax.files import atomic_write

FORMAT_VERSION = 2
READABLE = (1, 2)  # 1 counts images and has no table of modalities
BLOCK_TOKENS = 16384  # tokens of one chunk: the least that is read and checked at a time
BLOCK_ROWS = 4096  # rows of one chunk of the small arrays
BLOCK_BYTES = 1 << 20  # of one chunk of pixels, at least one picture

MANIFEST, LOCK = "manifest.json", ".lock"
SHARDS, COMMITS, REJECTS, TEMPORARY, PACKING = "shards", "commits", "rejects", "temporary", "packing"
ARRAYS = ("tokens", "offsets", "spans", "document_ids", "pixels")


def shard_name(shard: int) -> str:
    """Folder and file name of a shard: `00042`."""
    return f"{shard:05d}"


def block_length(name: str, shape: tuple[int, ...]) -> int:
    """Elements of the first axis in one chunk of an array."""
    if name == "pixels":
        return max(1, BLOCK_BYTES // int(np.prod(shape[1:])))
    return BLOCK_TOKENS if name == "tokens" else BLOCK_ROWS


def array_spec(directory: str | os.PathLike, name: str, shape: tuple[int, ...], dtype: np.dtype) -> dict[str, Any]:
    """TensorStore spec of one array of a shard: zarr3, one file, chunks with crc32c, no compression (VQ codes do not shrink)."""
    chunk = (block_length(name, shape), *shape[1:])
    whole = (max(1, -(-shape[0] // chunk[0])) * chunk[0], *shape[1:])
    codecs = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
    return {
        "driver": "zarr3",
        "kvstore": {"driver": "file", "path": os.fspath(pathlib.Path(directory) / name) + "/"},
        "metadata": {
            "shape": list(shape),
            "data_type": np.dtype(dtype).name,
            "fill_value": 0,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(whole)}},
            "codecs": [
                {
                    "name": "sharding_indexed",
                    "configuration": {
                        "chunk_shape": list(chunk),
                        "codecs": codecs,
                        "index_codecs": codecs,
                        "index_location": "end",
                    },
                }
            ],
        },
        "store_data_equal_to_fill_value": True,  # otherwise a lost chunk could not be told from zeros
        "fill_missing_data_reads": False,
    }


def write_json(path: pathlib.Path, content: dict[str, Any]) -> None:
    """Write JSON that carries its own sha256, whole or not at all."""
    text = json.dumps({**content, "sha256": _checksum(content)}, indent=1, sort_keys=True) + "\n"
    write_atomically(path, text.encode())


def read_json(path: pathlib.Path, mend: str) -> dict[str, Any]:
    """Read what `write_json` wrote.

    Raises StoreError when it is missing, damaged, or of another format version; `mend` says what to do about the first two.
    """
    try:
        content = json.loads(path.read_bytes())
        checksum = content.pop("sha256")
    except FileNotFoundError:
        raise StoreError(f"{path} is missing: {mend}") from None
    except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
        raise StoreError(f"{path} is damaged ({type(error).__name__}): {mend}") from error
    version = content.get("format_version")
    if checksum == _checksum(content) and version not in READABLE:
        raise StoreError(
            f"{path} has format version {version}, this program reads {READABLE[0]} to {READABLE[-1]}: use a matching release"
        )
    if checksum != _checksum(content):
        raise StoreError(f"{path} is damaged (its sha256 does not match): {mend}")
    return content


def write_atomically(path: pathlib.Path, data: bytes) -> None:
    """`atomic_write` that makes the folder if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, data)


def remove_leftovers(store: pathlib.Path) -> None:
    """Delete what a killed writer left: temporary folders and half-written small files. Only under the writer's lock."""
    shutil.rmtree(store / TEMPORARY, ignore_errors=True)
    for folder in (store, store / COMMITS, store / REJECTS):
        for path in folder.glob(".*.json*.*"):
            path.unlink(missing_ok=True)


def sha256_file(path: pathlib.Path) -> str:
    """Hexadecimal sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _checksum(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
