"""Training speed on the CPU against Hugging Face's torch Chameleon: one whole optimiser step of a 34 M parameter model.

Each side lives in its own process, warm, and the parent lets them work strictly in turn (A B A B ...), so whatever
else the machine does disturbs both alike; medians of wall time and of CPU time are reported, and both sides as a fraction of the
best fp32 matrix product measured between the same turns.

Examples:
  python benchmarks/train_step.py
  python benchmarks/train_step.py --huge_pages
  python benchmarks/train_step.py --rounds 12 --steps 2 --layers 2      # quick look
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

SIDES = ("chameleon_jax", "huggingface")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shapes:
    """Sizes that both models share."""

    d_model: int = 512
    layers: int = 8
    heads: int = 8
    head_dim: int = 64
    d_ff: int = 1376
    vocab: int = 8192
    rows: int = 4
    tokens: int = 512

    def matmul_flops(self) -> float:
        """FLOPs of the matrix products of one step: 6 per weight and token, causal attention counted by its visible half."""
        per_layer = 4 * self.d_model * self.heads * self.head_dim + 3 * self.d_model * self.d_ff
        weights = self.layers * per_layer + self.d_model * self.vocab
        attention = 6 * self.layers * self.heads * self.head_dim * self.tokens
        return float(self.rows * self.tokens * (6 * weights + attention))


def chameleon_jax_side(shapes: Shapes, overrides: dict[str, Any]) -> tuple[Callable[[], float], Callable[[], float]]:
    """(one training step that returns its loss, one 2048^3 matrix product that returns its seconds)."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from chameleon_jax.configs import (
        DataConfig,
        MeshConfig,
        PretrainConfig,
        StoreConfig,
        TrainConfig,
        TransformerConfig,
        text_and_image,
    )
    from chameleon_jax.data.batch import Batch
    from chameleon_jax.parallel.mesh import make_mesh
    from chameleon_jax.training import state, step
    from chameleon_jax.training.pretraining import PretrainTask
    from chameleon_jax.training.task import Recipe

    model = TransformerConfig(
        vocab_size=shapes.vocab,
        d_model=shapes.d_model,
        n_layers=shapes.layers,
        n_heads=shapes.heads,
        n_kv_heads=shapes.heads,
        head_dim=shapes.head_dim,
        d_ff=shapes.d_ff,
        max_seq_len=shapes.tokens,
        compute_dtype="float32",
        scan_unroll=shapes.layers,
        **overrides,
    )
    config = PretrainConfig(
        model=model,
        data=DataConfig(stores=(StoreConfig(path="unused"),), seq_len=shapes.tokens),
        train=TrainConfig(steps=10_000, batch_size=shapes.rows),
    )
    rng = np.random.default_rng(0)
    shape = (shapes.rows, shapes.tokens)
    batch = Batch(
        tokens=rng.integers(0, shapes.vocab, shape, dtype=np.int32),
        targets=rng.integers(0, shapes.vocab, shape, dtype=np.int32),
        loss_weights=np.ones(shape, np.float32),
        segment_ids=np.ones(shape, np.int32),
        positions=np.broadcast_to(np.arange(shapes.tokens, dtype=np.int32), shape),
        modality=rng.integers(0, 2, shape, dtype=np.int32),
        input_modality=rng.integers(0, 2, shape, dtype=np.int32),
    )
    mesh = make_mesh(MeshConfig())
    recipe = Recipe.of(PretrainTask(config=config, vocab=text_and_image()), config)
    compiled = step.compiled_train_step(recipe, mesh, statistics=False)
    holder = [state.initialise(recipe.task.initial_params(None, mesh), recipe, mesh)]

    def run() -> float:
        with jax.set_mesh(mesh):
            holder[0], metrics = compiled(holder[0], batch)
            jax.block_until_ready(holder[0])
        return float(metrics.sums.objective / metrics.sums.normaliser)

    product = jax.jit(jnp.matmul)
    square = jnp.ones((2048, 2048), jnp.float32)
    return run, lambda: _seconds(lambda: product(square, square).block_until_ready())


