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
    """The parts that turn documents into ids and back."""

    vocab_config: VocabConfig
    image_config: ImageConfig
    text: TextTokenizer
    codec: Codec

    @property
    def vocab(self) -> Vocab:
        return Vocab.from_config(self.vocab_config)

    @classmethod
    def load(cls, directory: str | os.PathLike) -> TokenizerBundle:
        """Read and check a bundle. Raises TokenizerError for a part that is missing, damaged, or contradicts another."""
        from chameleon_jax.tokenizers import vqgan

        missing = [
            name
            for name in (_VOCAB, _IMAGES, _TEXT, _CODEC, _WEIGHTS)
            if not os.path.isfile(os.path.join(directory, name))
        ]
        if missing:
            raise TokenizerError(
                f"tokenizer bundle {directory} lacks {', '.join(missing)}: make it with  python -m experiments.train_tokenizer"
            )
        vocab_config = _read_config(VocabConfig, os.path.join(directory, _VOCAB))
        bundle = cls(
            vocab_config=vocab_config,
            image_config=_read_config(ImageConfig, os.path.join(directory, _IMAGES)),
            text=TextTokenizer.load(os.path.join(directory, _TEXT), codes_per_image=vocab_config.codes_per_image),
            codec=vqgan.load(directory),
        )
        bundle.check()
        return bundle

    def save(self, directory: str | os.PathLike) -> None:
        """Check the parts and write them into a directory, which is made if need be."""
        from chameleon_jax.tokenizers import vqgan

        self.check()
        os.makedirs(directory, exist_ok=True)
        for name, config in ((_VOCAB, self.vocab_config), (_IMAGES, self.image_config)):
            with open(os.path.join(directory, name), "w", encoding="utf-8") as file:
                file.write(config.to_json())
        self.text.save(os.path.join(directory, _TEXT))
        vqgan.save(directory, self.codec.params, self.codec.config)

    def check(self) -> None:
        """Raise TokenizerError, naming both numbers, when two parts contradict each other."""
        vocab, codec = self.vocab_config, self.codec.config
        pairs = (
            ("image_codes of the vocabulary", vocab.image_codes, "codes of the codec", codec.codes),
            (
                "codes_per_image of the vocabulary",
                vocab.codes_per_image,
                "codes_per_image of the codec",
                codec.codes_per_image,
            ),
            ("resolution of images.json", self.image_config.resolution, "resolution of the codec", codec.resolution),
            ("ids of the vocabulary", vocab.size, "ids of the text tokenizer", self.text.vocab_config.size),
        )
        for first, a, second, b in pairs:
            if a != b:
                raise TokenizerError(
                    f"tokenizer bundle: {a} {first} but {b} {second}: the parts do not belong together"
                )
        if different := vocab.diff(self.text.vocab_config):
            raise TokenizerError(f"tokenizer bundle: vocab.json and tokenizer.json differ in {different}")

    def fingerprint(self) -> str:
        """First 16 hexadecimal digits of the sha256 over all that decides how documents become ids."""
        digest = hashlib.sha256()
        for part in (
            self.vocab_config.to_json(),
            self.image_config.to_json(),
            self.text.to_json(),
            self.codec.config.to_json(),
        ):
            digest.update(hashlib.sha256(part.encode()).digest())
        leaves = jax.tree_util.tree_leaves_with_path(self.codec.params)
        for path, leaf in sorted((jax.tree_util.keystr(path), np.asarray(leaf)) for path, leaf in leaves):
            digest.update(f"{path} {leaf.dtype} {leaf.shape}".encode())
            digest.update(np.ascontiguousarray(leaf).data)
        return digest.hexdigest()[:16]

    def encode_images(self, pixels: Float[np.ndarray, "B R R 3"]) -> Int[np.ndarray, "B n"]:
        """Image codes, row by row, of pixels in [-1, 1]. Compiles once for each batch size."""
        encode, _ = _jitted()
        codes = encode(self.codec.params, np.asarray(pixels, np.float32), self.codec.config)
        return np.asarray(codes, np.int32).reshape(len(pixels), self.vocab_config.codes_per_image)

    def decode_images(self, codes: Int[np.ndarray, "B n"]) -> Float[np.ndarray, "B R R 3"]:
        """Pixels of image codes, not clamped. Raises TokenizerError for codes of another number or outside the codebook."""
        codes = np.asarray(codes)
        config = self.codec.config
        if codes.ndim != 2 or codes.shape[1] != config.codes_per_image:
            raise TokenizerError(f"codes have shape {codes.shape}, expected (batch, {config.codes_per_image})")
        if codes.size and (codes.min() < 0 or codes.max() >= config.codes):
            raise TokenizerError(f"image code {int(codes.min())}..{int(codes.max())} is outside 0..{config.codes - 1}")
        _, decode = _jitted()
        return np.asarray(
            decode(self.codec.params, codes.reshape(-1, config.grid, config.grid).astype(np.int32), config)
        )


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
