"""Streamed checkpoints: the same as others to a reader, small in memory, and nothing where writing failed."""

import subprocess
import sys

import jax
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from chameleon_jax.checkpoints import stream as streams
from chameleon_jax.checkpoints.checkpointer import Checkpointer
from chameleon_jax.checkpoints.manifest import read_manifest
from chameleon_jax.checkpoints.restore import restore_subtree
from chameleon_jax.checkpoints.stream import LeafStream, StreamedCheckpoint, save_stream
from chameleon_jax.configs import CheckpointConfig
from chameleon_jax.errors import CheckpointError, ConvertError

RANDOM = np.random.default_rng(0)
VALUES = {
    "params/layers/w": RANDOM.standard_normal((6, 8, 16), np.float32),
    "params/layers/narrow": RANDOM.standard_normal((6, 8)).astype(ml_dtypes.bfloat16),
    "params/embed": RANDOM.standard_normal((128, 8), np.float32),
}


def stream(values, stacked):
    return LeafStream(values.shape, values.dtype, stacked, lambda i: values if i is None else values[i])


def save(directory, step=0, values=VALUES):
    leaves = {path: stream(array, "layers" in path) for path, array in values.items()}
    save_stream(directory, step, leaves, {"note": step})


@pytest.mark.parametrize("layers", ["by layers", "at once"])
def test_a_streamed_step_restores_to_any_mesh(tmp_path, request, layers):
    if layers == "by layers":
        request.getfixturevalue("by_layers")
    save(tmp_path / "c", step=3)
    devices = Mesh(np.array(jax.devices()).reshape(2, 4), ("a", "b"))
    spec = {
        "params/layers/w": PartitionSpec(None, "a", "b"),
        "params/layers/narrow": PartitionSpec("a"),
        "params/embed": PartitionSpec("b"),
    }
    abstract = {"layers": dict.fromkeys(("w", "narrow")), "embed": None}
    for path, values in VALUES.items():
        place = jax.ShapeDtypeStruct(values.shape, values.dtype, sharding=NamedSharding(devices, spec[path]))
        (abstract["layers"] if "layers" in path else abstract)[path.split("/")[-1]] = place
    restored = restore_subtree(tmp_path / "c", "params", abstract)
    assert (restored.step, restored.metadata) == (3, {"note": 3})
    for path, values in VALUES.items():
        got = (restored.state["layers"] if "layers" in path else restored.state)[path.split("/")[-1]]
        assert got.sharding.spec == spec[path]
        np.testing.assert_array_equal(np.asarray(got), values)


@pytest.fixture
def by_layers(monkeypatch):
    """Small leaves are written layer by layer too."""
    monkeypatch.setattr(streams, "WHOLE_BYTES", 0)


def test_layers_lie_in_chunks_of_their_own(tmp_path, by_layers):
    save(tmp_path / "c")
    array = StreamedCheckpoint(tmp_path / "c")._open("params/layers/w")
    assert array.chunk_layout.write_chunk.shape[0] == 1
    manifest = read_manifest(tmp_path / "c" / "0")
    assert len(manifest.leaves["params/layers/w"].regions) == 6 and len(manifest.leaves["params/embed"].regions) == 1


@pytest.mark.parametrize("streamed", [True, False])
def test_reading_by_layers_gives_what_was_saved_by_either_writer(tmp_path, by_layers, streamed):
    if streamed:
        save(tmp_path / "c")
    else:
        writer = Checkpointer(tmp_path / "c", CheckpointConfig())
        layers = {path.split("/")[-1]: values for path, values in VALUES.items() if "layers" in path}
        writer.save(0, {"params": {"layers": layers, "embed": VALUES["params/embed"]}, "step": np.zeros(1)}, {})
        writer.close()
    reader = StreamedCheckpoint(tmp_path / "c")
    assert set(reader.leaves) == set(VALUES)
    for path, values in VALUES.items():
        np.testing.assert_array_equal(reader.read(path), values)
        for i in range(len(values)) if "layers" in path else ():
            np.testing.assert_array_equal(reader.read(path, i), values[i])


def test_a_damaged_step_is_passed_over_and_no_good_step_is_an_error(tmp_path):
    other = {path: values[::-1].copy() for path, values in VALUES.items()}
    save(tmp_path / "c", step=0, values=other)
    save(tmp_path / "c", step=1)
    assert StreamedCheckpoint(tmp_path / "c").step == 1
    files = [file for file in (tmp_path / "c" / "1" / "arrays").rglob("*") if file.is_file()]
    victim = max(files, key=lambda file: file.stat().st_size)
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    reader = StreamedCheckpoint(tmp_path / "c")
    assert reader.step == 0
    np.testing.assert_array_equal(reader.read("params/embed"), other["params/embed"])
    (tmp_path / "c" / "0" / "manifest.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"no step in .* can be used \(1: .*; 0: "):
        StreamedCheckpoint(tmp_path / "c")


@pytest.mark.parametrize(
    ("error", "raised"),
    [(ConvertError("tensor x is gone"), ConvertError), (OSError(28, "No space left on device"), CheckpointError)],
)
def test_what_a_stream_raises_goes_through_and_nothing_is_left(tmp_path, error, raised):
    def fail(index):
        if index == 3:
            raise error
        return VALUES["params/layers/w"][index]

    values = VALUES["params/layers/w"]
    leaves = {"params/layers/w": LeafStream(values.shape, values.dtype, True, fail)}
    with pytest.raises(raised, match=r"gone|No space left"):
        save_stream(tmp_path / "c", 0, leaves, {})
    assert list((tmp_path / "c").iterdir()) == []


def test_a_step_without_a_manifest_is_passed_over(tmp_path):
    save(tmp_path / "c", step=0)
    (tmp_path / "c" / "1").mkdir()
    assert StreamedCheckpoint(tmp_path / "c").step == 0
    (tmp_path / "c" / "1" / "manifest.json").write_text("{")
    assert StreamedCheckpoint(tmp_path / "c").step == 0


MEMORY = """
import resource, sys
import numpy as np
from chameleon_jax.checkpoints.stream import LeafStream, save_stream

def save(path, layers):
    shape = (layers, 1024, 1024)
    read = lambda i: np.full((1024, 1024), i, np.float32)
    save_stream(path, 0, {"params/w": LeafStream(shape, np.dtype("float32"), True, read)}, {})
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

few = save(sys.argv[1] + "/few", 4)
print(save(sys.argv[1] + "/many", 128) - few)
"""


def test_memory_does_not_grow_with_the_number_of_layers(tmp_path):
    """512 MB of layers of 4 MB each: the whole would show."""
    run = subprocess.run([sys.executable, "-c", MEMORY, str(tmp_path)], capture_output=True, text=True, check=True)
    assert float(run.stdout.split()[-1]) < 150
