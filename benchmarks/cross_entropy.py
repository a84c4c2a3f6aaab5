"""Chunked cross-entropy against the plain one at a vocabulary of 65,536: same numbers, memory, time.

Each form runs in a process of its own, so that the peak of resident memory is its own; XLA's plan of temporary
memory is printed beside it.

Examples:
  python benchmarks/cross_entropy.py
  python benchmarks/cross_entropy.py --tokens 2048 --repeats 1
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import statistics
import time
from typing import Any

import numpy as np

FORMS = ("plain", "chunked")


def measure(form: str, args: argparse.Namespace, pipe: Any) -> None:
    """Child process: loss and gradient of one form; sends figures and samples of the gradient."""
    import jax
    import jax.numpy as jnp

    from chameleon_jax.configs import LossConfig
    from chameleon_jax.training import losses

    function = losses.cross_entropy if form == "chunked" else losses.cross_entropy_plain
    rows, length = 2, args.tokens // 2
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.standard_normal((rows, length, args.width), np.float32))
    head = jnp.asarray(rng.standard_normal((args.width, args.vocab), np.float32) * 0.1)
    targets = jnp.asarray(rng.integers(0, args.vocab, (rows, length)))
    weights = jnp.asarray(rng.random((rows, length)) < 0.9, jnp.float32)
    modality = jnp.asarray(rng.integers(0, 2, (rows, length)))
    config = LossConfig(chunk=args.chunk)

    def mean_loss(hidden, head):
        sums = function(hidden, head, targets, weights, modality, (1.0, 1.0), config)
        return sums.objective / sums.normaliser

    compiled = jax.jit(jax.value_and_grad(mean_loss, argnums=(0, 1))).lower(hidden, head).compile()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    walls, cpus = [], []
    for _ in range(args.repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        loss, (d_hidden, d_head) = jax.block_until_ready(compiled(hidden, head))
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    pipe.send(
        {
            "figures": {
                "loss": float(loss),
                "temporary_mib": compiled.memory_analysis().temp_size_in_bytes / 2**20,
                "resident_growth_mib": (peak - before) / 2**10,
                "seconds": statistics.median(walls),
                "cpu_seconds": statistics.median(cpus),
            },
            # means over tokens scale gradients down; the comparison is relative to the largest entry
            "d_hidden": np.asarray(d_hidden),
            "d_head": np.asarray(d_head[:, :: max(1, args.vocab // 4096)]),
        }
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocab", type=int, default=65536)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--chunk", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    found = {}
    for form in FORMS:
        ours, theirs = context.Pipe()
        process = context.Process(target=measure, args=(form, args, theirs), daemon=True)
        process.start()
        found[form] = ours.recv()
        process.join()
    plain, chunked = (found[form]["figures"] for form in FORMS)
    result: dict[str, Any] = {form: found[form]["figures"] for form in FORMS}
    result["loss_difference"] = abs(plain["loss"] - chunked["loss"]) / abs(plain["loss"])
    for name in ("d_hidden", "d_head"):
        reference = found["plain"][name]
        result[f"{name}_difference"] = float(np.abs(found["chunked"][name] - reference).max() / np.abs(reference).max())
    for name in ("temporary_mib", "resident_growth_mib", "seconds", "cpu_seconds"):
        result[f"{name}_chunked_over_plain"] = chunked[name] / plain[name]
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
