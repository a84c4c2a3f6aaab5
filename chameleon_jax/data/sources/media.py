"""A reference of a record to a file, as bytes.

A record names files below one folder and nothing else. No reference reaches the network, and none leaves the folder, by `..`, by an
absolute path or by a symlink.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
import stat
from pathlib import PurePosixPath, PureWindowsPath

from chameleon_jax.data.sources.records import MAX_FILE_BYTES, brief
from chameleon_jax.errors import DataError

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_DATA_URL = re.compile(r"data:[^,]{0,200};base64,", re.IGNORECASE)


def load_file(reference: object, root: str, name: str) -> tuple[bytes, str]:
    """The bytes of a reference and its name: a path below `root`, a base64 `data:` URL, bytes, or {"bytes": ..., "path": ...}.

    `name` is the modality's, for errors. Raises DataError with the reason for everything else, and for a file that is missing
    or too large to be one.
    """
    if isinstance(reference, dict):
        held, path = reference.get("bytes"), reference.get("path")
        if held is None:
            return load_file(path, root, name)
        if not isinstance(held, bytes):
            raise DataError(f"{name} 'bytes' holds {type(held).__name__}, not bytes")
        return _sized(held, name), path if isinstance(path, str) else ""
    if isinstance(reference, bytes):
        return _sized(reference, name), ""
    if reference is None:
        raise DataError(f"{name} reference is null")
    if not isinstance(reference, str):
        raise DataError(f"{name} reference is {type(reference).__name__}, not a path: {brief(reference)}")
    if reference[:5].lower() == "data:":
        return _decode_data_url(reference, name), "data:"
    return _read_below(reference, root, name), reference


def _decode_data_url(reference: str, name: str) -> bytes:
    header = _DATA_URL.match(reference)
    if not header:
        raise DataError(f"{name} data: URL is not base64: {brief(reference, 60)}")
    if len(reference) - header.end() > MAX_FILE_BYTES // 3 * 4 + 4:
        raise DataError(f"{name} data: URL holds more than {MAX_FILE_BYTES} bytes")
    try:
        return base64.b64decode(reference[header.end() :], validate=True)
    except (binascii.Error, ValueError) as error:
        raise DataError(f"{name} data: URL holds invalid base64: {error}") from error


def _read_below(reference: str, root: str, name: str) -> bytes:
    shown = brief(reference)
    if not reference:
        raise DataError(f"{name} reference is empty")
    if _URL.match(reference):
        raise DataError(f"{name} reference is a URL: {shown}; download the files first and name them")
    if "\0" in reference:
        raise DataError(f"{name} path holds a NUL character: {shown}")
    if PurePosixPath(reference).is_absolute() or PureWindowsPath(reference).drive or "\\" in reference:
        raise DataError(f"{name} path must be relative, with '/': {shown}")
    if ".." in PurePosixPath(reference).parts:
        raise DataError(f"{name} path leaves media_dir by '..': {shown}")
    try:
        real_root = os.path.realpath(root)
        real = os.path.realpath(os.path.join(real_root, reference))
        if os.path.commonpath([real, real_root]) != real_root:
            raise DataError(f"{name} path leaves media_dir by a symlink: {shown}")
        status = os.stat(real)
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
            raise DataError(f"{name} path is not a regular file: {shown}")
        if status.st_size > MAX_FILE_BYTES:
            raise DataError(f"{name} file of {status.st_size} bytes exceeds {MAX_FILE_BYTES}: {shown}")
        with open(real, "rb") as file:
            return file.read(MAX_FILE_BYTES)
    except FileNotFoundError as error:
        raise DataError(f"{name} file is missing: {shown}") from error
    except (OSError, ValueError) as error:  # ValueError: a name that the file system cannot hold
        raise DataError(f"{name} file cannot be read ({getattr(error, 'strerror', None) or error}): {shown}") from error


def _sized(data: bytes, name: str) -> bytes:
    if len(data) > MAX_FILE_BYTES:
        raise DataError(f"{name} of {len(data)} bytes exceeds {MAX_FILE_BYTES}")
    return data
