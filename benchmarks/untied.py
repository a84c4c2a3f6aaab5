"""What untied parts cost: one product, a whole training step and a decoding step, each as a ratio to the tied model.

All variants of a table live in one process and take turns (A B C A B C ...), so that whatever else the machine does disturbs them
alike; a ratio is the median over rounds of the ratio within a round. The product is measured in three formulations:
ours (`models.untied`), all matrices and a selection, and `jax.lax.ragged_dot`.

Examples:
  python benchmarks/untied.py                       # 34 M parameters, fp32
  python benchmarks/untied.py --shapes emoji --dtype bfloat16 --rounds 20
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

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
from chameleon_jax.generation.weights import decoding_form
from chameleon_jax.models import kv_cache, transformer, untied
from chameleon_jax.models.layers import linear
from chameleon_jax.parallel.mesh import DECODING, TRAINING, make_mesh
from chameleon_jax.training import state, step
from chameleon_jax.training.pretraining import PretrainTask
from chameleon_jax.training.task import Recipe

PARTS = {"mlp": ("mlp",), "all": ("mlp", "norms", "attention")}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shapes:
    """A model and its batch; spans of `text` words and `image` codes alternate in every row, from a random place."""

    d_model: int
    layers: int
    heads: int
    d_ff: int
    vocab: int
    rows: int
    tokens: int
    text: int
    image: int

    def model(self, dtype: str, parts: tuple[str, ...]) -> TransformerConfig:
        return TransformerConfig(
            vocab_size=self.vocab,
            d_model=self.d_model,
            n_layers=self.layers,
            n_heads=self.heads,
            n_kv_heads=self.heads,
            head_dim=self.d_model // self.heads,
            d_ff=self.d_ff,
            max_seq_len=self.tokens,
            attention_chunk=128,
            compute_dtype=dtype,
            untied=parts,
        )

    def modality(self) -> np.ndarray:
        starts = np.random.default_rng(0).integers(0, self.text + self.image, (self.rows, 1))
        return ((np.arange(self.tokens) + starts) % (self.text + self.image) >= self.text).astype(np.int32)


SHAPES = {
    "34m": Shapes(d_model=512, layers=8, heads=8, d_ff=1376, vocab=8192, rows=4, tokens=512, text=80, image=160),
    "emoji": Shapes(d_model=128, layers=4, heads=4, d_ff=344, vocab=4118, rows=16, tokens=192, text=16, image=66),
}


def products(shapes: Shapes, dtype: str) -> dict[str, Callable[[], Any]]:
    """Value and gradient of one product with the matrix `gate`."""
    modality, rng = jnp.asarray(shapes.modality()), np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(shapes.rows, shapes.tokens, shapes.d_model)), dtype)
    kernel = jnp.asarray(rng.normal(size=(2, shapes.d_model, shapes.d_ff)), jnp.float32)
    slopes = jnp.asarray(rng.normal(size=(shapes.rows, shapes.tokens, shapes.d_ff)), dtype)

    def chunks(x, kernel, modality):
        routes = untied.route(modality, jnp.ones_like(modality), 2, TRAINING)
        return untied.to_positions(untied.product(untied.to_places(x, routes), kernel, "D F", routes, TRAINING), routes)

    def select(x, kernel, modality):
        return jnp.where(modality[..., None] == 0, linear(x, kernel[0]), linear(x, kernel[1]))

    def ragged(x, kernel, modality):
        ids = modality.reshape(-1)
        order = jnp.argsort(ids, stable=True)
        sizes = jnp.bincount(ids, length=2).astype(jnp.int32)
        out = jax.lax.ragged_dot(x.reshape(len(ids), -1)[order], kernel.astype(x.dtype), sizes)
        return out[jnp.argsort(order)].reshape(slopes.shape)

    def timed(function):
        def value(x, kernel, modality):
            return jnp.sum((function(x, kernel, modality) * slopes).astype(jnp.float32))

        gradient = jax.jit(jax.value_and_grad(value, argnums=(0, 1)))
        return lambda: jax.block_until_ready(gradient(x, kernel, modality))

    tied = lambda x, kernel, modality: linear(x, kernel[0])  # noqa: E731
    return {name: timed(f) for name, f in {"tied": tied, "chunks": chunks, "select": select, "ragged": ragged}.items()}


def training(shapes: Shapes, dtype: str) -> dict[str, Callable[[], Any]]:
    """A whole step: loss, gradient, clipping, AdamW."""

    def of(parts: tuple[str, ...]) -> Callable[[], Any]:
        config = PretrainConfig(
            model=shapes.model(dtype, parts),
            data=DataConfig(stores=(StoreConfig(path="unused"),), seq_len=shapes.tokens),
            train=TrainConfig(steps=10_000, batch_size=shapes.rows),
        )
        rng, shape = np.random.default_rng(0), (shapes.rows, shapes.tokens)
        tokens, modality = rng.integers(0, shapes.vocab, shape, dtype=np.int32), shapes.modality()
        batch = Batch(
            tokens=tokens,
            targets=np.roll(tokens, -1, axis=1),
            loss_weights=np.ones(shape, np.float32),
            segment_ids=np.ones(shape, np.int32),
            positions=np.broadcast_to(np.arange(shapes.tokens, dtype=np.int32), shape),
            modality=np.roll(modality, -1, axis=1),
            input_modality=modality,
        )
        mesh, recipe = make_mesh(MeshConfig()), Recipe.of(PretrainTask(config=config, vocab=text_and_image()), config)
        compiled = step.compiled_train_step(recipe, mesh, statistics=False)
        holder = [state.initialise(recipe.task.initial_params(None, mesh), recipe, mesh)]

        def run() -> None:
            with jax.set_mesh(mesh):
                holder[0], _ = jax.block_until_ready(compiled(holder[0], batch))

        return run

    return {"tied": of(())} | {name: of(parts) for name, parts in PARTS.items()}


def decoding(shapes: Shapes, dtype: str) -> dict[str, Callable[[], Any]]:
    """Eight tokens of one row, of one modality; and of four rows of both."""

    def of(parts: tuple[str, ...], modality: list[int]) -> Callable[[], Any]:
        model, rows = shapes.model(dtype, parts), len(modality)
        weights = decoding_form(transformer.init(jax.random.key(0), model), model, "as they are")
        cache = kv_cache.create(model, rows, shapes.tokens, DECODING)
        ids, ones = jnp.asarray(modality)[:, None], jnp.ones((rows, 1), jnp.int32)

        @jax.jit
        def run(weights, cache):
            def one(i, cache):
                made = transformer.forward(
                    weights, ones, ones * i, ones, model, modality=ids, cache=cache, rules=DECODING
                )
                return made.cache

            return jax.lax.fori_loop(0, 8, one, cache)

        return lambda: jax.block_until_ready(run(weights, cache))

    made = {}
    for rows, modality in (("one row", [1]), ("four rows", [0, 1, 0, 1])):
        made |= {f"tied, {rows}": of((), modality), f"all, {rows}": of(PARTS["all"], modality)}
    return made


def compare(runs: dict[str, Callable[[], Any]], rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds (median) of each by the wall and of the processor, and ratios to the last variant before it called tied."""
    for run in runs.values():
        run(), run()
    clocks = {"wall": time.perf_counter, "cpu": time.process_time}
    seconds: dict[str, dict[str, list[float]]] = {name: {clock: [] for clock in clocks} for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            starts = {clock: read() for clock, read in clocks.items()}
            run()
            for clock, read in clocks.items():
                seconds[name][clock].append(read() - starts[clock])
    table, base = {}, {}
    for name, times in seconds.items():
        base = times if name.startswith("tied") else base
        table[name] = {}
        for clock in clocks:
            ratio = statistics.median(a / b for a, b in zip(times[clock], base[clock], strict=True))
            table[name] |= {
                f"{clock}_ms": round(1e3 * statistics.median(times[clock]), 2),
                f"{clock}_ratio": round(ratio, 3),
            }
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", choices=SHAPES, default="34m")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--tables", nargs="+", choices=("product", "training", "decoding"), default=[])
    args = parser.parse_args()
    tables = {"product": products, "training": training, "decoding": decoding}
    for name in args.tables or tables:
        print(json.dumps({name: compare(tables[name](SHAPES[args.shapes], args.dtype), args.rounds)}, indent=1))


if __name__ == "__main__":
    main()
