"""From messages to prompt ids.

The one idea: words and pictures keep the order of their parts, and words become text ids only, whatever they spell: a user's
`<image>` is a word, not a place for a picture. The forms are those of `generation.prompt`.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import itertools
from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Int

from chameleon_jax.configs import ImageConfig
from chameleon_jax.errors import DataError
from chameleon_jax.generation.prompt import Pixels, image_request
from chameleon_jax.serving.errors import ApiError, bad_request
from chameleon_jax.serving.schema import ImagePart, Message, TextPart
from chameleon_jax.tokenizers.bundle import TokenizerBundle
from chameleon_jax.tokenizers.code_queue import CodeQueue
from chameleon_jax.tokenizers.images import load_pixels

Format = Literal["completion", "chat", "lumina"]
Parts = list[str | Pixels]  # of one turn, in order

_MIME_TYPES = ("image/png", "image/jpeg", "image/jpg", "image/webp")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PictureLimits:
    """What is taken of a request's pictures."""

    count: int
    config: ImageConfig  # its `max_pixels` is the server's


def read_turns(messages: Sequence[Message], format: Format, limits: PictureLimits) -> list[Parts]:
    """The turns of a conversation, user first and last, with the words of the system in front of the first one.

    Raises ApiError for roles in another order, and for a picture that cannot be used.
    """
    count = sum(isinstance(part, ImagePart) for message in messages for part in message.parts())
    if count > limits.count:
        raise bad_request(
            f"messages: {count} pictures, this server takes {limits.count}", "messages", "too_many_images"
        )
    system: list[str] = []
    turns: list[tuple[int, Message]] = []
    for i, message in enumerate(messages):
        if message.content is None and message.role != "assistant":
            raise bad_request(f"messages.{i}.content: is null", f"messages.{i}.content")
        if message.role not in ("system", "developer"):
            turns.append((i, message))
            continue
        if turns or any(isinstance(part, ImagePart) for part in message.parts()):
            raise bad_request(f"messages.{i}: a system message is text and comes before all others", f"messages.{i}")
        system.append("".join(part.text for part in message.parts() if isinstance(part, TextPart)))
    roles = [message.role for _, message in turns]
    if format == "completion" and roles != ["user"]:
        raise bad_request(f"messages: format 'completion' continues one user message, not {len(roles)}", "messages")
    if roles != ["user", "assistant"] * (len(roles) // 2) + ["user"]:
        said = ", ".join(roles[:8]) + (", ..." if len(roles) > 8 else "")
        raise bad_request(
            f"messages: a chat goes user, assistant, ..., user; the roles are {said or 'none'}", "messages"
        )
    read = [_read_parts(message, i, limits) for i, message in turns]
    if system:
        read[0].insert(0, "\n".join(system) + "\n")
    return read


def _read_parts(message: Message, number: int, limits: PictureLimits) -> Parts:
    parts: Parts = []
    for i, part in enumerate(message.parts()):
        param = f"messages.{number}.content.{i}"
        if isinstance(part, TextPart):
            parts.append(part.text)
        else:
            parts.append(read_picture(part.image_url.url, limits.config, f"{param}.image_url.url"))
    return parts


def read_picture(url: str, config: ImageConfig, param: str) -> Pixels:
    """Pixels of a data: URL. Nothing is ever fetched. Raises ApiError for any other URL, and for bytes that are no picture."""
    scheme, colon, rest = url.partition(":")
    if not colon or scheme.strip().lower() != "data":
        named = f"'{scheme[:20]}:'" if colon and len(scheme) <= 20 else "other"
        raise bad_request(
            f"{param}: {named} URLs are not fetched; send data:image/png;base64,...", param, "invalid_url"
        )
    head, comma, data = rest.partition(",")
    kind, *options = head.lower().split(";")
    if not comma or options[-1:] != ["base64"]:
        raise bad_request(f"{param}: a data: URL goes data:image/png;base64,...", param, "invalid_url")
    if kind not in _MIME_TYPES:
        raise bad_request(
            f"{param}: '{kind[:40]}' is not one of image/png, image/jpeg, image/webp", param, "invalid_image"
        )
    try:
        content = base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        raise bad_request(f"{param}: the base64 is not valid", param, "invalid_base64") from None
    try:
        return load_pixels(content, config)
    except DataError as error:
        raise bad_request(f"{param}: {error}", param, "invalid_image") from None


def build_ids(
    turns: Sequence[Parts],
    format: Format,
    bundle: TokenizerBundle,
    *,
    longest: int,
    image_size: tuple[int, int] | None = None,
) -> Int[np.ndarray, "n"]:
    """`[bos]`, then each turn's words and whole image spans, in a chat closed by the end-of-turn id.

    As `generation.prompt.build_prompt` and `build_chat`. `image_size` makes words of Lumina-mGPT's request of the last turn.
    `longest` is a number of characters that cannot fit the context; a prompt of more is refused before it is encoded.

    Raises ApiError for such a prompt, TokenizerError for pictures that nothing can encode.
    """
    length = sum(len(part) for parts in turns for part in parts if isinstance(part, str))
    if length > longest:
        raise context_exceeded(f"a prompt of {length} characters cannot fit the context of this model")
    turns = [_joined(parts) for parts in turns]
    if format == "lumina" and image_size:
        turns[-1] = _asking_for_size(turns[-1], image_size)
    queue = CodeQueue(bundle, batch=1)  # few pictures of perhaps many sizes
    queue.add(part for parts in turns for part in parts if not isinstance(part, str))
    codes = iter(queue.finish())
    vocab, ids = bundle.vocab, []
    closing = [] if format == "completion" else [vocab.end_of_turn]
    for parts in turns:
        ids += [bundle.text.encode(part) if isinstance(part, str) else vocab.image_span(next(codes)) for part in parts]
        ids.append(np.array(closing, np.int32))
    return np.concatenate([[vocab.bos], *ids]).astype(np.int32)


def context_exceeded(message: str) -> ApiError:
    return bad_request(message, code="context_length_exceeded")


def _joined(parts: Parts) -> Parts:
    """Words that follow words are one text: where a client cuts them must not change their ids."""
    joined: Parts = []
    for is_words, group in itertools.groupby(parts, lambda part: isinstance(part, str)):
        run = list(group)
        joined += ["".join(run)] if is_words else run
    return joined


def _asking_for_size(parts: Parts, size: tuple[int, int]) -> Parts:
    """The first words of the turn become Lumina-mGPT's request."""
    at = next((i for i, part in enumerate(parts) if isinstance(part, str)), len(parts))
    words = parts[at] if at < len(parts) else ""
    return [*parts[:at], image_request(words, size), *parts[at + 1 :]]
