"""The mesh, its rules, and what is refused before anything is compiled."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from chameleon_jax.configs import MeshConfig, TransformerConfig
from chameleon_jax.errors import ConfigError
from chameleon_jax.parallel import mesh as mesh_lib
from chameleon_jax.parallel.mesh import DECODING, TRAINING

MODEL = TransformerConfig(d_model=32, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=8, d_ff=48, vocab_size=64)


def test_one_axis_takes_the_devices_that_are_left():
    mesh = mesh_lib.make_mesh(MeshConfig(data=2, fsdp=-1, tensor=2))
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "tensor": 2}


def test_axes_that_do_not_fit_the_devices_are_refused_with_both_numbers():
    with pytest.raises(ConfigError, match=r"need 3 devices, there are 8"):
        mesh_lib.make_mesh(MeshConfig(data=3, fsdp=1, tensor=1))
    with pytest.raises(ConfigError, match=r"8 devices cannot be divided by the 3"):
        mesh_lib.make_mesh(MeshConfig(data=3, fsdp=-1))


@dataclasses.dataclass(frozen=True)
class SliceDevice:
    """As much of a device as the arrangement asks for: two slices of four, two devices a process."""

    id: int
    platform = device_kind = "cpu"

    @property
    def slice_index(self):
        return self.id // 4

    @property
    def process_index(self):
        return self.id // 2


@pytest.mark.parametrize("sizes", [(2, 2, 2), (1, 4, 2), (1, 8, 1), (8, 1, 1)])
def test_the_slow_network_between_slices_is_crossed_by_the_outermost_axis_that_can(sizes):
    devices = [SliceDevice(number) for number in (5, 0, 7, 2, 1, 4, 3, 6)]
    mesh = mesh_lib._arranged(list(sizes), devices)
    slices = np.vectorize(lambda device: device.slice_index)(mesh)
    assert slices.reshape(2, 4).tolist() == [[0] * 4, [1] * 4]


@pytest.mark.parametrize(
    ("axes", "batch", "microbatches", "message"),
    [
        ({"tensor": 4, "fsdp": 2}, 8, 1, r"model.n_kv_heads = 2 is not a multiple of the mesh's tensor = 4"),
        ({"fsdp": 8}, 4, 1, r"rows of a microbatch = 4 is not a multiple of the mesh's data \* fsdp = 8"),
        ({"fsdp": 8}, 16, 4, r"rows of a microbatch = 4"),
    ],
)
def test_dimensions_that_cannot_be_cut_are_refused_with_both_numbers(axes, batch, microbatches, message):
    mesh = mesh_lib.make_mesh(MeshConfig(**axes))
    with pytest.raises(ConfigError, match=message):
        mesh_lib.check_fits(MODEL, batch, microbatches, mesh)


def test_a_configuration_that_fits_passes():
    mesh_lib.check_fits(MODEL, 8, 2, mesh_lib.make_mesh(MeshConfig(data=2, fsdp=2, tensor=2)))


def test_parameters_are_stored_over_fsdp_and_tensor_and_activations_follow_the_batch():
    for rules in (TRAINING, DECODING):
        assert rules.parameter("L D N H") == PartitionSpec(None, "fsdp", "tensor", None)
    assert TRAINING.activation("B T D") == PartitionSpec(("data", "fsdp"), None, None)


def test_decoding_divides_activations_as_the_weights_that_they_meet():
    assert DECODING.activation("B T D") == PartitionSpec("data", None, "fsdp")
    for letter, axes in DECODING.parameters.items():
        assert DECODING.activations[letter] == axes


def test_rules_are_values_that_functions_can_be_compiled_for():
    same = mesh_lib.ShardingRules(parameters=dict(TRAINING.parameters), activations=dict(TRAINING.activations))
    assert same == TRAINING and hash(same) == hash(TRAINING) and same != DECODING


def test_constrain_does_nothing_without_a_mesh_and_shards_with_one():
    x = jnp.zeros((8, 4, 2))
    assert mesh_lib.constrain(x, "B T D", TRAINING) is x
    mesh = mesh_lib.make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    with jax.set_mesh(mesh):
        out = jax.jit(lambda y: mesh_lib.constrain(y, "B T V", TRAINING))(x)
        assert (mesh_lib.batch_shards(TRAINING), mesh_lib.batch_shards(DECODING)) == (4, 2)
    assert out.sharding.shard_shape(out.shape) == (2, 4, 1)
    assert mesh_lib.batch_shards(TRAINING) == 1
