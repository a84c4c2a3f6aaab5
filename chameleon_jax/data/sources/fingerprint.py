"""A fingerprint of the files of a source, to notice that they have changed since a store was written.

It stays where files are copied with other times. Files of text are read whole, for that is where people mend and add: half a second
for 200 MiB, and 0.1 ms for every text beside a picture. Of large containers the size and three pieces count.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import stat
from collections.abc import Callable, Iterator

from chameleon_jax.configs import SourceConfig
from chameleon_jax.data.sources import files, huggingface, trees
from chameleon_jax.data.sources.media import load_file
from chameleon_jax.errors import DataError

_TEXT = ("jsonl", "csv", "folder")
_WHOLE = 1 << 28  # bytes of the largest file that is read whole: about a second
_PIECE = 1 << 16


def fingerprint(config: SourceConfig, on_file: Callable[[], object] = lambda: None) -> str | None:
    """Of the names and contents of a source's own files, as hex; None for `tfds`, whose files are those of another package.

    Files that records name count by what the records say of them alone, and the pictures of a folder by name and size. What a
    reader would reject in a folder, such as a dangling link or a pipe, counts by its name. `on_file` is called after each file.
    Raises DataError as `read_documents` does, and for a container that cannot be read.
    """
    if config.kind == "tfds":
        return None
    digest = hashlib.blake2b(digest_size=16)
    try:
        for entry in _tree(config) if config.kind in trees.KINDS else _files(config):
            digest.update(entry)
            on_file()
    except OSError as error:
        raise DataError(f"source '{config.name}': {error.filename} cannot be read: {error.strerror}") from error
    return digest.hexdigest()


def _files(config: SourceConfig) -> Iterator[bytes]:
    found = huggingface.find_streams(config) if config.kind == "huggingface" else files.find_files(config)
    for file in found:
        yield _named(file.label, os.path.getsize(file.path)) + _content(file.path, whole=config.kind in _TEXT)


def _tree(config: SourceConfig) -> Iterator[bytes]:
    root, pictures, texts = trees.find(config)
    for name in pictures:
        yield _named(name, _size(os.path.join(root, name)))
    for name in itertools.chain.from_iterable(texts.values()) if config.kind == "pairs" else ():
        try:
            text, _ = load_file(name, root, "text")
        except DataError:  # the reader's reject
            yield _named(name, None)
        else:
            yield _named(name, len(text)) + hashlib.blake2b(text, digest_size=16).digest()


def _named(label: str, size: int | None) -> bytes:
    return f"{label}\0{'none' if size is None else size}\0".encode("utf-8", "surrogateescape")


def _size(path: str) -> int | None:
    """None for what is no regular file, or not there."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def _content(path: str, *, whole: bool) -> bytes:
    size = os.path.getsize(path)
    with open(path, "rb") as stream:
        if size <= 3 * _PIECE or (whole and size <= _WHOLE):
            return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).digest()
        digest = hashlib.blake2b(digest_size=16)
        for place in (0, size // 2, size - _PIECE):
            stream.seek(place)
            digest.update(stream.read(_PIECE))
        return digest.digest()
