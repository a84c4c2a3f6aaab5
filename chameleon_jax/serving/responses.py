"""`POST /v1/responses`, OpenAI's Responses API: what a request may hold, and its reply, whole or as typed events.

A request is a chat in other words, so it is read into one and served as one. Nothing is stored: the conversation comes whole with
every request. Words are `message` items of the output, pictures `image_generation_call` items, in the order in which they are
written; what else a model writes is an item like the parts of a chat.
"""

from __future__ import annotations

import dataclasses
import time
import uuid
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, field_validator, model_validator

from chameleon_jax.serving.replies import EncodedSpan, Update, Usage, event
from chameleon_jax.serving.schema import ChatRequest, ImagePart, ImageUrl, Message, Strict, Text, TextPart


class InputText(Strict):
    """`output_text` in what the assistant said before."""

    type: Literal["input_text", "output_text", "text"]
    text: Text
    annotations: list[Any] | None = None
    logprobs: list[Any] | None = None


class InputImage(Strict):
    type: Literal["input_image"]
    image_url: str
    detail: Literal["auto", "low", "high", "original"] | None = None


def _parts(value: Any) -> Any:
    return [{"type": "input_text", "text": value}] if isinstance(value, str) else value


class InputMessage(Strict):
    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[
        list[Annotated[InputText | InputImage, Field(discriminator="type")]],
        BeforeValidator(_parts),
        Field(min_length=1),
    ]
    id: str | None = None
    status: str | None = None
    phase: str | None = None

    def parts(self) -> list[TextPart | ImagePart]:
        return [
            TextPart(type="text", text=part.text)
            if isinstance(part, InputText)
            else ImagePart(type="image_url", image_url=ImageUrl(url=part.image_url))
            for part in self.content
        ]


def _whole(result: Any) -> Any:
    """Clients that count on OpenAI's storage send the id of a picture alone."""
    if not result:
        raise ValueError("is missing; nothing is stored here, so pictures come back whole (LangChain: store=False)")
    return result


class DrawnPicture(Strict):
    """A picture of an earlier response, sent back as it came; what else stands in it is not read."""

    model_config = ConfigDict(strict=True, extra="ignore", hide_input_in_errors=True)

    type: Literal["image_generation_call"]
    result: Annotated[str, BeforeValidator(_whole), Field(validate_default=True)] = ""
    role: Literal["assistant"] = "assistant"

    def parts(self) -> list[ImagePart]:
        return [ImagePart(type="image_url", image_url=ImageUrl(url=f"data:image/png;base64,{self.result}"))]


class ImageTool(Strict):
    """That the model may draw. `partial_images` previews of each picture are streamed."""

    type: Literal["image_generation"]
    partial_images: Annotated[int, Field(ge=0, le=3)] | None = None
    size: Annotated[str, Field(pattern=r"^(auto|[1-9]\d{0,4}x[1-9]\d{0,4})$")] | None = None
    output_format: Literal["png"] | None = None
    background: Literal["auto", "opaque"] | None = None
    quality: Literal["auto"] | None = None
    moderation: Literal["auto", "low"] | None = None


class ToolChoice(Strict):
    type: Literal["image_generation"]


class TextFormat(Strict):
    class Plain(Strict):
        type: Literal["text"]

    format: Plain | None = None


def _items(value: Any) -> Any:
    """The input as clients write it: a string is one message of the user, and a message need not say that it is one."""
    if isinstance(value, str):
        return [{"type": "message", "role": "user", "content": value}]
    if not isinstance(value, list):
        raise ValueError("must be a string or a list of messages")
    return [{"type": "message", **item} if isinstance(item, dict) else item for item in value]


Item = Annotated[InputMessage | DrawnPicture, Field(discriminator="type")]
_OF_CHATS = ("messages", "max_tokens", "max_completion_tokens", "logprobs", "response_format", "stream_options")


