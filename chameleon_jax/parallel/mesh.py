"""The device mesh, the rules from dimension letters to mesh axes, and the one place where shardings are asked for.

The one idea: code names dimensions by letter (DIMENSIONS) and never mesh axes. Parameters are stored sharded over `fsdp` and
`tensor`; activations are sharded over (`data`, `fsdp`) by batch and over `tensor` by heads or features. XLA gathers parameters
where they are used, which is ZeRO-3 (Rajbhandari et al. 2020) written as two rule tables.
"""

from __future__ import annotations

import math

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from chameleon_jax.configs import MeshConfig, TransformerConfig
from chameleon_jax.errors import ConfigError

AXES = ("data", "fsdp", "tensor")

DIMENSIONS = {
    "B": "batch",
    "T": "query time",
    "S": "key time",
    "D": "model",
    "L": "layers",
    "N": "query heads",
    "K": "key/value heads",
    "G": "query heads of one key/value head",
    "g": "groups of heads that share a QK-norm",
    "H": "head size",
    "F": "feed-forward",
    "V": "vocabulary",
}

_PARAMETER_RULES = {"D": "fsdp", "N": "tensor", "K": "tensor", "F": "tensor", "V": "tensor"}
_ACTIVATION_RULES = {"B": ("data", "fsdp"), "N": "tensor", "K": "tensor", "F": "tensor", "V": "tensor"}


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


def check_fits(model: TransformerConfig, batch_size: int, microbatches: int, mesh: Mesh) -> None:
    """Raise ConfigError, before anything is compiled, if a sharded dimension is not a multiple of its mesh axes."""
    tensor, fsdp, data = mesh.shape["tensor"], mesh.shape["fsdp"], mesh.shape["data"]
    sharded = (
        ("model.n_heads", model.n_heads, "tensor", tensor),
        ("model.n_kv_heads", model.n_kv_heads, "tensor", tensor),
        ("model.d_ff", model.d_ff, "tensor", tensor),
        ("model.vocab_size", model.vocab_size, "tensor", tensor),
        ("model.d_model", model.d_model, "fsdp", fsdp),
        ("rows of a microbatch", batch_size // microbatches, "data * fsdp", data * fsdp),
    )
    for name, size, axis, parts in sharded:
        if size % parts:
            raise ConfigError(f"{name} = {size} is not a multiple of the mesh's {axis} = {parts}")


def parameter_spec(letters: str) -> PartitionSpec:
    """Storage sharding of a parameter whose dimensions are `letters`, as in "L D N H"."""
    return PartitionSpec(*(_PARAMETER_RULES.get(letter) for letter in letters.split()))


def activation_spec(letters: str) -> PartitionSpec:
    """Compute sharding of an activation whose dimensions are `letters`, as in "B T D"."""
    return PartitionSpec(*(_ACTIVATION_RULES.get(letter) for letter in letters.split()))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Sharding of every [B, T] array of a batch."""
    return NamedSharding(mesh, activation_spec("B T"))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def constrain(x: jax.Array, letters: str) -> jax.Array:
    """Ask for the compute sharding of `x` on the mesh in use (`jax.set_mesh`); no mesh, no change."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, activation_spec(letters))


def batch_shards() -> int:
    """Number of parts into which the batch is cut on the mesh in use."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else mesh.shape["data"] * mesh.shape["fsdp"]
