"""The device mesh, the rules from dimension letters to mesh axes, and the one place where shardings are asked for.

Code names dimensions by letter (DIMENSIONS) and never mesh axes. `ShardingRules` say which axes a letter is divided
over; a function that asks for shardings takes them as an argument, so that they are part of what is traced.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from chameleon_jax.configs import MeshConfig, TransformerConfig
from chameleon_jax.errors import ConfigError

AXES = ("data", "fsdp", "tensor")

DIMENSIONS = {
    "B": "batch",
    "T": "query time",
    "t": "query time in the residual stream, between the parts of a block",
    "S": "key time",
    "D": "model",
    "L": "layers",
    "E": "modalities with parameters of their own",
    "N": "query heads",
    "K": "key/value heads",
    "G": "query heads of one key/value head",
    "g": "groups of heads that share a QK-norm",
    "H": "head size",
    "F": "feed-forward",
    "V": "vocabulary",
    "R": "chosen rows of the vocabulary",
    # of the patch encoder, which lies whole on every device
    "p": "pixels of a patch",
    "d": "width",
    "l": "layers",
    "n": "heads",
    "h": "head size",
    "f": "feed-forward",
}

Axes = str | tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardingRules:
    """Mesh axes over which each dimension letter is divided; a letter that is not named is whole on every device."""

    parameters: Mapping[str, Axes]
    activations: Mapping[str, Axes]

    def __hash__(self) -> int:  # mappings have none
        return hash((tuple(sorted(self.parameters.items())), tuple(sorted(self.activations.items()))))

    def parameter(self, letters: str) -> PartitionSpec:
        """Storage sharding of a parameter whose dimensions are `letters`, as in "L D N H"."""
        return PartitionSpec(*(self.parameters.get(letter) for letter in letters.split()))

    def activation(self, letters: str) -> PartitionSpec:
        """Compute sharding of an activation whose dimensions are `letters`, as in "B T D"."""
        return PartitionSpec(*(self.activations.get(letter) for letter in letters.split()))


_STORED = {"D": "fsdp", "N": "tensor", "K": "tensor", "F": "tensor", "V": "tensor"}
_TENSOR = {"N": "tensor", "K": "tensor", "F": "tensor", "V": "tensor"}

# Rows over `data` and `fsdp`: parameters are gathered over `fsdp` where they are used, which is ZeRO-3 (Rajbhandari et al. 2020).
# Between the parts of a block, time is over `tensor`: what is kept for the backward pass is divided as the products are (sequence
# parallelism, Korthikanti et al. 2022, section 4.2.2).
TRAINING = ShardingRules(parameters=_STORED, activations={"B": ("data", "fsdp"), "t": "tensor", **_TENSOR})

# A token costs one reading of all weights, so none is moved: activations are divided as the weights that they meet, and what
# crosses the mesh are sums over D and over heads or F, a few kilobytes a row (Pope et al. 2022, section 3.2.2).
DECODING = ShardingRules(parameters=_STORED, activations={"B": "data", "D": "fsdp", **_TENSOR})


def make_mesh(config: MeshConfig, devices: list[jax.Device] | None = None) -> Mesh:
    """Arrange the devices (all by default) as a (data, fsdp, tensor) mesh.

    Neighbours on the mesh are neighbours in the hardware, most of all along `tensor`, which talks most. Where TPU slices are joined
    by a slower network, `data` (then `fsdp`, then `tensor`) is what crosses it. Raises ConfigError when the axis sizes do not
    multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = [config.data, config.fsdp, config.tensor]
    known = int(np.prod([s for s in sizes if s != -1]))
    if -1 in sizes:
        if len(devices) % known:
            raise ConfigError(
                f"MeshConfig: {len(devices)} devices cannot be divided by the {known} of the fixed axes {sizes}"
            )
        sizes[sizes.index(-1)] = len(devices) // known
    elif known != len(devices):
        raise ConfigError(
            f"MeshConfig: axes {sizes} need {known} devices, there are {len(devices)}; set one axis to -1"
        )
    return Mesh(_arranged(sizes, devices), AXES)


