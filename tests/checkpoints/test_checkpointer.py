"""Checkpoints: what is restored is what was saved, and what is damaged is found, named and passed over."""

import contextlib
import gc
import os
import random
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from chameleon_jax.checkpoints import checkpointer as saving
from chameleon_jax.checkpoints import restore
from chameleon_jax.checkpoints.checkpointer import Checkpointer
from chameleon_jax.checkpoints.restore import restore_subtree
from chameleon_jax.configs import CheckpointConfig
from chameleon_jax.errors import CheckpointError

# Orbax leaves coroutines behind, never awaited, when a read fails; the tests below make reads fail on purpose.
pytestmark = pytest.mark.filterwarnings("default::pytest.PytestUnraisableExceptionWarning")

SAVER = Path(__file__).parents[2] / "benchmarks" / "kill_test.py"


@pytest.fixture(scope="module", autouse=True)
def collect_what_failed_reads_left():
    yield
    gc.collect()


@flax.struct.dataclass
class State:
    step: jax.Array
    params: dict
    opt_state: tuple
    host: np.ndarray
    nothing: None = None


def make_state(step: int) -> State:
    params = {
        "layers": {"w": jnp.arange(6000, dtype=jnp.float32).reshape(60, 100) + step, "none": jnp.zeros((0, 4))},
        "half": jnp.full((33,), step, jnp.bfloat16),
    }
    optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    return State(jnp.int32(step), params, optimiser.init(params), np.full((3,), step, np.int64))


def abstract(state):
    return jax.tree.map(
        lambda x: x if isinstance(x, np.ndarray) else jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


def assert_same(got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def checkpointer(path, **settings) -> Checkpointer:
    return Checkpointer(path, CheckpointConfig(**settings))


def save_steps(path, *steps, **settings) -> Checkpointer:
    saver = checkpointer(path, **settings)
    for step in steps:
        saver.save(step, make_state(step), {"note": step})
    saver.wait()
    return saver


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory):
    """A directory with the good steps 1 and 2; tests copy it."""
    path = tmp_path_factory.mktemp("two_steps")
    save_steps(path, 1, 2).close()
    return path


@pytest.fixture
def copied(two_steps, tmp_path):
    shutil.copytree(two_steps, tmp_path / "c")
    return tmp_path / "c"


def test_the_newest_step_comes_back_bit_for_bit_with_its_metadata(copied):
    restored = checkpointer(copied).restore(abstract(make_state(0)))
    assert (restored.step, restored.metadata, restored.skipped) == (2, {"note": 2}, ())
    assert_same(restored.state, make_state(2))


def test_nothing_saved_restores_nothing(tmp_path):
    assert checkpointer(tmp_path / "absent").restore(abstract(make_state(0))) is None
    assert checkpointer(tmp_path / "absent").metadata() is None


def test_the_newest_metadata_can_be_read_before_the_arrays(copied):
    assert checkpointer(copied).metadata() == {"note": 2}


def test_a_state_may_be_donated_as_soon_as_save_returns(tmp_path):
    advance = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    saver = checkpointer(tmp_path)
    tree = {str(i): jnp.zeros((512, 1024)) for i in range(4)}
    for step in range(4):
        tree = jax.block_until_ready(tree)
        saver.save(step, tree, {})
        for _ in range(10):
            tree = advance(tree)
    saver.close()
    shapes = {str(i): jax.ShapeDtypeStruct((512, 1024), jnp.float32) for i in range(4)}
    restored = checkpointer(tmp_path).restore(shapes)
    assert restored.step == 3
    assert all((np.asarray(x) == 30).all() for x in restored.state.values())


def test_host_arrays_may_be_overwritten_as_soon_as_save_returns(tmp_path):
    values, saver = np.zeros(1 << 20, np.float32), checkpointer(tmp_path)
    saver.save(1, {"x": values}, {})
    values += 1
    saver.close()
    assert not checkpointer(tmp_path).restore({"x": np.empty_like(values)}).state["x"].any()


def test_arrays_come_back_in_the_sharding_that_is_asked_for(copied):
    mesh = Mesh(np.array(jax.devices()[:1]), ("data",))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    wanted = abstract(make_state(0))
    wanted.params["layers"]["w"] = jax.ShapeDtypeStruct((60, 100), jnp.float32, sharding=sharding)
    assert checkpointer(copied).restore(wanted).state.params["layers"]["w"].sharding == sharding


def test_sharded_arrays_verify_and_move_between_layouts(tmp_path):
    code = f"""
import jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from chameleon_jax.configs import CheckpointConfig
from chameleon_jax.checkpoints.checkpointer import Checkpointer
mesh = Mesh(np.array(jax.devices()).reshape(2, 2), ("a", "b"))
values = np.arange(64, dtype=np.float32).reshape(8, 8)
saver = Checkpointer({str(tmp_path)!r}, CheckpointConfig())
put = lambda spec: jax.device_put(values, NamedSharding(mesh, spec))
saver.save(1, {{"x": put(P("a", "b")), "y": put(P("a")), "z": put(P())}}, {{}})
saver.close()
for spec in (P("b", "a"), P()):
    leaf = jax.ShapeDtypeStruct((8, 8), np.float32, sharding=NamedSharding(mesh, spec))
    restored = Checkpointer({str(tmp_path)!r}, CheckpointConfig()).restore({{"x": leaf, "y": leaf, "z": leaf}})
    for name in "xyz":
        assert restored.state[name].sharding == leaf.sharding
        assert (np.asarray(restored.state[name]) == values).all()
print("moved")
"""
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=4"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300)
    assert "moved" in done.stdout, done.stderr


def step_files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file())


