"""Kill -9 a process that saves without pause, again and again, and verify every step that is listed afterwards.

Each leaf of the state encodes its step, so a restored step proves itself. Exit code 1 if any listed step is not whole.

Example:
  python benchmarks/kill_test.py --rounds=20 --megabytes=50
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

KEEP = 2


def _state(step: int, megabytes: int):
    """Eight leaves, noise that does not compress plus the step."""
    import jax.numpy as jnp
    import numpy as np

    size = megabytes * (1 << 20) // 4 // 8
    noise = np.random.default_rng(0).integers(0, 2**30, size, np.int32)
    return {"step": jnp.int32(step), "params": {str(i): jnp.asarray(noise + np.int32(step)) for i in range(8)}}


def save_for_ever(directory: str, megabytes: int) -> None:
    """The child: resume from the newest good step and go on saving."""
    from chameleon_jax.checkpoints.checkpointer import Checkpointer
    from chameleon_jax.configs import CheckpointConfig

    checkpointer = Checkpointer(directory, CheckpointConfig(keep=KEEP))
    restored = checkpointer.restore(_state(0, megabytes))
    step = restored.step if restored else 0
    base = _state(0, megabytes)
    import jax
    import orbax.checkpoint  # noqa: F401  so that the time until the kill is spent on saving

    advance = jax.jit(lambda tree, n: jax.tree.map(lambda x: x + n, tree))
    jax.block_until_ready(advance(base, step))
    print("resumed", step, flush=True)
    while True:
        step += 1
        checkpointer.save(step, advance(base, step), {"step": step})
        print("saving", step, flush=True)


def verify(directory: Path, megabytes: int) -> tuple[list[int], list[str]]:
    """Steps listed, and what is wrong with them."""
    import numpy as np

    from chameleon_jax.checkpoints.restore import restore_subtree

    entries = [entry for entry in directory.iterdir() if entry.name.isdecimal()]
    wrong = [] if directory.exists() else ["no directory"]
    want = _state(0, megabytes)["params"]
    for entry in entries:
        try:
            params = restore_subtree(entry).state
            for name, leaf in params.items():
                if not np.array_equal(np.asarray(leaf), np.asarray(want[name]) + int(entry.name)):
                    wrong.append(f"{entry.name}: leaf {name} is of another step")
        except Exception as error:
            wrong.append(f"{entry.name}: {error}")
    return sorted(int(entry.name) for entry in entries), wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--megabytes", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--directory", default="")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        save_for_ever(options.directory, options.megabytes)
    temporary = tempfile.TemporaryDirectory() if not options.directory else None
    directory = Path(options.directory or temporary.name) / "checkpoints"
    directory.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, __file__, "--child", f"--directory={directory}", f"--megabytes={options.megabytes}"]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(Path(__file__).parents[1])}
    coin, bad, newest, unfinished = random.Random(options.seed), 0, 0, 0
    for number in range(options.rounds):
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as child:
            resumed = int(child.stdout.readline().split()[1])  # the imports are over: from here on it saves
            pause = coin.uniform(0.05, 2.0)
            time.sleep(pause)
            child.send_signal(signal.SIGKILL)
        left = sum(entry.name.startswith(".") for entry in directory.iterdir())
        steps, wrong = verify(directory, options.megabytes)
        if resumed != newest:
            wrong.append(f"resumed from {resumed}, but {newest} was the newest listed step")
        if newest >= KEEP and len(steps) < KEEP:
            wrong.append(f"only {steps} are left")
        newest = max(steps, default=0)
        bad += bool(wrong)
        unfinished += left > 0
        print(
            f"round {number + 1}: killed after {pause:.2f} s, listed {steps}, hidden {left}, {wrong or 'all whole'}",
            flush=True,
        )
    print(f"{options.rounds} kills, {unfinished} in the middle of a save or a deletion, {bad} bad")
    return 1 if bad else 0


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    sys.path.insert(0, str(Path(__file__).parents[1]))
    sys.exit(main())