class ResponsesRequest(ChatRequest):
    """A chat's settings hold here too; what OpenAI calls otherwise here has that name alone."""

    input: Annotated[list[Item], BeforeValidator(_items), Field(min_length=1, max_length=1000)]
    instructions: Text | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    text: TextFormat | None = None
    tools: Annotated[list[ImageTool], Field(max_length=1)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    metadata: dict[str, str] | None = None  # comes back
    store: bool | None = None  # nothing is stored, whatever it says
    truncation: Literal["disabled"] | None = None
    background: Literal[False] | None = None
    include: Annotated[list[str], Field(max_length=0)] | None = None
    previous_response_id: None = None
    conversation: None = None
    n: Annotated[int, Field(ge=1, le=1)] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=0)] | None = None
    messages: list[Message] = Field(default_factory=list)  # made of the input

    @model_validator(mode="before")
    @classmethod
    def _no_fields_of_chats(cls, value: Any) -> Any:
        if isinstance(value, dict) and (name := next((name for name in _OF_CHATS if name in value), None)):
            raise ValueError(f"'{name}' is of /v1/chat/completions: send input, and max_output_tokens for a limit")
        return value

    @field_validator("previous_response_id", "conversation", mode="before")
    @classmethod
    def _nothing_is_stored(cls, value: Any) -> Any:
        if value is not None:
            raise ValueError("no responses are stored here: send the whole conversation as input")
        return value

    @model_validator(mode="after")
    def _as_chat(self) -> ResponsesRequest:
        told = [("system", [TextPart(type="text", text=self.instructions)])] if self.instructions else []
        for item in self.input:
            # Words and pictures of one answer are items of their own here and one message there.
            if item.role == "assistant" and told and told[-1][0] == "assistant":
                told[-1][1].extend(item.parts())
            else:
                told.append((item.role, item.parts()))
        self.messages = [Message(role=role, content=parts) for role, parts in told]
        self.max_tokens = self.max_output_tokens
        if self.tool is not None and self.tool_choice != "none" and not (self.mode or self.modalities):
            must_draw = self.tool_choice == "required" or isinstance(self.tool_choice, ToolChoice)
            self.modalities = ["image"] if must_draw else ["text", "image"]
            if self.tool.size not in (None, "auto"):
                self.image_size = self.image_size or self.tool.size
        return self

    @property
    def tool(self) -> ImageTool | None:
        return self.tools[0] if self.tools else None


