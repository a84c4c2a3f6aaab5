"""An image reference of a record to the bytes of the picture.

The one idea: a record names pictures below one folder and nothing else. No reference reaches the network, and none leaves the
folder, by `..`, by an absolute path or by a symlink.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
import stat
from pathlib import PurePosixPath, PureWindowsPath

from chameleon_jax.data.sources.records import MAX_IMAGE_BYTES, brief
from chameleon_jax.errors import DataError
from chameleon_jax.tokenizers.documents import ImageSegment

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_DATA_URL = re.compile(r"data:[^,]{0,200};base64,", re.IGNORECASE)


def image_segment(reference: object, root: str, loss: bool = True) -> ImageSegment:
    """Load one image reference: a path below `root`, a base64 `data:` URL, bytes, or {"bytes": ..., "path": ...}.

    Raises DataError with the reason for everything else, and for a picture that is missing or too large to be one.
    """
    if isinstance(reference, dict):
        held, path = reference.get("bytes"), reference.get("path")
        if held is None:
            return image_segment(path, root, loss)
        if not isinstance(held, bytes):
            raise DataError(f"image 'bytes' holds {type(held).__name__}, not bytes")
        return ImageSegment(_sized(held, "image"), path if isinstance(path, str) else "", loss)
    if isinstance(reference, bytes):
        return ImageSegment(_sized(reference, "image"), "", loss)
    if reference is None:
        raise DataError("image reference is null")
    if not isinstance(reference, str):
        raise DataError(f"image reference is {type(reference).__name__}, not a path: {brief(reference)}")
    if reference[:5].lower() == "data:":
        return ImageSegment(_decode_data_url(reference), "data:", loss)
    return ImageSegment(_read_below(reference, root), reference, loss)


def _decode_data_url(reference: str) -> bytes:
    header = _DATA_URL.match(reference)
    if not header:
        raise DataError(f"image data: URL is not base64: {brief(reference, 60)}")
    if len(reference) - header.end() > MAX_IMAGE_BYTES // 3 * 4 + 4:
        raise DataError(f"image data: URL holds more than {MAX_IMAGE_BYTES} bytes")
    try:
        return base64.b64decode(reference[header.end() :], validate=True)
    except (binascii.Error, ValueError) as error:
        raise DataError(f"image data: URL holds invalid base64: {error}") from error


def _read_below(reference: str, root: str) -> bytes:
    shown = brief(reference)
    if not reference:
        raise DataError("image reference is empty")
    if _URL.match(reference):
        raise DataError(f"image reference is a URL: {shown}; download the images first and name the files")
    if "\0" in reference:
        raise DataError(f"image path holds a NUL character: {shown}")
    if PurePosixPath(reference).is_absolute() or PureWindowsPath(reference).drive or "\\" in reference:
        raise DataError(f"image path must be relative, with '/': {shown}")
    if ".." in PurePosixPath(reference).parts:
        raise DataError(f"image path leaves image_dir by '..': {shown}")
    try:
        real_root = os.path.realpath(root)
        real = os.path.realpath(os.path.join(real_root, reference))
        if os.path.commonpath([real, real_root]) != real_root:
            raise DataError(f"image path leaves image_dir by a symlink: {shown}")
        status = os.stat(real)
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
            raise DataError(f"image path is not a regular file: {shown}")
        if status.st_size > MAX_IMAGE_BYTES:
            raise DataError(f"image file of {status.st_size} bytes exceeds {MAX_IMAGE_BYTES}: {shown}")
        with open(real, "rb") as file:
            return file.read(MAX_IMAGE_BYTES)
    except FileNotFoundError as error:
        raise DataError(f"image file is missing: {shown}") from error
    except (OSError, ValueError) as error:  # ValueError: a name that the file system cannot hold
        raise DataError(f"image file cannot be read ({getattr(error, 'strerror', None) or error}): {shown}") from error


def _sized(data: bytes, what: str) -> bytes:
    if len(data) > MAX_IMAGE_BYTES:
        raise DataError(f"{what} of {len(data)} bytes exceeds {MAX_IMAGE_BYTES}")
    return data
