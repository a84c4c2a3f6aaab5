"""How much memory a device of this machine has, and bytes as people write them."""

from __future__ import annotations

import os
from pathlib import Path

import jax

_CGROUPS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def device_memory(device: jax.Device) -> int | None:
    """Bytes that arrays on the device may take together; None where neither the device nor the system says.

    CPU devices share the memory of the host, or what its container may have of it.
    """
    if device.platform != "cpu":
        stats = device.memory_stats() or {}
        return stats.get("bytes_limit")
    total = host_memory()
    return total and total // len([d for d in jax.local_devices() if d.platform == "cpu"])


def host_memory() -> int | None:
    """Bytes of memory of this machine, or of its container where that has less; None where the system does not say."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None
    for path in map(Path, _CGROUPS):
        try:
            total = min(total, int(path.read_text()))
        except (OSError, ValueError):  # no container, or "max"
            continue
    return total


def in_words(size: float) -> str:
    """12.3 GB, 456 MB: three figures of a number of bytes."""
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if size >= unit:
            return f"{size / unit:.3g} {name}"
    return f"{max(1, round(size / 1e3))} kB"
