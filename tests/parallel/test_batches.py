"""Rows of a process follow the sharding; tests/multiprocess has the same with processes."""

import jax
import numpy as np
import pytest

from chameleon_jax.configs import MeshConfig
from chameleon_jax.errors import ConfigError
from chameleon_jax.parallel.agreement import StopAgreement
from chameleon_jax.parallel.batches import local_rows, to_global
from chameleon_jax.parallel.mesh import make_mesh


@pytest.mark.parametrize("axes", [(8, 1, 1), (2, 2, 2), (1, 2, 4)])
def test_a_process_with_all_devices_needs_all_rows_and_gets_them_back(axes):
    mesh = make_mesh(MeshConfig(data=axes[0], fsdp=axes[1], tensor=axes[2]))
    rows = local_rows(mesh, 16)
    assert rows.tolist() == list(range(16))
    host = {"tokens": np.arange(64).reshape(16, 4)}
    with jax.transfer_guard("disallow"):
        batch = to_global(host, mesh)
    np.testing.assert_array_equal(batch["tokens"], host["tokens"])
    assert batch["tokens"].sharding.shard_shape((16, 4)) == (16 // (axes[0] * axes[1]), 4)


def test_a_batch_that_cannot_be_cut_is_refused_with_both_numbers():
    with pytest.raises(ConfigError, match=r"batch_size 12 is not a multiple of the mesh's data \* fsdp = 8"):
        local_rows(make_mesh(MeshConfig()), 12)


def test_one_process_stops_at_once():
    wishes = iter([False, True])
    agreement = StopAgreement(make_mesh(MeshConfig()), lambda: next(wishes))
    assert [agreement.poll(), agreement.poll()] == [False, True]
