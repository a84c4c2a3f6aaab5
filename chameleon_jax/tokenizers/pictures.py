"""Pictures as a modality: how a file becomes pixels, and the VQGAN that turns them into codes and back."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from collections.abc import Iterator, Sequence
from typing import ClassVar

import jax
import numpy as np
from jaxtyping import Float, Int
from PIL import Image

from chameleon_jax.configs import ImageConfig, ModalityConfig
from chameleon_jax.errors import ConfigError, TokenizerError
from chameleon_jax.files import atomic_write
from chameleon_jax.tokenizers import vqgan
from chameleon_jax.tokenizers.codec import Media
from chameleon_jax.tokenizers.images import pixels_of, to_image, to_png

RULES = "images.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class PictureCodec:
    """A `tokenizers.codec.Codec` of picture files. Items are pixels [H, W, 3] in [-1, 1].

    Without a VQGAN (Lumina-mGPT is released so) pictures can be prepared, and every other use of them is an error that says
    where to get one. Pictures prepared as `lumina` says have many sizes, and codes [height, width]; all others are squares with
    flat codes.
    """

    kind: ClassVar[str] = "vqgan"
    media: ClassVar[Media] = "image"
    mime: ClassVar[str] = "image/png"
    suffix: ClassVar[str] = ".png"
    file: ClassVar[str] = RULES

    config: ImageConfig
    vqgan: vqgan.Codec | None

    @property
    def codes(self) -> int | None:
        return self.vqgan.config.codes if self.vqgan else None

    @property
    def is_grid(self) -> bool:
        """Whether pictures have many sizes."""
        return self.config.preprocessing == "lumina"

    @property
    def length(self) -> int | None:
        return self.vqgan.config.codes_per_image if self.vqgan and not self.is_grid else None

    @property
    def can_decode(self) -> bool:
        return self.vqgan is not None and self.vqgan.has_decoder

    def prepare(self, data: bytes | Image.Image) -> Float[np.ndarray, "H W 3"]:
        """Pixels of a picture file or of an opened picture. Raises DataError with the reason."""
        return pixels_of(data, self.config)

    def encode(
        self, items: Sequence[np.ndarray] | Float[np.ndarray, "B H W 3"]
    ) -> Int[np.ndarray, "B n"] | Int[np.ndarray, "B h w"]:
        """Codes of pixels. Squares must have the VQGAN's resolution; sides of others are multiples of its downsampling."""
        codec, pixels = self._codec("read"), np.asarray(items, np.float32)
        if pixels.ndim != 4 or pixels.shape[3] != 3:
            raise TokenizerError(f"pictures have shape {pixels.shape}, expected (batch, height, width, 3)")
        height, width = pixels.shape[1:3]
        if not self.is_grid and (height, width) != (codec.config.resolution,) * 2:
            raise TokenizerError(
                f"pictures of {height}x{width} pixels, the codec wants {codec.config.resolution} a side"
            )
        encode, _ = _jitted()
        codes = np.asarray(encode(codec.params, pixels, codec.config), np.int32)
        return codes if self.is_grid else codes.reshape(len(codes), -1)

    def decode(self, codes: Int[np.ndarray, "B n"] | Int[np.ndarray, "B h w"]) -> Float[np.ndarray, "B H W 3"]:
        """Pixels, not clamped. Flat codes are those of a square."""
        codec, codes = self._codec("write"), np.asarray(codes)
        config = codec.config
        if codes.ndim == 2 and not self.is_grid and codes.shape[1] == config.codes_per_image:
            codes = codes.reshape(-1, config.grid, config.grid)
        if codes.ndim != 3:
            wanted = "(batch, height, width)" if self.is_grid else f"(batch, {config.codes_per_image})"
            raise TokenizerError(f"codes have shape {codes.shape}, expected {wanted}")
        if codes.size and (codes.min() < 0 or codes.max() >= config.codes):
            raise TokenizerError(f"code {int(codes.min())}..{int(codes.max())} is outside 0..{config.codes - 1}")
        _, decode = _jitted()
        return np.asarray(decode(codec.params, codes.astype(np.int32), config))

    def to_file(self, item: Float[np.ndarray, "H W 3"], *, quick: bool = False) -> bytes:
        """A PNG file."""
        return to_png(to_image(item), quick=quick)

    def check(self, row: ModalityConfig) -> None:
        is_grid = row.span == "grid"
        if is_grid != self.is_grid:
            wanted = "lumina" if is_grid else "meta or hf"
            raise TokenizerError(
                f"tokenizer bundle: pictures are prepared as '{self.config.preprocessing}', the {row.span} spans of '{row.name}' "
                f"need {wanted}"
            )
        if self.vqgan is None:
            return
        shape = self.vqgan.config
        if is_grid and self.config.grid_pixels != row.grid_unit * shape.downsampling:
            raise TokenizerError(
                f"tokenizer bundle: grid_pixels is {self.config.grid_pixels}, but {row.grid_unit} codes of {shape.downsampling} "
                f"pixels, the unit of the grid, are {row.grid_unit * shape.downsampling}"
            )
        # The VQGAN's own resolution binds only fixed spans: with grids it encodes pictures of all sizes.
        if not is_grid and self.config.resolution != shape.resolution:
            raise TokenizerError(
                f"tokenizer bundle: {self.config.resolution} resolution of {RULES} but {shape.resolution} resolution of the codec: "
                "the parts do not belong together"
            )

    def describe(self) -> str:
        if self.vqgan is None:
            return "none: pictures are neither read nor written"
        shape = self.vqgan.config
        size = f"{shape.resolution} x {shape.resolution} pixels to {shape.grid} x {shape.grid} codes"
        if self.is_grid:
            size = f"pictures of any size, a code for each {shape.downsampling} pixels"
        return size if self.can_decode else f"{size}; no decoder: they are read, not written"

    def identity(self) -> Iterator[bytes]:
        yield self.config.to_json().encode()
        if self.vqgan is None:
            return
        yield self.vqgan.config.to_json().encode()
        leaves = jax.tree_util.tree_leaves_with_path(self.vqgan.params)
        for path, leaf in sorted((jax.tree_util.keystr(path), np.asarray(leaf)) for path, leaf in leaves):
            yield f"{path} {leaf.dtype} {leaf.shape}".encode()
            yield np.ascontiguousarray(leaf).data

    def save(self, directory: str | os.PathLike) -> None:
        """Write the rules and the VQGAN. Raises TokenizerError where the directory has one and this codec has none."""
        if self.vqgan is not None:
            vqgan.save(directory, self.vqgan.params, self.vqgan.config)
        elif stale := _files_of_vqgan(directory):
            raise TokenizerError(
                f"{directory} has a {stale[0]} that is not of this bundle: remove it or write elsewhere"
            )
        atomic_write(os.path.join(directory, RULES), self.config.to_json())

    @classmethod
    def load(cls, directory: str | os.PathLike) -> PictureCodec | None:
        bare = cls.load_rules(directory)
        if bare is None or not _files_of_vqgan(directory):
            return bare
        return dataclasses.replace(bare, vqgan=vqgan.load(directory))

    @classmethod
    def load_rules(cls, directory: str | os.PathLike) -> PictureCodec | None:
        """As `load`, without the VQGAN, whose files are not looked at."""
        path = os.path.join(directory, RULES)
        if not os.path.isfile(path):
            return None
        try:
            with open(path, encoding="utf-8") as file:
                config = ImageConfig.from_dict(json.load(file))
        except (OSError, ValueError, AttributeError, TypeError, ConfigError) as error:
            raise TokenizerError(
                f"{path} is damaged or not an ImageConfig ({error}): copy the tokenizer again, or train it anew"
            ) from error
        return cls(config=config, vqgan=None)

    def _codec(self, action: str) -> vqgan.Codec:
        if self.vqgan is None:
            raise TokenizerError(
                f"this tokenizer bundle has no image codec to {action} pictures with: add one with  "
                "python -m experiments.convert ... --vqgan FILE"
            )
        return self.vqgan


def _files_of_vqgan(directory: str | os.PathLike) -> list[str]:
    return [name for name in (vqgan.CONFIG, vqgan.WEIGHTS) if os.path.isfile(os.path.join(directory, name))]


@functools.cache
def _jitted():
    """The VQGAN's two functions, compiled once for each shape; parameters stay an argument, not a constant of the program."""
    return jax.jit(vqgan.encode, static_argnums=2), jax.jit(vqgan.decode, static_argnums=2)
