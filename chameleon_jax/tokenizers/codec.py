"""What a codec is: one item of data to codes and back.

The pipeline, prompts, outputs and the server know codecs by this protocol alone. A further kind of data is a further class in
`bundle.CODECS` and its name in `ModalityConfig.codec`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

from chameleon_jax.errors import DataError

Media = Literal["text", "image", "audio"]  # how people take it in; the first part of its MIME type
Item = Any  # what a codec encodes: pixels, a waveform


@runtime_checkable
class Codec(Protocol):
    """Items to codes and back. Items of one shape are encoded together; what comes of one depends on it alone."""

    kind: ClassVar[str]  # its name in `ModalityConfig.codec`
    media: ClassVar[Media]
    mime: ClassVar[str]  # of `to_file`: "image/png"
    suffix: ClassVar[str]  # ".png"
    file: ClassVar[str]  # a folder has a codec of this kind where it has this file

    @property
    def codes(self) -> int | None:
        """Size of the codebook; None where the codec is not there and only `prepare` works."""

    @property
    def length(self) -> int | None:
        """Codes of one item; None where items have many sizes, or the codec is not there."""

    @property
    def can_decode(self) -> bool:
        """Whether codes can be turned into items."""

    def prepare(self, data: bytes) -> np.ndarray:
        """A file's bytes to an item, on the host, from any thread. Raises DataError with the reason."""

    def encode(self, items: Sequence[np.ndarray] | np.ndarray) -> Int[np.ndarray, "B ..."]:
        """Codes [B, n], or [B, height, width] of a grid, of items of one shape. Compiles once for each shape of the batch.

        Raises TokenizerError for items that the codec cannot take, or where there is none.
        """

    def decode(self, codes: Int[np.ndarray, "B ..."]) -> np.ndarray:
        """Items of codes as `encode` gives them. Raises TokenizerError for codes of another shape or outside the codebook."""

    def to_file(self, item: np.ndarray, *, quick: bool = False) -> bytes:
        """A decoded item as a file that people can open; `quick` where speed counts more than size."""

    def check(self, row: Any) -> None:
        """Raise TokenizerError, naming both numbers, where the codec contradicts its row (`ModalityConfig`) of the table."""

    def describe(self) -> str:
        """What it takes and gives, in one line for people."""

    def identity(self) -> Iterator[bytes]:
        """All that decides how data become codes, for fingerprints."""

    def save(self, directory: str | os.PathLike) -> None:
        """Write the codec's files; each is whole or absent."""

    @classmethod
    def load(cls, directory: str | os.PathLike) -> Codec | None:
        """Read what `save` wrote; None where there is nothing of this kind. Raises TokenizerError for damaged files."""


def plain_codes(name: str, data: Any, count: int) -> Int[np.ndarray, "n"]:
    """Codes of a modality without a codec: whole numbers 0..count-1. Raises DataError, naming the modality, for anything else."""
    whole = isinstance(data, Sequence | np.ndarray) and not isinstance(data, str | bytes)
    whole = whole and all(isinstance(value, int | np.integer) and not isinstance(value, bool) for value in data)
    if not whole:
        raise DataError(f"'{name}' must be a list of whole numbers")
    if len(data) and not (min(data) >= 0 and max(data) < count):
        raise DataError(f"'{name}' has numbers {min(data)}..{max(data)}, which must be in 0..{count - 1}")
    return np.asarray(data, np.int32)
