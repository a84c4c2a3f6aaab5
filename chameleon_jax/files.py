"""Files that are whole or absent, whatever happens while they are written."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG)


@contextlib.contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Give the OSError of a disk that is full or fails while `path` is written its name: `write`, `flush` and `fsync` know none."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno not in _OF_THE_DISK:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def atomic_write(path: str | os.PathLike[str], data: bytes | str) -> None:
    """Replace the file at `path` whole: readers, and a kill or power cut at any moment, see the old content or the new."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        with naming(path), open(temporary, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


def sync(path: str | os.PathLike[str]) -> None:
    """Flush one file, or the names in one directory, to disk: they survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with naming(path):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: str | os.PathLike[str]) -> None:
    """Flush every file and name below a folder, and its own, to disk."""
    for parent, _, files in os.walk(folder):
        for name in files:
            sync(os.path.join(parent, name))
        sync(parent)


@contextlib.contextmanager
def new_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A folder to fill, which takes the name `path` when all went well and is deleted when not: a reader never sees half of it.

    What a killed process left of an earlier try is deleted first. Raises FileExistsError if there is something at `path` already,
    or another process is filling it; an empty folder is taken over.
    """
    path = Path(path).resolve()
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FileExistsError(f"{path} exists and is not an empty folder")
    if blocked := next((parent for parent in path.parents if parent.exists() and not parent.is_dir()), None):
        raise FileExistsError(f"{blocked} is a file, not a folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.unfinished")
    with _held(path.with_name(f".{path.name}.lock"), unfinished):
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        try:
            with naming(path):
                yield unfinished
            sync_tree(unfinished)
            if path.exists():
                path.rmdir()
            unfinished.rename(path)
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
        sync(path.parent)


@contextlib.contextmanager
def _held(lock: Path, folder: Path) -> Iterator[None]:
    """Hold a lock file while the block runs; the kernel lets go of it when the process ends, however it ends."""
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise FileExistsError(f"another process is writing {folder}") from error
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)
