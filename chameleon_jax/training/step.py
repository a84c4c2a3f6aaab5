"""One optimizer step as a pure function ready to jit.

Gradients are of the *sum* of the loss; sums of microbatches, modalities and devices are added first and divided once by the global
weight, and dropout is drawn row by row, so how a batch is cut changes nothing.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from chameleon_jax.models import params
from chameleon_jax.models.keys import fold_name
from chameleon_jax.models.statistics import Statistics
from chameleon_jax.parallel import shards
from chameleon_jax.parallel.mesh import TRAINING, batch_sharding, replicated
from chameleon_jax.training import guard, optim, state
from chameleon_jax.training.state import TrainState
from chameleon_jax.training.task import Recipe, Sums


@flax.struct.dataclass
class StepMetrics:
    """What a step reports; still on the device. Norms are of whole trees; `statistics` are [L] each, None where not asked for."""

    sums: Sums
    gradient_norm: Float[Array, ""]
    update_norm: Float[Array, ""]
    parameter_norm: Float[Array, ""]
    learning_rate: Float[Array, ""]
    skipped: Int[Array, ""]
    tokens_seen: Int[Array, "m 2"]
    statistics: dict[str, Float[Array, "L"]] | None


def _microbatches(batch: Any, count: int) -> Any:
    """[B, ...] -> [count, B / count, ...], taking every count-th row, so that each device keeps its own rows."""
    return jax.tree.map(lambda x: jnp.moveaxis(x.reshape(x.shape[0] // count, count, *x.shape[1:]), 1, 0), batch)


def gradient_sums(
    weights: Any, batch: Any, recipe: Recipe, dropout_key: jax.Array | None, *, statistics: bool
) -> tuple[Any, Sums, Statistics | None]:
    """(gradient of the summed objective by the trained part, sums, statistics) of a batch.

    Every shard of the batch goes through its own rows (`parallel.shards`). The gradient is fp32 and lies as the parameters do.
    Each row has a dropout key of its own, so neither mesh nor microbatches change its draws. The model is traced once.
    """
    trainable, rows = recipe.trainable, len(jax.tree.leaves(batch)[0])
    keys = None if dropout_key is None else jax.vmap(jax.random.fold_in, (None, 0))(dropout_key, jnp.arange(rows))
    # Whole leaves here: rows of the vocabulary are cut out where XLA knows how the vocabulary lies on the mesh.
    recipe = dataclasses.replace(recipe, trainable=recipe.trainable.with_all_rows())
    local = functools.partial(_gradient_of_rows, recipe=recipe, statistics=statistics)
    specs = recipe.trainable.specs, recipe.trainable.selected_specs()
    gradient, (sums, seen) = shards.by_rows(local, TRAINING)(
        weights, (batch, keys), *(params.map_specs(lambda spec: spec.axes, tree) for tree in specs)
    )
    gradient = params.constrain(trainable.select(gradient), trainable.selected_specs(), TRAINING)
    return gradient, sums.joined(), None if seen is None else seen.joined()


def _gradient_of_rows(
    weights: Any, rows: tuple[Any, jax.Array | None], recipe: Recipe, statistics: bool
) -> tuple[Any, tuple[Sums, Statistics | None]]:
    """`gradient_sums` of a shard's own rows and their dropout keys, microbatch by microbatch."""
    trainable, count = recipe.trainable, recipe.config.train.microbatches

    def objective(selected: Any, micro: Any, keys: jax.Array | None) -> tuple[Array, tuple[Sums, Statistics | None]]:
        sums, seen = recipe.task.loss(trainable.merge(weights, selected), micro, keys, statistics=statistics)
        return sums.objective, (sums, seen)

    selected, specs = trainable.select(weights), trainable.selected_specs()

    def one(micro: Any, keys: jax.Array | None) -> tuple[Any, tuple[Sums, Statistics | None]]:
        gradient, seen = jax.grad(objective, has_aux=True)(selected, micro, keys)
        return params.constrain(jax.tree.map(lambda g: g.astype(jnp.float32), gradient), specs, TRAINING), seen

    if count == 1:
        return one(*rows)

    def add(total: Any, part: tuple[Any, jax.Array | None]) -> tuple[Any, tuple[Sums, Statistics | None]]:
        gradient, seen = one(*part)
        return jax.tree.map(jnp.add, total, gradient), seen

    start = params.constrain(jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), selected), specs, TRAINING)
    gradient, (sums, seen) = jax.lax.scan(add, start, _microbatches(rows, count))
    return gradient, (sums.joined(), None if seen is None else seen.joined())


