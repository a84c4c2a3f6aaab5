"""What a checkpoint must contain: one JSON file per step that lists every leaf with shape, dtype and checksums.

A leaf is known by its path in the tree, not by the kinds of containers around it, and its bytes are summed up
region by region (a region is one shard as it lay on a device), so that every process can sum up what it holds and any
layout can be verified. Array formats notice lost files but not flipped bits; these sums notice both.
"""

from __future__ import annotations

import dataclasses
import json
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from chameleon_jax.errors import CheckpointError

MANIFEST = "manifest.json"
FORMAT = 1

Slices = tuple[slice, ...]


@dataclasses.dataclass(frozen=True)
class HostRegion:
    """A box of one leaf, in host memory. `start` and `stop` have one entry per dimension of the whole leaf."""

    path: str
    start: tuple[int, ...]
    stop: tuple[int, ...]
    values: np.ndarray


@dataclasses.dataclass(frozen=True)
class Region:
    """A box of one leaf with the checksum of its bytes in C order."""

    start: tuple[int, ...]
    stop: tuple[int, ...]
    crc32: int

    @property
    def slices(self) -> Slices:
        return tuple(slice(a, b) for a, b in zip(self.start, self.stop, strict=True))


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One array as it was saved."""

    shape: tuple[int, ...]
    dtype: str
    regions: tuple[Region, ...]

    def __str__(self) -> str:
        return f"{self.dtype}{list(self.shape)}"

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))


@dataclasses.dataclass(frozen=True)
class Manifest:
    """A whole checkpoint: its step, its leaves by path, and what the caller wanted kept with it."""

    step: int
    leaves: dict[str, Leaf]
    metadata: dict[str, Any]

    def to_bytes(self) -> bytes:
        """JSON; the last field is the checksum of the rest, so that a flipped bit in the manifest itself is noticed."""
        body = {
            "format": FORMAT,
            "checksum": "zlib.crc32",
            "step": self.step,
            "metadata": self.metadata,
            "leaves": {path: dataclasses.asdict(leaf) for path, leaf in self.leaves.items()},
        }
        return (json.dumps({**body, "crc32": _json_crc(body)}, indent=1) + "\n").encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Manifest:
        """Inverse of `to_bytes`. Raises ValueError with the reason when the text is damaged or of another format."""
        try:
            body = json.loads(data)
            crc = body.pop("crc32")
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise ValueError(f"{MANIFEST} cannot be read ({error})") from error
        if crc != _json_crc(body):
            raise ValueError(f"{MANIFEST} does not match its own checksum")
        if body["format"] != FORMAT:
            raise ValueError(f"{MANIFEST} has format {body['format']}, this version reads {FORMAT}")
        leaves = {
            path: Leaf(tuple(leaf["shape"]), leaf["dtype"], tuple(region_from_dict(r) for r in leaf["regions"]))
            for path, leaf in body["leaves"].items()
        }
        return cls(step=body["step"], leaves=leaves, metadata=body["metadata"])


def region_from_dict(values: Mapping[str, Any]) -> Region:
    """A region as JSON has it, as an object."""
    return Region(tuple(values["start"]), tuple(values["stop"]), values["crc32"])


def _json_crc(body: Any) -> int:
    return zlib.crc32(json.dumps(body, sort_keys=True, separators=(",", ":")).encode())


def read_manifest(step_directory: Path) -> Manifest:
    """The manifest of one step. Raises ValueError when it is damaged or belongs to another step, OSError when it is not there."""
    manifest = Manifest.from_bytes((step_directory / MANIFEST).read_bytes())
    if str(manifest.step) != step_directory.name:
        raise ValueError(f"{MANIFEST} is of step {manifest.step}")
    return manifest


def named_leaves(tree: Any) -> dict[str, Any]:
    """Map `params/embed`-like path -> leaf; named tuples, dataclasses, lists and dicts alike, empty nodes left out.

    Raises CheckpointError for a leaf that is not an array, and for two leaves of one path.
    """
    named: dict[str, Any] = {}
    for key_path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        path = jax.tree_util.keystr(key_path, simple=True, separator="/")
        if not (hasattr(leaf, "shape") and hasattr(leaf, "dtype")):
            raise CheckpointError(
                f"leaf '{path}' is a {type(leaf).__name__}: a checkpoint holds arrays only; make it an array"
            )
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.extended):
            raise CheckpointError(f"leaf '{path}' has dtype {leaf.dtype}; save its jax.random.key_data instead")
        if path in named:
            raise CheckpointError(f"two leaves have the path '{path}': rename one of the dictionary keys")
        named[path] = leaf
    return named


def nest(named: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dictionaries from paths: {"a/b": x} -> {"a": {"b": x}}."""
    root: dict[str, Any] = {}
    for path, value in named.items():
        *parents, last = path.split("/")
        node = root
        for part in parents:
            node = node.setdefault(part, {})
        node[last] = value
    return root


def unnest(tree: Mapping[str, Any], paths: Iterable[str]) -> dict[str, Any]:
    """The values at `paths` of nested dictionaries: the inverse of `nest`."""
    found = {}
    for path in paths:
        node: Any = tree
        for part in path.split("/"):
            node = node[part]
        found[path] = node
    return found


def host_regions(named: Mapping[str, Any]) -> list[HostRegion]:
    """Bring to the host, once, what this process is to save: each shard's first replica, and numpy leaves on process 0.

    On a CPU device the regions are views of the device buffers. A view counts as a reference, and XLA never writes into a donated
    buffer that is referenced from outside, so the values stay what they were when this returned.
    """
    shards: list[tuple[str, tuple[int, ...], Slices, Any]] = []
    for path, leaf in named.items():
        if isinstance(leaf, jax.Array):
            for shard in leaf.addressable_shards:
                if shard.replica_id == 0:
                    shards.append((path, leaf.shape, shard.index, shard.data))
        elif jax.process_index() == 0:
            shards.append((path, leaf.shape, tuple(slice(0, n) for n in leaf.shape), np.array(leaf)))
    for _, _, _, data in shards:
        if isinstance(data, jax.Array):
            data.copy_to_host_async()
    regions = []
    for path, shape, index, data in shards:
        bounds = [part.indices(size)[:2] for part, size in zip(index, shape, strict=True)]
        regions.append(HostRegion(path, tuple(a for a, _ in bounds), tuple(b for _, b in bounds), np.asarray(data)))
    return regions


def checksum(values: np.ndarray) -> int:
    """CRC-32 of the bytes in C order."""
    return zlib.crc32(np.ascontiguousarray(values).reshape(-1).view(np.uint8))


def first_difference(wanted: Mapping[str, Any], saved: Mapping[str, Leaf]) -> str | None:
    """The first leaf whose presence, shape or dtype differs, said in words; None if all agree."""
    for path, leaf in wanted.items():
        asked = f"{np.dtype(leaf.dtype).name}{list(leaf.shape)}"
        if path not in saved:
            return f"leaf '{path}' is {asked} in this run and missing in the checkpoint"
        if asked != str(saved[path]):
            return f"leaf '{path}' is {asked} in this run and {saved[path]} in the checkpoint"
    for path, leaf in saved.items():
        if path not in wanted:
            return f"leaf '{path}' is {leaf} in the checkpoint and missing in this run"
    return None
