"""Pictures in, codes out in the same order, whatever sizes come in between.

The one idea: the codec is compiled for one batch of one size, so a picture waits until a batch of its size is full. What comes out
depends on the picture alone, not on what waited with it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
from jaxtyping import Float, Int

from chameleon_jax.tokenizers.bundle import TokenizerBundle
from chameleon_jax.vocab import GridSpan

_BATCHES_WAITING = 4  # of pictures of all sizes together: a bound on memory


class CodeQueue:
    """Encodes pictures in batches of `batch`, the last of each size padded; a picture that comes again is encoded once.

    Several captions of one picture are usual, and encoding is nearly all of the work of tokenising.
    """

    def __init__(self, bundle: TokenizerBundle, batch: int):
        self._bundle, self._batch = bundle, batch
        self._waiting: dict[tuple[int, ...], list[tuple[int, np.ndarray]]] = {}  # by shape: place and picture
        self._codes: dict[int, np.ndarray] = {}
        self._places: dict[bytes, int] = {}  # digest of a picture -> its place among the different ones
        self._order: list[int] = []

    def add(self, pictures: Iterable[Float[np.ndarray, "H W 3"]]) -> None:
        """Take pictures in [-1, 1]; encodes those for which a batch is full."""
        for picture in pictures:
            digest = hashlib.sha256(repr(picture.shape).encode() + picture.tobytes()).digest()
            if digest not in self._places:
                self._places[digest] = len(self._places)
                self._waiting.setdefault(picture.shape, []).append((self._places[digest], picture))
            self._order.append(self._places[digest])
            most = max(self._waiting, key=lambda shape: len(self._waiting[shape]))
            if len(self._waiting[most]) == self._batch or self._count() == _BATCHES_WAITING * self._batch:
                self._encode(most)

    def finish(self) -> list[Int[np.ndarray, "n"] | Int[np.ndarray, "h w"]]:
        """Codes of all pictures in the order of `add`: [codes_per_image], or [height, width] for a grid vocabulary."""
        for shape, waiting in self._waiting.items():
            if waiting:
                self._encode(shape)
        return [self._codes[place] for place in self._order]

    def _count(self) -> int:
        return sum(map(len, self._waiting.values()))

    def _encode(self, shape: tuple[int, ...]) -> None:
        waiting, self._waiting[shape] = self._waiting[shape], []
        padding = [np.zeros(shape, np.float32)] * (self._batch - len(waiting))
        codes = np.asarray(self._bundle.encode_images(np.stack([picture for _, picture in waiting] + padding)))
        grammar = self._bundle.vocab.image.grammar
        if isinstance(grammar, GridSpan):
            code_pixels = self._bundle.image_config.grid_pixels // grammar.unit
            codes = codes.reshape(len(codes), shape[0] // code_pixels, shape[1] // code_pixels)
        self._codes.update((place, code) for (place, _), code in zip(waiting, codes, strict=False))
