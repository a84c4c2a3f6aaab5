"""Seeded permutations that no library release can change.

Sort the numbers 0..n-1 by a hash of (seed, number). The hash is written out here, so the order of training data
depends on nothing but the seed.
"""

from __future__ import annotations

import hashlib

import numpy as np
from jaxtyping import Int


def derive_seed(*parts: object) -> int:
    """64-bit seed from any printable parts; different parts give unrelated seeds."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


def permutation(count: int, seed: int) -> Int[np.ndarray, " n"]:
    """int64 permutation of 0..count-1, a pure function of `count` and the 64-bit `seed`.

    The hash is the finaliser of SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators").
    """
    with np.errstate(over="ignore"):
        bits = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed % 2**64)
        bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        bits ^= bits >> np.uint64(31)
    return np.argsort(bits, kind="stable")
