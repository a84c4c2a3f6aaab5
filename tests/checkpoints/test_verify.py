"""Verification where saved regions and restored shards do not coincide: nothing passes unseen, and nothing is copied twice."""

from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from chameleon_jax.checkpoints import verify
from chameleon_jax.checkpoints.manifest import read_manifest
from tests.checkpoints.test_checkpointer import checkpointer, step_files


def saved_by_rows(path):
    """Two steps of one leaf in eight regions of rows, and the abstract leaf in shards of columns: each region lies in all."""
    mesh = Mesh(np.array(jax.devices()).reshape(8), ("a",))
    values = np.random.default_rng(0).integers(0, 2**31, (16, 1024), np.int32)
    saver = checkpointer(path)
    for step in (1, 2):
        saver.save(step, {"x": jax.device_put(values, NamedSharding(mesh, PartitionSpec("a")))}, {})
    saver.close()
    columns = NamedSharding(mesh, PartitionSpec(None, "a"))
    return values, {"x": jax.ShapeDtypeStruct(values.shape, values.dtype, sharding=columns)}


def test_a_flipped_byte_of_a_region_that_no_device_holds_whole_is_named(tmp_path):
    values, wanted = saved_by_rows(tmp_path)
    assert checkpointer(tmp_path).restore(wanted).step == 2
    needle = values[5, 40:44].tobytes()
    (victim,) = [p for p in step_files(tmp_path / "2") if needle in p.read_bytes()]
    content = bytearray(victim.read_bytes())
    content[content.index(needle)] ^= 1
    victim.write_bytes(content)
    restored = checkpointer(tmp_path).restore(wanted)
    assert [(s.name, s.reason) for s in restored.skipped] == [
        ("2", "leaf 'x' (int32[16, 1024]) does not match its checksum")
    ]
    np.testing.assert_array_equal(np.asarray(restored.state["x"]), values)


def test_what_a_device_holds_of_a_region_that_spans_several_is_compared_with_the_disk(tmp_path):
    """The disk is sound, and what came to the devices is not."""
    values, wanted = saved_by_rows(tmp_path)
    leaves = read_manifest(tmp_path / "2").leaves
    for change, damage in ((0, None), (1, "leaf 'x' (int32[16, 1024]) does not match its checksum")):
        arrived = values.copy()
        arrived[5, 40] ^= change
        arrays = {"x": jax.device_put(arrived, wanted["x"].sharding)}
        assert verify.first_damage(arrays, leaves, tmp_path / "2" / "arrays") == damage


def test_a_shard_of_many_regions_comes_to_the_host_once(tmp_path, monkeypatch):
    _, wanted = saved_by_rows(tmp_path)
    copied, host_copy = [], verify._host_copy
    monkeypatch.setattr(verify, "_host_copy", lambda data: copied.append(data.shape) or host_copy(data))
    assert checkpointer(tmp_path).restore(wanted).step == 2
    assert copied == [(16, 128)] * 8
    copied.clear()
    whole = {"x": jax.ShapeDtypeStruct((16, 1024), np.int32)}
    assert checkpointer(tmp_path).restore(whole).step == 2
    assert copied == [(16, 1024)]


def test_a_folder_may_be_named_from_here_and_have_any_letters(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = Path("runs of mine") / "100% #1?"
    values, wanted = saved_by_rows(folder)
    leaves = read_manifest(folder / "2").leaves
    assert (
        verify.first_damage({"x": jax.device_put(values, wanted["x"].sharding)}, leaves, folder / "2" / "arrays")
        is None
    )
    assert np.array_equal(verify.open_array(folder / "2" / "arrays", "x")[5].read().result(), values[5])
