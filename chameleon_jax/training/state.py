"""The train state: everything that a step changes, and nothing else."""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from chameleon_jax.models import params
from chameleon_jax.parallel.mesh import TRAINING, replicated
from chameleon_jax.training.task import Recipe

TOKEN_BASE_BITS = 30


@flax.struct.dataclass
class TrainState:
    """`step` counts optimizer steps and decides rate and dropout; `position` is the number of the next batch.

    They differ only after a rollback that passed over batches. `opt_state` has moments of the trained part alone. `tokens_seen`
    counts trained targets by row of the modality table as (high, low) digits to base 2^30, for no 32-bit number holds a real
    run's tokens; `skipped` counts the steps that changed no parameter.
    """

    step: Int[Array, ""]
    position: Int[Array, ""]
    params: dict[str, Any]
    opt_state: Any
    skipped: Int[Array, ""]
    tokens_seen: Int[Array, "m 2"]


def create(weights: dict[str, Any], recipe: Recipe) -> TrainState:
    """The state before the first step; jit with `shardings` as out_shardings."""
    # One buffer each: a state is donated, and no buffer can be donated twice.
    step, position, skipped = (jnp.zeros((), jnp.int32) for _ in range(3))
    return TrainState(
        step=step,
        position=position,
        params=weights,
        opt_state=recipe.optimizer().init(recipe.trainable.select(weights)),
        skipped=skipped,
        tokens_seen=jnp.zeros((len(recipe.task.modalities), 2), jnp.int32),
    )


def count_tokens(seen: Int[Array, "m 2"], new: Float[Array, "m"]) -> Int[Array, "m 2"]:
    """Add fewer than 2^30 tokens of each modality to the two-digit counter."""
    low = seen[:, 1] + new.astype(jnp.int32)
    carry = low >> TOKEN_BASE_BITS
    return jnp.stack([seen[:, 0] + carry, low - (carry << TOKEN_BASE_BITS)], axis=1)


def shardings(recipe: Recipe, mesh: Mesh) -> TrainState:
    """A TrainState of NamedShardings: moments are stored as their parameters are, scalars on every device."""
    weights = params.shardings(recipe.trainable.specs, mesh, TRAINING)
    moments = params.shardings(recipe.trainable.selected_specs(), mesh, TRAINING)
    by_path = {jax.tree_util.keystr(path): sharding for path, sharding in jax.tree.leaves_with_path(moments)}

    def place(path: tuple, leaf: jax.ShapeDtypeStruct) -> Any:
        # A moment's path ends with the path of its parameter: [...].mu['layers']['attn']['wq'].
        for start in range(len(path)):
            sharding = by_path.get(jax.tree_util.keystr(path[start:]))
            if sharding is not None and leaf.ndim:
                return sharding
        return replicated(mesh)

    placed = jax.tree_util.tree_map_with_path(place, _shapes(recipe))
    return placed.replace(params=weights)


def _shapes(recipe: Recipe) -> TrainState:
    return jax.eval_shape(lambda weights: create(weights, recipe), params.abstract(recipe.trainable.specs))


def initialise(weights: dict[str, Any], recipe: Recipe, mesh: Mesh) -> TrainState:
    """A fresh state around `weights`, which are on the mesh and are taken: no device ever holds more than its part."""
    make = jax.jit(lambda w: create(w, recipe), out_shardings=shardings(recipe, mesh), donate_argnums=0)
    with jax.set_mesh(mesh):
        return make(weights)


def abstract(recipe: Recipe, mesh: Mesh) -> TrainState:
    """Shapes, dtypes and shardings of the state, for restoring into."""
    return jax.tree.map(
        lambda s, sharding: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding),
        _shapes(recipe),
        shardings(recipe, mesh),
    )
