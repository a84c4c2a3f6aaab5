"""Records of one shard to token documents: clean, encode in fixed batches, assemble.

The one idea: what comes out is a pure function of the records, the bundle and the config. Pictures are prepared by threads and
encoded in batches of one shape (the last one padded), so the codec is compiled once; order is the order of the records.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import hashlib
from collections.abc import Callable, Iterable

import numpy as np
from jaxtyping import Float, Int

from chameleon_jax.configs import ImageConfig, TokenizeConfig
from chameleon_jax.data.sources import Reject
from chameleon_jax.errors import DataError
from chameleon_jax.tokenizers.bundle import TokenizerBundle
from chameleon_jax.tokenizers.documents import Document, ImageSegment, TextSegment, TokenDocument, assemble, order_pair
from chameleon_jax.tokenizers.images import load_pixels

_DOCUMENTS_AHEAD = 64  # in preparation at one time; with many pictures fewer


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardTokens:
    """What the records of a shard gave, in order."""

    documents: list[TokenDocument]
    rejects: list[Reject]


def tokenize_records(
    records: Iterable[Document | Reject],
    bundle: TokenizerBundle,
    config: TokenizeConfig,
    pool: concurrent.futures.Executor,
    on_record: Callable[[Reject | None], None],
) -> ShardTokens:
    """Tokenise records; `on_record` hears of each as soon as it is known to be good (None) or rejected, and may raise."""
    rejects: list[Reject] = []
    ready: list[tuple[Document, list[Int[np.ndarray, "_"]]]] = []
    codes = _CodeQueue(bundle, config.image_batch)
    waiting: collections.deque = collections.deque()
    images_waiting = 0

    def finish_first() -> None:
        nonlocal images_waiting
        document, images, future = waiting.popleft()
        images_waiting -= images
        try:
            pixels = future.result()
        except DataError as error:
            reject(_reject(document, str(error)))
            return
        codes.add(pixels)
        ready.append((document, [bundle.text.encode(s.text) for s in document.segments if isinstance(s, TextSegment)]))
        on_record(None)

    def reject(found: Reject) -> None:
        rejects.append(found)
        on_record(found)

    for record in records:
        reason = record if isinstance(record, Reject) else _over_limit(record, config)
        if reason is not None:
            while waiting:  # rejects are listed in the order of the records
                finish_first()
            reject(reason)
            continue
        document = order_pair(record, config.seed, config.image_first_probability)
        images = sum(isinstance(segment, ImageSegment) for segment in document.segments)
        waiting.append((document, images, pool.submit(_pixels, document, bundle.image_config)))
        images_waiting += images
        while len(waiting) > _DOCUMENTS_AHEAD or (images_waiting > 2 * config.image_batch and len(waiting) > 1):
            finish_first()
    while waiting:
        finish_first()

    all_codes = iter(codes.finish())
    documents = []
    for document, texts in ready:
        mine = [next(all_codes) for segment in document.segments if isinstance(segment, ImageSegment)]
        documents.append(assemble(document, texts, mine, bundle.vocab))
    return ShardTokens(documents=documents, rejects=rejects)


def _over_limit(document: Document, config: TokenizeConfig) -> Reject | None:
    texts = [segment.text for segment in document.segments if isinstance(segment, TextSegment)]
    images = len(document.segments) - len(texts)
    size = sum(len(text.encode("utf-8", "surrogatepass")) for text in texts)
    reason = ""
    if images > config.max_images_per_document:
        reason = f"document has {images} images, max_images_per_document is {config.max_images_per_document}"
    elif size > config.max_text_bytes:
        reason = f"document has {size} bytes of text, max_text_bytes is {config.max_text_bytes}"
    elif images == 0 and size == 0:
        reason = "document has neither text nor image"
    return _reject(document, reason) if reason else None


def _reject(document: Document, reason: str) -> Reject:
    return Reject(source=document.source, record=document.id.removeprefix(f"{document.source}/"), reason=reason)


def _pixels(document: Document, config: ImageConfig) -> list[Float[np.ndarray, "R R 3"]]:
    return [load_pixels(segment.data, config) for segment in document.segments if isinstance(segment, ImageSegment)]


class _CodeQueue:
    """Pictures in, codes out in the same order, encoded in batches of one shape; a picture that comes again is encoded once.

    Several captions of one picture are usual, and encoding is nearly all of the work.
    """

    def __init__(self, bundle: TokenizerBundle, batch: int):
        self._bundle, self._batch = bundle, batch
        self._waiting: list[np.ndarray] = []
        self._codes: list[np.ndarray] = []
        self._places: dict[bytes, int] = {}  # digest of a picture -> its place among the different ones
        self._order: list[int] = []

    def add(self, pixels: list[np.ndarray]) -> None:
        for picture in pixels:
            digest = hashlib.sha256(picture.tobytes()).digest()
            if digest not in self._places:
                self._places[digest] = len(self._places)
                self._waiting.append(picture)
            self._order.append(self._places[digest])
        while len(self._waiting) >= self._batch:
            self._encode(self._batch)

    def finish(self) -> list[np.ndarray]:
        if self._waiting:
            self._encode(len(self._waiting))
        return [self._codes[place] for place in self._order]

    def _encode(self, count: int) -> None:
        images = self._waiting[:count]
        del self._waiting[:count]
        padding = [np.zeros_like(images[0])] * (self._batch - count)
        self._codes += list(np.asarray(self._bundle.encode_images(np.stack(images + padding)))[:count])
