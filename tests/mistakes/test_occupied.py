"""Places that another process holds, and disks that are full: one line, nothing lost, and the same command goes on afterwards."""

import contextlib
import resource
import shlex
import socket
import subprocess
import sys

import pytest

from chameleon_jax.commands import EXPERIMENTS
from tests.mistakes import test_data, test_models, world
from tests.mistakes.runner import Mistake, check, run

HOLD = """
import sys
from chameleon_jax.workdir import open_workdir
with open_workdir(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""
SAVING = (
    test_models.TRAIN
    + " --gin.TrainConfig.eval_every=8 --gin.TransformerConfig.n_layers=1 --gin.CheckpointConfig.every_steps=2"
    + " --gin.OptimConfig.schedule=constant --gin.TrainConfig.steps="
)


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        (test_models.TRAIN, "w is in use by process {pid} on host"),
        (test_data.TRAIN, "w is in use by process {pid} on host"),
        (test_data.TOKENIZE, "w: another run is tokenising into this directory"),
    ],
    ids=["pretrain", "train_tokenizer", "tokenize"],
)
def test_a_workdir_that_another_process_holds(typed, told, places, tmp_path, capfd):
    argv = [sys.executable, "-c", HOLD, str(tmp_path / "w")]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        check(Mistake("in use", typed, (told.format(pid=holder.pid), "wait for it")), places, tmp_path, capfd)
        holder.stdin.close()


def test_a_port_that_another_process_holds(places, tmp_path, capfd):
    with socket.create_server(("127.0.0.1", 0)) as server:
        typed = f"serve --workdir={{model}} --port={server.getsockname()[1]}"
        check(Mistake("in use", typed, ("cannot listen on", "in use")), places, tmp_path, capfd)


@contextlib.contextmanager
def disk_of(most):
    """The kernel refuses to make a file of this process larger than so many bytes; what it says on the way is a file here too."""
    kept = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, kept[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, kept)


def fails(typed, most, told, places, here, capfd):
    with disk_of(most):
        check(Mistake("a full disk", typed, told), places, here, capfd)


def goes_on(typed, places, here, capfd):
    code, out, err = run(typed.format(**vars(places), here=here), here, capfd)
    assert not code, err
    return out + err


def test_a_disk_that_fills_while_data_are_tokenized(places, tmp_path, capfd):
    fails(test_data.TOKENIZE, 300, ("cannot be written (File too large): make room",), places, tmp_path, capfd)
    goes_on(test_data.TOKENIZE, places, tmp_path, capfd)
    assert (tmp_path / "w" / "manifest.json").is_file()


def test_a_disk_that_fills_while_outputs_are_written(places, tmp_path, capfd):
    typed = test_models.ASK + " --mode=image"
    fails(typed, 700, ("cannot be written: File too large",), places, tmp_path, capfd)
    goes_on(typed, places, tmp_path, capfd)
    assert (tmp_path / "o" / "00.json").is_file()


@pytest.mark.slow
def test_a_disk_that_fills_in_a_save_leaves_the_saves_before(places, tmp_path, capfd):
    goes_on(SAVING + "2", places, tmp_path, capfd)
    before = world.digests(tmp_path / "w" / "checkpoints")
    argv = shlex.split("-m experiments." + (SAVING + "4").format(**vars(places), here=tmp_path))
    with disk_of(20_000):
        ended = subprocess.run([sys.executable, *argv], capture_output=True, text=True, cwd=EXPERIMENTS.parent)
    # Orbax tells of every write that it had begun, with tracebacks around the line.
    said = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert (ended.returncode, len(said)) == (2, 1) and "run the same command to go on" in said[0], ended.stderr
    assert before.items() <= world.digests(tmp_path / "w" / "checkpoints").items()
    goes_on(SAVING + "4", places, tmp_path, capfd)
    assert (tmp_path / "w" / "checkpoints" / "4" / "manifest.json").is_file()
