"""What the chips of TPU topologies can do, by the vendor's figures, and devices of a topology without the hardware.

Sources: the pages "TPU v4", "v5e", "v5p", "v6e" and "TPU7x" of Google Cloud's documentation (cloud.google.com/tpu/docs) for peak,
memory and its bandwidth; "How to Scale Your Model" (jax-ml.github.io/scaling-book, chapter 2) for the bandwidth of one link. A
clock is the peak over the operations that the matrix units do a cycle; the compiler's cycles of a large product agree with it.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
from collections.abc import Sequence

import jax

from chameleon_jax.errors import ConfigError
from chameleon_jax.parallel.device_memory import device_memory

GIB = 2**30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """One device, as JAX counts them. Rates are a second; `links` go out of it, each of `link_bytes` one way."""

    name: str
    peak_flops: float  # bf16
    hbm: int | None  # bytes; None where nobody knows
    hbm_rate: float
    clock: float  # Hz of the cycles that the compiler estimates; 0 where it makes none
    links: int
    link_bytes: float


def _tpu(name: str, tera: float, gib: float, hbm_gb: float, operations: int, links: int, link_gb: float) -> Chip:
    return Chip(
        name=name, peak_flops=tera * 1e12, hbm=int(gib * GIB), hbm_rate=hbm_gb * 1e9, clock=tera * 1e12 / operations,
        links=links, link_bytes=link_gb * 1e9,
    )  # fmt: skip


# By the kind that the compiler's devices say they are. Operations a cycle: cores x matrix units x their area x 2.
CHIPS = {
    "TPU v4": _tpu("v4", 275, 32, 1200, 2 * 4 * 128**2 * 2, 6, 45),
    "TPU v5 lite": _tpu("v5e", 197, 16, 819, 1 * 4 * 128**2 * 2, 4, 45),
    "TPU v5": _tpu("v5p", 459, 95, 2765, 2 * 4 * 128**2 * 2, 6, 90),
    "TPU v6 lite": _tpu("v6e", 918, 32, 1640, 1 * 4 * 256**2 * 2, 4, 90),
    # A chip is two devices: half of the figures of a chip each.
    "TPU7x": _tpu("tpu7x", 2307 / 2, 96, 7380 / 2, 1 * 4 * 256**2 * 2, 6, 50),
}
_EXAMPLES = "v4:2x2x4, v5e:4x4, v5p:4x4x4, v6e:8x8, tpu7x:2x2x2; or local"


def devices_of(topology: str) -> Sequence[jax.Device]:
    """Devices of `v5p:4x4x4`, or of this process for `local`. The first call decides which platform JAX uses here.

    Raises ConfigError where the TPU compiler is not installed or knows no such topology.
    """
    if topology == "local":
        return jax.devices()
    if importlib.util.find_spec("libtpu") is None:
        raise ConfigError(f"--topology={topology} needs the TPU compiler: pip install 'chameleon-jax[tpu]'")
    # Without these libtpu looks for the machine's own TPU, and its metadata server, for a minute.
    for name, value in (
        ("TPU_SKIP_MDS_QUERY", "1"),
        ("ALLOW_MULTIPLE_LIBTPU_LOAD", "1"),
        ("TPU_WORKER_HOSTNAMES", "localhost"),
    ):
        os.environ.setdefault(name, value)
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-1")
    jax.config.update("jax_platforms", "cpu")  # of what is computed here, which is next to nothing
    from jax.experimental import topologies

    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=topology).devices)
    except Exception as error:  # JaxRuntimeError, NotImplementedError or ValueError, by what is wrong with the name
        told = " ".join(str(error).split()).split(" === ")[0]
        raise ConfigError(f"--topology={topology}: no such topology ({told[:160]}); as in {_EXAMPLES}") from None


def chip_of(device: jax.Device) -> Chip:
    """The row of the table; a device that is not in it has the memory that it says, and unknown rates."""
    if device.device_kind in CHIPS:
        return CHIPS[device.device_kind]
    unknown = float("nan")
    return Chip(
        name=device.device_kind, peak_flops=unknown, hbm=device_memory(device), hbm_rate=unknown, clock=0, links=0,
        link_bytes=unknown,
    )  # fmt: skip
