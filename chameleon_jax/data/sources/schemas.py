"""The field layouts of records, told apart by their fields, to ordered segments.

A parser is a pure function from a plain dict to a list of parts, and says what is wrong as a `DataError`. Fields that no schema
knows are ignored unless they look like pictures. Sources: reference layouts of OBELICS, MMC4 and LLaVA as published with those data
sets.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection
from typing import Any

from chameleon_jax.configs import ModalityConfig, VocabConfig
from chameleon_jax.data.sources import fields
from chameleon_jax.data.sources.fields import PLACEHOLDER
from chameleon_jax.data.sources.media import load_file
from chameleon_jax.data.sources.records import brief
from chameleon_jax.errors import DataError
from chameleon_jax.tokenizers.documents import Segment, valid_text

_ROLES = {
    "human": False,
    "user": False,
    "system": False,
    "gpt": True,
    "assistant": True,
}  # role -> predicted in training


@dataclasses.dataclass(frozen=True)
class _Text:
    text: str
    loss: bool = True
    ends_turn: bool = False


@dataclasses.dataclass(frozen=True)
class _Held:
    """What a field holds, to be loaded: a reference to a file, or numbers. `field` is its name in the record."""

    field: str
    value: object
    loss: bool = True


def _image(value: object, loss: bool = True) -> _Held:
    return _Held("image", value, loss)


_Parts = list[_Text | _Held]


def record_segments(
    record: object, root: str, vocab: VocabConfig, ignored: Collection[str] = ()
) -> tuple[Segment, ...]:
    """Segments of one record, with the bytes of its files, which lie below `root`; `ignored` are fields to pass over.

    Fields are known in upper and lower case.

    Raises DataError with the reason when the record fits no schema, contradicts itself, is empty, holds a picture that no schema
    reads, or a file cannot be loaded.
    """
    if not isinstance(record, dict):
        raise DataError(f"record is {_kind(record)}, not an object")
    record = {name: value for name, value in record.items() if name not in ignored}
    names = fields.in_known_case(record, known_fields(vocab))
    record = {name: value for name, value in zip(names, record.values(), strict=True) if name not in ignored}
    record = fields.with_usual_names(record, vocab.names)
    parts, read = _parse(record, vocab)
    fields.check_nothing_is_lost(record, read)
    if not any(isinstance(part, _Held) or part.text.strip() for part in parts):
        raise DataError("record has no text and no image")
    return tuple(_segment(part, root, vocab) for part in parts)


def known_fields(vocab: VocabConfig) -> tuple[str, ...]:
    """Every top-level field that a schema or a reader looks at."""
    usual = (*fields.IMAGE_NAMES, *fields.TEXT_NAMES, *fields.PICTURE_TEXT_NAMES)
    return tuple(dict.fromkeys((*_FIELDS, *usual, *vocab.names)))


def _segment(part: _Text | _Held, root: str, vocab: VocabConfig) -> Segment:
    if isinstance(part, _Text):
        return Segment(vocab.text.name, part.text, part.loss, part.ends_turn)
    row = _row(part.field, vocab)
    if row is None:
        raise DataError(f"record has the field '{part.field}', but the tokenizer has no modality of pictures")
    if row.codec == "bpe":
        return Segment(row.name, _text(part.value, part.field), part.loss)
    if not row.codec:
        return Segment(row.name, _numbers(part.value, part.field), part.loss)
    data, reference = load_file(part.value, root, part.field)
    return Segment(row.name, data, part.loss, reference=reference)


def _row(field: str, vocab: VocabConfig) -> ModalityConfig | None:
    """The modality of a field: that of its name; else of `text` and `image`, as public data sets write, the first of its kind."""
    named = next((row for row in vocab.modalities if row.name == field), None)
    return named or (vocab.text if field == "text" else vocab.of_codec("vqgan"))


def _further(record: dict[str, Any], vocab: VocabConfig) -> list[str]:
    """Fields of the record that are named after modalities and mean nothing else."""
    return [name for name in vocab.names if name in record and name not in _PAIR_FIELDS]


def _parse(record: dict[str, Any], vocab: VocabConfig) -> tuple[_Parts, Collection[str]]:
    """The parts, and the fields that were read for them."""
    for needed, parser, also in _SCHEMAS:
        if all(field in record for field in needed):
            return parser(record), (*needed, *also)
    if "segments" in record:
        return _segments(record, vocab), ("segments",)
    if any(field in record for field in _PAIR_FIELDS) or _further(record, vocab):
        return _pair(record, vocab), (*_PAIR_FIELDS, *_further(record, vocab), "images")
    halves = [f"'{a}' without '{b}'" for (a, b) in (("texts", "images"), ("text_list", "image_info")) if a in record]
    halves += [f"'{b}' without '{a}'" for (a, b) in (("texts", "images"), ("text_list", "image_info")) if b in record]
    if halves:
        raise DataError(f"record has {halves[0]}")
    fields.check_words_are_named(record)
    found = ", ".join(str(key) for key in list(record)[:12]) or "none"
    raise DataError(
        f"record has none of the known fields (text, caption, image, segments, texts, ...); found: {brief(found, 120)}"
    )


def _segments(record: dict[str, Any], vocab: VocabConfig) -> _Parts:
    """{"segments": [{"text": ...} | {"image": ...} | {NAME OF A MODALITY: ...}, ...]}, each with an optional "loss"."""
    parts: _Parts = []
    known = [name for name in dict.fromkeys(("text", "image", *vocab.names)) if _row(name, vocab)]
    for i, segment in enumerate(_list(record, "segments")):
        named = [name for name in known if isinstance(segment, dict) and segment.get(name) is not None]
        if len(named) != 1:
            either = " or ".join(f"'{name}'" for name in known)
            raise DataError(f"segments[{i}] must be an object with either {either}: {brief(segment)}")
        if unknown := [key for key in segment if key not in (*known, "loss")]:
            raise DataError(f"segments[{i}] has an unknown field '{unknown[0]}': {brief(segment)}")
        loss = True if segment.get("loss") is None else segment["loss"]
        if not isinstance(loss, bool):
            raise DataError(f"segments[{i}].loss must be true or false: {brief(loss)}")
        value = segment[named[0]]
        if _row(named[0], vocab).codec == "bpe":
            parts.append(_Text(_text(value, f"segments[{i}].{named[0]}"), loss))
        else:
            parts.append(_Held(named[0], value, loss))
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
        parts.append(_image(image) if text is None else _Text(_text(text, f"texts[{i}]")))
    return parts


def _mmc4(record: dict[str, Any]) -> _Parts:
    """{"text_list": [str], "image_info": [{"image_name", "matched_text_index"}]}: an image goes before its sentence."""
    sentences = [_text(text, f"text_list[{i}]") for i, text in enumerate(_list(record, "text_list"))]
    before: dict[int, list[_Held]] = {}
    for i, info in enumerate(_list(record, "image_info")):
        if not isinstance(info, dict) or "image_name" not in info or "matched_text_index" not in info:
            raise DataError(f"image_info[{i}] must have 'image_name' and 'matched_text_index': {brief(info)}")
        index = info["matched_text_index"]
        if type(index) is not int or not 0 <= index < len(sentences):
            raise DataError(f"image_info[{i}].matched_text_index {brief(index)} is not in 0..{len(sentences) - 1}")
        before.setdefault(index, []).append(_image(info["image_name"]))
    parts: _Parts = []
    waiting: list[str] = []
    for i, sentence in enumerate(sentences):
        if i in before:
            if waiting:
                parts.append(_Text(" ".join(waiting)))
            parts += before[i]
            waiting = []
        waiting.append(sentence)
    return [*parts, _Text(" ".join(waiting))] if waiting else parts


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
        pieces = _text(turn.get("value"), f"conversations[{i}].value").split(PLACEHOLDER)
        for j, piece in enumerate(pieces):
            if j > 0:
                parts.append(_image(images[used] if used < len(images) else None, loss))
                used += 1
            if piece or j == len(pieces) - 1:
                parts.append(_Text(piece, loss, ends_turn=j == len(pieces) - 1))
    if used != len(images):
        raise DataError(f"conversation has {used} {PLACEHOLDER} placeholders for {len(images)} images")
    return parts


def _pair(record: dict[str, Any], vocab: VocabConfig) -> _Parts:
    """{"image": ref, "text" | "caption" | "captions": str, NAME OF A MODALITY: ...}, any one alone allowed.

    Of several captions the first is taken. {"images": [ref, ...]} are several pictures: where the text holds `<image>` each takes
    the next of them, else they stand before it.
    """
    held = [record["image"]] if "image" in record else []
    if record.get("images") is not None:
        if held:
            raise DataError("record has both 'image' and 'images'")
        held = _list(record, "images")
    named = [field for field in _PAIR_FIELDS if field != "image" and field in record]
    parts: _Parts = [_image(value) for value in held]
    if named:
        value = record[named[0]]
        if isinstance(value, list):
            if not value:
                raise DataError(f"field '{named[0]}' is an empty list")
            value = value[0]
        text = _text(value, named[0])
        if not held:
            fields.check_no_placeholder(text, named[0])
        parts = _placed(text, held) if PLACEHOLDER in text else [*parts, _Text(text)]
    for name in _further(record, vocab):
        parts.append(_Held(name, record[name]))
    return parts


def _placed(text: str, images: list[object]) -> _Parts:
    """Pictures where the text has placeholders for them."""
    pieces = text.split(PLACEHOLDER)
    if len(pieces) - 1 != len(images):
        raise DataError(f"text has {len(pieces) - 1} {PLACEHOLDER} placeholders for {len(images)} images")
    parts: _Parts = []
    for piece, image in zip(pieces, [*map(_image, images), None], strict=True):
        parts += [_Text(piece)] if piece.strip() else []
        parts += [image] if image else []
    return parts


_PAIR_FIELDS = ("image", "caption", "text", "captions")
# Fields that a record of the schema has, what reads it, and fields that are read as well.
_SCHEMAS: tuple[tuple[tuple[str, ...], Callable[[dict[str, Any]], _Parts], tuple[str, ...]], ...] = (
    (("conversations",), _conversation, ("image", "images")),
    (("texts", "images"), _obelics, ()),
    (("text_list", "image_info"), _mmc4, ()),
)
_FIELDS = ("id", "split", "segments", "conversations", "texts", "images", "text_list", "image_info", *_PAIR_FIELDS)


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


def _numbers(value: object, field: str) -> tuple[int, ...]:
    if not isinstance(value, list | tuple) or not all(type(number) is int for number in value):
        raise DataError(f"field '{field}' must be a list of whole numbers: {brief(value)}")
    return tuple(value)


def _kind(value: object) -> str:
    names = {type(None): "null", dict: "an object", list: "a list", str: "a string", bool: "a truth value"}
    return names.get(type(value), "a number" if isinstance(value, (int, float)) else type(value).__name__)
