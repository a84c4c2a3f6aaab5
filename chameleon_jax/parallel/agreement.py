"""Stopping together, without waiting for each other."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from chameleon_jax.parallel.mesh import replicated


class StopAgreement:
    """True on every process at the same call of `poll`, once `requested()` was true on any.

    One process alone asks `requested` and that is all. Several join their flags in a tiny program on the devices, which a call
    starts and the next call reads. So a request is answered one call later, and a call waits for no more than the devices' work of
    the step before it, which is done as a rule; never for what another process does on its host in this step. A process that
    stopped alone would leave the others hanging in a collective.
    """

    def __init__(self, mesh: Mesh, requested: Callable[[], bool]):
        self._requested = requested
        self._pending: jax.Array | None = None
        self._alone = all(device.process_index == mesh.devices.flat[0].process_index for device in mesh.devices.flat)
        if self._alone:
            return
        flags = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        mine = [device for device in mesh.devices.flat if device.process_index == jax.process_index()]
        # Both answers lie on the devices from the start: a call transfers nothing to them.
        self._flags = [
            jax.make_array_from_single_device_arrays(
                (mesh.size,), flags, jax.device_put([np.full(1, answer)] * len(mine), mine)
            )
            for answer in (False, True)
        ]
        self._any = jax.jit(jnp.any, out_shardings=replicated(mesh))

    def poll(self) -> bool:
        """Whether to stop now; call it equally often on every process."""
        if self._alone:
            return self._requested()
        before, self._pending = self._pending, self._any(self._flags[bool(self._requested())])
        return before is not None and bool(jax.device_get(before))
