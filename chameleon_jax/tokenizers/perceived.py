"""Pictures that are perceived, not generated: a file becomes 8-bit pixels, and its span in the stream is all placeholders.

The model's own encoder (`models.perception`) makes vectors of the pixels, so nothing is trained here and nothing can be decoded.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Iterator, Sequence
from typing import ClassVar

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from chameleon_jax.configs import ImageConfig, ModalityConfig
from chameleon_jax.errors import ConfigError, TokenizerError
from chameleon_jax.files import atomic_write
from chameleon_jax.tokenizers.codec import Media
from chameleon_jax.tokenizers.images import pixels_of, to_8_bits, to_png

RULES = "patches.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class PatchCodec:
    """A `tokenizers.codec.Codec` of picture files. Items are squares of 8-bit pixels [R, R, 3], R = `config.resolution`."""

    kind: ClassVar[str] = "patches"
    media: ClassVar[Media] = "image"
    mime: ClassVar[str] = "image/png"
    suffix: ClassVar[str] = ".png"
    file: ClassVar[str] = RULES

    config: ImageConfig
    patches: int  # of a picture

    @property
    def codes(self) -> int:
        return 1

    @property
    def length(self) -> int:
        return self.patches

    @property
    def can_decode(self) -> bool:
        return False

    @property
    def patch_size(self) -> int:
        """Side of a patch in pixels."""
        return self.config.resolution // math.isqrt(self.patches)

    def prepare(self, data: bytes | Image.Image) -> UInt8[np.ndarray, "R R 3"]:
        """Pixels of a picture file or of an opened picture. Raises DataError with the reason."""
        return to_8_bits(pixels_of(data, self.config))

    def encode(self, items: Sequence[np.ndarray] | UInt8[np.ndarray, "B R R 3"]) -> Int[np.ndarray, "B n"]:
        """Placeholders: code 0 for every patch. Raises TokenizerError for pictures of another size."""
        side, shape = self.config.resolution, np.shape(items)
        if shape[1:] != (side, side, 3):
            raise TokenizerError(f"pictures of shape {shape[1:]}, the patches are of {side}x{side} pixels")
        return np.zeros((shape[0], self.patches), np.int32)

    def decode(self, codes: Int[np.ndarray, "B n"]) -> np.ndarray:
        raise TokenizerError("patches of a picture are only taken in: nothing can be decoded")

    def to_file(self, item: UInt8[np.ndarray, "R R 3"], *, quick: bool = False) -> bytes:
        """A PNG file."""
        return to_png(Image.fromarray(item), quick=quick)

    def check(self, row: ModalityConfig) -> None:
        side, across = self.config.resolution, math.isqrt(self.patches)
        if self.config.preprocessing == "lumina":
            raise TokenizerError(
                f"tokenizer bundle: '{row.name}' has squares of patches, which 'lumina' does not give: use meta or hf"
            )
        if side % across:
            raise TokenizerError(
                f"tokenizer bundle: '{row.name}' has {self.patches} patches, {across} a side, of which {side} pixels is no multiple"
            )

    def describe(self) -> str:
        side, patch = self.config.resolution, self.patch_size
        return f"{side} x {side} pixels in {self.patches} patches of {patch} x {patch}; they are read, not written"

    def identity(self) -> Iterator[bytes]:
        yield json.dumps(self._rules(), sort_keys=True).encode()

    def save(self, directory: str | os.PathLike) -> None:
        atomic_write(os.path.join(directory, RULES), json.dumps(self._rules(), indent=2) + "\n")

    @classmethod
    def load(cls, directory: str | os.PathLike) -> PatchCodec | None:
        path = os.path.join(directory, RULES)
        if not os.path.isfile(path):
            return None
        try:
            with open(path, encoding="utf-8") as file:
                rules = json.load(file)
            return cls(config=ImageConfig.from_dict(rules["image"]), patches=int(rules["patches"]))
        except (OSError, ValueError, AttributeError, KeyError, TypeError, ConfigError) as error:
            raise TokenizerError(f"{path} is damaged or has no rules of pictures: {error}") from error

    def _rules(self) -> dict[str, object]:
        return {"image": self.config.to_dict(), "patches": self.patches}
