"""Reading checkpoints: the newest step that verifies, whole or a part, in any sharding.

What is passed over is named with its reason. A step that one process finds damaged is damaged for all, so that all go on with
the same one.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging

from chameleon_jax.checkpoints import manifest as manifests
from chameleon_jax.checkpoints.manifest import MANIFEST, Manifest
from chameleon_jax.checkpoints.verify import first_damage
from chameleon_jax.errors import CheckpointError, did_you_mean
from chameleon_jax.parallel import distributed

ARRAYS = "arrays"  # folder of a step that Orbax writes
SAVING, TRASH = ".saving-", ".trash-"  # prefixes of folders that do not count and may be deleted


@dataclasses.dataclass(frozen=True)
class Skipped:
    """A folder entry that was passed over, and why."""

    name: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Restored:
    """The state of one step with the metadata saved beside it, and the newer entries that could not be used."""

    step: int
    state: Any
    metadata: dict[str, Any]
    skipped: tuple[Skipped, ...]


def saved_metadata(directory: str | os.PathLike[str]) -> dict[str, Any] | None:
    """What was saved beside a step, or beside the newest with a readable manifest in a folder of steps; None without any."""
    directory = Path(directory).absolute()
    for folder in [directory, *(directory / str(step) for step in reversed(numbered_steps(directory)))]:
        with contextlib.suppress(ValueError, OSError):
            return manifests.read_manifest(folder).metadata
    return None


def restore_subtree(directory: str | os.PathLike[str], name: str = "params", abstract: Any = None) -> Restored:
    """Restore only the part `name` (a path such as "params"), verified, with the step's metadata.

    `directory` holds steps (the newest that verifies is taken) or is itself one step. `abstract` gives shardings; without it
    the part comes as nested dictionaries of arrays on the first local device. Raises CheckpointError when there is no such part
    or no good step.
    """
    directory = Path(directory).absolute()

    def choose(manifest: Manifest) -> dict[str, Any]:
        saved = {path: leaf for path, leaf in manifest.leaves.items() if path == name or path.startswith(name + "/")}
        if not saved:
            parts = sorted({path.split("/")[0] for path in manifest.leaves})
            known = ", ".join(parts)
            raise CheckpointError(
                f"step {manifest.step} in {directory} has no part '{name}'{did_you_mean(name, parts)}; it has {known}"
            )
        if abstract is None:
            return {path: jax.ShapeDtypeStruct(leaf.shape, np.dtype(leaf.dtype)) for path, leaf in saved.items()}
        wanted = {"/".join(filter(None, (name, path))): leaf for path, leaf in manifests.named_leaves(abstract).items()}
        difference = manifests.first_difference(wanted, saved)
        if difference is not None:
            raise CheckpointError(f"step {manifest.step} in {directory} does not fit: {difference}")
        return wanted

    if distributed.decide((directory / MANIFEST).is_file, "looking for a checkpoint"):
        restored = restore_newest(directory.parent, choose, set(), only=directory.name)
    else:
        restored = restore_newest(directory, choose, set())
    if restored is None:
        raise CheckpointError(
            f"no checkpoint in {directory}: give the workdir of experiments.pretrain or experiments.convert, once it has saved"
        )
    if abstract is None:
        return dataclasses.replace(restored, state=manifests.unnest(manifests.nest(restored.state), [name])[name])
    return dataclasses.replace(
        restored, state=jax.tree.unflatten(jax.tree.structure(abstract), list(restored.state.values()))
    )


def restore_newest(
    directory: Path, choose: Callable[[Manifest], dict[str, Any]], damaged: set[int], only: str | None = None
) -> Restored | None:
    """Walk back from the newest step; `choose` maps a manifest to the abstract leaves to read. State: path -> array."""
    skipped: list[Skipped] = []
    once_whole = 0
    # What is there is what process 0 sees: a network file system may show others an older listing.
    entries = distributed.decide(lambda: _listed(directory, only), "looking for checkpoints")
    for name, reason in entries:
        if reason is not None:
            skipped.append(Skipped(name, reason))
            continue
        once_whole += 1
        folder, arrays = directory / name, {}
        try:
            manifest = manifests.read_manifest(folder)
            wanted = choose(manifest)
            damage = None
        except CheckpointError:
            raise
        except Exception as error:
            damage = _damage(error)
        # Asked twice, for reading is a joint work: a process without the manifest must not leave the others alone in it.
        damage = found_by_any(damage, f"reading the manifest of step {name}")
        if damage is None:
            try:
                arrays = _read_arrays(folder, wanted, manifest)
                damage = first_damage(arrays, manifest.leaves, folder / ARRAYS)
            except Exception as error:
                damage = _damage(error)
            damage = found_by_any(damage, f"verifying step {name}")
        if damage is None:
            _log(directory, skipped)
            return Restored(manifest.step, arrays, manifest.metadata, tuple(skipped))
        del arrays
        damaged.add(int(name))
        skipped.append(Skipped(name, damage))
    _log(directory, skipped)
    if once_whole:
        reasons = "; ".join(f"{s.name}: {s.reason}" for s in skipped)
        if only is not None:
            others = ", ".join(str(step) for step in numbered_steps(directory) if str(step) != only) or "none"
            raise CheckpointError(f"step {only} in {directory} cannot be used ({reasons}); other steps: {others}")
        raise CheckpointError(
            f"no step in {directory} can be used ({reasons}); copy a good step back, or use a new workdir"
        )
    return None


def _listed(directory: Path, only: str | None) -> list[tuple[str, str | None]]:
    """Entries that are no step first, then steps from the newest down; each with the reason to pass it over, if there is one."""

    def reason(name: str) -> str | None:
        if not (name.isascii() and name.isdecimal() and str(int(name)) == name):
            return (
                "unfinished save" if name.startswith(SAVING) else "deleted" if name.startswith(TRASH) else "not a step"
            )
        if not (directory / name / MANIFEST).is_file():
            return f"it has no {MANIFEST}: not a checkpoint, or damaged"
        return None

    names = _entries_newest_first(directory) if only is None else [only] if (directory / only).exists() else []
    return [(name, reason(name)) for name in names]


def _damage(error: Exception) -> str:
    """The error in words. One that says nothing about the step, such as too little memory to read it into, is raised instead."""
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
        raise error
    return brief(error)


def found_by_any(damage: str | None, what: str) -> str | None:
    """The damage that the first process with any has found; all processes must call it at the same place."""
    found = distributed.share(damage, what)
    for process, theirs in enumerate(found):
        if theirs is not None:
            return theirs if len(found) == 1 else f"{theirs} (found by process {process})"
    return None


def _read_arrays(folder: Path, wanted: Mapping[str, Any], manifest: Manifest) -> dict[str, Any]:
    import orbax.checkpoint as ocp

    # Always with explicit shardings: those on disk name devices of the machine that saved.
    default = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    arrays: dict[str, Any] = {}
    abstract, arguments = {}, {}
    for path, leaf in wanted.items():
        on_host = isinstance(leaf, np.ndarray)
        sharding = getattr(leaf, "sharding", None) or default
        if 0 in leaf.shape:
            empty = np.zeros(leaf.shape, leaf.dtype)
            arrays[path] = empty if on_host else jax.device_put(empty, sharding)
        else:
            abstract[path] = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
            arguments[path] = (
                ocp.RestoreArgs(restore_type=np.ndarray, dtype=leaf.dtype)
                if on_host
                else ocp.ArrayRestoreArgs(
                    restore_type=jax.Array, dtype=leaf.dtype, sharding=sharding, global_shape=leaf.shape, strict=True
                )
            )
    if abstract:
        # The handler alone: `ocp.Checkpointer` has barriers, at which a process that reads well would wait for one that does not.
        kinds = ((jax.Array, ocp.type_handlers.ArrayHandler), (np.ndarray, ocp.type_handlers.NumpyHandler))
        handlers = [(kind, _patient(handler)) for kind, handler in kinds]
        registry = ocp.type_handlers.create_type_handler_registry(*handlers)
        reader = ocp.PyTreeCheckpointHandler(use_ocdbt=True, use_zarr3=True, type_handler_registry=registry)
        try:
            tree = reader.restore(
                folder / ARRAYS,
                args=ocp.args.PyTreeRestore(
                    item=manifests.nest(abstract),
                    restore_args=manifests.nest(arguments),
                    partial_restore=len(abstract) < len(manifest.leaves),
                ),
            )
        finally:
            reader.close()
        for _, handler in handlers:
            if handler.error is not None:
                raise handler.error
        arrays.update(manifests.unnest(tree, abstract))
    return {path: arrays[path] for path in wanted}


def _patient(handler: type) -> Any:
    """Orbax's handler of leaves, which waits for all reads when one fails; what failed is its `error`, raised by the caller.

    Orbax itself closes its event loop at the first failure, and the reads of the other leaves, left in the middle, would say so
    on standard error, at any time until the process ends.
    """

    class Patient(handler):
        error: Exception | None = None

        async def deserialize(self, infos: Any, args: Any = None) -> Any:
            others = asyncio.all_tasks()
            try:
                return await super().deserialize(infos, args)
            except Exception as error:
                self.error = error
            while begun := asyncio.all_tasks() - others:
                await asyncio.wait(begun)
            return [np.zeros(0)] * len(infos)  # looked at by no one

    return Patient()


def numbered_steps(directory: Path) -> list[int]:
    """Numbers of the entries that are named like steps, ascending."""
    if not directory.is_dir():
        return []
    names = (entry.name for entry in directory.iterdir())
    return sorted(int(name) for name in names if name.isascii() and name.isdecimal() and str(int(name)) == name)


def _entries_newest_first(directory: Path) -> list[str]:
    """Entries that are no step first, for the log, then the steps from the newest down."""
    steps = [str(step) for step in reversed(numbered_steps(directory))]
    others = sorted(e.name for e in directory.iterdir() if e.name not in steps) if directory.is_dir() else []
    return others + steps


def _log(directory: Path, skipped: list[Skipped]) -> None:
    for entry in skipped:
        logging.warning("checkpoint: skipped %s: %s", directory / entry.name, entry.reason)


def brief(error: BaseException) -> str:
    """One line of at most 300 characters."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}{'...' if len(text) > 300 else ''}"
