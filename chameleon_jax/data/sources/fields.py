"""What data sets call a record's picture and text, and what must not be lost unsaid.

That is a field that looks like a picture or a sound and that no schema reads, and a placeholder without its picture.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Mapping
from typing import Any

from chameleon_jax.data.sources.records import brief
from chameleon_jax.errors import DataError

PLACEHOLDER = "<image>"
# Hugging Face's ImageFolder says file_name, WebDataset the ending of the file, LAION TEXT, CC3M and others the rest.
IMAGE_NAMES = (
    "file_name",
    "filename",
    "image_path",
    "image_file",
    "img",
    "img_path",
    "image_name",
    "filepath",
    "file_path",
    "picture",
    "photo",
    "jpg",
    "png",
    "webp",
)
TEXT_NAMES = ("description", "alt_text", "txt", "TEXT")
# Words of a picture; in a record of words alone they are a question or a class, whose answer or sentence would be lost.
PICTURE_TEXT_NAMES = ("prompt", "title", "label")
# Names that texts have as well: `a.py` is a file of words, a value without an ending is what a picture was meant to be.
_FILE_NAMES = ("file_name", "filename", "filepath", "file_path")
_OTHER_FILE = re.compile(r"\.[A-Za-z]\w*$")
_PICTURE = re.compile(r"\.(jpe?g|png|webp|gif|bmp|tiff?|heic|avif)$", re.IGNORECASE)
_SOUND = re.compile(r"\.(wav|flac|mp3|ogg|opus|m4a)$", re.IGNORECASE)
_PICTURE_BYTES = re.compile(rb"\xff\xd8\xff|\x89PNG|GIF8|BM|II\*\0|MM\0\*|RIFF....WEBP", re.DOTALL)
_SOUND_BYTES = re.compile(rb"RIFF....WAVE|fLaC|OggS|ID3", re.DOTALL)
_URL = re.compile(r"https?://", re.IGNORECASE)
_LOOKED_AT = 8  # entries of a list


def in_known_case(names: Collection[str], known: Collection[str]) -> list[str]:
    """Names as the schemas write them where only upper and lower case differ; two that would be one stay."""
    lower = [name if name in known or name.lower() not in known else name.lower() for name in names]
    return [new if lower.count(new) == 1 else name for name, new in zip(names, lower, strict=True)]


def with_usual_names(record: Mapping[str, Any], own: Collection[str]) -> dict[str, Any]:
    """The record with its picture under `image` and its text under `text`, where they stand under another usual name.

    `own` are names that mean something else already, those of modalities. Raises DataError where two fields hold different
    pictures and none is called `image`, and where a field for a picture holds words that name none.
    """
    renamed = dict(record)
    held = ("image", "images", "segments", "image_info", *(n for n in own if looks_like_picture(record.get(n))))
    if not any(name in record for name in held):
        found = {n: record[n] for n in IMAGE_NAMES if n in record and n not in own and looks_like_picture(record[n])}
        names = list(found)
        if names and any(found[name] != found[names[0]] for name in names):
            raise DataError(f"fields {', '.join(names)} hold different pictures: call one of them 'image'")
        if names:
            renamed["image"] = found[names[0]]
        elif all(isinstance(record[name], str) for name in own if name in record):
            _check_no_name_is_lost(record, own)
    if not any(name in record for name in ("text", "caption", "captions", "texts", "segments")):
        names = (*TEXT_NAMES, *PICTURE_TEXT_NAMES) if holds_media(renamed, own) else TEXT_NAMES
        named = next((n for n in names if n in record and n not in own and isinstance(record[n], str | bytes)), None)
        if named and "conversations" not in record:
            renamed["text"] = record[named]
    return renamed


def _check_no_name_is_lost(record: Mapping[str, Any], own: Collection[str]) -> None:
    """Raise DataError for a field of `IMAGE_NAMES` whose words name no picture: the record would become text alone."""
    for name in IMAGE_NAMES:
        value = record.get(name)
        if name in own or not isinstance(value, str) or not value.strip():
            continue
        if name not in _FILE_NAMES or not _OTHER_FILE.search(value.strip()):
            raise DataError(
                f"field '{name}' names no picture file: {brief(value, 60)}; write the whole name, as in '000.png', call the field "
                "'image' where files have no ending, or name it in SourceConfig.ignore_fields"
            )


def holds_media(record: Mapping[str, Any], own: Collection[str]) -> bool:
    """Whether there are more than words: a picture, a sound, or a field of a modality; `own` are their names."""
    return any(name in record for name in ("image", "images", *own)) or any(map(looks_like_media, record.values()))


def check_words_are_named(record: Mapping[str, Any]) -> None:
    """Raise DataError, naming the fields with words, for a record of words alone that has a field of `PICTURE_TEXT_NAMES`."""
    words = [str(name) for name, value in record.items() if isinstance(value, str) and name not in ("id", "split")]
    if words and any(name in record for name in PICTURE_TEXT_NAMES):
        raise DataError(
            f"record has no picture, and which of its fields is the text is not known ({brief(', '.join(words), 120)}): call it "
            "'text', with all words that are to be learned"
        )


def check_nothing_is_lost(record: Mapping[str, Any], read: Collection[str]) -> None:
    """Raise DataError for a field beside those that are `read` which looks like a picture or a sound.

    The same picture under a second name, and the address that a picture was once fetched from, are no loss.
    """
    held = [record[name] for name in read if looks_like_media(record.get(name))]
    for name, value in record.items():
        if name in read or value in held or not looks_like_media(value):
            continue
        if held and isinstance(value, str) and _URL.match(value):
            continue
        if looks_like_picture(value):
            what, wanted = "picture", "'image'"
        else:
            what, wanted = "sound", "as the tokenizer's modality of sounds"
        raise DataError(
            f"field '{name}' looks like a {what} that would be lost: {brief(value, 60)}; call it {wanted}, write 'segments', or "
            "name it in SourceConfig.ignore_fields"
        )


def check_no_placeholder(text: str, field: str) -> None:
    """Raise DataError for a text that speaks of a picture which the record does not hold."""
    if PLACEHOLDER in text:
        raise DataError(
            f"field '{field}' holds {PLACEHOLDER} and the record no picture for it: give it as 'image' or 'images'; words that "
            "are meant so go into 'segments'"
        )


def looks_like_picture(value: object) -> bool:
    """Whether it is the name of a picture file, the bytes of one, or a list or Hugging Face `Image` of them."""
    return _looks_like(value, "data:image/", _PICTURE, _PICTURE_BYTES)


def looks_like_media(value: object) -> bool:
    """The same of pictures and sounds."""
    return looks_like_picture(value) or _looks_like(value, "data:audio/", _SOUND, _SOUND_BYTES)


def _looks_like(value: object, url: str, ending: re.Pattern[str], magic: re.Pattern[bytes]) -> bool:
    if isinstance(value, str):
        return value[: len(url)].lower() == url or bool(ending.search(value.partition("?")[0].strip()))
    if isinstance(value, bytes):
        return bool(magic.match(value))
    if isinstance(value, Mapping):
        return any(_looks_like(value.get(name), url, ending, magic) for name in ("bytes", "path", "url"))
    if isinstance(value, list | tuple):
        return any(_looks_like(entry, url, ending, magic) for entry in itertools.islice(value, _LOOKED_AT))
    return False
