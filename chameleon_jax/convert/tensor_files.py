"""Files of named tensors, read one tensor at a time: safetensors, and torch's pickles where torch is installed.

Opening a file reads names, shapes and dtypes only; a tensor is given back as a copy, and what was mapped to read it
is let go, so that the pages of a whole file never add up in memory. Nothing in a file is run. A tensor with a NaN or an infinity
is refused when it is read: it would be moved like any other, and the damage noticed in a model that says nonsense.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import ml_dtypes
import numpy as np
from jaxtyping import Shaped

from chameleon_jax.errors import ConvertError

# Modules whose names in a checkpoint can only be meant to run something. All others (callbacks, settings) become inert objects.
_HARMFUL = re.compile(
    r"(os|posix|nt|sys|subprocess|builtins|__builtin__|shutil|importlib|runpy|socket|pty|ctypes|code|codeop|commands|webbrowser|"
    r"timeit|cProfile|pdb|asyncio|multiprocessing|pickle|torch)(\.|$)"
)
_SAFETENSORS_DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
FLOATS = tuple(_SAFETENSORS_DTYPES.values())
# Bits that are all set in NaN and infinity, and in no other number.
_EXPONENTS = {
    "bfloat16": (np.uint16, np.uint16(0x7F80)),
    "float16": (np.uint16, np.uint16(0x7C00)),
    "float32": (np.uint32, np.uint32(0x7F800000)),
}
_BLOCK = 1 << 18  # numbers that are looked at together: they stay in the cache
# Read through one mapping of a torch file before it is let go: unpickling again takes a while.
_MAPPED_BYTES = 256 << 20


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    """What is known of a tensor before it is read. `dtype` is numpy's name, or the file's own for one that weights cannot have."""

    shape: tuple[int, ...]
    dtype: str

    def __str__(self) -> str:
        return f"{self.dtype}{list(self.shape)}"


class TensorFile(Protocol):
    """`tensors`: what the file holds, by name, in the order of the file. `empty`: names without a tensor."""

    path: Path
    tensors: Mapping[str, TensorInfo]
    empty: tuple[str, ...]

    def read(self, name: str) -> np.ndarray:
        """A copy of one tensor, whose dtype must be one of FLOATS. Raises ConvertError for one that is not finite."""


def open_tensors(path: str | os.PathLike) -> TensorFile:
    """Open a file by its suffix: `.safetensors`, otherwise torch's format.

    Raises ConvertError for a file that is missing, damaged, or holds anything but tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise ConvertError(f"{path} does not exist")
    return SafetensorsFile(path) if path.suffix == ".safetensors" else TorchFile(path)


class SafetensorsFile:
    """A safetensors file."""

    empty: tuple[str, ...] = ()

    def __init__(self, path: Path):
        self.path = path
        if not os.access(path, os.R_OK):
            raise ConvertError(f"{path} cannot be read: permission denied")
        with self._open() as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            self.tensors = {
                name: TensorInfo(
                    tuple(part.get_shape()), _SAFETENSORS_DTYPES.get(part.get_dtype(), part.get_dtype().lower())
                )
                for name, part in slices.items()
            }

    def read(self, name: str) -> np.ndarray:
        with self._open() as file:
            return require_finite(file.get_tensor(name), str(self.path), name)

    @contextlib.contextmanager
    def _open(self) -> Iterator[Any]:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.path, framework="np") as file:
                yield file
        except (SafetensorError, OSError) as error:
            raise ConvertError(f"{self.path} is damaged or cut off: {_one_line(error)}; fetch it again") from error


