"""Records of one shard to token documents: clean, encode in fixed batches, assemble.

The one idea: what comes out is a pure function of the records, the bundle and the config. Pictures are prepared by threads and
encoded in batches of one shape, so the codec is compiled once for each size; order is the order of the records.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
from collections.abc import Callable, Iterable

import numpy as np
from jaxtyping import Float, Int

from chameleon_jax.configs import ImageConfig, TokenizeConfig
from chameleon_jax.data.sources import Reject
from chameleon_jax.errors import DataError
from chameleon_jax.tokenizers.bundle import TokenizerBundle
from chameleon_jax.tokenizers.code_queue import CodeQueue
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
    codes = CodeQueue(bundle, config.image_batch)
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


def _pixels(document: Document, config: ImageConfig) -> list[Float[np.ndarray, "H W 3"]]:
    return [load_pixels(segment.data, config) for segment in document.segments if isinstance(segment, ImageSegment)]
