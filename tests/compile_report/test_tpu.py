"""The command as it is typed, for TPU topologies: with the TPU compiler where it is installed, and without."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HAS_COMPILER = importlib.util.find_spec("libtpu") is not None
RUN = ["--gin_file=gin_configs/runs/smoke.gin", "--gin.MeshConfig.fsdp=8"]


def command(*flags):
    """The finished process of the command. It is a process of its own, for what it says about platforms holds for all of it."""
    called = [sys.executable, "-m", "experiments.compile_only", *RUN, *flags]
    return subprocess.run(called, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "JAX_PLATFORMS": "cpu"})


@pytest.mark.skipif(HAS_COMPILER, reason="libtpu is installed")
def test_without_the_compiler_it_says_how_to_get_it():
    done = command("--topology=v5p:4x4x4")
    told = "error: --topology=v5p:4x4x4 needs the TPU compiler: pip install 'chameleon-jax[tpu]'\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", told)


@pytest.mark.slow
@pytest.mark.skipif(not HAS_COMPILER, reason="libtpu is not installed")
def test_a_step_is_reported_for_a_topology(tmp_path):
    done = command("--topology=v5e:2x4", f"--workdir={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert "a training step on 8 x v5e (data 1, fsdp 8, tensor 1)" in done.stdout
    found = json.loads((tmp_path / "report.json").read_text())
    memory = found["memory"]
    assert memory["fits"] and memory["aliased"] > 0.95 * memory["outputs"]
    assert found["alive_at_peak"] and max(one["bytes"] for one in found["alive_at_peak"]) <= memory["peak"]
    assert found["wire"]["bytes"] > found["wire"]["parameter_bytes"]
    assert found["cycles"]["matrix"] > 0 and 0 < found["estimate"]["share_of_peak"] < 1


@pytest.mark.slow
@pytest.mark.skipif(not HAS_COMPILER, reason="libtpu is not installed")
@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--topology=v5p:3x3x3"], "--topology=v5p:3x3x3: no such topology (INVALID_ARGUMENT"),
        (["--topology=v5e:4x4"], "MeshConfig: axes [1, 8, 1] need 8 devices, there are 16"),
        (
            ["--topology=v5e:2x4", "--gin.TransformerConfig.vocab_size=4194304", "--gin.TransformerConfig.d_model=512"],
            "a training step does not fit: Ran out of memory",
        ),
        (["--topology=v5e:2x4", "--program=decode", "--sweep=1"], "--sweep compares training steps"),
    ],
)
def test_what_cannot_be_compiled_is_one_line(flags, told):
    done = command(*flags)
    assert done.returncode == 2 and told in done.stderr.splitlines()[-1]
