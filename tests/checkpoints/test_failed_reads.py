"""Leaves are read side by side; when one cannot be read, the others leave nothing to be said later."""

import gc
import shutil
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from chameleon_jax.checkpoints.checkpointer import Checkpointer
from chameleon_jax.checkpoints.restore import restore_subtree
from chameleon_jax.configs import CheckpointConfig
from chameleon_jax.errors import CheckpointError


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """(folder of one step with leaves in memory of devices and of the host, its state)."""
    folder, random = tmp_path_factory.mktemp("saved"), np.random.default_rng(0)
    values = [random.normal(size=(60, 1000)).astype(np.float32) for _ in range(16)]
    state = {"params": {str(i): jnp.asarray(v) for i, v in enumerate(values)}, "host": {"a": values[0], "b": values[1]}}
    saver = Checkpointer(folder, CheckpointConfig())
    saver.save(1, state, {})
    saver.close()
    return folder, state


@pytest.mark.parametrize("whole", [True, False])
def test_nothing_is_said_but_the_error(saved, tmp_path, monkeypatch, caplog, capfd, whole):
    folder, state = saved
    files = [path for path in (folder / "1" / "arrays").rglob("*") if path.is_file() and path.stat().st_size > 100_000]
    heard, failed = [], 0
    monkeypatch.setattr(sys, "unraisablehook", heard.append)
    for number, file in enumerate(files):
        copy = tmp_path / str(number)
        shutil.copytree(folder, copy)
        (copy / file.relative_to(folder)).write_bytes(bytes(file.stat().st_size))
        try:
            _ = Checkpointer(copy, CheckpointConfig()).restore(state) if whole else restore_subtree(copy)
        except CheckpointError as error:
            failed += "can be used" in str(error)
        gc.collect()
    assert failed == len(files) if whole else failed  # a file may have leaves of the host alone
    assert not heard, heard[0]
    assert not [record for record in caplog.records if record.name == "asyncio"]
    assert capfd.readouterr() == ("", "")
