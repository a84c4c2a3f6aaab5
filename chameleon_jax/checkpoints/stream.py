"""Checkpoints written and read one layer at a time, for models that are larger than the memory.

It is the same checkpoint as `checkpointer.Checkpointer` makes, Orbax's arrays and our manifest, and
`restore_subtree` loads it straight to any mesh. Only the values of a leaf come from a function, layer by layer, where the other
has them in an array; its chunks and the regions of its checksums are layers too.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Shaped

from chameleon_jax.checkpoints import manifest as manifests
from chameleon_jax.checkpoints.manifest import MANIFEST, Leaf, Manifest, Region
from chameleon_jax.checkpoints.restore import ARRAYS, SAVING, brief, numbered_steps
from chameleon_jax.checkpoints.verify import first_damage_on_disk, open_array
from chameleon_jax.errors import CheckpointError
from chameleon_jax.files import atomic_write, sync, sync_tree

WHOLE_BYTES = 32 << 20  # a stacked leaf of no more, norms above all, is written at once
CHUNK_BYTES = 64 << 20  # of an array on disk: a few for a layer, so that many hosts can read parts of it


@dataclasses.dataclass(frozen=True)
class LeafStream:
    """A leaf to be written. `read(i)` gives `leaf[i]` where it is `stacked`, and `read(None)` the whole where it is not."""

    shape: tuple[int, ...]
    dtype: np.dtype
    stacked: bool
    read: Callable[[int | None], Shaped[np.ndarray, "..."]]

    # What Orbax asks of any array before it writes it.
    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    @property
    def by_layers(self) -> bool:
        """Whether it is written layer by layer, not at once."""
        return self.stacked and self.nbytes > WHOLE_BYTES

    def blocks(self) -> Iterator[tuple[tuple[slice, ...], np.ndarray]]:
        """(where, values) in order; each is read when it is asked for."""
        whole = tuple(slice(0, n) for n in self.shape)
        if self.by_layers:
            for i in range(self.shape[0]):
                yield (slice(i, i + 1), *whole[1:]), self.read(i)[None]
        elif self.stacked:
            yield whole, np.stack([self.read(i) for i in range(self.shape[0])])
        else:
            yield whole, self.read(None)


def save_stream(
    directory: str | os.PathLike[str], step: int, leaves: Mapping[str, LeafStream], metadata: dict[str, Any]
) -> None:
    """Write a step whose leaves (path -> stream) never lie in memory together.

    Raises CheckpointError when the step exists or cannot be written; what a stream raises goes through. Nothing is left of a
    failure.
    """
    import orbax.checkpoint as ocp

    directory = Path(directory).absolute()
    folder, published = directory / f"{SAVING}{step}", directory / str(step)
    if published.exists():
        raise CheckpointError(f"{published} exists already")
    handler = _stream_handler()
    # Orbax warns about a registry without a handler of jax.Array, which nothing here is.
    registry = ocp.type_handlers.create_type_handler_registry(
        (LeafStream, handler), (jax.Array, ocp.type_handlers.ArrayHandler())
    )
    tree = manifests.nest(leaves)
    # A chunk is never more than a block: writing a part of one would mean reading and writing the rest again.
    chunks = {
        path: ocp.SaveArgs(chunk_byte_size=min(CHUNK_BYTES, leaf.nbytes // leaf.shape[0]), shard_axes=(0,))
        if leaf.by_layers
        else ocp.SaveArgs()
        for path, leaf in leaves.items()
    }

    def write() -> None:
        with ocp.Checkpointer(
            ocp.PyTreeCheckpointHandler(
                use_ocdbt=True, use_zarr3=True, use_compression=False, type_handler_registry=registry
            )
        ) as writer:
            try:
                writer.save(folder / ARRAYS, args=ocp.args.PyTreeSave(tree, save_args=manifests.nest(chunks)))
            finally:
                if handler.error is not None:
                    raise handler.error

    try:
        folder.mkdir(parents=True)
        _interruptible(write, handler.stop)
        sync_tree(folder)
        saved = {
            path: Leaf(leaf.shape, leaf.dtype.name, tuple(handler.regions[".".join(path.split("/"))]))
            for path, leaf in leaves.items()
        }
        atomic_write(folder / MANIFEST, Manifest(step, saved, metadata).to_bytes())
        folder.rename(published)
        sync(directory)
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        # Orbax and TensorStore have no kinds of errors of their own; those of streams do.
        if isinstance(error, (ValueError, RuntimeError, OSError)):
            raise CheckpointError(f"writing {published} failed: {brief(error)}") from error
        raise


def _interruptible(work: Callable[[], None], stop: Callable[[], None]) -> None:
    """Do `work` in a thread; interrupted, tell it to stop, and wait until it has.

    Orbax writes in threads of its own: one that goes on would write files anew while they are being deleted.
    """
    errors: list[BaseException] = []
    # Not `Thread.join`, which takes a thread for ended once it has been interrupted (Python 3.11).
    done = threading.Event()

    def guarded() -> None:
        try:
            work()
        except BaseException as error:  # raised below, in the caller's thread
            errors.append(error)
        finally:
            done.set()

    threading.Thread(target=guarded, name="checkpoint-stream").start()
    try:
        done.wait()
    except BaseException:
        stop()
        done.wait()
        raise
    if errors:
        raise errors[0]


def _stream_handler() -> Any:
    """Orbax's handler of host arrays, but for where the values come from. (Made here: importing Orbax takes seconds.)"""
    import orbax.checkpoint as ocp
    import tensorstore as ts

    class StreamHandler(ocp.type_handlers.NumpyHandler):
        def __init__(self) -> None:
            super().__init__(deepcopy_host_arrays=False)
            self.regions: dict[str, list[Region]] = {}
            self._one_at_a_time = asyncio.Lock()
            self._stopped = threading.Event()
            self.error: Exception | None = None  # the first; no block is written after it

        def stop(self) -> None:
            """Write no further block. What is written then is not whole, and not meant to be."""
            self._stopped.set()

        async def serialize(self, values: Any, infos: Any, args: Any = None) -> Any:
            self._names = {id(value): info.name for value, info in zip(values, infos, strict=True)}
            return await super().serialize(values, infos, args)

        async def _open_and_write(self, value: LeafStream, tspec: dict[str, Any], ts_context: Any) -> None:
            regions = self.regions.setdefault(self._names[id(value)], [])
            async with self._one_at_a_time:
                if self._stopped.is_set():
                    return
                try:
                    array = await ts.open(ts.Spec(tspec), create=True, open=True, context=ts_context)
                    for where, values in value.blocks():
                        if self._stopped.is_set():
                            return
                        crc = manifests.checksum(values)
                        regions.append(Region(tuple(s.start for s in where), tuple(s.stop for s in where), crc))
                        await array[where].write(values, can_reference_source_data_indefinitely=True)
                except Exception as error:  # raised through Orbax, it would leave the other leaves waiting for this one
                    self.error = error
                    self.stop()

    return StreamHandler()


