"""Parameters described once: shape, dtype, dimension letters and initialiser.

The one idea: a tree of `ParamSpec` is the single source from which the abstract tree, the shardings, the initial values and the
counts derive.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from chameleon_jax.models.keys import fold_name
from chameleon_jax.parallel import mesh as mesh_lib

Tree = Any  # nested dict


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParamSpec:
    """One array. `axes` names each dimension by its letter (parallel.mesh.DIMENSIONS)."""

    shape: tuple[int, ...]
    axes: str
    init: Literal["normal", "ones", "zeros"]
    std: float = 0.0  # of the normal initialiser, cut off at two standard deviations
    dtype: str = "float32"

    def __post_init__(self):
        if len(self.axes.split()) != len(self.shape):
            raise ValueError(f"axes {self.axes!r} do not name the dimensions of shape {self.shape}")

    @property
    def size(self) -> int:
        return math.prod(self.shape)


def map_specs(function: Callable[[ParamSpec], Any], specs: Tree) -> Tree:
    return jax.tree.map(function, specs, is_leaf=lambda leaf: isinstance(leaf, ParamSpec))


def abstract(specs: Tree) -> Tree:
    """The tree as `jax.ShapeDtypeStruct`s."""
    return map_specs(lambda s: jax.ShapeDtypeStruct(s.shape, jnp.dtype(s.dtype)), specs)


def shardings(specs: Tree, mesh: Mesh) -> Tree:
    """Storage sharding of every parameter."""
    return map_specs(lambda s: NamedSharding(mesh, mesh_lib.parameter_spec(s.axes)), specs)


def constrain(tree: Tree, specs: Tree) -> Tree:
    """Ask, inside a jitted function, that a tree like the parameters (gradients, sums of them) lie as they are stored."""
    return jax.tree.map(lambda x, s: mesh_lib.constrain_stored(x, s.axes), tree, specs)


def initialise(key: jax.Array, specs: Tree) -> Tree:
    """Initial values; each leaf's key depends on its path alone, so adding a parameter changes no other."""
    leaves, treedef = jax.tree.flatten_with_path(specs, is_leaf=lambda leaf: isinstance(leaf, ParamSpec))
    return treedef.unflatten(
        [_initial_value(fold_name(key, jax.tree_util.keystr(path)), spec) for path, spec in leaves]
    )


def _initial_value(key: jax.Array, spec: ParamSpec) -> jax.Array:
    if spec.init == "ones":
        return jnp.ones(spec.shape, spec.dtype)
    if spec.init == "zeros":
        return jnp.zeros(spec.shape, spec.dtype)
    # a standard normal cut off at +-2 has standard deviation 0.8796
    values = jax.random.truncated_normal(key, -2.0, 2.0, spec.shape, jnp.float32) * (spec.std / 0.87962566)
    return values.astype(spec.dtype)


def count(specs: Tree) -> int:
    """Number of parameters."""
    return sum(spec.size for spec in jax.tree.leaves(specs, is_leaf=lambda leaf: isinstance(leaf, ParamSpec)))
