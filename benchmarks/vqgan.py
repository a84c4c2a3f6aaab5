"""Speed of the image codec on the CPU against torch: one 512x512 picture encoded and decoded, default sizes, float32.

Each side lives in its own warm process with the same number of threads and the same weights, and the parent lets them
work strictly in turn (A B B A ...), so whatever else the machine does disturbs both alike. The ratio is the median over rounds of
torch's time by ours in the same round: above 1 we are faster. The torch modules are those that the tests of conversion hold us to.

On 2 shared CPU cores (jax 0.10.2, torch 2.13.0, 7 rounds), encode is 1.28 times torch's speed by wall time and 1.18 by CPU time,
decode 1.21 and 1.08. Seconds a picture vary there with the load: CPU time is the steadier figure.

Examples:
  python benchmarks/vqgan.py
  python benchmarks/vqgan.py --rounds 2 --resolution 256      # quick look
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SIDES = ("chameleon_jax", "torch")
TASKS = ("encode", "decode")


def torch_side(resolution: int) -> dict[str, Callable[[], Any]]:
    """Task -> the call that does it on torch's modules; pixels and codes end as numpy arrays."""
    import numpy as np
    import torch

    torch.set_num_threads(os.cpu_count() or 1)
    model = _torch_model()
    pixels, codes = _inputs(resolution)
    images = torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))

    def run(call: Callable[..., torch.Tensor], inputs: torch.Tensor) -> Any:
        with torch.inference_mode():
            return call(inputs).numpy()

    return {
        "encode": lambda: run(model.encode, images),
        "decode": lambda: run(model.decode, torch.from_numpy(codes)),
    }


def chameleon_jax_side(resolution: int) -> dict[str, Callable[[], Any]]:
    """The same on ours, from the same weights."""
    import jax
    import numpy as np

    from chameleon_jax.configs import VQConfig
    from chameleon_jax.convert import vqgan as convert
    from chameleon_jax.tokenizers import vqgan

    config = VQConfig()
    tensors = {name: value.numpy() for name, value in _torch_model().state_dict().items()}
    params = jax.device_put(convert.from_torch(tensors, config, "benchmark"))
    pixels, codes = _inputs(resolution)
    encode, decode = (jax.jit(function, static_argnums=2) for function in (vqgan.encode, vqgan.decode))
    return {
        "encode": lambda: np.asarray(encode(params, pixels, config)),
        "decode": lambda: np.asarray(decode(params, codes, config)),
    }


def _torch_model() -> Any:
    sys.path.append(str(Path(__file__).parents[1] / "tests" / "convert"))
    import torch_vqgan

    return torch_vqgan.random_vqgan(torch_vqgan.Sizes())


def _inputs(resolution: int) -> tuple[Any, Any]:
    import numpy as np

    generator = np.random.default_rng(0)
    pixels = generator.uniform(-1, 1, (1, resolution, resolution, 3)).astype(np.float32)
    return pixels, generator.integers(0, 8192, (1, resolution // 16, resolution // 16))


def _serve(side: str, resolution: int, pipe: Any) -> None:
    """Child process: do what the parent asks, one thing at a time."""
    calls = {"chameleon_jax": chameleon_jax_side, "torch": torch_side}[side](resolution)
    for call in calls.values():
        call()  # compile and warm up
    pipe.send("ready")
    while (task := pipe.recv()) is not None:
        wall, cpu = time.perf_counter(), time.process_time()
        calls[task]()
        pipe.send({"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu})


def compare(rounds: int, resolution: int) -> dict[str, Any]:
    """Measure both sides in turn; the returned dictionary is what is printed."""
    context = multiprocessing.get_context("spawn")
    workers = {}
    for side in SIDES:
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(side, resolution, theirs), daemon=True)
        process.start()
        ours.recv()
        workers[side] = (process, ours)
    measured: dict[tuple[str, str], list[dict[str, float]]] = {(side, task): [] for side in SIDES for task in TASKS}
    for turn in range(rounds):
        for task in TASKS:
            for side in SIDES if turn % 2 == 0 else SIDES[::-1]:
                workers[side][1].send(task)
                measured[side, task].append(workers[side][1].recv())
    for process, pipe in workers.values():
        pipe.send(None)
        process.join()
    result: dict[str, Any] = {"resolution": resolution, "rounds": rounds, "cores": os.cpu_count()}
    for task in TASKS:
        result[task] = {}
        for side in SIDES:
            seconds = statistics.median(m["wall"] for m in measured[side, task])
            result[task][side] = {"seconds": seconds, "images_per_second": 1 / seconds}
        for clock in ("wall", "cpu"):
            pairs = zip(measured["torch", task], measured["chameleon_jax", task], strict=True)
            result[task][f"{clock}_speed_ratio"] = statistics.median(t[clock] / j[clock] for t, j in pairs)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--resolution", type=int, default=512, help="side of the square picture, a multiple of 16")
    args = parser.parse_args()
    print(json.dumps(compare(args.rounds, args.resolution), indent=2))


if __name__ == "__main__":
    main()
