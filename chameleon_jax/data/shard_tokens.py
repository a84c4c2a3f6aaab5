"""Records of one shard to token documents: clean, encode in fixed batches, assemble.

What comes out is a pure function of the records, the bundle and the config. Data are prepared by threads and encoded in batches
of one shape, so a codec is compiled once for each; order is the order of the records.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
from collections.abc import Callable, Iterable

import numpy as np

from chameleon_jax.configs import TokenizeConfig, VocabConfig
from chameleon_jax.data.sources import Reject
from chameleon_jax.errors import DataError
from chameleon_jax.tokenizers.bundle import TokenizerBundle
from chameleon_jax.tokenizers.code_queue import CodeQueue
from chameleon_jax.tokenizers.documents import Document, TokenDocument, assemble, order_pair, perceive

_DOCUMENTS_AHEAD = 64  # in preparation at one time; with many spans fewer
_MAX_SPANS = 64  # of a modality that TokenizeConfig.max_spans does not name


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
    vocab = bundle.vocab
    rejects: list[Reject] = []
    ready: list[tuple[Document, tuple[np.ndarray, ...]]] = []  # with the pixels of what is perceived
    perceived = [row.name for row in bundle.vocab_config.modalities if row.codec == "patches"]
    codes = CodeQueue(bundle, config.codec_batch)
    waiting: collections.deque = collections.deque()
    items_waiting = 0

    def finish_first() -> None:
        nonlocal items_waiting
        document, items, future = waiting.popleft()
        items_waiting -= items
        try:
            prepared = future.result()
        except DataError as error:
            reject(_reject(document, str(error)))
            return
        for segment, item in zip(document.segments, prepared, strict=True):
            codes.add(segment.modality, [item])
        pairs = zip(document.segments, prepared, strict=True)
        ready.append((document, tuple(item for segment, item in pairs if segment.modality in perceived)))
        on_record(None)

    def reject(found: Reject) -> None:
        rejects.append(found)
        on_record(found)

    for record in records:
        reason = record if isinstance(record, Reject) else _problem(record, bundle.vocab_config, config)
        if reason is not None:
            while waiting:  # rejects are listed in the order of the records
                finish_first()
            reject(reason)
            continue
        document = order_pair(record, vocab, config.seed, config.later_first_probability)
        if config.image_input == "patches":
            document = perceive(document, bundle.vocab_config)
        items = sum(segment.modality in bundle.codecs for segment in document.segments)
        waiting.append((document, items, pool.submit(_prepare, document, codes)))
        items_waiting += items
        while len(waiting) > _DOCUMENTS_AHEAD or (items_waiting > 2 * config.codec_batch and len(waiting) > 1):
            finish_first()
    while waiting:
        finish_first()

    all_codes = iter(codes.finish())
    documents = [assemble(doc, [next(all_codes) for _ in doc.segments], vocab, items) for doc, items in ready]
    return ShardTokens(documents=documents, rejects=rejects)


def _problem(document: Document, vocab: VocabConfig, config: TokenizeConfig) -> Reject | None:
    """Why a document cannot be used, before its files are opened."""
    spans = collections.Counter(segment.modality for segment in document.segments)
    size = sum(
        len(segment.data.encode("utf-8", "surrogatepass"))
        for segment in document.segments
        if segment.modality == vocab.text.name
    )
    if foreign := next((name for name in spans if name not in vocab.names), None):
        return _reject(document, f"the tokenizer has no modality '{foreign}'; it has {', '.join(vocab.names)}")
    for row in vocab.modalities:
        most = config.max_spans.get(row.name, _MAX_SPANS if row.marked else None)
        if most is not None and spans[row.name] > most:
            return _reject(document, f"document has {spans[row.name]} of '{row.name}', max_spans is {most}")
        if row.span == "fixed" and not row.codec:
            found = {len(s.data) for s in document.segments if s.modality == row.name} - {row.length}
            if found:
                return _reject(document, f"'{row.name}' has {found.pop()} numbers, a span has {row.length}")
    if size > config.max_bytes:
        return _reject(document, f"document has {size} bytes of text, max_bytes is {config.max_bytes}")
    if not size and all(name == vocab.text.name for name in spans):
        return _reject(document, "document is empty")
    return None


def _reject(document: Document, reason: str) -> Reject:
    return Reject(source=document.source, record=document.id.removeprefix(f"{document.source}/"), reason=reason)


def _prepare(document: Document, codes: CodeQueue) -> list[np.ndarray]:
    return [codes.prepare(segment.modality, segment.data) for segment in document.segments]
