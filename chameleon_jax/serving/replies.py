"""What goes out, as OpenAI's clients read it: whole replies, chunks of a stream, usage, and server-sent events."""

from __future__ import annotations

import dataclasses
import json
import time
import uuid
from typing import Any

END = b"data: [DONE]\n\n"
KEEP_ALIVE = b": waiting\n\n"  # a comment, which clients skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncodedPicture:
    """A PNG in base64, of a whole picture or of one that is being drawn."""

    index: int
    base64: str
    codes: int
    of: int
    partial: bool

    @property
    def url(self) -> str:
        return f"data:image/png;base64,{self.base64}"

    def delta(self) -> dict[str, Any]:
        """As it goes out in a stream."""
        image = {"type": "image_url", "index": self.index, "image_url": {"url": self.url}}
        return image | {"partial": self.partial, "codes": self.codes, "of": self.of}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Update:
    """What came of one choice: words or a picture, the ids since the last update, and at last why it ended."""

    choice: int
    text: str = ""
    picture: EncodedPicture | None = None
    ids: tuple[int, ...] = ()
    finish_reason: str | None = None


@dataclasses.dataclass
class Usage:
    """Ids of all choices."""

    prompt: int
    text: int = 0
    image: int = 0

    def to_dict(self) -> dict[str, Any]:
        generated = self.text + self.image
        details = {"text_tokens": self.text, "image_tokens": self.image}
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": generated,
            "total_tokens": self.prompt + generated,
            "completion_tokens_details": details,
        }


class Choice:
    """Collects the updates of one choice into what a reply that is not streamed holds."""

    def __init__(self, index: int):
        self.index, self.ids, self.finish_reason = index, [], None
        self._parts: list[str | EncodedPicture] = []

    def add(self, update: Update) -> None:
        self.ids += update.ids
        self.finish_reason = update.finish_reason or self.finish_reason
        if update.text and self._parts and isinstance(self._parts[-1], str):
            self._parts[-1] += update.text
        elif update.text:
            self._parts.append(update.text)
        if update.picture and not update.picture.partial:
            self._parts.append(update.picture)

    @property
    def text(self) -> str:
        return "".join(part for part in self._parts if isinstance(part, str))

    @property
    def pictures(self) -> list[EncodedPicture]:
        return [part for part in self._parts if isinstance(part, EncodedPicture)]

    def _content(self) -> list[dict[str, Any]]:
        return [
            {"type": "text", "text": part}
            if isinstance(part, str)
            else {"type": "image_url", "image_url": {"url": part.url}}
            for part in self._parts
        ]

    def _images(self) -> dict[str, Any]:
        """Pictures without their places among the words, for clients that look for `images`."""
        if not self.pictures:
            return {}
        return {"images": [{"type": "image_url", "index": p.index, "image_url": {"url": p.url}} for p in self.pictures]}

    def chat(self, with_ids: bool) -> dict[str, Any]:
        content = self._content() if self.pictures else self.text
        message = {"role": "assistant", "content": content, "refusal": None, **self._images()}
        return self._frame({"message": message}, with_ids)

    def completion(self, with_ids: bool) -> dict[str, Any]:
        content = {"content": self._content(), **self._images()} if self.pictures else {}
        return self._frame({"text": self.text, **content}, with_ids)

    def _frame(self, content: dict[str, Any], with_ids: bool) -> dict[str, Any]:
        ids = {"token_ids": self.ids} if with_ids else {}
        return {"index": self.index, **content, "finish_reason": self.finish_reason, "logprobs": None, **ids}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Envelope:
    """What all objects of one reply share. `seed` gives the same reply when it is sent with the same request."""

    kind: str  # "chat.completion" or "text_completion"
    model: str
    seed: int
    id: str = dataclasses.field(default_factory=lambda: uuid.uuid4().hex)
    created: int = dataclasses.field(default_factory=lambda: int(time.time()))

    def whole(self, choices: list[dict[str, Any]], usage: Usage) -> dict[str, Any]:
        return self._wrap(self.kind, choices) | {"usage": usage.to_dict()}

    def chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return self._wrap("chat.completion.chunk" if self.kind == "chat.completion" else self.kind, choices)

    def _wrap(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        prefix = "chatcmpl" if self.kind == "chat.completion" else "cmpl"
        common = {"id": f"{prefix}-{self.id}", "object": kind, "created": self.created, "model": self.model}
        return common | {"choices": choices, "seed": self.seed}


def chat_delta(update: Update, with_ids: bool) -> dict[str, Any]:
    """The choice of a `chat.completion.chunk`."""
    delta = _changes(update, with_ids, "content")
    return {"index": update.choice, "delta": delta, "finish_reason": update.finish_reason, "logprobs": None}


def completion_delta(update: Update, with_ids: bool) -> dict[str, Any]:
    """The choice of a streamed `text_completion`."""
    changes = {"text": "", **_changes(update, with_ids, "text")}
    return {"index": update.choice, **changes, "finish_reason": update.finish_reason, "logprobs": None}


def _changes(update: Update, with_ids: bool, text_field: str) -> dict[str, Any]:
    changes: dict[str, Any] = {text_field: update.text} if update.text else {}
    if update.picture:
        changes["images"] = [update.picture.delta()]
    if with_ids and update.ids:
        changes["token_ids"] = list(update.ids)
    return changes


def event(content: dict[str, Any], name: str = "") -> bytes:
    """One server-sent event."""
    data = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    return (f"event: {name}\n" if name else "").encode() + f"data: {data}\n\n".encode()