def _arranged(sizes: list[int], devices: list[jax.Device]) -> np.ndarray:
    from jax.experimental import mesh_utils

    slices = len({getattr(device, "slice_index", 0) for device in devices})
    across, within = [], []
    for size in sizes:
        outer = math.gcd(size, slices)
        across.append(outer)
        within.append(size // outer)
        slices //= outer
    if slices > 1:
        raise ConfigError(f"MeshConfig: axes {sizes} cannot be laid over {slices * math.prod(across)} slices evenly")
    if max(across) == 1:
        return mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    return mesh_utils.create_hybrid_device_mesh(within, across, devices, allow_split_physical_axes=True)


def abstract_mesh(config: MeshConfig) -> AbstractMesh:
    """The mesh without devices, for looking at shardings. Raises ConfigError if an axis is -1: there is nothing to count."""
    sizes = (config.data, config.fsdp, config.tensor)
    if -1 in sizes:
        raise ConfigError("a mesh that is only looked at needs its sizes in numbers, not -1")
    return AbstractMesh(sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def check_model_fits(model: TransformerConfig, mesh: Mesh | AbstractMesh) -> None:
    """Raise ConfigError if a dimension of the parameters is not a multiple of the mesh axes that it is divided over."""
    tensor, fsdp = mesh.shape["tensor"], mesh.shape["fsdp"]
    sharded = (
        ("model.n_heads", model.n_heads, "tensor", tensor),
        ("model.n_kv_heads", model.n_kv_heads, "tensor", tensor),
        ("model.d_ff", model.d_ff, "tensor", tensor),
        ("model.vocab_size", model.vocab_size, "tensor", tensor),
        ("model.d_model", model.d_model, "fsdp", fsdp),
    )
    for name, size, axis, parts in sharded:
        _check_multiple(name, size, axis, parts)


def check_fits(model: TransformerConfig, batch_size: int, microbatches: int, mesh: Mesh) -> None:
    """Raise ConfigError, before anything is compiled, if a model or the rows of a batch cannot be divided over the mesh."""
    check_model_fits(model, mesh)
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    _check_multiple("rows of a microbatch", batch_size // microbatches, "data * fsdp", parts)


def _check_multiple(name: str, size: int, axis: str, parts: int) -> None:
    if size % parts:
        raise ConfigError(f"{name} = {size} is not a multiple of the mesh's {axis} = {parts}")


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Sharding of every [B, T] array of a training batch."""
    return NamedSharding(mesh, TRAINING.activation("B T"))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def constrain(x: jax.Array, letters: str, rules: ShardingRules) -> jax.Array:
    """Ask for the compute sharding of `x` on the mesh in use (`jax.set_mesh`); no mesh, no change."""
    return _with_spec(x, rules.activation(letters))


def constrain_stored(x: jax.Array, letters: str, rules: ShardingRules) -> jax.Array:
    """Ask for the storage sharding of a parameter of these letters, as for its gradient; no mesh, no change."""
    return _with_spec(x, rules.parameter(letters))


def _with_spec(x: jax.Array, spec: PartitionSpec) -> jax.Array:
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    left = _left(mesh)
    return jax.lax.with_sharding_constraint(x, within(spec, left)) if left else x


def _left(mesh: AbstractMesh) -> tuple[str, ...]:
    """The mesh axes that are not divided by hand: under `shards.by_rows`, arrays are one part of what the others divide."""
    return tuple(axis for axis in mesh.axis_names if axis not in mesh.manual_axes)


def within(spec: PartitionSpec, axes: tuple[str, ...]) -> PartitionSpec:
    """The spec with these mesh axes alone."""
    kept = (tuple(name for name in axis_names(names) if name in axes) for names in spec)
    return PartitionSpec(*(names or None for names in kept))


def axis_names(axes: Axes | None) -> tuple[str, ...]:
    return (axes,) if isinstance(axes, str) else tuple(axes or ())


def platform() -> str:
    """The platform ("cpu", "gpu", "tpu") for which the program being traced is made.

    That of the mesh in use, which may be of described devices (`jax.experimental.topologies`) on a host without any.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def each_device(function: Callable, inputs: tuple[str, ...], output: str, rules: ShardingRules) -> Callable:
    """`function` of arrays, run by every device of the mesh in use on its own part of them: for kernels that XLA cannot divide.

    `inputs` and `output` are the letters of the arrays; every letter that the rules divide has to be a multiple of its parts
    (`divided`).
    """
    mesh = jax.sharding.get_abstract_mesh()
    left = _left(mesh)
    if mesh.empty or mesh.size == 1 or not left:
        return function
    *specs, made = (within(rules.activation(letters), left) for letters in (*inputs, output))
    # The check of what is replicated has no rule for kernels.
    return jax.shard_map(function, in_specs=tuple(specs), out_specs=made, axis_names=set(left), check_vma=False)


def divided(x: jax.Array, letters: str, rules: ShardingRules) -> bool:
    """Whether every dimension of `x` is a multiple of the devices over which the rules divide it on the mesh in use."""
    mesh = jax.sharding.get_abstract_mesh()
    spec = rules.activation(letters)
    return (
        mesh.empty
        or mesh.size == 1
        or all(size % _parts(mesh, axes) == 0 for size, axes in zip(x.shape, spec, strict=True))
    )


def batch_shards(rules: ShardingRules) -> int:
    """Number of parts into which rows are divided on the mesh in use."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else _parts(mesh, rules.activations["B"])


def _parts(mesh: AbstractMesh, axes: Axes | None) -> int:
    return math.prod(mesh.shape[name] for name in axis_names(axes) if name not in mesh.manual_axes)


def mesh_of(tree: Any) -> Mesh | None:
    """The mesh over which the arrays of a tree are divided; None for arrays of one device or of the host."""
    for leaf in jax.tree.leaves(tree):
        sharding = getattr(leaf, "sharding", None)
        if isinstance(sharding, NamedSharding) and sharding.mesh.size > 1:
            return sharding.mesh
    return None


def using(mesh: Mesh | None) -> contextlib.AbstractContextManager:
    """`jax.set_mesh(mesh)`; None leaves the mesh in use as it is."""
    return contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh)
