"""What a token store, a tokenizer or raw data hold, document by document, as cards of `record_page`."""

from __future__ import annotations

import dataclasses
import itertools
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from chameleon_jax.configs import ImageConfig, SourceConfig, text_and_image
from chameleon_jax.data import store_format
from chameleon_jax.data.sources import Reject, by_reason, read_documents, source_of
from chameleon_jax.data.store import TokenStore
from chameleon_jax.errors import ChameleonError, DataError
from chameleon_jax.evaluation import reconstruction
from chameleon_jax.evaluation.inspection import kind_of
from chameleon_jax.evaluation.record_page import Card, Part, Section, Token
from chameleon_jax.generation.grammar import split_spans
from chameleon_jax.generation.prompt import span_codes
from chameleon_jax.generation.reader import MARKER, Pieces
from chameleon_jax.progress import count as plural
from chameleon_jax.tokenizers.bundle import TEXT as TEXT_FILE
from chameleon_jax.tokenizers.bundle import TokenizerBundle
from chameleon_jax.tokenizers.documents import Document, Segment, Span
from chameleon_jax.tokenizers.images import open_image, to_8_bits, to_png, to_uint8
from chameleon_jax.tokenizers.text import TextTokenizer
from chameleon_jax.vocab import TEXT
from chameleon_jax.workdir import BUNDLE, STORE, TOKENIZER, VOCAB

LOOKED_AT = 1000  # records of raw data that are read to count those that cannot be used
LOOKING_SECONDS = 10.0  # after which no further ones are read
_PROMPT = 80  # characters of a text that is told as a prompt
_SIDE = 512  # pixels of a picture of raw data on the page
_MOST_EMBEDDED = 2 << 20  # bytes of a file that is no picture


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shown:
    title: str
    lead: str
    sections: tuple[Section, ...]


def of_path(path: Path, count: int, *, data: str | None = None, tokenizer: str | None = None) -> Shown:
    """`count` documents of a token store, of raw data (with the modalities of `tokenizer`), or of `data` through a tokenizer.

    Raises ChameleonError for a path that is none of these, and for arguments that do not belong to it.
    """
    kind = kind_of(path)
    if data is not None and kind != BUNDLE:
        raise ChameleonError(f"--data is what a tokenizer is tried on; {path} is {kind or 'no tokenizer'}")
    if tokenizer is not None and kind is not None:
        raise ChameleonError(f"--tokenizer is for raw data; {path} is {kind}")
    if kind == STORE:
        return of_store(path, count)
    if kind == BUNDLE:
        return of_bundle(path, Path(data) if data else None, count)
    if kind is not None:
        raise ChameleonError(f"{path} is {kind}: --show is for token stores, tokenizers and raw data")
    return of_data(path, count, TokenizerBundle.load(tokenizer) if tokenizer else None)


def first_text(folder: Path) -> str:
    """Words that a token store's first documents hold, of one text: a prompt that its model has seen the like of.

    Empty where there is no tokenizer beside the ids, or no text.
    """
    if not (folder / TOKENIZER / VOCAB).is_file():
        return ""
    store = TokenStore.open(folder)
    tokenizer = TextTokenizer.load(folder / TOKENIZER / TEXT_FILE, store.vocab_config)  # without the weights of codecs
    chosen = range(min(16, store.documents))
    for ids, spans in zip(store.read(chosen), store.spans(chosen), strict=True):
        at = 0
        for span in spans:
            words = tokenizer.decode(ids[at : at + span.length]).strip() if span.modality == TEXT else ""
            at += span.length
            if words:
                return " ".join(words.split())[:_PROMPT]
    return ""


# --- token stores ----------------------------------------------------------------------------------------------------


def of_store(folder: Path, count: int) -> Shown:
    """Documents of a token store, evenly spaced from its first to its last, and the first of its rejects.

    Raises StoreError and TokenizerError for a store, or the tokenizer in it, that is missing or damaged.
    """
    store, bundle = TokenStore.open(folder), TokenizerBundle.load(folder / TOKENIZER)
    pieces = Pieces(bundle)
    chosen = np.unique(np.linspace(0, store.documents - 1, min(count, store.documents)).astype(int)).tolist()
    cards = []
    for document, ids, spans in zip(chosen, store.read(chosen), store.spans(chosen), strict=True):
        parts, at = [], 0
        pixels = iter(store.pictures_in(document))
        for span in spans:
            parts += _parts_of_span(ids[at : at + span.length], span, bundle, pieces, pixels)
            at += span.length
        learned = sum(span.length for span in spans if span.loss)
        note = f"{plural(len(ids), 'id')}, {'all' if learned == len(ids) else f'{learned:,} of them'} learned"
        cards.append(Card(title=f"Document {document:,}", note=note, parts=tuple(parts)))
    summary = store.summary()
    tokens = ", ".join(f"{number:,} {name}" for name, number in summary.tokens_by_modality.items())
    lead = (
        f"{summary.documents:,} documents, {summary.tokens:,} ids ({tokens}) from {summary.records:,} records; tokenizer "
        f"{summary.bundle_fingerprint}"
    )
    rejects = [
        Reject(**json.loads(line))
        for path in sorted((folder / store_format.REJECTS).glob("*.jsonl"))
        for line in path.read_text(encoding="utf-8").splitlines()
    ]
    sections = (
        Section(
            title=f"{len(cards)} of {summary.documents:,} documents",
            lead="evenly spaced; pictures and sounds are what their codes decode to",
            cards=tuple(cards),
        ),
        *_reject_sections(rejects, summary.records, count),
    )
    return Shown(title=f"Token store {folder}", lead=lead, sections=sections)


