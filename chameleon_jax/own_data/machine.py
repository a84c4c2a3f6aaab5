"""How fast this machine is: rates of matrix products of the widths that networks have, measured in a second or two."""

from __future__ import annotations

import bisect
import dataclasses
import math
import time

import jax
import jax.numpy as jnp

from chameleon_jax.parallel.device_memory import device_memory

BUSY = 1.2  # load, from which a machine has much other work
WIDTHS = (32, 64, 128, 256, 512, 1024)
_SECONDS = 0.2  # of each width
_LOAD_SECONDS = 0.5
_ROWS = 2048


@dataclasses.dataclass(frozen=True, kw_only=True)
class Machine:
    """`rates` are FLOP/s of one device, of products [rows, width] x [width, width], by WIDTHS; `memory` is in bytes, or None.

    `load` is how many times longer a core takes because of other programs, 1 where there are none: rates have it in them, but
    starting and compiling take so much longer too.
    """

    platform: str
    name: str
    devices: int
    memory: int | None
    rates: tuple[float, ...]
    load: float = 1.0

    def rate(self, width: int) -> float:
        """FLOP/s of products of this width, between the measured ones on a line in logarithms."""
        if width <= WIDTHS[0] or width >= WIDTHS[-1]:
            return self.rates[0 if width <= WIDTHS[0] else -1]
        after = bisect.bisect_right(WIDTHS, width)
        low, high = WIDTHS[after - 1], WIDTHS[after]
        share = math.log(width / low) / math.log(high / low)
        return self.rates[after - 1] ** (1 - share) * self.rates[after] ** share

    @property
    def is_busy(self) -> bool:
        return self.load > BUSY

    @property
    def is_cpu(self) -> bool:
        return self.platform == "cpu"


def measure() -> Machine:
    """This machine, in the dtype that a run on it computes in."""
    device = jax.local_devices()[0]
    dtype = jnp.float32 if device.platform == "cpu" else jnp.bfloat16
    return Machine(
        platform=device.platform,
        name=device.device_kind if device.platform != "cpu" else "CPU",
        devices=jax.local_device_count(),
        memory=device_memory(device),
        rates=tuple(_rate(width, dtype) for width in WIDTHS),
        load=_load(),
    )


def _load() -> float:
    """Seconds that pass for a second of one thread that never waits."""
    begin, busy = time.perf_counter(), time.thread_time()
    while time.perf_counter() < begin + _LOAD_SECONDS:
        pass
    return max(1.0, (time.perf_counter() - begin) / max(time.thread_time() - busy, 1e-3))


def _rate(width: int, dtype: jnp.dtype) -> float:
    """FLOP/s of products, two in a row, as a layer has them; the mean, for other work on the machine slows a run too."""
    rows, inner = jnp.ones((_ROWS, width), dtype), jnp.full((width, width), 1 / width, dtype)
    product = jax.jit(lambda x, w: (x @ w) @ w)
    jax.block_until_ready(product(rows, inner))
    begin, count = time.perf_counter(), 0
    while time.perf_counter() < begin + _SECONDS:
        jax.block_until_ready(product(rows, inner))
        count += 1
    return 4 * _ROWS * width**2 * count / (time.perf_counter() - begin)
