"""Checkpoints that are whole or absent: Orbax writes the arrays, a manifest with checksums proves them.

Everything of a step is written into a hidden folder, synced to disk, its manifest last, and then the folder
is renamed to the step's number. So a kill at any moment leaves no numbered folder that is half there, and `restore` takes
the newest step whose every byte matches its manifest. Orbax is known to this room alone. Local and shared file
systems only.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import threading
import time
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np
from absl import logging

from chameleon_jax.checkpoints import manifest as manifests
from chameleon_jax.checkpoints.manifest import MANIFEST, HostRegion, Leaf, Manifest
from chameleon_jax.checkpoints.restore import (
    ARRAYS,
    SAVING,
    TRASH,
    Restored,
    brief,
    numbered_steps,
    restore_newest,
    saved_metadata,
)
from chameleon_jax.configs import CheckpointConfig
from chameleon_jax.errors import CheckpointError
from chameleon_jax.files import atomic_write, sync, sync_tree
from chameleon_jax.parallel import distributed

WAIT_SECONDS = 1200.0  # for the slowest process to write its part


class Checkpointer:
    """Saves in the background and restores the newest step that verifies.

    One save is under way at a time and holds one host copy of the state. An error of a background save is raised as
    CheckpointError by the next `save`, `wait` or `close`; older steps are never touched before a newer one is whole. All
    processes of a run must make the same calls in the same order. Not for use from several threads.
    """

    def __init__(self, directory: str | os.PathLike[str], config: CheckpointConfig):
        self.directory = Path(directory).absolute()
        self._config = config
        self._orbax: Any = None
        self._thread: threading.Thread | None = None
        self._error: tuple[int, BaseException] | None = None
        self._damaged: set[int] = set()
        self._swept = False

    def steps(self) -> list[int]:
        """Steps that have a manifest, ascending; damage is found only by `restore`."""
        return [step for step in numbered_steps(self.directory) if (self.directory / str(step) / MANIFEST).is_file()]

    def metadata(self) -> dict[str, Any] | None:
        """What the caller saved beside the newest step with a readable manifest; None without any. Reads no array."""
        return distributed.decide(lambda: saved_metadata(self.directory), "reading the newest checkpoint's metadata")

    def tidy(self) -> None:
        """Delete what a kill in a save or a deletion left, and the steps that are too old; other processes do nothing."""
        if jax.process_index() == 0 and self.directory.is_dir():
            _sweep(self.directory)
            self._swept = True
            self._retain()

    def save(self, step: int, state: Any, metadata: dict[str, Any]) -> None:
        """Begin to save; returns when `state` is on the host and may be donated or changed.

        A step that is already saved is left as it is. `metadata` must be representable in JSON. Raises CheckpointError when
        this save cannot begin or the save before it failed.
        """
        self.wait()
        if distributed.decide(lambda: step in self.steps() and step not in self._damaged, f"saving step {step}"):
            return
        metadata = json.loads(json.dumps(metadata))
        named = manifests.named_leaves(state)
        try:
            self._begin(step, named, metadata)
        except Exception as error:
            self._give_up(step, error)

    def _begin(self, step: int, named: dict[str, Any], metadata: dict[str, Any]) -> None:
        folder = self.directory / f"{SAVING}{step}"
        if jax.process_index() == 0:
            self.directory.mkdir(parents=True, exist_ok=True)
            if not self._swept:
                _sweep(self.directory)
                self._swept = True
            folder.mkdir()
        regions = manifests.host_regions(named)
        import orbax.checkpoint as ocp

        if self._orbax is None:
            # No compression: trained weights shrink by a tenth at the cost of most of the writing time.
            handler = ocp.PyTreeCheckpointHandler(use_ocdbt=True, use_zarr3=True, use_compression=False)
            self._orbax = ocp.AsyncCheckpointer(handler)
        # Orbax refuses arrays without elements; the manifest has their shape, which is all there is to them.
        tree = manifests.nest({path: leaf for path, leaf in named.items() if 0 not in leaf.shape})
        self._orbax.save(folder / ARRAYS, args=ocp.args.PyTreeSave(tree))
        shapes = {path: (tuple(leaf.shape), np.dtype(leaf.dtype).name) for path, leaf in named.items()}
        arguments = (step, folder, regions, shapes, metadata)
        self._thread = threading.Thread(target=self._finish, args=arguments, name=f"checkpoint-{step}")
        self._thread.start()

    def _finish(
        self, step: int, folder: Path, regions: list[HostRegion], shapes: dict, metadata: dict[str, Any]
    ) -> None:
        """Background half of a save: sum up, wait for the arrays, write the manifest, publish, delete what is too old."""
        try:
            _write_checksums(folder, regions)
            regions.clear()
            self._orbax.wait_until_finished()
            published = self.directory / str(step)
            if jax.process_index() == 0:
                leaves = _gather_checksums(folder, shapes)
                sync_tree(folder)
                atomic_write(folder / MANIFEST, Manifest(step, leaves, metadata).to_bytes())
                self._publish(folder, published)
                self._damaged.discard(step)
                self._retain()
            else:
                _await_files([published / MANIFEST])
        except BaseException as error:  # everything must reach the caller's thread
            self._error = (step, error)

    def _publish(self, folder: Path, published: Path) -> None:
        if published.exists():
            if _is_ours(published):
                _discard(published)
            else:
                aside = published.with_name(f"{published.name}.foreign-{time.time_ns()}")
                logging.warning("checkpoint: %s is not a checkpoint of ours; moved to %s", published, aside)
                published.rename(aside)
        folder.rename(published)
        sync(self.directory)

    def _retain(self) -> None:
        good = [step for step in self.steps() if step not in self._damaged]
        for step in good[: -self._config.keep]:
            if not (self._config.keep_every and step % self._config.keep_every == 0):
                _discard(self.directory / str(step))

    def wait(self) -> None:
        """Return when the save under way is whole on disk; raises CheckpointError if it failed."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            (step, error), self._error = self._error, None
            self._give_up(step, error)

    def close(self) -> None:
        """`wait`, and release what is held; the object can still be used afterwards."""
        try:
            self.wait()
        finally:
            self._close_orbax()

    def _give_up(self, step: int, error: BaseException) -> NoReturn:
        """Make room after a failure, since a full disk must not stay full of half a step, and raise."""
        self._close_orbax()
        if jax.process_index() == 0:
            shutil.rmtree(self.directory / f"{SAVING}{step}", ignore_errors=True)
        if isinstance(error, jax.errors.JaxRuntimeError):
            raise error  # no disk is at fault: a joint operation with a dead process, or too little memory
        raise CheckpointError(
            f"saving step {step} in {self.directory} failed ({brief(error)}); the steps saved before are intact: "
            "free or mend the disk, then run the same command to go on"
        ) from error

    def _close_orbax(self) -> None:
        orbax, self._orbax = self._orbax, None
        if orbax is not None:
            with contextlib.suppress(Exception):  # its errors have been reported already
                orbax.close()

    def restore(self, abstract_state: Any, step: int | None = None) -> Restored | None:
        """The newest step that verifies, or `step`, in the shardings of `abstract_state` (ShapeDtypeStructs or arrays).

        None if nothing was ever saved here. Damaged steps and foreign folders are logged, passed over, and named in
        `skipped`. Raises CheckpointError if steps were saved but all are damaged, if `step` is damaged or not there, and if the
        manifest has other leaves, shapes or dtypes. Process 0 says which steps there are, and a step that one process finds
        damaged is damaged for all. Too little memory is no damage: that error goes through as it is.
        """
        self.wait()
        wanted = manifests.named_leaves(abstract_state)

        def choose(manifest: Manifest) -> dict[str, Any]:
            difference = manifests.first_difference(wanted, manifest.leaves)
            if difference is not None:
                raise CheckpointError(
                    f"step {manifest.step} in {self.directory} does not fit this run: {difference}; "
                    "use the config it was made with, or a new workdir"
                )
            return wanted

        restored = restore_newest(self.directory, choose, self._damaged, None if step is None else str(step))
        if restored is None:
            if step is not None:
                known = ", ".join(map(str, self.steps())) or "none"
                raise CheckpointError(f"there is no step {step} in {self.directory}; saved: {known}")
            return None
        state = jax.tree.unflatten(jax.tree.structure(abstract_state), [restored.state[path] for path in wanted])
        return dataclasses.replace(restored, state=state)

    def discard_after(self, step: int) -> list[int]:
        """Delete the steps later than `step`: those of a run that is rolled back. Returns their numbers.

        Foreign folders with a number for a name are left alone.
        The newest goes first, each with one rename, so a kill in between leaves earlier ones that are whole; call it again.
        """
        self.wait()

        def discard() -> None:
            for later in stale:
                _discard(self.directory / str(later))

        def later_steps() -> list[int]:
            numbers = reversed(numbered_steps(self.directory))
            return [later for later in numbers if later > step and _is_ours(self.directory / str(later))]

        stale = distributed.decide(later_steps, "choosing the steps to discard")
        distributed.first_does(discard, "discarding later steps")
        self._damaged.difference_update(stale)
        return stale