def huggingface_side(shapes: Shapes, overrides: dict[str, Any]) -> tuple[Callable[[], float], Callable[[], float]]:
    """The same for transformers' Chameleon with torch's fused AdamW and scaled-dot-product attention."""
    import torch
    from transformers import ChameleonConfig, ChameleonForConditionalGeneration

    torch.set_num_threads(os.cpu_count() or 1)
    torch.manual_seed(0)
    config = ChameleonConfig(
        vocab_size=shapes.vocab,
        hidden_size=shapes.d_model,
        intermediate_size=shapes.d_ff,
        num_hidden_layers=shapes.layers,
        num_attention_heads=shapes.heads,
        num_key_value_heads=shapes.heads,
        max_position_embeddings=shapes.tokens,
        vocabulary_map={"<image>": 8, "IMGIMGBZ": 4},
        vq_config={"base_channels": 32, "channel_multiplier": [1], "num_res_blocks": 1, "num_embeddings": 8},
        attn_implementation="sdpa",
    )
    model = ChameleonForConditionalGeneration(config).train()
    trained = [p for name, p in model.named_parameters() if "vqmodel" not in name]
    optimizer = torch.optim.AdamW(
        trained, lr=1e-4, betas=(0.9, 0.95), eps=1e-5, weight_decay=0.1, **{overrides.get("optimizer", "fused"): True}
    )
    ids = torch.randint(16, shapes.vocab, (shapes.rows, shapes.tokens))

    def run() -> float:
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    square = torch.ones(2048, 2048)
    return run, lambda: _seconds(lambda: square @ square)


def _seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _serve(side: str, shapes: Shapes, overrides: dict[str, Any], pipe: Any) -> None:
    """Child process: do what the parent asks, one thing at a time."""
    run, product = {"chameleon_jax": chameleon_jax_side, "huggingface": huggingface_side}[side](shapes, overrides)
    losses = [run(), run()]  # compile and warm up
    product()
    pipe.send({"first_losses": losses})
    while (steps := pipe.recv()) is not None:
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(steps):
            run()
        wall, cpu = (time.perf_counter() - wall) / steps, (time.process_time() - cpu) / steps
        pipe.send({"wall": wall, "cpu": cpu, "matmul": min(product() for _ in range(3))})


def compare(shapes: Shapes, rounds: int, steps: int, overrides: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Measure both sides in turn, `rounds` times `steps` steps; the returned dictionary is what is printed."""
    context = multiprocessing.get_context("spawn")
    workers = {}
    for side in SIDES:
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(side, shapes, overrides.get(side, {}), theirs), daemon=True)
        process.start()
        ours.recv()
        workers[side] = (process, ours)
    measured: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    for turn in range(rounds):
        for side in SIDES if turn % 2 == 0 else SIDES[::-1]:
            workers[side][1].send(steps)
            measured[side].append(workers[side][1].recv())
    for process, pipe in workers.values():
        pipe.send(None)
        process.join()
    peak = 2 * 2048**3 / min(m["matmul"] for side in SIDES for m in measured[side])
    result: dict[str, Any] = {"shapes": dataclasses.asdict(shapes), "rounds": rounds, "matmul_peak_gflops": peak / 1e9}
    result["glibc_tunables"] = os.environ.get("GLIBC_TUNABLES", "")
    for side in SIDES:
        wall = statistics.median(m["wall"] for m in measured[side])
        best = min(m["wall"] for m in measured[side])
        result[side] = {
            "ms_per_step": 1e3 * wall,
            "best_ms_per_step": 1e3 * best,
            "cpu_ms_per_step": 1e3 * statistics.median(m["cpu"] for m in measured[side]),
            "fraction_of_matmul_peak": shapes.matmul_flops() / wall / peak,
            "version": importlib.import_module("jax" if side == "chameleon_jax" else "transformers").__version__,
        }
    jax_side, torch_side = (measured[side] for side in SIDES)
    result["speed_ratio"] = statistics.median(t["wall"] / j["wall"] for j, t in zip(jax_side, torch_side, strict=True))
    for name in ("best_ms_per_step", "cpu_ms_per_step"):
        result[f"ratio_of_{name}"] = result["huggingface"][name] / result["chameleon_jax"][name]
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=1, help="training steps in one turn")
    parser.add_argument("--layers", type=int, default=Shapes.layers)
    parser.add_argument(
        "--model", type=json.loads, default={"attention_chunk": 128}, help="TransformerConfig fields as JSON"
    )
    parser.add_argument(
        "--huge_pages", action="store_true", help="glibc's malloc asks for huge pages (GLIBC_TUNABLES), on both sides"
    )
    parser.add_argument("--torch_adamw", choices=("fused", "foreach"), default="fused")
    args = parser.parse_args()
    if args.huge_pages:
        os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"  # read by the child processes when they start
    overrides = {"chameleon_jax": args.model, "huggingface": {"optimizer": args.torch_adamw}}
    result = compare(Shapes(layers=args.layers), args.rounds, args.steps, overrides)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
