"""Reads a source as tokenising will, and counts what decides sizes: records, pictures and their sizes, words, what is rejected."""

from __future__ import annotations

import collections
import dataclasses
import io
import re
import statistics
import time

from PIL import Image

from chameleon_jax.configs import ImageConfig, SourceConfig, text_and_image
from chameleon_jax.data.sources import Reject, by_reason, estimate_records, printable, read_documents
from chameleon_jax.errors import DataError
from chameleon_jax.progress import count as plural
from chameleon_jax.tokenizers.documents import Document
from chameleon_jax.tokenizers.images import load_pixels

READING_SECONDS = 60.0  # after which the rest is not read, and counts are scaled to the number of records
REASONS = 4  # why records cannot be used, that are told
DECODED = 2000  # pictures that are decoded whole; of the others the header is read
_DETAILS = re.compile(r"'[^']*'|\S+\.\w+|\d+")  # names, files and numbers in a reason
_FIRST_LOOKED_AT = ImageConfig(resolution=64)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Survey:
    """What a source holds. Counts are of what was read; `scale` times them is the whole."""

    source: SourceConfig
    read: int  # records, those that cannot be used among them
    scale: float
    seconds: float
    rejects: tuple[Reject, ...]
    documents: int
    texts: int  # documents with words
    pictures: int
    named: int  # different pictures, where records name files
    captioned: int  # documents with pictures and words
    most_pictures: int  # of a document
    sides: tuple[tuple[int, int], ...]  # width and height of every picture
    words: tuple[int, ...]  # of the texts of each document with any
    characters: int
    vocabulary: int  # different words
    caption: str  # the text of the first document that has one

    @property
    def side(self) -> int:
        """Median of the shorter sides; 0 without pictures."""
        return int(statistics.median(min(size) for size in self.sides)) if self.sides else 0

    @property
    def all_documents(self) -> int:
        return round(self.documents * self.scale)

    @property
    def all_pictures(self) -> int:
        return round(self.pictures * self.scale)

    @property
    def reject_fraction(self) -> float:
        return len(self.rejects) / max(self.read, 1)

    def reasons(self) -> list[tuple[int, str]]:
        """How often each reason occurs and an example of it, the most frequent first."""
        return [(len(alike), alike[0].reason) for alike in by_reason(self.rejects, _DETAILS)]


def survey(source: SourceConfig) -> Survey:
    """Read the source, at most `READING_SECONDS` long. Raises DataError where it cannot be read, or no record can be used."""
    begin = time.monotonic()
    counts: collections.Counter[str] = collections.Counter()
    rejects: list[Reject] = []
    sides: list[tuple[int, int]] = []
    named: set[tuple[str, str]] = set()  # with the file of records, since names are relative to it
    words: list[int] = []
    vocabulary: set[str] = set()
    caption, whole = "", True
    for record in read_documents(source, vocab=text_and_image()):
        if time.monotonic() - begin > READING_SECONDS:
            whole = False
            break
        counts["read"] += 1
        found = record if isinstance(record, Reject) else _sizes(record, decode=len(sides) < DECODED)
        if isinstance(found, Reject):
            rejects.append(found)
            continue
        texts = [segment.data for segment in record.segments if isinstance(segment.data, str) and segment.data.strip()]
        split = [word for text in texts for word in text.split()]
        sides += found
        file = record.id.rpartition("/")[0]
        named.update((file, segment.reference) for segment in record.segments if segment.reference)
        words += [len(split)] if texts else []
        vocabulary.update(word.lower() for word in split)
        caption = caption or next(iter(texts), "")
        counts["characters"] += sum(map(len, texts))
        counts["documents"] += 1
        counts["texts"] += bool(texts)
        counts["captioned"] += bool(texts and found)
        counts["most"] = max(counts["most"], len(found))
    if not counts["documents"]:
        first = f"{printable(rejects[0].record)}: {printable(rejects[0].reason)}" if rejects else ""
        if len(rejects) == 1:
            raise DataError(f"{source.path}: no record can be used: {first}")
        first = first and f", the first: {first}"
        raise DataError(f"{source.path}: none of {counts['read']:,} records can be used{first}")
    total = counts["read"] if whole else estimate_records(source) or counts["read"]
    return Survey(
        source=source,
        read=counts["read"],
        scale=total / counts["read"],
        seconds=time.monotonic() - begin,
        rejects=tuple(rejects),
        documents=counts["documents"],
        texts=counts["texts"],
        pictures=len(sides),
        named=len(named),
        captioned=counts["captioned"],
        most_pictures=counts["most"],
        sides=tuple(sides),
        words=tuple(words),
        characters=counts["characters"],
        vocabulary=len(vocabulary),
        caption=caption,
    )


def lines(found: Survey) -> list[str]:
    """What was found, for a person."""
    about = "" if found.scale == 1 else f" (of about {round(found.read * found.scale):,}; counts below are of these)"
    said = [f"{plural(found.read, 'record')}{about}, {len(found.rejects):,} of them cannot be used"]
    reasons = found.reasons()
    said += [f"  {count:,} x {printable(reason)}" for count, reason in reasons[:REASONS]]
    if len(reasons) > REASONS:
        said.append(f"  and {plural(len(reasons) - REASONS, 'more reason')}, see records.html")
    if found.sides:
        widths, heights = zip(*found.sides, strict=True)
        same = len(set(found.sides)) == 1
        sizes = (
            f"{'all ' if len(widths) > 1 else ''}{widths[0]}x{heights[0]} pixels"
            if same
            else (
                f"{min(widths)} to {max(widths)} wide, {min(heights)} to {max(heights)} high, short side {found.side} in the median"
            )
        )
        said.append(f"{plural(found.pictures, 'picture')}, {sizes}")
    if found.words:
        said.append(
            f"{plural(found.texts, 'text')}, {_words(found.words)}; "
            f'{plural(found.vocabulary, "different word")}, as "{_short(found.caption)}"'
        )
    missing = found.documents - found.captioned
    if found.sides and found.words and missing:
        said.append(f"{plural(missing, 'document')} with words or pictures alone")
    return said


def _sizes(document: Document, *, decode: bool) -> list[tuple[int, int]] | Reject:
    """Sizes of the document's pictures, or why one of them cannot be read."""
    found = []
    try:
        for segment in document.segments:
            if not isinstance(segment.data, bytes):
                continue
            if decode:
                load_pixels(segment.data, _FIRST_LOOKED_AT)
            found.append(_header(segment.data))
    except DataError as error:
        return Reject(document.source, document.id.removeprefix(f"{document.source}/"), str(error))
    return found


def _header(data: bytes) -> tuple[int, int]:
    try:
        with Image.open(io.BytesIO(data), formats=_FIRST_LOOKED_AT.formats) as picture:
            return picture.size
    except Exception as error:  # decoders raise many kinds of exception on damaged headers
        load_pixels(data, _FIRST_LOOKED_AT)  # says what is wrong, in our words
        raise DataError(f"image header cannot be read: {error}") from error


def _words(counts: tuple[int, ...]) -> str:
    """How many words texts have: `3 words each`, `2 to 9 words, 4 in the median`."""
    if min(counts) == max(counts):
        return plural(counts[0], "word") + " each" * (len(counts) > 1)
    return f"{min(counts):,} to {plural(max(counts), 'word')}, {statistics.median(counts):g} in the median"


def _short(text: str, most: int = 60) -> str:
    text = printable(" ".join(text.split()))
    return text if len(text) <= most else text[: most - 3] + "..."
