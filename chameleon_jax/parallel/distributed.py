"""From the rows of one host to a global array, and back from one process to many."""

from __future__ import annotations

from typing import Any

import jax
from jax.sharding import Mesh

from chameleon_jax.parallel.mesh import batch_sharding


def to_global(host_batch: Any, mesh: Mesh) -> Any:
    """Assemble each host's [B / hosts, T] rows into global [B, T] arrays, sharded over the mesh; an explicit transfer."""
    sharding = batch_sharding(mesh)
    if jax.process_count() == 1:
        return jax.device_put(host_batch, sharding)
    return jax.tree.map(lambda rows: jax.make_array_from_process_local_data(sharding, rows), host_batch)


def agree(flag: bool) -> bool:
    """True on every process if it is True on any: decisions such as stopping must be taken together."""
    if jax.process_count() == 1:
        return flag
    import numpy as np
    from jax.experimental import multihost_utils

    return bool(np.any(multihost_utils.process_allgather(np.asarray(flag))))
