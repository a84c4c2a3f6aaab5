"""Parameters described once: shape, dtype, dimension letters, role and initialiser.

A tree of `ParamSpec` is the single source of the abstract tree, shardings, initial values and counts, and of what
weight decay, quantisation, casts and conversion do with a parameter.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh, NamedSharding

from chameleon_jax.models.keys import fold_name
from chameleon_jax.parallel import shards
from chameleon_jax.parallel.mesh import ShardingRules, constrain_stored

Tree = Any  # nested dict
Role = Literal["embedding", "matrix", "head", "norm", "bias"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParamSpec:
    """One array. `axes` names each dimension by its letter (parallel.mesh.DIMENSIONS).

    `inputs` are the letters that a product with an activation sums over, as in "N H"; a parameter without any is looked up
    (embedding) or applied elementwise.
    """

    shape: tuple[int, ...]
    axes: str
    role: Role
    init: Literal["normal", "ones", "zeros"]
    inputs: str = ""
    std: float = 0.0  # of the normal initialiser, cut off at two standard deviations
    dtype: str = "float32"

    def __post_init__(self):
        if len(self.axes.split()) != len(self.shape):
            raise ValueError(f"axes {self.axes!r} do not name the dimensions of shape {self.shape}")
        if missing := set(self.inputs.split()) - set(self.axes.split()):
            raise ValueError(f"inputs {sorted(missing)} are no axes of {self.axes!r}")

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def input_axes(self) -> tuple[int, ...]:
        """Positions of `inputs` in the shape."""
        return tuple(i for i, letter in enumerate(self.axes.split()) if letter in self.inputs.split())

    @property
    def decayed(self) -> bool:
        """Whether weight decay applies: not to norms and biases."""
        return self.role in ("embedding", "matrix", "head")

    @property
    def stacked(self) -> bool:
        """Whether it holds all layers, along its first axis."""
        return self.axes.startswith("L ")

    @property
    def layer(self) -> ParamSpec:
        """One layer of a stacked parameter; itself if it is not stacked."""
        if not self.stacked:
            return self
        return dataclasses.replace(self, shape=self.shape[1:], axes=self.axes.removeprefix("L "))

    @property
    def untied(self) -> int | None:
        """The axis along which each modality has an entry of its own; None for a parameter that all share."""
        letters = self.axes.split()
        return letters.index("E") if "E" in letters else None

    def by_modality(self, count: int) -> ParamSpec:
        """The parameter with an entry for each modality, along an axis after that of the layers."""
        layers = int(self.stacked)
        axes = " ".join([*self.axes.split()[:layers], "E", *self.axes.split()[layers:]])
        return dataclasses.replace(self, shape=(*self.shape[:layers], count, *self.shape[layers:]), axes=axes)

    @property
    def tied(self) -> ParamSpec:
        """The parameter of one modality; itself if all share it."""
        if self.untied is None:
            return self
        shape = (*self.shape[: self.untied], *self.shape[self.untied + 1 :])
        return dataclasses.replace(self, shape=shape, axes=self.axes.replace("E ", ""))


def map_specs(function: Callable[[ParamSpec], Any], specs: Tree) -> Tree:
    return jax.tree.map(function, specs, is_leaf=lambda leaf: isinstance(leaf, ParamSpec))


def abstract(specs: Tree, mesh: Mesh | None = None, rules: ShardingRules | None = None) -> Tree:
    """The tree as `jax.ShapeDtypeStruct`s, with shardings if a mesh and its rules are given."""

    def describe(spec: ParamSpec) -> jax.ShapeDtypeStruct:
        sharding = None if mesh is None else NamedSharding(mesh, rules.parameter(spec.axes))
        return jax.ShapeDtypeStruct(spec.shape, jnp.dtype(spec.dtype), sharding=sharding)

    return map_specs(describe, specs)


def shardings(specs: Tree, mesh: Mesh, rules: ShardingRules) -> Tree:
    """Storage sharding of every parameter."""
    return map_specs(lambda s: NamedSharding(mesh, rules.parameter(s.axes)), specs)


def constrain(tree: Tree, specs: Tree, rules: ShardingRules) -> Tree:
    """Ask, inside a jitted function, that a tree like the parameters (gradients, sums of them) lie as they are stored."""
    return jax.tree.map(lambda x, s: constrain_stored(x, s.axes, rules), tree, specs)


def gathered(tree: Tree, specs: Tree, dtype: str, rules: ShardingRules, *, but: Role | None = None) -> Tree:
    """A tree of parameters whole on every device, matrices in `dtype`, where `shards.by_rows` runs; elsewhere as it is.

    Gradients are summed over all rows on their way back, of matrices in `dtype`. Parameters of the role `but` stay as they are.
    """
    if not shards.inside():
        return tree

    def gather(x: jax.Array, spec: ParamSpec) -> jax.Array:
        if spec.role == but:
            return x
        return shards.gathered(x, spec.axes, rules, dtype if spec.role == "matrix" else spec.dtype)

    return jax.tree.map(gather, tree, specs)


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


def sharding_table(specs: Tree, mesh: Mesh | AbstractMesh, rules: ShardingRules) -> str:
    """One line a ParamSpec: path, shape, axes, mesh axes, bytes on each device; and the sum."""
    rows, total = [("parameter", "shape", "axes", "sharding", "bytes/device")], 0
    for path, spec in jax.tree_util.tree_leaves_with_path(specs, is_leaf=lambda node: isinstance(node, ParamSpec)):
        partition = rules.parameter(spec.axes)
        shape = NamedSharding(mesh, partition).shard_shape(spec.shape)
        size = math.prod(shape) * jnp.dtype(spec.dtype).itemsize
        total += size
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        rows.append((name, f"{spec.dtype}{list(spec.shape)}", spec.axes, str(tuple(partition)), f"{size:,}"))
    rows.append(("total", "", "", "", f"{total:,}"))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    axes = ", ".join(f"{name} {size}" for name, size in mesh.shape.items())
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([f"mesh: {axes}", *lines]) + "\n"
