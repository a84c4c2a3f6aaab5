"""What crosses the mesh in a training step, written out: weights come whole to where they are used, gradients go back in parts.

Under `by_rows` the mesh axes that divide rows are manual (`jax.shard_map`): a function has the device's own rows and its part of
every parameter, and nothing crosses those axes but what `whole` and `summed` send. Left to itself, XLA sends whole gradients, and
once for every chunk of a loop. The axis `tensor` stays XLA's, which follows `mesh.constrain`.

Outside `by_rows`, as in decoding and on CPUs, the same functions ask XLA for the shardings.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, PartitionSpec

from chameleon_jax.parallel.mesh import ShardingRules, axis_names, constrain, constrain_stored, platform, within

Tree = Any
Groups = list[list[int]]


def by_rows(function: Callable, rules: ShardingRules) -> Callable:
    """`function(weights, rows) -> (gradients, sums)`, run by every shard of the batch for its own rows.

    The result is called with (weights, rows, letters of the weights, letters of the gradients): trees of arrays and, like them, of
    letters as in "D N H". `rows` has arrays [B, ...]. Gradients lie as such parameters are stored; every array of the sums has an
    axis more, of the shards, along which `Sums.joined` makes the whole.
    """

    def run(weights: Tree, rows: Tree, weight_letters: Tree, gradient_letters: Tree) -> tuple[Tree, Tree]:
        def local(weights: Tree, rows: Tree) -> tuple[Tree, Tree]:
            gradients, sums = function(jax.tree.map(lie_as_stored, weights, weight_letters), rows)
            return jax.tree.map(lie_as_stored, gradients, gradient_letters), jax.tree.map(lambda x: x[None], sums)

        def lie_as_stored(x: jax.Array, letters: str) -> jax.Array:
            """Along the axes that are not manual: `jax.shard_map` does not say it."""
            return constrain_stored(x, letters, rules)

        mesh = jax.sharding.get_abstract_mesh()
        axes = axis_names(rules.activations["B"])
        if mesh.empty or not by_hand() or math.prod(mesh.shape[axis] for axis in axes) == 1:
            return local(weights, rows)
        # An axis of one device is manual too: XLA has then nothing to decide.
        manual = {axis for axis in mesh.axis_names if axis in axes or mesh.shape[axis] == 1}

        def stored(letters: str) -> PartitionSpec:
            return within(rules.parameter(letters), axes)

        weight_specs, gradient_specs = jax.tree.map(stored, weight_letters), jax.tree.map(stored, gradient_letters)
        mapped = jax.shard_map(
            local,
            in_specs=(weight_specs, PartitionSpec(axes)),
            out_specs=(gradient_specs, PartitionSpec(axes)),
            axis_names=manual,
            check_vma=False,  # it does not know sums within groups
        )
        return mapped(weights, rows)

    return run


def by_hand() -> bool:
    """Whether `by_rows` divides the program being traced. On CPUs XLA does.

    There every collective that waits holds a thread, and as many simulated devices as threads can wait for each other without end
    when several collectives do not depend on one another.
    """
    return platform() != "cpu"


def whole(x: jax.Array, letters: str, rules: ShardingRules) -> jax.Array:
    """A parameter of these letters with all of its parts along the axes that divide rows; `x` is the device's part."""
    if not inside():
        return constrain(x, letters, rules)
    cuts = _cuts(letters, rules)

    def gather(x: jax.Array) -> jax.Array:
        for dimension, axis in cuts:
            for groups in _stages(jax.sharding.get_abstract_mesh(), axis):
                x = jax.lax.all_gather(x, axis, axis=dimension, tiled=True, axis_index_groups=groups)
        return x

    return _by_hand(gather, letters, rules)(x)