def train_step(
    train_state: TrainState, batch: Any, recipe: Recipe, *, statistics: bool
) -> tuple[TrainState, StepMetrics]:
    """One AdamW step on the mean loss of the global batch; rate and dropout depend on (config, step) alone."""
    config, step = recipe.config, train_state.step
    dropout_key = jax.random.fold_in(fold_name(jax.random.key(config.train.seed), "dropout"), step)
    gradient, sums, seen = gradient_sums(train_state.params, batch, recipe, dropout_key, statistics=statistics)
    gradient = jax.tree.map(lambda g: g / jnp.maximum(sums.normaliser, 1e-9), gradient)
    gradient_norm = optax.tree.norm(gradient)

    selected = recipe.trainable.select(train_state.params)
    directions, opt_state = recipe.optimizer().update(gradient, train_state.opt_state, selected)
    rate = optim.learning_rate(config.optim, config.train.steps)(step)
    updates = jax.tree.map(lambda direction: -rate * direction, directions)
    new = optax.apply_updates(selected, updates)
    skipped = jnp.zeros((), jnp.int32)
    if config.optim.skip_nonfinite:
        good = jnp.isfinite(gradient_norm) & jnp.isfinite(sums.objective)
        new, opt_state = guard.keep_if(good, (new, opt_state), (selected, train_state.opt_state))
        updates = guard.keep_if(good, updates, jax.tree.map(jnp.zeros_like, updates))
        skipped = 1 - good.astype(jnp.int32)
    weights = recipe.trainable.merge(train_state.params, new)
    new_state = TrainState(
        step=step + 1,
        position=train_state.position + 1,
        params=weights,
        opt_state=opt_state,
        skipped=train_state.skipped + skipped,
        tokens_seen=state.count_tokens(train_state.tokens_seen, sums.weight),
    )
    return new_state, StepMetrics(
        sums=sums,
        gradient_norm=gradient_norm,
        update_norm=optax.tree.norm(updates),
        parameter_norm=optax.tree.norm(weights),
        learning_rate=rate,
        skipped=new_state.skipped,
        tokens_seen=new_state.tokens_seen,
        statistics=None if seen is None else seen.named(),
    )


def compiled_train_step(recipe: Recipe, mesh: Mesh, *, statistics: bool) -> Callable:
    """`train_step` jitted on the mesh with the state donated: (state, batch) -> (state, metrics)."""
    placed = state.shardings(recipe, mesh)
    return jax.jit(
        lambda s, b: train_step(s, b, recipe, statistics=statistics),
        in_shardings=(placed, batch_sharding(mesh)),
        out_shardings=(placed, replicated(mesh)),
        donate_argnums=0,
    )


def compiled_eval_step(recipe: Recipe, mesh: Mesh) -> Callable:
    """Sums of a batch without dropout, jitted on the mesh: (params, batch) -> Sums."""
    specs = recipe.trainable.specs

    def local(weights: Any, batch: Any) -> tuple[None, Sums]:
        return None, recipe.task.loss(weights, batch, None, statistics=False)[0]

    def evaluate(weights: Any, batch: Any) -> Sums:
        letters = params.map_specs(lambda spec: spec.axes, specs)
        return shards.by_rows(local, TRAINING)(weights, batch, letters, None)[1].joined()

    return jax.jit(
        evaluate,
        in_shardings=(params.shardings(specs, mesh, TRAINING), batch_sharding(mesh)),
        out_shardings=replicated(mesh),
    )