@dataclasses.dataclass(kw_only=True)
class ResponseWriter:
    """Makes the output of updates, and the events that tell of each."""

    request: ResponsesRequest
    model: str
    seed: int
    usage: Usage

    def __post_init__(self):
        self._id, self._created = f"resp_{uuid.uuid4().hex}", int(time.time())
        self._output: list[dict[str, Any]] = []
        self._open: dict[str, Any] | None = None  # the item under way, the last of the output
        self._numbers: tuple[str, int] | None = None  # modality and index of the last span
        self._previews = self._sequence = 0
        self._status, self._reason = "in_progress", None

    def response(self) -> dict[str, Any]:
        """The whole object, as far as it has come."""
        request, is_done = self.request, self._status != "in_progress"
        notes = {"notes": request.notes} if is_done and request.notes else {}
        return notes | {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "status": self._status,
            "error": None,
            "incomplete_details": self._reason and {"reason": self._reason},
            "instructions": request.instructions,
            "max_output_tokens": request.max_output_tokens,
            "metadata": request.metadata or {},
            "model": self.model,
            "output": [dict(item) for item in self._output],
            "parallel_tool_calls": False,
            "previous_response_id": None,
            "store": False,
            "temperature": request.temperature,
            "text": {"format": {"type": "text"}},
            "tool_choice": request.model_dump()["tool_choice"] or "auto",
            "tools": [tool.model_dump(exclude_none=True) for tool in request.tools or ()],
            "top_p": request.top_p,
            "truncation": "disabled",
            "usage": self._usage() if is_done else None,
            "seed": self.seed,
        }

    def begin(self) -> list[bytes]:
        return [self._event(f"response.{name}", response=self.response()) for name in ("created", "in_progress")]

    def add(self, update: Update) -> list[bytes]:
        """The events of an update."""
        events: list[bytes] = []
        if update.text:
            events += self._add_text(update.text)
        if update.span is not None:
            events += self._add_picture(update.span) if update.span.media == "image" else self._add_other(update.span)
        if update.finish_reason:
            events += self._close()
            is_cut = update.finish_reason == "length"
            self._status, self._reason = ("incomplete", "max_output_tokens") if is_cut else ("completed", None)
            events.append(self._event(f"response.{self._status}", response=self.response()))
        return events

    def _add_text(self, text: str) -> list[bytes]:
        events: list[bytes] = []
        if self._open is None or self._open["type"] != "message":
            content: list[Any] = []
            events += self._close() + self._begin_item("message", "msg", role="assistant", content=content)
            content.append({"type": "output_text", "text": "", "annotations": []})
            events.append(self._part_event("response.content_part.added", part=dict(content[0])))
        self._open["content"][0]["text"] += text
        return [*events, self._part_event("response.output_text.delta", delta=text, logprobs=[])]

    def _add_picture(self, span: EncodedSpan) -> list[bytes]:
        events: list[bytes] = []
        if self._open is None or self._numbers != (span.modality, span.index):
            events += self._close() + self._begin_item("image_generation_call", "ig", result=None)
            self._numbers, self._previews = (span.modality, span.index), 0
            events += [self._picture_event(name) for name in ("in_progress", "generating")]
        if not span.partial:
            more = {"output_format": "png", "modality": span.modality} | span.optional_codes()
            self._open |= {"status": "completed", "result": span.base64} | more
            return [*events, self._picture_event("completed"), *self._end_item()]
        wanted = (self.request.tool and self.request.tool.partial_images) or 0
        if self._previews < (wanted + 1) * span.done // span.of <= wanted:
            preview = {"partial_image_b64": span.base64, "partial_image_index": self._previews, "output_format": "png"}
            events.append(self._picture_event("partial_image", **preview))
            self._previews += 1
        return events

    def _add_other(self, span: EncodedSpan) -> list[bytes]:
        """Sounds, and numbers, which may come in pieces of one index."""
        if span.partial:
            return []
        events: list[bytes] = []
        part, numbers = span.part(), (span.modality, span.index)
        if self._open is not None and self._numbers == numbers:
            self._open["codes"] = self._open["codes"] + span.codes
        else:
            events += self._close() + self._begin_item(part["type"], "med", **part)
            self._numbers = numbers
        return events if span.media == "codes" else [*events, *self._end_item()]

    def _begin_item(self, kind: str, prefix: str, **fields: Any) -> list[bytes]:
        self._open = {"id": f"{prefix}_{uuid.uuid4().hex}", "type": kind, "status": "in_progress"} | fields
        self._output.append(self._open)
        return [self._item_event("response.output_item.added")]

    def _close(self) -> list[bytes]:
        """End the item under way; a picture that did not come whole has failed."""
        if self._open is None:
            return []
        events: list[bytes] = []
        if self._open["type"] == "message":
            part = dict(self._open["content"][0])
            events.append(self._part_event("response.output_text.done", text=part["text"], logprobs=[]))
            events.append(self._part_event("response.content_part.done", part=part))
        is_cut = self._open["type"] == "image_generation_call"
        return [*events, *self._end_item("failed" if is_cut else "completed")]

    def _end_item(self, status: str = "completed") -> list[bytes]:
        self._open["status"] = status
        done = self._item_event("response.output_item.done")
        self._open = None
        return [done]

    def _item_event(self, kind: str) -> bytes:
        return self._event(kind, output_index=len(self._output) - 1, item=self._open)

    def _part_event(self, kind: str, **fields: Any) -> bytes:
        place = {"item_id": self._open["id"], "output_index": len(self._output) - 1, "content_index": 0}
        return self._event(kind, **place, **fields)

    def _picture_event(self, name: str, **fields: Any) -> bytes:
        place = {"item_id": self._open["id"], "output_index": len(self._output) - 1}
        return self._event(f"response.image_generation_call.{name}", **place, **fields)

    def _event(self, kind: str, **fields: Any) -> bytes:
        self._sequence += 1
        return event({"type": kind, "sequence_number": self._sequence - 1, **fields}, kind)

    def _usage(self) -> dict[str, Any]:
        usage = self.usage.to_dict()
        return {
            "input_tokens": usage["prompt_tokens"],
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": usage["completion_tokens"],
            "output_tokens_details": {"reasoning_tokens": 0, **usage["completion_tokens_details"]},
            "total_tokens": usage["total_tokens"],
        }


async def response_events(writer: ResponseWriter, updates: AsyncIterator[Update]) -> AsyncIterator[bytes]:
    """The events of a streamed response, each when it happens."""
    try:
        for told in writer.begin():
            yield told
        async for update in updates:
            for told in writer.add(update):
                yield told
    finally:
        await updates.aclose()
