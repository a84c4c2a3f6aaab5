"""The server under load: many clients that stream at once, every stream compared with the same request alone.

A small random model is served by a process of its own. First each of a few different requests runs alone; then CLIENTS clients send
them, in an order of their own, for SECONDS: words, pictures with previews, and some that leave in the middle. Prints 5xx, refusals,
streams that were lost or differ, tokens/s and the server's memory; exits with 1 where a promise is broken.

Example:
  python benchmarks/serve_load.py --clients=64 --seconds=120
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import httpx
import numpy as np
import psutil

CHAT = "/v1/chat/completions"
LEAVES = 0.1  # of requests whose client goes away before the end
FLAT = 1.05  # memory at the end over memory after the first quarter
QUEUE = 128


def make_workdir(folder: Path) -> None:
    """A run of random weights: 2 layers of 128, pictures of 64 codes."""
    import jax
    import jax.numpy as jnp

    from chameleon_jax.checkpoints.checkpointer import Checkpointer
    from chameleon_jax.configs import CheckpointConfig, ImageConfig, TransformerConfig, VQConfig, text_and_image
    from chameleon_jax.models import transformer
    from chameleon_jax.models.params import map_specs
    from chameleon_jax.tokenizers import vqgan
    from chameleon_jax.tokenizers.bundle import TokenizerBundle
    from chameleon_jax.tokenizers.text import train_bpe

    codec = VQConfig(
        resolution=32, patch_size=4, channels=8, channel_multipliers=(1,), res_blocks=1, latent_channels=8, embed_dim=8,
        codes=64, norm_groups=4,
    )  # fmt: skip
    text = train_bpe(
        ["some words, größer, 日本語"], text_and_image(image_codes=64, reserved=9, text_tokens=300, codes_per_image=64)
    )
    bundle = TokenizerBundle.of_pictures(
        images=ImageConfig(resolution=32),
        text=text,
        vqgan=vqgan.Codec(params=vqgan.init(jax.random.key(0), codec), config=codec),
    )
    shape = {"d_model": 128, "n_layers": 2, "n_heads": 4, "n_kv_heads": 4, "head_dim": 32, "d_ff": 256}
    model = TransformerConfig(vocab_size=bundle.vocab.size, compute_dtype="float32", max_seq_len=512, **shape)
    rng = np.random.default_rng(0)
    params = map_specs(
        lambda spec: jnp.asarray(rng.normal(size=spec.shape) * 0.1, spec.dtype), transformer.param_specs(model)
    )
    checkpointer = Checkpointer(folder / "checkpoints", CheckpointConfig())
    checkpointer.save(1, {"params": params}, {"config": {"model": model.to_dict()}})
    checkpointer.close()
    bundle.save(folder / "tokenizer")


def requests() -> list[dict]:
    """Different prompts, seeds, modes and lengths."""
    made = []
    for i in range(24):
        message = {"role": "user", "content": f"some words {i} " * (1 + i % 5)}
        body = {"messages": [message], "seed": i, "stream": True, "return_token_ids": True, "temperature": 1.0}
        mode = ("text", "interleaved", "image", "text")[i % 4]
        limit = {"max_tokens": 150, "max_images": 1} if mode == "image" else {"max_tokens": 40 + 5 * i}
        made.append(body | limit | {"mode": mode, "partial_every": 24})
    return made


@dataclasses.dataclass
class Totals:
    streams: int = 0
    left: int = 0
    refused: int = 0
    server_errors: int = 0
    lost: int = 0
    mixed: int = 0
    tokens: int = 0


async def stream(client: httpx.AsyncClient, body: dict, leave_after: int | None = None) -> tuple[int, str | None, int]:
    """(status, fingerprint of all that came or None where it is not whole, ids)."""
    ids, text, pictures, finish, events = [], "", [], None, 0
    async with client.stream("POST", CHAT, json=body) as response:
        if response.status_code != 200:
            await response.aread()
            return response.status_code, None, 0
        async for line in response.aiter_lines():
            events += 1
            if leave_after is not None and events > leave_after:
                return 200, None, len(ids)
            if not line.startswith("data: {"):
                if line == "data: [DONE]" and finish:
                    content = json.dumps([ids, text, pictures, finish])
                    return 200, hashlib.sha256(content.encode()).hexdigest(), len(ids)
                continue
            chunk = json.loads(line[6:])
            if "error" in chunk:
                print("error in a stream:", chunk["error"], file=sys.stderr)
                return 200, None, len(ids)
            for choice in chunk["choices"]:
                delta = choice["delta"]
                ids += delta.get("token_ids", [])
                text += delta.get("content") or ""
                # Previews are left out under load.
                pictures += [image["image_url"]["url"] for image in delta.get("images", []) if not image["partial"]]
                finish = choice["finish_reason"] or finish
    return 200, None, len(ids)


async def one_client(number: int, client: httpx.AsyncClient, bodies, alone, totals: Totals, until: float) -> None:
    rng = random.Random(number)
    while time.monotonic() < until:
        which = rng.randrange(len(bodies))
        leaves = rng.random() < LEAVES
        try:
            status, found, ids = await stream(client, bodies[which], rng.randrange(1, 20) if leaves else None)
        except httpx.HTTPError as error:
            print("lost:", type(error).__name__, error, file=sys.stderr)
            totals.lost += 1
            continue
        totals.tokens += ids
        if status == 429:
            totals.refused += 1
            await asyncio.sleep(1)
        elif status != 200:
            totals.server_errors += status >= 500
        elif leaves:
            totals.left += 1
        else:
            totals.streams += 1
            totals.lost += found is None
            totals.mixed += found is not None and found != alone[which]


async def watch_memory(process: psutil.Process, samples: list[float], until: float) -> None:
    while time.monotonic() < until:
        samples.append(process.memory_info().rss / 2**20)
        await asyncio.sleep(0.5)


async def load(url: str, process: psutil.Process, options) -> int:
    limits = httpx.Limits(max_connections=options.clients + 4)
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as client:
        bodies, alone = requests(), []
        for body in bodies:
            status, found, _ = await stream(client, body)
            assert status == 200 and found, (status, body)
            alone.append(found)
        # All slots are filled once, so that what compilation takes is not counted as growth.
        await asyncio.gather(*(stream(client, body) for body in bodies * 2))
        print(f"{len(bodies)} requests alone; {options.clients} clients for {options.seconds} s")
        totals, samples, started = Totals(), [], time.monotonic()
        until = started + options.seconds
        clients = [one_client(i, client, bodies, alone, totals, until) for i in range(options.clients)]
        await asyncio.gather(watch_memory(process, samples, until), *clients)
        seconds = time.monotonic() - started
        health = {}
        for _ in range(50):  # cancelled ones leave when the block under way is done
            health = (await client.get("/health")).json()
            if not health["running"] and not health["queued"]:
                break
            await asyncio.sleep(0.1)
    early = np.mean(samples[len(samples) // 4 : len(samples) // 2])
    late = np.mean(samples[-len(samples) // 4 :])
    print(f"streams {totals.streams}, left early {totals.left}, refused (429) {totals.refused}")
    print(f"5xx {totals.server_errors}, lost {totals.lost}, different from the same request alone {totals.mixed}")
    print(f"{totals.tokens / seconds:.0f} tokens/s, {totals.streams / seconds:.1f} streams/s")
    print(f"memory {early:.0f} MiB in the second quarter, {late:.0f} MiB in the last: {late / early:.3f} x")
    print(f"afterwards running {health['running']}, queued {health['queued']}")
    bad = totals.server_errors + totals.lost + totals.mixed + health["running"] + health["queued"]
    return int(bad > 0 or late > FLAT * early or totals.streams == 0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--slots", type=int, default=16)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        make_workdir(Path(folder) / "model")
        command = [sys.executable, "-m", "experiments.serve", f"--workdir={folder}/model", "--port=0"]
        command += [f"--slots={options.slots}", "--gin.ServeConfig.engine=@EngineConfig()"]
        command += [f"--gin.EngineConfig.max_queued={QUEUE}"]
        root = Path(__file__).parents[1]
        with open(Path(folder) / "log", "w+") as log:
            environment = {**os.environ, "JAX_PLATFORMS": os.environ.get("JAX_PLATFORMS", "cpu")}
            process = subprocess.Popen(command, cwd=root, stderr=log, env=environment)
            try:
                url = wait_for_url(Path(folder) / "log", process)
                code = asyncio.run(load(url, psutil.Process(process.pid), options))
            finally:
                process.terminate()
                ended = process.wait(60)
        print(f"exit code of the server after SIGTERM: {ended}")
        return code or ended


def wait_for_url(log: Path, process: subprocess.Popen) -> str:
    for _ in range(600):
        for line in log.read_text().splitlines():
            if " serving " in line:
                return line.split()[-1]
        if process.poll() is not None:
            break
        time.sleep(0.2)
    raise SystemExit(f"the server did not start:\n{log.read_text()}")


if __name__ == "__main__":
    sys.exit(main())
