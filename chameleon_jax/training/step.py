"""One optimiser step, and one evaluation of a batch, as pure functions ready to jit.

The one idea: gradients are of the *sum* of the loss; sums of microbatches, modalities and devices are added first and divided once
by the global weight, so how a batch is cut never changes the step.
"""

from __future__ import annotations

from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from chameleon_jax.configs import PretrainConfig
from chameleon_jax.data.batch import Batch
from chameleon_jax.models import transformer
from chameleon_jax.parallel.mesh import TRAINING, batch_sharding, constrain, replicated
from chameleon_jax.training import guard, losses, optim, state
from chameleon_jax.training.losses import LossSums
from chameleon_jax.training.state import TrainState


@flax.struct.dataclass
class StepMetrics:
    """What a step reports; still on the device. Norms are of the whole tree; `statistics` are [L] per layer."""

    sums: LossSums
    gradient_norm: Float[Array, ""]
    update_norm: Float[Array, ""]
    parameter_norm: Float[Array, ""]
    learning_rate: Float[Array, ""]
    skipped: Float[Array, ""]
    tokens_seen: Int[Array, "m 2"]
    statistics: dict[str, Float[Array, "L"]]


def _loss(weights, batch: Batch, config: PretrainConfig, dropout_key, statistics: bool):
    out = transformer.forward(
        weights,
        batch.tokens,
        batch.positions,
        batch.segment_ids,
        config.model,
        dropout_key=dropout_key,
        statistics=statistics,
    )
    sums = losses.cross_entropy(
        out.hidden, weights["head"], batch.targets, batch.loss_weights, batch.modality, config.loss
    )
    return sums.objective, (sums, out.statistics)


def _microbatches(batch: Batch, count: int) -> Batch:
    """[B, T] -> [count, B / count, T], taking every count-th row, so that each device keeps its own rows."""
    return jax.tree.map(lambda x: jnp.moveaxis(x.reshape(x.shape[0] // count, count, *x.shape[1:]), 1, 0), batch)


def gradient_sums(weights, batch: Batch, config: PretrainConfig, dropout_key):
    """(gradient of the summed objective, LossSums, statistics) of a batch, microbatch by microbatch."""
    differentiate = jax.grad(_loss, has_aux=True)
    count = config.train.microbatches
    if count == 1:
        gradient, (sums, statistics) = differentiate(weights, batch, config, dropout_key, True)
        return gradient, sums, statistics

    def one(micro: Batch, index: Array):
        key = None if dropout_key is None else jax.random.fold_in(dropout_key, index)
        micro = jax.tree.map(lambda x: constrain(x, "B T", TRAINING), micro)
        gradient, (sums, statistics) = differentiate(weights, micro, config, key, True)
        return jax.tree.map(lambda g: g.astype(jnp.float32), gradient), sums, statistics

    parts = _microbatches(batch, count)
    first = one(jax.tree.map(lambda x: x[0], parts), jnp.zeros((), jnp.int32))

    def add(total, part):
        gradient, sums, statistics = one(*part)
        gradient = jax.tree.map(jnp.add, total[0], gradient)
        return (gradient, total[1] + sums, jax.tree.map(jnp.maximum, total[2], statistics)), None

    rest = jax.tree.map(lambda x: x[1:], parts)
    return jax.lax.scan(add, first, (rest, jnp.arange(1, count)))[0]


def train_step(train_state: TrainState, batch: Batch, config: PretrainConfig) -> tuple[TrainState, StepMetrics]:
    """One AdamW step on the mean loss of the global batch; dropout depends on (seed, step) alone."""
    dropout_key = None
    if config.model.dropout > 0:
        dropout_key = jax.random.fold_in(jax.random.key(config.train.seed + 1), train_state.step)
    gradient, sums, statistics = gradient_sums(train_state.params, batch, config, dropout_key)
    gradient = jax.tree.map(lambda g: g / jnp.maximum(sums.normaliser, 1e-9).astype(g.dtype), gradient)
    gradient_norm = optax.tree.norm(gradient)

    optimizer = optim.optimizer(config.optim, config.train.steps, transformer.param_specs(config.model))
    updates, opt_state = optimizer.update(gradient, train_state.opt_state, train_state.params)
    weights = optax.apply_updates(train_state.params, updates)
    skipped = jnp.zeros((), jnp.int32)
    if config.optim.skip_nonfinite:
        good = jnp.isfinite(gradient_norm) & jnp.isfinite(sums.objective)
        weights, opt_state = guard.keep_if(good, (weights, opt_state), (train_state.params, train_state.opt_state))
        skipped = 1 - good.astype(jnp.int32)
    new_state = TrainState(
        step=train_state.step + 1,
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
        learning_rate=optim.learning_rate(config.optim, config.train.steps)(train_state.step),
        skipped=new_state.skipped,
        tokens_seen=new_state.tokens_seen,
        statistics=statistics,
    )


def eval_step(weights, batch: Batch, config: PretrainConfig) -> LossSums:
    """Loss sums of a batch without dropout."""
    return _loss(weights, batch, config, None, False)[1][0]


def compiled_train_step(config: PretrainConfig, mesh: Mesh) -> Callable:
    """`train_step` jitted on the mesh with the state donated: (state, batch) -> (state, metrics)."""
    placed = state.shardings(config, mesh)
    return jax.jit(
        lambda s, b: train_step(s, b, config),
        in_shardings=(placed, batch_sharding(mesh)),
        out_shardings=(placed, replicated(mesh)),
        donate_argnums=0,
    )


def compiled_eval_step(config: PretrainConfig, mesh: Mesh) -> Callable:
    """`eval_step` jitted on the mesh: (params, batch) -> LossSums."""
    placed = state.shardings(config, mesh).params
    return jax.jit(
        lambda p, b: eval_step(p, b, config),
        in_shardings=(placed, batch_sharding(mesh)),
        out_shardings=replicated(mesh),
    )
