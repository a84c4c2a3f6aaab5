"""The field layouts of records, told apart by their fields, to ordered segments.

The one idea: a parser is a pure function from a plain dict to a list of parts, and says what is wrong as a `DataError`. Fields
that no schema knows are ignored. Sources: reference layouts of OBELICS, MMC4 and LLaVA as published with those data sets.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from chameleon_jax.data.sources.pictures import image_segment
from chameleon_jax.data.sources.records import brief
from chameleon_jax.errors import DataError
from chameleon_jax.tokenizers.documents import Segment, TextSegment, valid_text

_PLACEHOLDER = "<image>"
_ROLES = {
    "human": False,
    "user": False,
    "system": False,
    "gpt": True,
    "assistant": True,
}  # role -> predicted in training


@dataclasses.dataclass(frozen=True)
class _ImageReference:
    reference: object
    loss: bool = True


_Parts = list[TextSegment | _ImageReference]


def record_segments(record: object, image_dir: str) -> tuple[Segment, ...]:
    """Segments of one record, with the bytes of its images.

    Raises DataError with the reason when the record fits no schema, contradicts itself, is empty, or an image cannot be loaded.
    """
    if not isinstance(record, dict):
        raise DataError(f"record is {_kind(record)}, not an object")
    parts = _parse(record)
    images = sum(isinstance(part, _ImageReference) for part in parts)
    if images == 0 and not any(part.text.strip() for part in parts):
        raise DataError("record has no text and no image")
    loaded = [
        image_segment(part.reference, image_dir, part.loss) if isinstance(part, _ImageReference) else part
        for part in parts
    ]
    return tuple(loaded)


def _parse(record: dict[str, Any]) -> _Parts:
    for fields, parser in _SCHEMAS:
        if all(field in record for field in fields):
            return parser(record)
    if any(field in record for field in _PAIR_FIELDS):
        return _pair(record)
    halves = [f"'{a}' without '{b}'" for (a, b) in (("texts", "images"), ("text_list", "image_info")) if a in record]
    halves += [f"'{b}' without '{a}'" for (a, b) in (("texts", "images"), ("text_list", "image_info")) if b in record]
    if halves:
        raise DataError(f"record has {halves[0]}")
    found = ", ".join(str(key) for key in list(record)[:12]) or "none"
    raise DataError(
        f"record has none of the known fields (text, caption, image, segments, texts, ...); found: {brief(found, 120)}"
    )


def _segments(record: dict[str, Any]) -> _Parts:
    """{"segments": [{"text": ...} | {"image": ...}, ...]}, each with an optional "loss"."""
    parts: _Parts = []
    for i, segment in enumerate(_list(record, "segments")):
        if not isinstance(segment, dict) or (segment.get("text") is None) == (segment.get("image") is None):
            raise DataError(f"segments[{i}] must be an object with either 'text' or 'image': {brief(segment)}")
        loss = True if segment.get("loss") is None else segment["loss"]
        if not isinstance(loss, bool):
            raise DataError(f"segments[{i}].loss must be true or false: {brief(loss)}")
        if segment.get("text") is not None:
            parts.append(TextSegment(_text(segment["text"], f"segments[{i}].text"), loss))
        else:
            parts.append(_ImageReference(segment["image"], loss))
    return parts


def _obelics(record: dict[str, Any]) -> _Parts:
    """{"texts": [str | null], "images": [image | null]}: equal lengths, one of the two at each place."""
    texts, images = _list(record, "texts"), _list(record, "images")
    if len(texts) != len(images):
        raise DataError(f"'texts' has {len(texts)} entries, 'images' has {len(images)}")
    parts: _Parts = []
    for i, (text, image) in enumerate(zip(texts, images, strict=True)):
        if (text is None) == (image is None):
            raise DataError(f"place {i} has {'neither text nor image' if text is None else 'both text and image'}")
        parts.append(_ImageReference(image) if text is None else TextSegment(_text(text, f"texts[{i}]")))
    return parts


def _mmc4(record: dict[str, Any]) -> _Parts:
    """{"text_list": [str], "image_info": [{"image_name", "matched_text_index"}]}: an image goes before its sentence."""
    sentences = [_text(text, f"text_list[{i}]") for i, text in enumerate(_list(record, "text_list"))]
    before: dict[int, list[_ImageReference]] = {}
    for i, info in enumerate(_list(record, "image_info")):
        if not isinstance(info, dict) or "image_name" not in info or "matched_text_index" not in info:
            raise DataError(f"image_info[{i}] must have 'image_name' and 'matched_text_index': {brief(info)}")
        index = info["matched_text_index"]
        if type(index) is not int or not 0 <= index < len(sentences):
            raise DataError(f"image_info[{i}].matched_text_index {brief(index)} is not in 0..{len(sentences) - 1}")
        before.setdefault(index, []).append(_ImageReference(info["image_name"]))
    parts: _Parts = []
    waiting: list[str] = []
    for i, sentence in enumerate(sentences):
        if i in before:
            if waiting:
                parts.append(TextSegment(" ".join(waiting)))
            parts += before[i]
            waiting = []
        waiting.append(sentence)
    return [*parts, TextSegment(" ".join(waiting))] if waiting else parts


def _conversation(record: dict[str, Any]) -> _Parts:
    """{"image": ref | [ref], "conversations": [{"from": "human", "value": "<image>..."}]}: only answers are predicted."""
    field = "images" if "images" in record else "image"
    held = record.get(field)
    images = held if isinstance(held, list) else [] if held is None else [held]
    turns = _list(record, "conversations")
    parts: _Parts = []
    used = 0
    for i, turn in enumerate(turns):
        if not isinstance(turn, dict) or not isinstance(turn.get("from"), str) or turn["from"] not in _ROLES:
            raise DataError(f"conversations[{i}].from must be one of {', '.join(_ROLES)}: {brief(turn)}")
        loss = _ROLES[turn["from"]]
        pieces = _text(turn.get("value"), f"conversations[{i}].value").split(_PLACEHOLDER)
        for j, piece in enumerate(pieces):
            if j > 0:
                parts.append(_ImageReference(images[used] if used < len(images) else None, loss))
                used += 1
            if piece or j == len(pieces) - 1:
                parts.append(TextSegment(piece, loss, ends_turn=j == len(pieces) - 1))
    if used != len(images):
        raise DataError(f"conversation has {used} {_PLACEHOLDER} placeholders for {len(images)} images")
    return parts


def _pair(record: dict[str, Any]) -> _Parts:
    """{"image": ref, "text" | "caption" | "captions": str}, either one alone allowed; of several captions the first is taken."""
    parts: _Parts = []
    if "image" in record:
        parts.append(_ImageReference(record["image"]))
    named = [field for field in _PAIR_FIELDS if field != "image" and field in record]
    if named:
        value = record[named[0]]
        if isinstance(value, list):
            if not value:
                raise DataError(f"field '{named[0]}' is an empty list")
            value = value[0]
        parts.append(TextSegment(_text(value, named[0])))
    return parts


_PAIR_FIELDS = ("image", "caption", "text", "captions")
_SCHEMAS: tuple[tuple[tuple[str, ...], Callable[[dict[str, Any]], _Parts]], ...] = (
    (("segments",), _segments),
    (("conversations",), _conversation),
    (("texts", "images"), _obelics),
    (("text_list", "image_info"), _mmc4),
)
# Every top-level field that a schema or a reader looks at; columnar readers fetch no others.
KNOWN_FIELDS = ("id", "split", "segments", "conversations", "texts", "images", "text_list", "image_info", *_PAIR_FIELDS)


def _list(record: dict[str, Any], field: str) -> list[Any]:
    value = record[field]
    if not isinstance(value, list):
        raise DataError(f"field '{field}' is {_kind(value)}, not a list")
    return value


def _text(value: object, field: str) -> str:
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"field '{field}' is not UTF-8: {error.reason} at byte {error.start}") from error
    if not isinstance(value, str):
        raise DataError(f"field '{field}' is {_kind(value)}, not a string")
    return valid_text(value)


def _kind(value: object) -> str:
    names = {type(None): "null", dict: "an object", list: "a list", str: "a string", bool: "a truth value"}
    return names.get(type(value), "a number" if isinstance(value, (int, float)) else type(value).__name__)
