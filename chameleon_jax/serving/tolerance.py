"""What a client may ask for that this server does differently, and the notes that tell it so.

Clients send fields that they cannot leave out, sizes of other models and chats that grow without end. What changes no meaning is
done as near as can be, with a note in the reply (`notes`); what would silently mean something else is refused by `schema`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Sequence
from typing import Any, Protocol, TypeVar

# Of OpenAI's and of other servers': nothing here could make use of them, whatever they hold.
_NO_MEANING = (
    "metadata", "moderation", "parallel_tool_calls", "prediction", "prompt_cache_key", "prompt_cache_retention",
    "reasoning", "reasoning_effort", "safety_identifier", "service_tier", "store", "user", "verbosity", "web_search_options",
)  # fmt: skip
# What asked for something that does not come, and what is said of it.
_NOT_DONE = {
    "frequency_penalty": "there is no such penalty; repetition_penalty is the one that there is",
    "presence_penalty": "there is no such penalty; repetition_penalty is the one that there is",
    "min_p": "there is no such cut; top_p and top_k are those that there are",
    "repeat_penalty": "the name here is repetition_penalty",
    "mirostat": "there is no such sampler",
    "num_ctx": "the context is the server's",
    "tools": "this model calls no tools",
    "functions": "this model calls no functions",
    "quality": "pictures have one quality",
    "style": "pictures have one style",
    "background": "pictures are opaque",
    "output_format": "pictures are PNG files",
    "output_compression": "pictures are PNG files",
}
# Where these are said, the answer must be of their form, so the request is refused.
_MUST_CALL = ("required", "any")


class HasRole(Protocol):
    role: str


M = TypeVar("M", bound=HasRole)

_PICTURE = re.compile(r"!\[[^\]\n]{0,100}\]\((data:image/[a-z]+;base64,[A-Za-z0-9+/=]+)\)")


def loosen(content: dict[str, Any], read: Container[str]) -> tuple[dict[str, Any], list[str]]:
    """A request without the fields that are passed over, and notes on those that asked for something.

    Fields of `read` have a meaning for this kind of request and stay.
    """
    content, notes = dict(content), []
    for field in _NO_MEANING:
        if field not in read:
            content.pop(field, None)
    choice = content.get("tool_choice", content.get("function_call"))
    must_call = isinstance(choice, dict) or choice in _MUST_CALL
    if content.get("logit_bias") == "":  # of a form that was left empty
        del content["logit_bias"]
    for field in ("tool_choice", "function_call"):
        if not must_call and field not in read:
            content.pop(field, None)
    for field, reason in _NOT_DONE.items():
        if field in read or (must_call and field in ("tools", "functions")):
            continue
        if content.pop(field, None) not in (None, 0, 0.0, [], {}, "", "auto", "opaque", "standard", "png"):
            notes.append(f"{field} is not used: {reason}")
    for message in content["messages"] if isinstance(content.get("messages"), list) else ():
        if isinstance(message, dict):
            _loosen_message(message)
    return content, notes


def _loosen_message(message: dict[str, Any]) -> None:
    """Drop what clients keep of an answer for themselves, and make parts of the pictures in an answer's markdown."""
    for field in ("refusal", "annotations", "reasoning", "reasoning_content", "name", "id"):
        message.pop(field, None)
    for field in ("tool_calls", "function_call", "audio"):
        if not message.get(field):
            message.pop(field, None)
    content = message.get("content")
    if message.get("role") != "assistant":
        return
    if isinstance(content, str) and (found := split_markdown(content)):
        message["content"] = found
    elif isinstance(content, list):
        message["content"] = [piece for part in content for piece in _split_part(part)]


def _split_part(part: Any) -> list[Any]:
    """The parts that a part stands for; what is no part is for the schema to refuse."""
    text = part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None
    return (split_markdown(text) if isinstance(text, str) else None) or [part]


def split_markdown(text: str) -> list[dict[str, Any]] | None:
    """Parts of an answer whose pictures stand in it as markdown (`content_format`), None where there are none."""
    pieces = _PICTURE.split(text)
    if len(pieces) == 1:
        return None
    parts: list[dict[str, Any]] = []
    for i, piece in enumerate(pieces):
        if i % 2:
            parts.append({"type": "image_url", "image_url": {"url": piece}})
        elif words := piece.strip("\n"):
            parts.append({"type": "text", "text": words})
    return parts


def as_markdown(url: str) -> str:
    """A picture for clients that show pictures only in markdown; `split_markdown` reads it again."""
    return f"\n\n![picture]({url})\n\n"


def at_most(value: int | None, most: int, field: str, notes: list[str]) -> int | None:
    """The value, or the most that there is, with a note."""
    if value is None or value <= most:
        return value
    notes.append(f"{field} is {most}, the most, instead of {value}")
    return most


def nearest_size(size: tuple[int, int], sizes: Sequence[tuple[int, int]], notes: list[str]) -> tuple[int, int]:
    """Of the (width, height) that there are that of the nearest shape, then the nearest area; a note if it is another."""
    if not sizes or size in sizes:
        return size

    def distance(other: tuple[int, int]) -> tuple[float, float]:
        (width, height), (w, h) = size, other
        return max(width * h / (height * w), height * w / (width * h)), abs(w * h - width * height)

    found = min(sizes, key=distance)
    notes.append(f"pictures are {found[0]}x{found[1]}, the nearest to {size[0]}x{size[1]}")
    return found


def last_alone(messages: list[M], notes: list[str]) -> list[M]:
    """The system's messages and the last one: a model of plain documents knows no turns, and continues what is said last."""
    system = [message for message in messages if message.role in ("system", "developer")]
    if len(messages) - len(system) < 2 or messages[-1] in system:
        return messages
    notes.append("only the last message is continued: the model was trained on documents, not on chats")
    return [*system, messages[-1]]


def first_that_fits(count: int, fits: Callable[[int], bool]) -> int:
    """Of the turns of a chat, user first and last, the number of the first to keep: as few pairs as need be are left out.

    `fits(i)` says whether the chat from turn i on does. The last turn is kept, whether it fits or not.
    """
    if fits(0):
        return 0
    least, most = 0, count // 2  # pairs to leave out: so few do not fit, so many do or nothing does
    while least + 1 < most:
        middle = (least + most) // 2
        least, most = (least, middle) if fits(2 * middle) else (middle, most)
    return 2 * most
