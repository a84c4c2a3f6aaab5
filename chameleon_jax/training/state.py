"""The train state: everything that a step changes, and nothing else."""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from chameleon_jax.configs import PretrainConfig
from chameleon_jax.models import params, transformer
from chameleon_jax.parallel.mesh import TRAINING, replicated
from chameleon_jax.training import optim
from chameleon_jax.vocab import MODALITY_NAMES

TOKEN_BASE_BITS = 30


@flax.struct.dataclass
class TrainState:
    """`step` is the number of batches consumed, and with the config it determines the next batch and its dropout.

    `tokens_seen` counts trained targets by ModalityId as (high, low) digits to base 2^30, for no 32-bit number holds a real run's
    tokens; `skipped` counts the steps that changed no parameter.
    """

    step: Int[Array, ""]
    params: dict[str, Any]
    opt_state: Any
    skipped: Int[Array, ""]
    tokens_seen: Int[Array, "m 2"]


def create(key: jax.Array, config: PretrainConfig) -> TrainState:
    """The state before the first step; jit with `shardings` as out_shardings."""
    return begin(transformer.init(key, config.model), config)


def begin(weights: dict[str, Any], config: PretrainConfig) -> TrainState:
    """The state before the first step, of given parameters."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=weights,
        opt_state=optim.optimizer(config.optim, config.train.steps, transformer.param_specs(config.model)).init(
            weights
        ),
        skipped=jnp.zeros((), jnp.int32),
        tokens_seen=jnp.zeros((len(MODALITY_NAMES), 2), jnp.int32),
    )


def count_tokens(seen: Int[Array, "m 2"], new: Float[Array, "m"]) -> Int[Array, "m 2"]:
    """Add fewer than 2^30 tokens of each modality to the two-digit counter."""
    low = seen[:, 1] + new.astype(jnp.int32)
    carry = low >> TOKEN_BASE_BITS
    return jnp.stack([seen[:, 0] + carry, low - (carry << TOKEN_BASE_BITS)], axis=1)


def shardings(config: PretrainConfig, mesh: Mesh) -> TrainState:
    """A TrainState of NamedShardings: moments are stored as their parameters are, scalars on every device."""
    abstract = jax.eval_shape(lambda: create(jax.random.key(0), config))
    by_path = {
        jax.tree_util.keystr(path): sharding
        for path, sharding in jax.tree.leaves_with_path(
            params.shardings(transformer.param_specs(config.model), mesh, TRAINING)
        )
    }

    def place(path: tuple, leaf: jax.ShapeDtypeStruct) -> Any:
        # A moment's path ends with the path of its parameter: [...].mu['layers']['attn']['wq'].
        for start in range(len(path)):
            sharding = by_path.get(jax.tree_util.keystr(path[start:]))
            if sharding is not None and leaf.ndim:
                return sharding
        return replicated(mesh)

    return jax.tree_util.tree_map_with_path(place, abstract)


def initialise(config: PretrainConfig, mesh: Mesh, weights: dict[str, Any] | None = None) -> TrainState:
    """A fresh state, created sharded: no device ever holds more than its part. Given `weights` are taken, and given away."""
    placed = shardings(config, mesh)
    with jax.set_mesh(mesh):
        if weights is None:
            return jax.jit(lambda key: create(key, config), out_shardings=placed)(jax.random.key(config.train.seed))
        return jax.jit(lambda weights: begin(weights, config), out_shardings=placed, donate_argnums=0)(weights)


def abstract(config: PretrainConfig, mesh: Mesh) -> TrainState:
    """Shapes, dtypes and shardings of the state, for restoring into."""
    shapes = jax.eval_shape(lambda: create(jax.random.key(0), config))
    return jax.tree.map(
        lambda s, sharding: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding), shapes, shardings(config, mesh)
    )
