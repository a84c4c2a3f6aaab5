"""Attention of packed rows: every backend that runs here against `jax.nn.dot_product_attention` with a mask, both directions.

Rounds go from one side to the next, and medians are compared. Memory is XLA's plan of temporaries. On a TPU or GPU the fused
kernels join by themselves.

Examples:
  python benchmarks/attention.py
  python benchmarks/attention.py --length 4096 --heads 32 --head 128 --dtype bfloat16     # the 7B's, on an accelerator
"""

from __future__ import annotations

import argparse
import functools
import statistics
import time

PEER = "jax.nn"


def sides(args: argparse.Namespace) -> dict:
    """name -> (query, key, value, mask) -> values [B T N H]."""
    import jax
    import jax.numpy as jnp

    from chameleon_jax.models.attention.registry import BACKENDS, attention
    from chameleon_jax.parallel.mesh import platform

    def peer(query, key, value, mask):
        key, value = jnp.moveaxis(key, 1, 2), jnp.moveaxis(value, 1, 2)
        return jax.nn.dot_product_attention(query, key, value, mask=mask.block(0, args.length, args.length)[:, None])

    def ours(name, query, key, value, mask):
        return attention(query, key, value, mask, backend=name, chunk=args.chunk).values

    here = [name for name, backend in BACKENDS.items() if platform() in backend.platforms]
    return {PEER: peer} | {name: functools.partial(ours, name) for name in here}


def measure(args: argparse.Namespace) -> list[dict]:
    """A row a side: seconds of forward, and of forward and backward; MiB of the latter; distance from the peer's values."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from chameleon_jax.models.attention.mask import MaskSpec

    rng = np.random.default_rng(0)
    segments = jnp.asarray(np.sort(rng.integers(1, args.segments + 1, (args.rows, args.length))), jnp.int32)
    mask = MaskSpec(query_segments=segments, key_segments=segments)
    shapes = [
        (args.rows, args.length, args.heads, args.head),
        *[(args.rows, args.kv_heads, args.length, args.head)] * 2,
    ]
    given = tuple(jnp.asarray(rng.standard_normal(shape), args.dtype) for shape in shapes)

    def programs(attend):
        def total(given):
            return jnp.sum(jnp.square(attend(*given, mask).astype(jnp.float32)))

        forward = jax.jit(lambda given: attend(*given, mask)).lower(given).compile()
        return forward, jax.jit(jax.grad(total)).lower(given).compile()

    compiled = {name: programs(attend) for name, attend in sides(args).items()}
    outputs = {name: np.asarray(forward(given), np.float32) for name, (forward, _) in compiled.items()}
    seconds = {name: ([], []) for name in compiled}
    for _ in range(args.repeats):
        for name, pair in compiled.items():
            for program, found in zip(pair, seconds[name], strict=True):
                begin = time.perf_counter()
                jax.block_until_ready(program(given))
                found.append(time.perf_counter() - begin)
    return [
        {
            "backend": name,
            "forward": statistics.median(seconds[name][0]),
            "both": statistics.median(seconds[name][1]),
            "mib": compiled[name][1].memory_analysis().temp_size_in_bytes / 2**20,
            "distance": np.abs(outputs[name] - outputs[PEER]).max() / np.abs(outputs[PEER]).max(),
        }
        for name in compiled
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("rows", 2), ("length", 1024), ("heads", 8), ("head", 64), ("segments", 3), ("repeats", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--kv-heads", type=int, help="as many as heads unless given")
    parser.add_argument("--chunk", type=int, default=256)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    args = parser.parse_args()
    args.kv_heads = args.kv_heads or args.heads
    rows = measure(args)
    peer = rows[0]
    print(
        f"{'backend':<10} {'forward':>9} {'+backward':>10} {'memory':>10} {'distance':>9}   {PEER}'s time / its, memory"
    )
    for row in rows:
        times, memory = peer["both"] / row["both"], peer["mib"] / max(row["mib"], 1e-9)
        print(
            f"{row['backend']:<10} {row['forward'] * 1e3:6.1f} ms {row['both'] * 1e3:7.1f} ms {row['mib']:6.0f} MiB"
            f" {row['distance']:9.1e}   {times:.2f} x, {memory:.2f} x"
        )


if __name__ == "__main__":
    main()