class StreamedCheckpoint:
    """One step, read a layer at a time. `leaves` are those of the manifest, `metadata` what was saved with them.

    Takes the newest step of `directory` whose bytes below `part` match their checksums. Raises CheckpointError if there is none.
    """

    def __init__(self, directory: str | os.PathLike[str], part: str = "params"):
        directory = Path(directory).absolute()
        reasons = []
        for step in reversed(numbered_steps(directory)):
            self._folder = directory / str(step)
            self.leaves: dict[str, Leaf] = {}
            try:
                manifest = manifests.read_manifest(self._folder)
                self.step, self.metadata = step, manifest.metadata
                self.leaves = {p: leaf for p, leaf in manifest.leaves.items() if p.startswith(f"{part}/")}
                self._whole: tuple[str, np.ndarray] | None = None
                damaged = first_damage_on_disk(self.leaves, self._folder / ARRAYS)
            except (OSError, ValueError, KeyError, TypeError) as error:
                damaged = brief(error)
            if damaged is None:
                return
            reasons.append(f"{step}: {damaged}")
        raise CheckpointError(f"no step in {directory} can be used ({'; '.join(reasons) or 'it has none'})")

    def read(self, path: str, index: int | None = None) -> Shaped[np.ndarray, "..."]:
        """`leaf[index]`, or the whole leaf. A leaf that was not saved by layers is kept until another one is asked for."""
        array = self._open(path)
        if index is None:
            return array.read().result()
        if array.chunk_layout.write_chunk.shape[0] == 1:
            return array[index].read().result()
        if self._whole is None or self._whole[0] != path:
            self._whole = (path, array.read().result())
        return self._whole[1][index]

    def _open(self, path: str) -> Any:
        return open_array(self._folder / ARRAYS, path)
