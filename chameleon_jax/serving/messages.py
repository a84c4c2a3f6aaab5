"""From messages to the turns of a prompt.

Words and data keep the order of their parts, and words become text ids only, whatever they spell: a user's `<image>` is a word,
not a place for a picture. `generation.prompt.encode_turns` makes ids of the turns.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Int

from chameleon_jax.errors import ChameleonError, DataError, did_you_mean
from chameleon_jax.generation.prompt import Format, Part, encode_turns
from chameleon_jax.serving.errors import ApiError, bad_request
from chameleon_jax.serving.schema import CodesPart, ImagePart, InputAudioPart, MediaPart, Message, TextPart
from chameleon_jax.serving.tolerance import first_that_fits
from chameleon_jax.tokenizers.bundle import TokenizerBundle
from chameleon_jax.tokenizers.code_queue import CodeQueue
from chameleon_jax.tokenizers.documents import Segment

CONTEXT_EXCEEDED = "context_length_exceeded"

# By kind of data: how people call it, and what may stand in a data: URL.
_NOUNS = {"image": "picture", "audio": "sound"}
_MIME_TYPES = {
    "image": ("image/png", "image/jpeg", "image/jpg", "image/webp"),
    "audio": ("audio/wav", "audio/x-wav", "audio/wave", "audio/vnd.wave"),
}


def read_turns(messages: Sequence[Message], format: Format, bundle: TokenizerBundle, most: int) -> list[list[Part]]:
    """The turns of a conversation, user first and last, with the words of the system in front of the first one.

    Raises ApiError for roles in another order, for more than `most` parts that are no words, and for data that cannot be used.
    """
    count = sum(not isinstance(part, TextPart) for message in messages for part in message.parts())
    if count > most:
        raise bad_request(
            f"messages: {count} pictures or other data, this server takes {most}", "messages", "too_many_media"
        )
    system: list[str] = []
    turns: list[tuple[int, Message]] = []
    for i, message in enumerate(messages):
        if message.content is None and message.role != "assistant":
            raise bad_request(f"messages.{i}.content: is null", f"messages.{i}.content")
        if message.role not in ("system", "developer"):
            turns.append((i, message))
            continue
        if turns or any(not isinstance(part, TextPart) for part in message.parts()):
            raise bad_request(f"messages.{i}: a system message is text and comes before all others", f"messages.{i}")
        system.append("".join(part.text for part in message.parts()))
    roles = [message.role for _, message in turns]
    if format == "completion" and roles != ["user"]:
        raise bad_request(f"messages: format 'completion' continues one user message, not {len(roles)}", "messages")
    if roles != ["user", "assistant"] * (len(roles) // 2) + ["user"]:
        if "user" not in roles:
            raise bad_request(
                "messages: there is no user message to answer; the last one must be the user's", "messages"
            )
        said = ", ".join(roles[:8]) + (", ..." if len(roles) > 8 else "")
        raise bad_request(
            f"messages: a chat goes user, assistant, ..., user; the roles are {said or 'none'}", "messages"
        )
    read = [_read_parts(message, i, bundle) for i, message in turns]
    if system:
        read[0].insert(0, "\n".join(system) + "\n")
    return read


def _read_parts(message: Message, number: int, bundle: TokenizerBundle) -> list[Part]:
    parts: list[Part] = []
    for i, part in enumerate(message.parts()):
        param = f"messages.{number}.content.{i}"
        parts.append(part.text if isinstance(part, TextPart) else _read_media(part, bundle, param))
    return parts


def _read_media(part: MediaPart, bundle: TokenizerBundle, param: str) -> Segment:
    """Data of another modality, prepared. Raises ApiError."""
    if isinstance(part, CodesPart):
        return _read_codes(part, bundle, param)
    media = "image" if isinstance(part, ImagePart) else "audio"
    default = next((name for name, codec in bundle.codecs.items() if codec.media == media), None)
    name = part.modality or (bundle.image_input[0] if isinstance(part, ImagePart) else default)
    if name not in bundle.codecs or bundle.codecs[name].media != media:
        asked = f"no modality '{name}' of {_NOUNS[media]}s" if part.modality else f"no {_NOUNS[media]}s"
        raise bad_request(f"{param}: this model reads {asked}", param, "unsupported_media")
    if isinstance(part, InputAudioPart):
        param, content = f"{param}.input_audio.data", _decode(part.input_audio.data, f"{param}.input_audio.data")
    else:
        param = f"{param}.{part.type}.url"
        content = _read_url(part.image_url.url if isinstance(part, ImagePart) else part.audio_url.url, media, param)
    try:
        return Segment(name, bundle.codecs[name].prepare(content))
    except DataError as error:
        raise bad_request(f"{param}: {error}", param, f"invalid_{media}") from None


def _read_codes(part: CodesPart, bundle: TokenizerBundle, param: str) -> Segment:
    vocab = bundle.vocab
    given = [name for name in vocab.names[1:] if name not in bundle.codecs]
    if part.modality not in given:
        name = part.modality[:40]
        raise bad_request(
            f"{param}.modality: '{name}' is not given in codes{did_you_mean(name, given)}; that are: {', '.join(given) or 'none'}",
            f"{param}.modality",
        )
    try:
        vocab.modalities[vocab.row(part.modality)].span(bundle.codes(part.modality, part.codes))
    except ChameleonError as error:
        raise bad_request(f"{param}.codes: {error}", f"{param}.codes", "invalid_codes") from None
    return Segment(part.modality, part.codes)


def _read_url(url: str, media: str, param: str) -> bytes:
    """The content of a data: URL. Nothing is ever fetched. Raises ApiError for any other URL, and for another kind of file."""
    scheme, colon, rest = url.partition(":")
    example = f"data:{_MIME_TYPES[media][0]};base64,..."
    if not colon or scheme.strip().lower() != "data":
        named = f"'{scheme[:20]}:'" if colon and len(scheme) <= 20 else "other"
        raise bad_request(f"{param}: {named} URLs are not fetched; send {example}", param, "invalid_url")
    head, comma, data = rest.partition(",")
    kind, *options = head.lower().split(";")
    if not comma or options[-1:] != ["base64"]:
        raise bad_request(f"{param}: a data: URL goes {example}", param, "invalid_url")
    if kind not in _MIME_TYPES[media]:
        known = ", ".join(
            name for name in _MIME_TYPES[media] if name not in ("image/jpg", "audio/x-wav", "audio/vnd.wave")
        )
        raise bad_request(f"{param}: '{kind[:40]}' is not one of {known}", param, f"invalid_{media}")
    return _decode(data, param)


def _decode(data: str, param: str) -> bytes:
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        raise bad_request(f"{param}: the base64 is not valid", param, "invalid_base64") from None


def build_ids(
    turns: Sequence[list[Part]],
    format: Format,
    bundle: TokenizerBundle,
    *,
    longest: int,
    image_size: tuple[int, int] | None = None,
    queue: CodeQueue | None = None,
) -> Int[np.ndarray, "n"]:
    """The prompt of these turns (`encode_turns`), if it can fit.

    `longest` is a number of characters that cannot fit the context; a prompt of more is refused before it is encoded.

    Raises ApiError for such a prompt, TokenizerError for data that nothing can encode.
    """
    length = sum(len(part) for parts in turns for part in parts if isinstance(part, str))
    if length > longest:
        raise context_exceeded(f"a prompt of {length} characters cannot fit the context of this model")
    return encode_turns(turns, bundle, format=format, image_size=image_size, queue=queue)


def shortened(
    turns: list[list[Part]], has_system: bool, fit: Callable[[list[list[Part]]], bool], notes: list[str]
) -> list[list[Part]]:
    """The turns from as early as they fit, with the words of the system, which are the first part of the first turn, kept."""
    system = turns[0][:1] if has_system else []

    def kept(first: int) -> list[list[Part]]:
        return [[*system, *turns[first]], *turns[first + 1 :]] if first else turns

    first = first_that_fits(len(turns), lambda first: fit(kept(first)))
    if first:
        notes.append(f"the first {first} of {len(turns)} messages are left out: the chat is longer than the context")
    return kept(first)


def fits(encode: Callable[[list[list[Part]]], Int[np.ndarray, "n"]], turns: list[list[Part]], most: int) -> bool:
    """Whether the ids of the turns are no more than `most`."""
    try:
        return len(encode(turns)) <= most
    except ApiError as error:
        if error.code != CONTEXT_EXCEEDED:
            raise
        return False


def context_exceeded(message: str) -> ApiError:
    return bad_request(message, code=CONTEXT_EXCEEDED)