def data_files(folder: Path) -> list[Path]:
    """The files that hold the values."""
    return [p for p in step_files(folder) if p.parent.name == "d"]


def empty_data(folder: Path) -> None:
    for file in data_files(folder):
        file.write_bytes(b"")


@contextlib.contextmanager
def no_file_above(size: int):
    """A disk that refuses: writing a file beyond `size` bytes fails with EFBIG."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete"])
def test_no_damage_to_any_file_ever_yields_wrong_values(two_steps, tmp_path, damage):
    """Every file of the newest step in turn: either the step before is used and the damaged one named, or nothing was lost."""
    passed_over = set()
    for number, original in enumerate(step_files(two_steps / "2")):
        copy = tmp_path / str(number)
        shutil.copytree(two_steps, copy)
        victim = copy / original.relative_to(two_steps)
        content = bytearray(victim.read_bytes())
        if damage == "delete":
            victim.unlink()
        else:
            content[len(content) // 2] ^= 0x10
            victim.write_bytes(content if damage == "flip" else content[: len(content) // 2])
        restored = checkpointer(copy).restore(abstract(make_state(0)))
        assert_same(restored.state, make_state(restored.step))
        assert restored.step == 2 or [s.name for s in restored.skipped] == ["2"]
        if restored.step == 1:
            passed_over.add(victim.name)
    assert "manifest.json" in passed_over
    assert passed_over & {p.name for p in data_files(two_steps / "2")}


def test_a_flipped_value_is_blamed_on_its_leaf(tmp_path):
    saver = checkpointer(tmp_path)
    noise = np.random.default_rng(0).integers(0, 2**31, 1 << 16, np.int32)
    for step in (1, 2):
        saver.save(step, {"params": {"noise": jnp.asarray(noise)}}, {})
    saver.close()
    victim = max(data_files(tmp_path / "2"), key=lambda p: p.stat().st_size)
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    restored = checkpointer(tmp_path).restore({"params": {"noise": jax.ShapeDtypeStruct(noise.shape, noise.dtype)}})
    assert restored.step == 1
    assert [(s.name, s.reason) for s in restored.skipped] == [
        ("2", "leaf 'params/noise' (int32[65536]) does not match its checksum")
    ]


def test_when_every_step_is_damaged_the_error_names_them_all(copied):
    for step in "12":
        (copied / step / "manifest.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"no step in .*2: .*manifest\.json.*1: .*manifest\.json"):
        checkpointer(copied).restore(abstract(make_state(0)))


def test_foreign_entries_are_passed_over_by_name(copied):
    (copied / "7").mkdir()
    (copied / "9").mkdir()
    (copied / "9" / "stranger.txt").write_text("mine")
    (copied / "12.orbax-checkpoint-tmp").mkdir()
    (copied / "008").mkdir()
    (copied / ".saving-3").mkdir()
    (copied / "notes").write_text("")
    restored = checkpointer(copied).restore(abstract(make_state(0)))
    assert restored.step == 2
    assert {s.name for s in restored.skipped} == {"7", "9", "12.orbax-checkpoint-tmp", "008", ".saving-3", "notes"}
    assert checkpointer(copied).steps() == [1, 2]


def test_a_step_may_be_saved_where_a_foreign_folder_lies_and_the_folder_is_kept(copied):
    (copied / "3").mkdir()
    (copied / "3" / "stranger.txt").write_text("mine")
    save_steps(copied, 3).close()
    assert checkpointer(copied).restore(abstract(make_state(0))).step == 3
    assert [p.read_text() for p in copied.glob("3.foreign-*/stranger.txt")] == ["mine"]


def test_a_manifest_of_another_step_does_not_count(copied):
    shutil.copy(copied / "1" / "manifest.json", copied / "2" / "manifest.json")
    restored = checkpointer(copied).restore(abstract(make_state(0)))
    assert restored.step == 1 and "is of step 1" in restored.skipped[0].reason


def test_a_damaged_step_is_replaced_when_the_run_comes_to_it_again(copied):
    empty_data(copied / "2")
    again = checkpointer(copied)
    assert again.restore(abstract(make_state(0))).step == 1
    again.save(2, make_state(2), {})
    again.close()
    assert_same(checkpointer(copied).restore(abstract(make_state(0))).state, make_state(2))


def with_leaf(state, **changes):
    return state.replace(params={**state.params, **changes})


def test_another_shape_dtype_or_set_of_leaves_is_refused_with_both_sides_named(copied):
    wanted = abstract(make_state(0))
    cases = {
        r"leaf 'params/half' is bfloat16\[34\] in this run and bfloat16\[33\]": jax.ShapeDtypeStruct(
            (34,), jnp.bfloat16
        ),
        r"leaf 'params/half' is float32\[33\] in this run and bfloat16\[33\]": jax.ShapeDtypeStruct((33,), jnp.float32),
    }
    for message, leaf in cases.items():
        with pytest.raises(CheckpointError, match=message):
            checkpointer(copied).restore(with_leaf(wanted, half=leaf))
    with pytest.raises(
        CheckpointError, match=r"'params/extra' is float32\[2\] in this run and missing in the checkpoint"
    ):
        checkpointer(copied).restore(with_leaf(wanted, extra=jax.ShapeDtypeStruct((2,), jnp.float32)))
    with pytest.raises(
        CheckpointError, match=r"'params/half' is bfloat16\[33\] in the checkpoint and missing in this run"
    ):
        checkpointer(copied).restore(wanted.replace(params={"layers": wanted.params["layers"]}))


def test_only_arrays_can_be_saved(tmp_path):
    with pytest.raises(CheckpointError, match="leaf 'a/b' is a int"):
        checkpointer(tmp_path).save(1, {"a": {"b": 3}}, {})
    with pytest.raises(CheckpointError, match="key_data"):
        checkpointer(tmp_path).save(1, {"key": jax.random.key(0)}, {})


def test_the_parameters_alone_are_restored_without_knowing_the_optimiser(copied):
    for path in (copied, copied / "2"):
        restored = restore_subtree(path)
        assert (restored.step, restored.metadata) == (2, {"note": 2})
        assert_same(restored.state, make_state(2).params)
    assert_same(restore_subtree(copied, "params", abstract(make_state(0).params)).state, make_state(2).params)
    empty_data(copied / "2")
    assert restore_subtree(copied).step == 1


def test_a_part_that_is_not_there_is_refused_with_the_parts_that_are(copied, tmp_path):
    with pytest.raises(CheckpointError, match=r"no part 'parms' \(did you mean 'params'\?\)"):
        restore_subtree(copied, "parms")
    with pytest.raises(CheckpointError, match="no checkpoint in"):
        restore_subtree(tmp_path / "nowhere")


def test_the_newest_steps_and_every_nth_are_kept(tmp_path):
    save_steps(tmp_path, *range(1, 9), keep=2, keep_every=3).close()
    assert checkpointer(tmp_path).steps() == [3, 6, 7, 8]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["3", "6", "7", "8"]


def test_damaged_steps_do_not_count_as_kept(copied):
    empty_data(copied / "2")
    again = checkpointer(copied, keep=2)
    assert again.restore(abstract(make_state(0))).step == 1
    again.save(3, make_state(3), {})
    again.close()
    assert 1 in again.steps()


def test_saving_a_saved_step_changes_nothing(copied):
    before = (copied / "2" / "manifest.json").stat().st_mtime_ns
    save_steps(copied, 2).close()
    assert (copied / "2" / "manifest.json").stat().st_mtime_ns == before


def test_leftovers_of_a_killed_run_are_removed_by_the_next_save_not_by_a_reader(copied):
    for name in (".saving-2", ".trash-1-5"):
        (copied / name).mkdir()
    checkpointer(copied).restore(abstract(make_state(0)))
    assert (copied / ".saving-2").exists()
    save_steps(copied, 3).close()
    assert not list(copied.glob(".*"))


def test_a_run_that_never_saves_again_is_tidied(copied):
    """Killed in the deletion after its last save: the half of a step, and one more step than is kept."""
    shutil.copytree(copied / "2", copied / "3")
    (copied / ".trash-1-5").mkdir()
    saver = checkpointer(copied, keep=2)
    saver.tidy()
    assert saver.steps() == [2, 3] and not (copied / ".trash-1-5").exists()
    checkpointer(copied / "none").tidy()
    assert not (copied / "none").exists()


def test_an_error_of_a_background_save_is_raised_by_the_next_call_and_old_steps_stay(copied):
    noise = jnp.asarray(np.random.default_rng(0).integers(0, 2**31, 1 << 18, np.int32))
    saver = checkpointer(copied)
    for finish in (saver.close, saver.wait, lambda: saver.save(4, make_state(4), {})):
        with no_file_above(1 << 16):
            saver.save(3, {"noise": noise}, {})
            saver._thread.join()  # the limit must last as long as the writing
        with pytest.raises(CheckpointError, match=r"saving step 3 in .* failed"):
            finish()
        assert sorted(p.name for p in copied.iterdir()) == ["1", "2"]
    assert checkpointer(copied).restore(abstract(make_state(0))).step == 2
    saver.save(4, make_state(4), {})
    saver.close()
    assert checkpointer(copied).restore(abstract(make_state(0))).step == 4


def test_a_path_that_is_a_file_is_an_error_of_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"saving step 1 in .* failed") as caught:
        checkpointer(tmp_path / "file").save(1, make_state(1), {})
    assert "\n" not in str(caught.value)


def test_a_full_disk_is_reported_and_costs_no_old_step(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if (
        shutil.which("mount") is None
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", disk]).returncode
    ):
        pytest.skip("no right to mount a small disk")
    try:
        saver = checkpointer(disk)
        noise = np.random.default_rng(0).integers(0, 2**31, 1 << 18, np.int32)  # 1 MiB that does not compress
        failures = []
        for step in range(1, 6):
            try:
                saver.save(step, {"noise": jnp.asarray(noise + step)}, {})
                saver.wait()
            except CheckpointError as error:
                failures.append(str(error))
        assert failures and all("failed" in f and "\n" not in f for f in failures)
        restored = checkpointer(disk).restore({"noise": jax.ShapeDtypeStruct(noise.shape, noise.dtype)})
        assert (np.asarray(restored.state["noise"]) == noise + restored.step).all()
    finally:
        subprocess.run(["umount", disk], check=True)


def test_kill_at_any_moment_leaves_only_whole_steps(tmp_path):
    command = [sys.executable, str(SAVER), "--rounds=3", "--megabytes=10", "--seed", str(random.randrange(1000))]
    done = subprocess.run([*command, f"--directory={tmp_path}"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 bad" in done.stdout


def test_a_step_can_be_asked_for(two_steps):
    restored = checkpointer(two_steps).restore(abstract(make_state(0)), step=1)
    assert restored.step == 1
    assert_same(restored.state, make_state(1))
    with pytest.raises(CheckpointError, match=r"there is no step 7 in .*; saved: 1, 2"):
        checkpointer(two_steps).restore(abstract(make_state(0)), step=7)


def test_a_damaged_step_that_was_asked_for_is_not_replaced_by_another(copied):
    (copied / "2" / "manifest.json").write_text("{")
    with pytest.raises(
        CheckpointError, match=r"step 2 in .* cannot be used \(2: .*manifest.json cannot be read.*; other steps: 1$"
    ):
        checkpointer(copied).restore(abstract(make_state(0)), step=2)


def test_after_a_rollback_later_steps_are_gone_and_are_saved_anew(copied):
    (copied / "20251105").mkdir()
    (copied / "20251105" / "notes.txt").write_text("not a step of ours")
    saver = checkpointer(copied)
    assert saver.discard_after(2) == [] and saver.discard_after(1) == [2]
    assert saver.steps() == [1] and (copied / "20251105" / "notes.txt").exists()
    saver.save(2, make_state(7), {})
    saver.close()
    assert_same(checkpointer(copied).restore(abstract(make_state(0)), step=2).state, make_state(7))


def test_verifying_leaves_no_copy_of_the_arrays_on_the_host(two_steps):
    restored = checkpointer(two_steps).restore(abstract(make_state(0)))
    for leaf in jax.tree.leaves(restored.state):
        if isinstance(leaf, jax.Array):
            arrays = [leaf, *(shard.data for shard in leaf.addressable_shards)]
            assert all(array._npy_value is None for array in arrays)


@pytest.mark.parametrize("where", ["_write_checksums", "_begin"])
def test_a_joint_operation_that_fails_is_not_blamed_on_the_disk(copied, monkeypatch, where):
    """So a dead process shows to those who live; which one it was is told by who watches them."""
    saver = checkpointer(copied)

    def fail(*args):
        raise jax.errors.JaxRuntimeError("Gloo AllGather failed: Connection closed by peer")

    monkeypatch.setattr(*((saving, where) if where == "_write_checksums" else (saver, where)), fail)
    with pytest.raises(jax.errors.JaxRuntimeError, match="closed by peer"):
        saver.save(3, make_state(3), {})
        saver.wait()
    assert saver.steps() == [1, 2] and not [path for path in copied.iterdir() if path.name.startswith(restore.SAVING)]


@pytest.mark.parametrize(
    "error",
    [MemoryError("no memory"), RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 7 bytes.")],
)
def test_too_little_memory_is_no_damage(copied, monkeypatch, error):
    again = checkpointer(copied)

    def fail(*args):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(restore, "_read_arrays", fail)
        with pytest.raises(type(error)) as caught:
            again.restore(abstract(make_state(0)))
    assert caught.value is error
    assert again.restore(abstract(make_state(0))).step == 2
