"""Proof that restored leaves are the saved ones: the checksum of every region, whatever the shardings of then and now.

A region (one shard as it lay when it was saved) that lies within a shard of this process is summed up from a host copy of that
shard, one shard at a time. Of a region that no device holds whole, the parts that lie in shards of this process are compared with
what is on disk, read a part at a time, and such regions are divided among the processes to be summed up on disk. So no leaf is
ever gathered on a host, every shard is looked at (of devices of one process with the same values, one), and so is every region.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from chameleon_jax.checkpoints import manifest as manifests
from chameleon_jax.checkpoints.manifest import Leaf, Region

_PART_BYTES = 64 << 20  # read at one time to sum up

Box = tuple[tuple[int, int], ...]  # (start, stop) by dimension


def open_array(arrays: Path, path: str) -> Any:
    """The TensorStore array of leaf `path` in the folder that Orbax wrote."""
    import tensorstore as ts

    # A dict and an absolute path: a URL would take a relative one for a host, and has letters of its own.
    base = {"driver": "file", "path": f"{arrays.resolve()}/"}
    store = {"driver": "ocdbt", "base": base, "path": ".".join(path.split("/")) + "/"}
    return ts.open({"driver": "zarr3", "kvstore": store}, open=True).result()


def checksum_on_disk(array: Any) -> int:
    """CRC-32 of the bytes of a TensorStore array in C order, reading about 64 MiB of the first axis at a time."""
    crc = 0
    for _, part in _parts(array):
        crc = zlib.crc32(_bytes(part), crc)
    return crc


def _parts(array: Any) -> Iterator[tuple[slice, np.ndarray]]:
    """A TensorStore array, about 64 MiB of the first axis at a time: (which rows, from 0; values). A scalar is one row."""
    if array.ndim == 0:
        yield slice(0, 1), array.read().result()[None]
        return
    row = max(1, int(np.prod(array.shape[1:], dtype=np.int64)) * array.dtype.numpy_dtype.itemsize)
    step, first = max(1, _PART_BYTES // row), array.domain[0].inclusive_min
    for start in range(0, array.shape[0], step):
        rows = slice(start, min(start + step, array.shape[0]))
        yield rows, array[first + rows.start : first + rows.stop].read().result()


def first_damage(arrays: Mapping[str, Any], saved: Mapping[str, Leaf], folder: Path) -> str | None:
    """The first leaf whose bytes do not match their checksums, of what this process is to look at; None if all match.

    `arrays` are restored leaves of the saved shape and dtype, `folder` is where Orbax wrote them.
    """
    elsewhere = 0
    for path, array in arrays.items():
        leaf = saved[path]
        if gap := _gap(path, leaf):
            return gap
        if 0 in leaf.shape:
            continue
        on_disk = functools.cache(functools.partial(open_array, folder, path))
        local, everywhere = _boxes(array, leaf.shape)
        sound = all(_shard_is_sound(box, data, leaf.regions, on_disk) for box, data in local.items())
        for region in leaf.regions:
            if not any(_meet(box, _box_of(region)) == _box_of(region) for box in everywhere):
                elsewhere += 1
                if sound and elsewhere % jax.process_count() == jax.process_index():
                    sound = checksum_on_disk(on_disk()[region.slices]) == region.crc32
        if not sound:
            return f"leaf '{path}' ({leaf}) does not match its checksum"
    return None


def first_damage_on_disk(saved: Mapping[str, Leaf], folder: Path) -> str | None:
    """The first leaf in `folder`, where Orbax wrote, that does not match its checksums; no leaf is held in memory, nor on a device.

    Raises ValueError, from TensorStore, for a leaf that cannot be read.
    """
    for path, leaf in saved.items():
        if gap := _gap(path, leaf):
            return gap
        if 0 in leaf.shape:
            continue
        array = open_array(folder, path)
        if tuple(array.shape) != tuple(leaf.shape) or array.dtype.numpy_dtype != np.dtype(leaf.dtype):
            return f"leaf '{path}' ({leaf}) is {array.dtype.name}{list(array.shape)} on disk"
        if any(checksum_on_disk(array[region.slices]) != region.crc32 for region in leaf.regions):
            return f"leaf '{path}' ({leaf}) does not match its checksum"
    return None


def _gap(path: str, leaf: Leaf) -> str | None:
    covered = sum(_size(region) for region in leaf.regions)
    if covered == leaf.size:
        return None
    return f"leaf '{path}' ({leaf}) has checksums for {covered} of its {leaf.size} values"


def _shard_is_sound(box: Box, data: Any, regions: Sequence[Region], on_disk: Callable[[], Any]) -> bool:
    """Whether a shard's values, copied to the host once, are those of the regions that it holds whole or parts of."""
    values = _host_copy(data)
    for region in regions:
        common = _meet(box, _box_of(region))
        if common is None:
            continue
        mine = values[tuple(slice(a - c, b - c) for (a, b), (c, _) in zip(common, box, strict=True))]
        if common == _box_of(region):
            if manifests.checksum(mine) != region.crc32:
                return False
            continue
        theirs = on_disk()[tuple(slice(a, b) for a, b in common)]
        if any(not np.array_equal(_bytes(mine[rows]), _bytes(part)) for rows, part in _parts(theirs)):
            return False
    return True


def _host_copy(data: Any) -> np.ndarray:
    if isinstance(data, jax.Array):
        # A host copy is kept by the array that it was asked of: this one is forgotten, the restored one stays.
        data = jax.make_array_from_single_device_arrays(data.shape, data.sharding, [data])
    return np.asarray(data)


def _bytes(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values).reshape(-1).view(np.uint8)


def _boxes(array: Any, shape: tuple[int, ...]) -> tuple[dict[Box, Any], set[Box]]:
    """What this process holds of a leaf, each box once, and the boxes that any process holds."""
    if not isinstance(array, jax.Array):
        whole = tuple((0, size) for size in shape)
        return {whole: array}, {whole}
    local = {_box(shard.index, shape): shard.data for shard in array.addressable_shards}
    return local, {_box(index, shape) for index in array.sharding.devices_indices_map(shape).values()}


def _box(index: tuple[slice, ...], shape: tuple[int, ...]) -> Box:
    return tuple(part.indices(size)[:2] for part, size in zip(index, shape, strict=True))


def _box_of(region: Region) -> Box:
    return tuple(zip(region.start, region.stop, strict=True))


def _meet(one: Box, other: Box) -> Box | None:
    """What two boxes have in common; None where they have nothing."""
    common = tuple((max(a, c), min(b, d)) for (a, b), (c, d) in zip(one, other, strict=True))
    return common if all(a < b for a, b in common) else None


def _size(region: Region) -> int:
    return int(np.prod([b - a for a, b in zip(region.start, region.stop, strict=True)], dtype=np.int64))
