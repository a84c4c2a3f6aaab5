"""Proof that restored leaves are the saved ones: the checksum of every region, whatever the shardings of then and now.

A region (one shard as it lay when it was saved) that lies within a shard of this process is summed up in memory. One that no
device holds whole is read from disk again, a part at a time, and such regions are divided among the processes. So no leaf is ever
gathered on a host, and every region is looked at by some process.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from chameleon_jax.training import checkpoint_manifest as manifests
from chameleon_jax.training.checkpoint_manifest import Leaf, Region

_PART_BYTES = 64 << 20  # read at one time to sum up

Box = tuple[tuple[int, int], ...]  # (start, stop) by dimension


def open_array(arrays: Path, path: str) -> Any:
    """The TensorStore array of leaf `path` in the folder that Orbax wrote."""
    import tensorstore as ts

    store = {"driver": "ocdbt", "base": f"file://{arrays}/", "path": ".".join(path.split("/")) + "/"}
    return ts.open({"driver": "zarr3", "kvstore": store}, open=True).result()


def checksum_on_disk(array: Any) -> int:
    """CRC-32 of the bytes of a TensorStore array in C order, reading about 64 MiB of the first axis at a time."""
    if array.ndim == 0:
        return manifests.checksum(array.read().result())
    row = max(1, int(np.prod(array.shape[1:], dtype=np.int64)) * array.dtype.numpy_dtype.itemsize)
    step, crc = max(1, _PART_BYTES // row), 0
    first, last = array.domain[0].inclusive_min, array.domain[0].exclusive_max
    for start in range(first, last, step):
        part = array[start : min(start + step, last)].read().result()
        crc = zlib.crc32(np.ascontiguousarray(part).reshape(-1).view(np.uint8), crc)
    return crc


def first_damage(arrays: Mapping[str, Any], saved: Mapping[str, Leaf], folder: Path) -> str | None:
    """The first leaf whose bytes do not match their checksums, of what this process is to look at; None if all match.

    `arrays` are restored leaves of the saved shape and dtype, `folder` is where Orbax wrote them.
    """
    elsewhere = 0
    for path, array in arrays.items():
        leaf = saved[path]
        covered = sum(_size(region) for region in leaf.regions)
        if covered != leaf.size:
            return f"leaf '{path}' ({leaf}) has checksums for {covered} of its {leaf.size} values"
        local, everywhere = _boxes(array, leaf.shape)
        on_disk = None
        for region in leaf.regions:
            if 0 in leaf.shape:
                continue
            box = tuple(zip(region.start, region.stop, strict=True))
            sums = [manifests.checksum(values) for values in _in_memory(local, box)]
            if not any(_contains(outer, box) for outer in everywhere):
                elsewhere += 1
                if elsewhere % jax.process_count() == jax.process_index():
                    on_disk = open_array(folder, path) if on_disk is None else on_disk
                    sums = [checksum_on_disk(on_disk[region.slices])]
            if any(crc != region.crc32 for crc in sums):
                return f"leaf '{path}' ({leaf}) does not match its checksum"
    return None


def _boxes(array: Any, shape: tuple[int, ...]) -> tuple[dict[Box, Any], set[Box]]:
    """What this process holds of a leaf, each box once, and the boxes that any process holds."""
    if not isinstance(array, jax.Array):
        whole = tuple((0, size) for size in shape)
        return {whole: array}, {whole}
    local = {_box(shard.index, shape): shard.data for shard in array.addressable_shards}
    return local, {_box(index, shape) for index in array.sharding.devices_indices_map(shape).values()}


def _in_memory(local: Mapping[Box, Any], box: Box) -> Iterator[np.ndarray]:
    for outer, data in local.items():
        if _contains(outer, box):
            if isinstance(data, jax.Array):
                # A host copy is kept by the array that it was asked of: this one is forgotten, the restored one stays.
                data = np.asarray(jax.make_array_from_single_device_arrays(data.shape, data.sharding, [data]))
            yield data[tuple(slice(a - c, b - c) for (a, b), (c, _) in zip(box, outer, strict=True))]


def _box(index: tuple[slice, ...], shape: tuple[int, ...]) -> Box:
    return tuple(part.indices(size)[:2] for part, size in zip(index, shape, strict=True))


def _contains(outer: Box, inner: Box) -> bool:
    return all(a <= c and d <= b for (a, b), (c, d) in zip(outer, inner, strict=True))


def _size(region: Region) -> int:
    return int(np.prod([b - a for a, b in zip(region.start, region.stop, strict=True)], dtype=np.int64))
