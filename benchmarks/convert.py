"""Imports a synthetic checkpoint of a released size and measures peak memory and rate, beside a plain copy of the same bytes.

    python benchmarks/convert.py                                  # 7B, safetensors, bf16: 14 GB are written twice
    python benchmarks/convert.py --layout meta --preset chameleon-34b --layers 8

Expected: bound by the disk and one pass of transposes; memory by a few copies of the largest tensor. The rule that must hold: peak
memory below 4 x the largest tensor + 2 GiB, at least 100 MB/s.
"""

import argparse
import dataclasses
import json
import multiprocessing
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time

import ml_dtypes
import numpy as np

from chameleon_jax.convert import hf, layout, meta, source
from chameleon_jax.convert.layout import Parameter
from chameleon_jax.convert.releases import RELEASES, release
from chameleon_jax.convert.source import Report

SHARD_BYTES = 5 << 30  # as large as Hugging Face's were


class Synthetic:
    """Weights of random bits, different for every parameter and layer."""

    flavour, report = "synthetic", Report()

    def __init__(self, config):
        self.config = config
        self._bits = np.random.default_rng(0).integers(0, 0x3F80, 1 << 25, np.uint16)

    def read(self, parameter: Parameter, layer: int | None) -> np.ndarray:
        shape = layout.our_shape(parameter, self.config)
        start = hash((parameter.path, layer)) % 1_000_003
        bits = np.resize(np.roll(self._bits[: 1 << 20], start) if np.prod(shape) < 1 << 20 else self._bits, shape)
        return bits.view(ml_dtypes.bfloat16)


def make(folder: pathlib.Path, config, kind: str) -> None:
    weights = Synthetic(config)
    if kind == "meta":
        meta.write_weights(weights, folder, meta.default_shards(config))
        return
    (folder / hf.CONFIG).write_text(json.dumps(hf.config_values(config)))
    hf.write_weights(weights, folder, {}, SHARD_BYTES)


def peak_memory(pid: int) -> int:
    """Bytes of the largest resident set that a process has had."""
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", pathlib.Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return 0
    return int(found[1]) * 1024 if found else 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=tuple(RELEASES), default="chameleon-7b")
    parser.add_argument("--layout", choices=("hf", "meta"), default="hf")
    parser.add_argument("--layers", type=int, help="fewer layers than the release, for a small disk")
    parser.add_argument("--folder", help="where to work; a temporary folder by default")
    args = parser.parse_args()
    config = release(args.preset).model
    config = dataclasses.replace(
        config, n_layers=args.layers or config.n_layers, param_dtype="bfloat16", compute_dtype="bfloat16"
    )
    with tempfile.TemporaryDirectory(dir=args.folder) as temporary:
        root = pathlib.Path(temporary)
        made = root / "source"
        made.mkdir()
        started = time.monotonic()
        maker = multiprocessing.get_context("spawn").Process(target=make, args=(made, config, args.layout))
        maker.start()
        maker.join()
        size = sum(path.stat().st_size for path in made.iterdir())
        print(f"made {size / 1e9:.1f} GB in {time.monotonic() - started:.0f} s", flush=True)

        started = time.monotonic()
        command = ["experiments.convert", f"--source={made}", f"--output={root / 'run'}"]
        converter = subprocess.Popen([sys.executable, "-m", *command])
        peak = 0
        # The kernel's own peak (VmHWM): that of getrusage includes the process that made it.
        while converter.poll() is None:
            peak = max(peak, peak_memory(converter.pid))
            time.sleep(0.2)
        seconds = time.monotonic() - started
        if converter.returncode:
            sys.exit(converter.returncode)
        largest = max(piece[2] for piece in source.pieces(config))
        allowed = 4 * largest + (2 << 30)
        shutil.rmtree(root / "run")

        started = time.monotonic()
        subprocess.run(["cp", "-r", str(made), str(root / "copy")], check=True)
        subprocess.run(["sync", "-f", str(root / "copy")], check=True)
        copy = time.monotonic() - started
    print(
        f"import {seconds:.0f} s, {size / 1e6 / seconds:.0f} MB/s; cp and sync of the same bytes {size / 1e6 / copy:.0f} MB/s"
    )
    print(
        f"peak memory {peak / 2**30:.2f} GiB, allowed {allowed / 2**30:.2f} GiB (largest tensor {largest / 2**20:.0f} MiB)"
    )


if __name__ == "__main__":
    main()