def _write_checksums(folder: Path, regions: list[HostRegion]) -> None:
    sums = [{"path": r.path, "start": r.start, "stop": r.stop, "crc32": manifests.checksum(r.values)} for r in regions]
    atomic_write(folder / _checksum_name(jax.process_index()), json.dumps(sums))


def _checksum_name(process: int) -> str:
    return f"checksums-{process}.json"


def _gather_checksums(folder: Path, shapes: dict[str, tuple[tuple[int, ...], str]]) -> dict[str, Leaf]:
    """Join what every process summed up; the parts are in the manifest afterwards and are removed."""
    files = [folder / _checksum_name(process) for process in range(jax.process_count())]
    _await_files(files)
    regions: dict[str, list[manifests.Region]] = {path: [] for path in shapes}
    for file in files:
        for entry in json.loads(file.read_bytes()):
            regions[entry["path"]].append(manifests.region_from_dict(entry))
        file.unlink()
    return {path: Leaf(shape, dtype, tuple(regions[path])) for path, (shape, dtype) in shapes.items()}


def _await_files(files: list[Path]) -> None:
    """Wait by looking, not by a barrier: the message names what is absent, and nothing can hang for ever."""
    deadline = time.monotonic() + WAIT_SECONDS
    while missing := [file.name for file in files if not file.exists()]:
        if time.monotonic() > deadline:
            raise TimeoutError(
                f"{', '.join(missing)} did not appear in {WAIT_SECONDS:.0f} s: another process died or hangs"
            )
        time.sleep(0.05)


def _is_ours(folder: Path) -> bool:
    return folder.is_dir() and all(entry.name in (ARRAYS, MANIFEST) for entry in folder.iterdir())


def _discard(folder: Path) -> None:
    """Delete a step so that a kill in the middle leaves no numbered folder that is half there."""
    trash = folder.with_name(f"{TRASH}{folder.name}-{time.time_ns()}")
    folder.rename(trash)
    sync(trash.parent)
    shutil.rmtree(trash, ignore_errors=True)


def _sweep(directory: Path) -> None:
    """Remove what a killed run left. Called by the one who writes alone: someone who just reads must delete nothing."""
    for entry in directory.iterdir():
        if entry.name.startswith((SAVING, TRASH)):
            shutil.rmtree(entry, ignore_errors=True)
