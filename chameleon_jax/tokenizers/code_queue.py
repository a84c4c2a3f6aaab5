"""Data in, codes out in the same order, whatever modalities and sizes come in between.

A codec is compiled for one batch of one shape, so an item waits until a batch of its shape is full. What comes out depends on
the item alone, not on what waited with it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np
from jaxtyping import Int

from chameleon_jax.tokenizers.bundle import TokenizerBundle

_BATCHES_WAITING = 4  # of items of all shapes together: a bound on memory


class CodeQueue:
    """Encodes items in batches of `batch`, the last of each shape padded; an item that comes again is encoded once.

    Several captions of one picture are usual, and encoding is nearly all of the work of tokenising. Data of modalities whose
    codes need no device, as text, are codes at once.
    """

    def __init__(self, bundle: TokenizerBundle, batch: int):
        self._bundle, self._batch = bundle, batch
        self._waiting: dict[tuple, list[tuple[int, np.ndarray]]] = {}  # by modality and shape: place and item
        self._codes: dict[int, np.ndarray] = {}
        self._places: dict[bytes, int] = {}  # digest of an item -> its place among the different ones
        self._count = 0
        self._order: list[int] = []

    def prepare(self, modality: str, data: Any) -> np.ndarray:
        """What `add` takes, made on the host from any thread: an item of the modality's codec, or codes.

        An array, of a modality with a codec, is an item already. Raises DataError with the reason for data that cannot be used.
        """
        codec = self._bundle.codecs.get(modality)
        if codec is None:
            return self._bundle.codes(modality, data)
        return data if isinstance(data, np.ndarray) else codec.prepare(data)

    def add(self, modality: str, items: Iterable[np.ndarray]) -> None:
        """Take prepared items; encodes those for which a batch is full."""
        for item in items:
            if modality not in self._bundle.codecs:
                self._order.append(self._new_place())
                self._codes[self._order[-1]] = item
                continue
            digest = hashlib.sha256(f"{modality} {item.shape}".encode() + item.tobytes()).digest()
            if digest not in self._places:
                self._places[digest] = self._new_place()
                self._waiting.setdefault((modality, item.shape), []).append((self._places[digest], item))
            self._order.append(self._places[digest])
            most = max(self._waiting, key=lambda kind: len(self._waiting[kind]))
            waiting = sum(map(len, self._waiting.values()))
            if len(self._waiting[most]) == self._batch or waiting == _BATCHES_WAITING * self._batch:
                self._encode(most)

    def finish(self) -> list[Int[np.ndarray, "n"] | Int[np.ndarray, "h w"]]:
        """Codes of all items in the order of `add`, each as its modality's span has them."""
        for kind, waiting in self._waiting.items():
            if waiting:
                self._encode(kind)
        return [self._codes[place] for place in self._order]

    def _new_place(self) -> int:
        self._count += 1
        return self._count - 1

    def _encode(self, kind: tuple[str, tuple[int, ...]]) -> None:
        modality, shape = kind
        waiting, self._waiting[kind] = self._waiting[kind], []
        padding = [np.zeros(shape, waiting[0][1].dtype)] * (self._batch - len(waiting))
        codes = self._bundle.codecs[modality].encode(np.stack([item for _, item in waiting] + padding))
        self._codes.update((place, code) for (place, _), code in zip(waiting, codes, strict=False))