def _parts_of_span(
    ids: np.ndarray, span: Span, bundle: TokenizerBundle, pieces: Pieces, pixels: Iterator[np.ndarray]
) -> list[Part]:
    modality = bundle.vocab.modalities[span.modality]
    note = f"{plural(len(ids), 'id')} from {ids[0]}"
    if modality is bundle.vocab.text:
        tokens = tuple(
            Token(text=piece["piece"], id=piece["id"], marker=piece["kind"] == MARKER)
            for piece in pieces.describe(ids.tolist())
        )
        return [Part(label=modality.name, note=plural(len(ids), "id"), learned=span.loss, tokens=tokens)]
    if modality is bundle.vocab.perceived:
        file = to_png(Image.fromarray(next(pixels)))
        label = f"{note}: pixels in patches"
        return [Part(label=modality.name, note=label, learned=span.loss, file=file, mime="image/png")]
    parts = []
    for found in split_spans(ids, bundle.vocab):
        codes = span_codes(found, bundle) if found.complete else found.content - modality.start
        file, mime = b"", ""
        codec = bundle.codecs.get(modality.name)
        if codec is not None and codec.can_decode and found.complete:
            file, mime = codec.to_file(codec.decode(codes[None])[0]), codec.mime
        shape = " x ".join(map(str, codes.shape))
        parts.append(
            Part(
                label=modality.name,
                note=f"{note}, {shape} codes",
                learned=span.loss,
                file=file,
                mime=mime,
                values=tuple(codes.reshape(-1).tolist()),
            )
        )
    return parts


# --- raw data --------------------------------------------------------------------------------------------------------


def of_data(path: Path, count: int, bundle: TokenizerBundle | None) -> Shown:
    """The first records of raw data as tokenising would read them, and why records among the first thousand cannot be used.

    The bundle says which modalities fields of records may have, and prepares their data; without one they are texts and pictures.
    Raises DataError for a path that no reader knows.
    """
    return of_source(source_of(path), count, bundle)


def of_source(source: SourceConfig, count: int, bundle: TokenizerBundle | None = None) -> Shown:
    """The same of a source. Raises DataError where it cannot be read."""
    begin = time.monotonic()
    documents, rejects, read, ended = [], [], 0, True
    for record in read_documents(source, vocab=bundle.vocab_config if bundle else text_and_image()):
        if read == LOOKED_AT or (read >= count and time.monotonic() - begin > LOOKING_SECONDS):
            ended = False
            break
        read += 1
        shown = record if isinstance(record, Reject) else _checked(record, bundle)
        if isinstance(shown, Reject):
            rejects.append(shown)
        elif len(documents) < count:
            documents.append(shown)
    lead = f"read as '{source.kind}'; {'all' if ended else 'the first'} {plural(read, 'record')} looked at"
    sections = (
        Section(title=f"The first {plural(len(documents), 'record')}", cards=tuple(documents)),
        *_reject_sections(rejects, read, count),
    )
    return Shown(title=f"Records of {source.path}", lead=lead, sections=sections)


def _checked(document: Document, bundle: TokenizerBundle | None) -> Card | Reject:
    try:
        parts = tuple(_part_of_segment(segment, bundle) for segment in document.segments)
    except DataError as error:
        return Reject(document.source, document.id.removeprefix(f"{document.source}/"), str(error))
    return Card(title=document.id, note=plural(len(parts), "part"), parts=parts)


