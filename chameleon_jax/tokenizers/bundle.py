"""Everything between raw data and ids in one directory: vocabulary, picture rules, text tokenizer and image codec.

The one idea: these parts only make sense together. They are saved, checked and fingerprinted as one, and a token store remembers
the fingerprint, so that ids are never read by parts that did not write them.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
from typing import TYPE_CHECKING

import jax
import numpy as np
from jaxtyping import Float, Int

from chameleon_jax.configs import ImageConfig, VocabConfig
from chameleon_jax.errors import ConfigError, TokenizerError
from chameleon_jax.files import atomic_write
from chameleon_jax.tokenizers.text import TextTokenizer
from chameleon_jax.vocab import Vocab

if TYPE_CHECKING:
    from chameleon_jax.tokenizers.vqgan import Codec

_VOCAB, _IMAGES, _TEXT, _CODEC, _WEIGHTS = (
    "vocab.json",
    "images.json",
    "tokenizer.json",
    "vqgan.json",
    "vqgan.safetensors",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizerBundle:
    """The parts that turn documents into ids and back.

    Without a codec (Lumina-mGPT is released so) text works, and every use of pictures is an error that says where to get one.
    """

    vocab_config: VocabConfig
    image_config: ImageConfig
    text: TextTokenizer
    codec: Codec | None

    @property
    def vocab(self) -> Vocab:
        return Vocab.from_config(self.vocab_config)

    def with_added(self, names: tuple[str, ...]) -> TokenizerBundle:
        """The bundle whose added control ids are these and no others, in this order; all other ids keep their meaning.

        So `with_added((*added, "<brush>"))` extends a bundle, and `with_added(added[:n])` is the one with n of them that it
        extends, of which the fingerprint can be told. Raises TokenizerError for a name that another id has.
        """
        taken = set(json.loads(self.text.to_json())["model"]["vocab"])
        if clash := next((name for name in names if name in taken), None):
            raise TokenizerError(f"'{clash}' is the name of an id already: give another")
        try:
            text = self.text.with_added(names)
        except ConfigError as error:
            raise TokenizerError(str(error)) from error
        return dataclasses.replace(self, vocab_config=text.vocab_config, text=text)

    @property
    def added_ids(self) -> dict[str, int]:
        """Id of each added name."""
        first = self.vocab.text.stop
        return {name: first + i for i, name in enumerate(self.vocab_config.added)}

    @classmethod
    def load(cls, directory: str | os.PathLike) -> TokenizerBundle:
        """Read and check a bundle. Raises TokenizerError for a part that is missing, damaged, or contradicts another."""
        from chameleon_jax.tokenizers import vqgan

        with_codec = any(os.path.isfile(os.path.join(directory, name)) for name in (_CODEC, _WEIGHTS))
        wanted = (_VOCAB, _IMAGES, _TEXT) + ((_CODEC, _WEIGHTS) if with_codec else ())
        missing = [name for name in wanted if not os.path.isfile(os.path.join(directory, name))]
        if missing:
            raise TokenizerError(
                f"tokenizer bundle {directory} lacks {', '.join(missing)}: make it with  python -m experiments.train_tokenizer"
            )
        vocab_config = _read_config(VocabConfig, os.path.join(directory, _VOCAB))
        bundle = cls(
            vocab_config=vocab_config,
            image_config=_read_config(ImageConfig, os.path.join(directory, _IMAGES)),
            text=TextTokenizer.load(os.path.join(directory, _TEXT), vocab_config),
            codec=vqgan.load(directory) if with_codec else None,
        )
        bundle.check()
        return bundle

    def save(self, directory: str | os.PathLike) -> None:
        """Check the parts and write them into a directory, which is made if need be; each file is whole or absent.

        Raises TokenizerError where the directory has the codec of another bundle and this one has none.
        """
        from chameleon_jax.tokenizers import vqgan

        self.check()
        os.makedirs(directory, exist_ok=True)
        if self.codec is not None:  # first: without vocab.json nobody takes what is there for a bundle without a codec
            vqgan.save(directory, self.codec.params, self.codec.config)
        elif stale := [name for name in (_CODEC, _WEIGHTS) if os.path.exists(os.path.join(directory, name))]:
            raise TokenizerError(
                f"{directory} has a {stale[0]} that is not of this bundle: remove it or write elsewhere"
            )
        self.text.save(os.path.join(directory, _TEXT))
        for name, config in ((_IMAGES, self.image_config), (_VOCAB, self.vocab_config)):
            atomic_write(os.path.join(directory, name), config.to_json())

    def check(self) -> None:
        """Raise TokenizerError, naming both numbers, when two parts contradict each other.

        The codec's own resolution binds only a vocabulary of fixed spans: with grids it encodes pictures of all sizes.
        """
        vocab = self.vocab_config
        pairs = [("ids of the vocabulary", vocab.size, "ids of the text tokenizer", self.text.vocab_config.size)]
        if self.codec is not None:
            codec = self.codec.config
            pairs.append(("image_codes of the vocabulary", vocab.image_codes, "codes of the codec", codec.codes))
            if vocab.image_span == "fixed":
                mine, theirs = vocab.codes_per_image, codec.codes_per_image
                pairs.append(("codes_per_image of the vocabulary", mine, "codes_per_image of the codec", theirs))
                mine, theirs = self.image_config.resolution, codec.resolution
                pairs.append(("resolution of images.json", mine, "resolution of the codec", theirs))
        for first, a, second, b in pairs:
            if a != b:
                raise TokenizerError(
                    f"tokenizer bundle: {a} {first} but {b} {second}: the parts do not belong together"
                )
        if different := vocab.diff(self.text.vocab_config):
            raise TokenizerError(f"tokenizer bundle: vocab.json and tokenizer.json differ in {different}")
        self._check_pictures()

    def _check_pictures(self) -> None:
        """Pictures come in the sizes that the vocabulary has spans for."""
        images, vocab = self.image_config, self.vocab_config
        is_grid = vocab.image_span == "grid"
        if is_grid != (images.preprocessing == "lumina"):
            wanted = "lumina" if is_grid else "meta or hf"
            raise TokenizerError(
                f"tokenizer bundle: pictures are prepared as '{images.preprocessing}', a vocabulary of {vocab.image_span} spans "
                f"needs {wanted}"
            )
        if is_grid and self.codec is not None:
            step = self.codec.config.downsampling
            if images.grid_pixels != vocab.grid_unit * step:
                raise TokenizerError(
                    f"tokenizer bundle: grid_pixels is {images.grid_pixels}, but {vocab.grid_unit} codes of {step} pixels, the "
                    f"unit of the grid, are {vocab.grid_unit * step}"
                )

    def fingerprint(self) -> str:
        """First 16 hexadecimal digits of the sha256 over all that decides how documents become ids."""
        digest = hashlib.sha256()
        parts = [self.vocab_config.to_json(), self.image_config.to_json(), self.text.to_json()]
        if self.codec is not None:
            parts.append(self.codec.config.to_json())
        for part in parts:
            digest.update(hashlib.sha256(part.encode()).digest())
        if self.codec is None:
            return digest.hexdigest()[:16]
        leaves = jax.tree_util.tree_leaves_with_path(self.codec.params)
        for path, leaf in sorted((jax.tree_util.keystr(path), np.asarray(leaf)) for path, leaf in leaves):
            digest.update(f"{path} {leaf.dtype} {leaf.shape}".encode())
            digest.update(np.ascontiguousarray(leaf).data)
        return digest.hexdigest()[:16]

    def encode_images(self, pixels: Float[np.ndarray, "B H W 3"]) -> Int[np.ndarray, "B n"]:
        """Image codes, row by row, of pixels in [-1, 1]. Compiles once for each batch size and size of picture.

        Fixed spans want pictures of `image_config.resolution`. Grid spans take all sides that are multiples of the codec's
        downsampling, up to `codes_per_image` codes. Raises TokenizerError for other sizes, or without a codec.
        """
        codec, pixels = self._codec("read"), np.asarray(pixels, np.float32)
        vocab, step = self.vocab_config, codec.config.downsampling
        height, width = pixels.shape[1:3]
        if vocab.image_span == "fixed" and (height, width) != (codec.config.resolution,) * 2:
            raise TokenizerError(
                f"pictures of {height}x{width} pixels, the codec wants {codec.config.resolution} a side"
            )
        count = (height // step) * (width // step)
        if count > vocab.codes_per_image:
            raise TokenizerError(
                f"pictures of {height}x{width} pixels have {count} codes, the vocabulary allows {vocab.codes_per_image}"
            )
        encode, _ = _jitted()
        return np.asarray(encode(codec.params, pixels, codec.config), np.int32).reshape(len(pixels), count)

    def decode_images(
        self, codes: Int[np.ndarray, "B n"], *, grid: tuple[int, int] | None = None
    ) -> Float[np.ndarray, "B H W 3"]:
        """Pixels of image codes, not clamped.

        `grid` is (height, width) in codes; by default the square of a fixed span, while grid spans have no default. Raises
        TokenizerError for codes of another number or outside the codebook, or without a codec that has a decoder.
        """
        codec, codes = self._codec("write"), np.asarray(codes)
        config = codec.config
        if grid is None and self.vocab_config.image_span == "grid":
            raise TokenizerError("pictures of this vocabulary have many sizes: give the height and width in codes")
        height, width = grid or (config.grid, config.grid)
        if codes.ndim != 2 or codes.shape[1] != height * width:
            raise TokenizerError(f"codes have shape {codes.shape}, expected (batch, {height * width})")
        if codes.size and (codes.min() < 0 or codes.max() >= config.codes):
            raise TokenizerError(f"image code {int(codes.min())}..{int(codes.max())} is outside 0..{config.codes - 1}")
        _, decode = _jitted()
        return np.asarray(decode(codec.params, codes.reshape(-1, height, width).astype(np.int32), config))

    def _codec(self, action: str) -> Codec:
        if self.codec is None:
            raise TokenizerError(
                f"this tokenizer bundle has no image codec to {action} pictures with: add one with  "
                "python -m experiments.convert ... --vqgan FILE"
            )
        return self.codec


@functools.cache
def _jitted():
    """The codec's two functions, compiled once for each shape; parameters stay an argument, not a constant of the program."""
    from chameleon_jax.tokenizers import vqgan

    return jax.jit(vqgan.encode, static_argnums=2), jax.jit(vqgan.decode, static_argnums=2)


def _read_config(kind: type, path: str):
    try:
        with open(path, encoding="utf-8") as file:
            return kind.from_dict(json.load(file))
    except (OSError, ValueError, AttributeError, TypeError, ConfigError) as error:
        raise TokenizerError(f"{path} is damaged or not a {kind.__name__}: {error}") from error
