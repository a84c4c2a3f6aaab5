"""Checkpoint throughput: save (blocking part and whole) and restore, against a plain file of the same bytes.

The files are timed in turn with the checkpoints, in one run, on one disk. Reads come from the page cache in both cases.

Example:
  python benchmarks/checkpoint.py --megabytes=512 --rounds=3
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import jax
import numpy as np

from chameleon_jax.checkpoints.checkpointer import Checkpointer
from chameleon_jax.configs import CheckpointConfig

LEAVES = 32


def plain_write(path: Path, arrays: list[np.ndarray]) -> None:
    with open(path, "wb") as file:
        for array in arrays:
            file.write(array.data)
        file.flush()
        os.fsync(file.fileno())


def timed(function, *arguments) -> float:
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--directory", default=None, help="where to write; a temporary folder by default")
    options = parser.parse_args()
    generator = np.random.default_rng(0)
    # Normal float32 values, as in weights: they hardly compress.
    arrays = [generator.standard_normal(options.megabytes * (1 << 18) // LEAVES, np.float32) for _ in range(LEAVES)]
    state = {"params": {str(number): jax.device_put(array) for number, array in enumerate(arrays)}}
    megabytes = sum(array.nbytes for array in arrays) / 1e6
    seconds: dict[str, list[float]] = {
        name: [] for name in ("plain write + fsync", "save, blocking", "save, whole", "plain read", "restore, verified")
    }
    with tempfile.TemporaryDirectory(dir=options.directory) as directory:
        checkpointer = Checkpointer(Path(directory) / "checkpoints", CheckpointConfig(keep=2))
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
        checkpointer.save(0, {"params": {"0": state["params"]["0"]}}, {})  # imports and first-use costs
        checkpointer.wait()
        plain = Path(directory) / "plain"
        for step in range(1, options.rounds + 1):
            plain.unlink(missing_ok=True)
            seconds["plain write + fsync"].append(timed(plain_write, plain, arrays))
            start = time.perf_counter()
            checkpointer.save(step, state, {})
            seconds["save, blocking"].append(time.perf_counter() - start)
            checkpointer.wait()
            seconds["save, whole"].append(time.perf_counter() - start)
            seconds["plain read"].append(timed(plain.read_bytes))
            seconds["restore, verified"].append(
                timed(lambda: jax.block_until_ready(checkpointer.restore(abstract).state))
            )
        checkpointer.close()
    middle = {name: statistics.median(values) for name, values in seconds.items()}
    print(f"{megabytes:.0f} MB in {LEAVES} leaves, median of {options.rounds}")
    for name, value in middle.items():
        plain_name = "plain read" if name in ("plain read", "restore, verified") else "plain write + fsync"
        ratio = middle[plain_name] / value
        print(f"{name:22} {value:8.3f} s {megabytes / value:9.0f} MB/s   {ratio:6.2f} x {plain_name}")


if __name__ == "__main__":
    main()
