"""Which rows of a batch a process needs, and global arrays from them.

Both come from the sharding's own map from devices to rows, so they are right for any mesh over any processes: rows may be
anywhere in the batch, and several processes hold the same rows where an axis that does not cut the batch spans them.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int

from chameleon_jax.errors import ConfigError
from chameleon_jax.parallel.mesh import batch_sharding


def local_rows(mesh: Mesh, batch_size: int) -> Int[np.ndarray, " rows"]:
    """Global numbers, ascending, of the rows that this process's devices hold of a batch.

    Example: on a mesh (data 2, tensor 2) over four processes, process 0 and 1 need rows 0..3 of 8, and process 2 and 3 rows 4..7.

    Raises ConfigError when the batch cannot be cut evenly.
    """
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    if batch_size % shards:
        raise ConfigError(f"batch_size {batch_size} is not a multiple of the mesh's data * fsdp = {shards}")
    indices = batch_sharding(mesh).addressable_devices_indices_map((batch_size, 1)).values()
    return np.unique(np.concatenate([np.arange(batch_size)[rows] for rows, _ in indices]))


def to_global(host_batch: Any, mesh: Mesh) -> Any:
    """Global [B, ...] arrays over the mesh from this process's [local_rows, ...]; explicit transfers only."""
    sharding = batch_sharding(mesh)
    if sharding.is_fully_addressable:
        return jax.device_put(host_batch, sharding)
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    # Which of the `shards` equal parts of the batch lie here, in order; a part is found in the host's rows by its place among them.
    parts = local_rows(mesh, shards)

    def assemble(host: np.ndarray) -> jax.Array:
        rows = host.shape[0] // len(parts)
        shape = (rows * shards, *host.shape[1:])
        pieces, devices = [], []
        for device, index in sharding.addressable_devices_indices_map(shape).items():
            begin = int(np.searchsorted(parts, (index[0].start or 0) // rows)) * rows
            pieces.append(host[begin : begin + rows])
            devices.append(device)
        return jax.make_array_from_single_device_arrays(shape, sharding, jax.device_put(pieces, devices))

    return jax.tree.map(assemble, host_batch)