def _part_of_segment(segment: Segment, bundle: TokenizerBundle | None) -> Part:
    codec = bundle.codecs.get(segment.modality) if bundle else None
    given = {"label": segment.modality, "learned": None if segment.loss else False}
    turn = "ends a turn" if segment.ends_turn else ""
    if isinstance(segment.data, str):
        return Part(text=segment.data, note=turn, **given)
    if not isinstance(segment.data, bytes):
        return Part(values=tuple(int(number) for number in segment.data), note=turn, **given)
    if codec is not None:
        codec.prepare(segment.data)  # or it raises why not
    size = f"{len(segment.data):,} bytes"
    if codec is None or codec.media == "image":
        picture = open_image(segment.data, getattr(codec, "config", None) or ImageConfig())
        size = f"{picture.width}x{picture.height} pixels, {size}"
        picture.thumbnail((_SIDE, _SIDE))
        file, mime = to_png(picture), "image/png"
    else:
        file, mime = (segment.data, codec.mime) if len(segment.data) <= _MOST_EMBEDDED else (b"", "")
    note = ", ".join(part for part in (segment.reference, size, turn) if part)
    return Part(note=note, file=file, mime=mime, **given)


# --- tokenizers ------------------------------------------------------------------------------------------------------


def of_bundle(folder: Path, data: Path | None, count: int) -> Shown:
    """The first items of `data` beside what the tokenizer makes of them and back, and its texts in pieces.

    Without data, what the training of the codecs drew of its held-out items. Raises DataError where there is neither.
    """
    bundle = TokenizerBundle.load(folder)
    title, lead = f"Tokenizer {folder}", f"{bundle.vocab.size:,} ids, fingerprint {bundle.fingerprint()}"
    if data is None:
        drawn = sorted(folder.rglob("*reconstructions.png"))
        parts = [Part(label=str(path.relative_to(folder)), file=path.read_bytes(), mime="image/png") for path in drawn]
        if not parts:
            raise DataError(f"{folder} holds no pictures: say which to show with --data=FILE_OR_FOLDER")
        card = Card(title="Originals, and below each its reconstruction", parts=tuple(parts))
        return Shown(title=title, lead=lead, sections=(Section(title="Held-out data", cards=(card,)),))
    pieces, source = Pieces(bundle), source_of(data)
    found = (record for record in read_documents(source, vocab=bundle.vocab_config) if isinstance(record, Document))
    cards = []
    for document in itertools.islice(found, count):
        try:
            parts = [part for segment in document.segments for part in _round_trip(segment, bundle, pieces)]
            cards.append(Card(title=document.id, parts=tuple(parts)))
        except DataError as error:
            cards.append(Card(title=document.id, fault=str(error)))
    section = Section(
        title=f"{plural(len(cards), 'document')} of {data}", lead="as given, and after codes", cards=tuple(cards)
    )
    return Shown(title=title, lead=lead, sections=(section,))


def _round_trip(segment: Segment, bundle: TokenizerBundle, pieces: Pieces) -> list[Part]:
    name, codec = segment.modality, bundle.codecs.get(segment.modality)
    if name == bundle.vocab.text.name:
        ids = bundle.text.encode(segment.data)
        tokens = tuple(Token(text=piece["piece"], id=piece["id"]) for piece in pieces.describe(ids.tolist()))
        return [
            Part(
                label=name,
                note=f"{plural(len(segment.data), 'character')} in {plural(len(ids), 'id')}",
                tokens=tokens,
            )
        ]
    if codec is None:
        return [Part(label=name, values=tuple(int(number) for number in segment.data))]
    item = codec.prepare(segment.data)
    note = f"{segment.reference} as the codec sees it".strip()
    before = Part(label=name, note=note, file=codec.to_file(item), mime=codec.mime)
    if not codec.can_decode:
        return [before]
    codes = codec.encode(item[None])[0]
    after = codec.decode(codes[None])[0]
    note = f"after {' x '.join(map(str, codes.shape))} codes"
    if codec.media == "image":
        note += f", {reconstruction.psnr(to_8_bits(item)[None], to_uint8(after)[None])[0]:.1f} dB"
    values = tuple(codes.reshape(-1).tolist())
    return [before, Part(label=name, note=note, file=codec.to_file(after), mime=codec.mime, values=values)]


# --- rejects ---------------------------------------------------------------------------------------------------------


def _reject_sections(rejects: Sequence[Reject], records: int, count: int) -> tuple[Section, ...]:
    """How many there are of each reason, and the first of them; nothing where there is none."""
    if not rejects:
        return ()
    kinds = by_reason(rejects)
    lead = "; ".join(f"{len(alike):,} x {alike[0].reason[:120]}" for alike in kinds[:3])
    lead += f"; and {len(kinds) - 3} more reasons" if len(kinds) > 3 else ""
    cards = tuple(Card(title=f"{r.source}/{r.record}", fault=r.reason) for r in rejects[:count])
    return (Section(title=f"{len(rejects):,} of {records:,} records rejected", lead=lead, cards=cards),)