def summed(x: jax.Array, letters: str, rules: ShardingRules) -> jax.Array:
    """The device's part of the sum over all rows, where `x`, like a whole parameter of these letters, is that over its own rows."""
    if not inside():
        # Every device sums its own rows first: asked for the stored sharding at once, XLA would gather the rows of all instead.
        return constrain_stored(constrain(x, letters, rules), letters, rules)
    cuts = _cuts(letters, rules)
    rest = tuple(axis for axis in _manual_axes() if axis not in [cut for _, cut in cuts])

    def scatter(x: jax.Array) -> jax.Array:
        dtype = x.dtype
        if platform() == "cpu":  # whose compiler fails on sums in bfloat16 here, and adds in float32 anyway
            x = x.astype(jnp.float32)
        for dimension, axis in cuts:
            for groups in reversed(_stages(jax.sharding.get_abstract_mesh(), axis)):
                x = jax.lax.psum_scatter(x, axis, scatter_dimension=dimension, tiled=True, axis_index_groups=groups)
        return (jax.lax.psum(x, rest) if rest else x).astype(dtype)

    return _by_hand(scatter, letters, rules)(x)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def gathered(x: jax.Array, letters: str, rules: ShardingRules, dtype: str) -> jax.Array:
    """`whole` of x in `dtype`, in which it also travels; its gradient is `summed` in that dtype."""
    return whole(x.astype(dtype), letters, rules)


def _gathered_forward(x, letters, rules, dtype):
    return gathered(x, letters, rules, dtype), x[..., :0]  # for its dtype


def _gathered_backward(letters, rules, dtype, like, gradient):
    return (summed(gradient, letters, rules).astype(like.dtype),)


gathered.defvjp(_gathered_forward, _gathered_backward)


def mean(x: jax.Array, letters: str, rules: ShardingRules) -> jax.Array:
    """The mean of a parameter of these letters, of which `x` is the device's part; without gradient."""
    axes = tuple(axis for _, axis in _cuts(letters, rules))
    found = jnp.mean(jax.lax.stop_gradient(x))
    return jax.lax.pmean(found, axes) if axes else found


def inside() -> bool:
    """Whether the function being traced runs under `by_rows` on a mesh that divides rows."""
    return bool(_manual_axes())


def _manual_axes() -> tuple[str, ...]:
    """The manual mesh axes of more than one device."""
    mesh = jax.sharding.get_abstract_mesh()
    return tuple(axis for axis in mesh.manual_axes if mesh.shape[axis] > 1)


def _cuts(letters: str, rules: ShardingRules) -> list[tuple[int, str]]:
    """(dimension, manual axis that it is divided over) of a parameter."""
    axes, spec = _manual_axes(), rules.parameter(letters)
    return [(dimension, axis) for dimension, names in enumerate(spec) for axis in axis_names(names) if axis in axes]


def _by_hand(function: Callable, letters: str, rules: ShardingRules) -> Callable:
    """`function` of a parameter's part, with the other mesh axes manual too: XLA would gather over them what it cannot divide."""
    mesh = jax.sharding.get_abstract_mesh()
    others = tuple(axis for axis in mesh.axis_names if axis not in mesh.manual_axes)
    if not others:
        return function
    spec = within(rules.parameter(letters), others)
    return jax.shard_map(function, in_specs=(spec,), out_specs=spec, axis_names=set(others), check_vma=False)


def _stages(mesh: AbstractMesh, axis: str) -> list[Groups | None]:
    """The groups of devices within which an axis is gathered, one stage after the other; None is all of them.

    An axis that fills a TPU's torus is gathered along a ring of neighbours first, then across the rings. For all devices in one
    group the TPU compiler (libtpu 0.0.42) knows no gather: it sums arrays that are zero but for one part, which is twice as much.
    """
    size, device = mesh.shape[axis], mesh.abstract_device
    if device is None or device.platform != "tpu" or size != mesh.size:
        return [None]
    dimensions = 2 if "lite" in device.device_kind else 3
    ring = next(part for part in range(1, size + 1) if size % part == 0 and part**dimensions >= size)
    if ring in (1, size):
        return [None]
    neighbours = [list(range(start, start + ring)) for start in range(0, size, ring)]
    across = [list(range(start, size, ring)) for start in range(ring)]
    return [neighbours, across]