class TorchFile:
    """A `.pth`, `.ckpt` or `.bin` of torch: a dict of tensors, or one below `state_dict`. Loaded with `weights_only=True` alone."""

    def __init__(self, path: Path):
        self.path = path
        if not os.access(path, os.R_OK):
            raise ConvertError(f"{path} cannot be read: permission denied")
        self._inert = _inert_globals(require_torch(f"reading {path}"), path)
        self._loaded: dict[str, Any] | None = None
        self._left = _MAPPED_BYTES
        state = self._load()
        self.tensors = {
            name: TensorInfo(tuple(value.shape), str(value.dtype).removeprefix("torch."))
            for name, value in state.items()
            if hasattr(value, "dtype")
        }
        self.empty = tuple(name for name in state if name not in self.tensors)

    def read(self, name: str) -> np.ndarray:
        import torch

        if self._loaded is None:
            self._loaded, self._left = self._load(), _MAPPED_BYTES
        tensor = self._loaded[name].detach()
        self._left -= tensor.nbytes
        if self._left < 0:
            self._loaded = None
        if tensor.dtype == torch.bfloat16:
            array = np.array(tensor.view(torch.int16).numpy(), order="C").view(ml_dtypes.bfloat16)
        else:
            array = np.array(tensor.numpy(), order="C")
        return require_finite(array, str(self.path), name)

    def _load(self) -> dict[str, Any]:
        import torch

        try:
            with torch.serialization.safe_globals(self._inert), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                content = torch.load(
                    self.path, weights_only=True, map_location="cpu", mmap=zipfile.is_zipfile(self.path)
                )
        except pickle.UnpicklingError as error:
            found = re.search(r"GLOBAL ([\w.]+)", str(error))
            what = f"asks to run {found[1]}" if found else "holds more than tensors"
            raise ConvertError(f"{self.path} {what}: refused, nothing of it was run") from error
        except (RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError) as error:
            raise ConvertError(f"{self.path} is damaged or cut off: {_one_line(error)}; fetch it again") from error
        content = content.get("state_dict", content) if isinstance(content, Mapping) else content
        if not isinstance(content, Mapping) or not all(isinstance(name, str) for name in content):
            raise ConvertError(f"{self.path} holds a {type(content).__name__}, not a dict of named tensors")
        return dict(content)


def require_finite(array: Shaped[np.ndarray, "..."], where: str, name: str) -> Shaped[np.ndarray, "..."]:
    """The same array, of a dtype in FLOATS. Raises ConvertError, with how many, if it holds NaN or infinite numbers.

    Looks at the exponents alone, block by block: six times as fast as NumPy's test of bfloat16.
    """
    if not (bad := _count_not_finite(array)):
        return array
    raise ConvertError(
        f"{where}: {name} has {bad:,} of {array.size:,} numbers that are not finite (NaN or infinity): fetch it again if it was "
        "copied; if its training diverged, take an earlier checkpoint"
    )


def _count_not_finite(array: np.ndarray) -> int:
    kind, exponent = _EXPONENTS[array.dtype.name]
    bits = np.ascontiguousarray(array).reshape(-1).view(kind)
    blocks = (bits[i : i + _BLOCK] & exponent for i in range(0, bits.size, _BLOCK))
    return sum(int(np.count_nonzero(block == exponent)) for block in blocks if block.max() == exponent)


def require_torch(purpose: str) -> Any:
    """The torch module. Raises ConvertError, which says how to get it, where it is missing or too old."""
    try:
        import torch
    except ModuleNotFoundError:
        raise ConvertError(f"{purpose} needs torch:  pip install 'chameleon-jax[convert]'") from None
    # Before 2.10 `weights_only` could be got round (CVE-2025-32434, CVE-2026-24747).
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 10):
        raise ConvertError(f"{purpose} needs torch 2.10 or newer, found {torch.__version__}")
    return torch


def _inert_globals(torch: Any, path: Path) -> list[tuple[Any, str]]:
    """Stand-ins for the classes that the file names beside tensors; what could only run something stays refused."""
    if not zipfile.is_zipfile(path):
        return []
    try:
        named = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # the same damage comes up, with a better message, when the file is loaded
        return []
    return [(type(name.rpartition(".")[2], (_Inert,), {}), name) for name in named if not _HARMFUL.match(name)]


class _Inert(dict):
    """Takes anything and does nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> _Inert:
        return dict.__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__()

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def __hash__(self) -> int:
        return id(self)


def _one_line(error: BaseException) -> str:
    return " ".join(f"{error or type(error).__name__}".split())[:200]
