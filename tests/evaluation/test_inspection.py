"""Inspection tables show what is there, and refuse what is nothing of ours."""

import dataclasses
import os

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from chameleon_jax.checkpoints.checkpointer import Checkpointer
from chameleon_jax.checkpoints.manifest import Manifest, read_manifest
from chameleon_jax.configs import CheckpointConfig, MeshConfig, TransformerConfig
from chameleon_jax.errors import ChameleonError, CheckpointError, ConfigError, TokenizerError
from chameleon_jax.evaluation import inspection
from chameleon_jax.models import params, transformer
from chameleon_jax.parallel.mesh import abstract_mesh, make_mesh
from tests.tiny_run import make_run

CONFIG = TransformerConfig(vocab_size=100, d_model=16, n_layers=2, n_heads=2, n_kv_heads=1, head_dim=8, d_ff=24)


def test_the_parameter_table_sums_to_the_whole(capsys):
    inspection.print_parameters(CONFIG)
    text = capsys.readouterr().out
    assert f"{params.count(transformer.param_specs(CONFIG)):,}" in text
    assert "layers/attn/wq" in text and "2 x 16 x 2 x 8" in text


def test_a_token_store_is_described_and_verified(capsys, make_store):
    made = make_store()
    inspection.print_path(made.path, verify=True)
    text = capsys.readouterr().out
    assert "every shard" in text
    assert f"{sum(len(d.ids) for d in made.documents):,}" in text


@pytest.fixture
def steps(tmp_path):
    """A folder of one saved step: matrices and moments on eight devices, an array without elements."""
    mesh = make_mesh(MeshConfig(fsdp=8))
    values = jax.device_put(np.arange(64, dtype=np.float32).reshape(8, 8), NamedSharding(mesh, PartitionSpec("fsdp")))
    weights = {"w": values, "narrow": values.astype("bfloat16")}
    state = {"params": weights, "opt_state": {"mu": values, "none": np.zeros((0, 3), np.float32)}}
    checkpointer = Checkpointer(tmp_path / "steps", CheckpointConfig())
    checkpointer.save(1, state, {"data_fingerprint": "abc"})
    checkpointer.close()
    return tmp_path / "steps"


def test_a_checkpoint_is_verified_on_disk_and_damage_is_named(steps, capsys):
    inspection.print_path(str(steps), verify=True)
    assert "verified" in capsys.readouterr().out
    manifest = steps / "1" / "manifest.json"
    saved = read_manifest(steps / "1").leaves
    regions = list(saved["opt_state/mu"].regions)
    regions[3] = dataclasses.replace(regions[3], crc32=7)
    leaves = {**saved, "opt_state/mu": dataclasses.replace(saved["opt_state/mu"], regions=tuple(regions))}
    manifest.write_bytes(Manifest(1, leaves, {}).to_bytes())
    with pytest.raises(CheckpointError, match=r"not usable of .*: 1; the table above says why"):
        inspection.print_path(str(steps), verify=True)
    inspection.print_path(str(steps), verify=False)  # which reads nothing
    text = " ".join(capsys.readouterr().out.split())
    assert "not usable: leaf 'opt_state/mu'" in text and "does not match its checksum" in text


def test_a_mesh_is_refused_where_there_is_no_model(steps):
    with pytest.raises(ChameleonError, match=r"--mesh lays out the model of a run: .* has no checkpoints/ in it"):
        inspection.print_path(str(steps), verify=False, mesh=abstract_mesh(MeshConfig(fsdp=8)))


def test_the_bytes_on_each_device_of_a_mesh_sum_to_those_of_the_model(capsys):
    inspection.print_sharding(CONFIG, abstract_mesh(MeshConfig(data=3, fsdp=4, tensor=1)))
    lines = {
        line.split()[0]: line.split()[-1].replace(",", "") for line in capsys.readouterr().out.splitlines() if line
    }
    qk_norms = 2 * 2 * 2 * 8 * 4  # query and key, scale and bias, of 2 layers, whole on every device
    assert int(lines["total"]) == (4 * params.count(transformer.param_specs(CONFIG)) - qk_norms) // 4 + qk_norms
    assert int(lines["head"]) == 16 * 100 * 4 // 4
    with pytest.raises(ConfigError, match=r"model.n_kv_heads = 1 is not a multiple of the mesh's tensor = 2"):
        inspection.print_sharding(CONFIG, abstract_mesh(MeshConfig(data=1, fsdp=1, tensor=2)))


@pytest.mark.parametrize("path", ["", "missing"])
def test_other_folders_are_refused(path, tmp_path):
    with pytest.raises(ChameleonError, match=r"is no(t| )"):
        inspection.print_path(str(tmp_path / path), verify=False)


def test_a_foreign_tokenizer_beside_the_ids_is_found(make_store):
    bundle = make_run().bundle
    own, foreign = make_store("own", bundle_fingerprint=bundle.fingerprint()), make_store("foreign")
    for made in (own, foreign):
        bundle.save(os.path.join(made.path, "tokenizer"))
        inspection.print_path(str(made.path), verify=False)
    inspection.print_path(str(own.path), verify=True)
    with pytest.raises(TokenizerError, match=r"but the ids are those of b{16}: put the right one there"):
        inspection.print_path(str(foreign.path), verify=True)
