"""What a request may hold, field by field; anything else is refused with the field's name.

Types are strict and unknown fields are errors, because a setting that is silently dropped is worse than one that is
refused. Of OpenAI's fields that this server does not have, `tolerance` passes over those that are harmless; the others are known
by name and accepted at the value that asks for nothing.
"""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    field_validator,
    model_validator,
)

from chameleon_jax.errors import did_you_mean
from chameleon_jax.generation.logprobs import MOST_TOP
from chameleon_jax.serving.errors import ApiError, bad_request
from chameleon_jax.serving.tolerance import loosen
from chameleon_jax.tokenizers.documents import valid_text

# Fields of OpenAI's that are taken only at the value that asks for nothing.
_NOT_OFFERED = (
    "logit_bias", "response_format", "tools", "tool_choice", "functions", "function_call", "best_of", "echo", "suffix",
)  # fmt: skip

Finite = Annotated[float, Field(allow_inf_nan=False)]


def _valid(value: Any) -> Any:
    return valid_text(value) if isinstance(value, str) else value


Text = Annotated[str, BeforeValidator(_valid)]  # lone surrogates count as U+FFFD, as in all text


class Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True)


Codes = Annotated[list[int], Field(max_length=200_000)]


class TextPart(Strict):
    type: Literal["text"]
    text: Text


class ImageUrl(Strict):
    url: str
    detail: Literal["auto", "low", "high"] | None = None  # of OpenAI; pictures have one resolution here


class _Streamed(Strict):
    """`index`, `partial`, `done` and `of` come back in parts that were part of a streamed reply.

    `modality` names the model's, where it has several of a kind.
    """

    modality: str | None = None
    index: int | None = None
    partial: bool | None = None
    done: int | None = None
    of: int | None = None


class ImagePart(_Streamed):
    type: Literal["image_url"]
    image_url: ImageUrl
    codes: Codes | None = None  # of a reply that a client sends back; the file is what is read


class AudioUrl(Strict):
    url: str


class AudioPart(_Streamed):
    type: Literal["audio_url"]
    audio_url: AudioUrl
    codes: Codes | None = None  # as of a picture


class InputAudio(Strict):
    data: str  # base64
    format: Literal["wav"]


class InputAudioPart(Strict):
    """As OpenAI's clients send sounds."""

    type: Literal["input_audio"]
    input_audio: InputAudio
    modality: str | None = None


class CodesPart(_Streamed):
    """Data of a modality without a codec: whole numbers."""

    type: Literal["codes"]
    modality: str
    codes: Codes


MediaPart = ImagePart | AudioPart | InputAudioPart | CodesPart
# Names of union members, which pydantic puts into the places of errors: of parts, and of /v1/responses.
_TAGS = frozenset(
    [
        "text",
        "image_url",
        "audio_url",
        "input_audio",
        "codes",
        "message",
        "image_generation_call",
        "input_text",
        "output_text",
        "input_image",
    ]
)
Part = Annotated[TextPart | ImagePart | AudioPart | InputAudioPart | CodesPart, Field(discriminator="type")]


def _parts(value: Any) -> Any:
    """Content as clients write it: a string stands for one text part."""
    if isinstance(value, str):
        return [{"type": "text", "text": value}]
    if value is not None and not isinstance(value, list):
        raise ValueError("must be a string or a list of parts")
    return value


class Message(Strict):
    """`images` and `media` beside a string are the data of a reply that a client sends back; in a list they are parts."""

    role: Literal["system", "developer", "user", "assistant"]
    content: list[Part] | None
    images: list[ImagePart] | None = None
    media: list[Annotated[AudioPart | CodesPart, Field(discriminator="type")]] | None = None
    token_ids: list[int] | None = None

    _content = field_validator("content", mode="before")(_parts)

    def parts(self) -> list[TextPart | MediaPart]:
        """Words and data in order."""
        content = list(self.content or [])
        is_text = all(isinstance(part, TextPart) for part in content)
        return [*content, *(self.images or []), *(self.media or [])] if is_text else content


class StreamOptions(Strict):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None  # chunks are padded nowhere


class ResponseFormat(Strict):
    type: Literal["text"]


class Sampling(Strict):
    """How one modality is sampled."""

    temperature: Annotated[Finite, Field(ge=0, le=100)] | None = None
    top_p: Annotated[Finite, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    repetition_penalty: Annotated[Finite, Field(gt=0, le=100)] | None = None


class Keep(Strict):
    """Codes of the first span of a modality that is drawn, all of it; null for those to draw."""

    modality: Annotated[str, Field(max_length=100)] | None = None
    codes: Annotated[list[Annotated[int, Field(ge=0, lt=2**31)] | None], Field(min_length=1, max_length=200_000)]


class RequestFields(Strict):
    """What all requests that generate share. Extensions of ours stand last."""

    model: str | None = None
    n: Annotated[int, Field(ge=1)] | None = None
    stop: list[Annotated[str, Field(min_length=1, max_length=200)]] | None = None
    max_tokens: Annotated[int, Field(ge=1, lt=2**63)] | None = None
    temperature: Annotated[Finite, Field(ge=0, le=100)] | None = None
    top_p: Annotated[Finite, Field(gt=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logit_bias: Annotated[dict[str, Any], Field(max_length=0)] | None = None

    format: Literal["completion", "chat", "lumina"] | None = None
    # Names of the model's modalities joined by +, interleaved or unrestricted.
    mode: Annotated[str, Field(max_length=200)] | None = None
    max_spans: dict[str, Annotated[int, Field(ge=1, le=64)]] | None = None  # by modality
    max_images: Annotated[int, Field(ge=1, le=64)] | None = None
    image_size: Annotated[str, Field(pattern=r"^[1-9]\d{0,4}x[1-9]\d{0,4}$")] | None = None
    top_k: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    repetition_penalty: Annotated[Finite, Field(gt=0, le=100)] | None = None
    sampling: dict[str, Sampling] | None = None  # by modality, over what the fields around it say
    image_temperature: Annotated[Finite, Field(ge=0, le=100)] | None = None
    image_top_p: Annotated[Finite, Field(gt=0, le=1)] | None = None
    image_top_k: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    guidance_text: Annotated[Finite, Field(ge=0, le=1000)] | None = None
    guidance_image: Annotated[Finite, Field(ge=0, le=1000)] | None = None
    partial_every: Annotated[int, Field(ge=1)] | None = None
    return_token_ids: bool | None = None
    keep: Keep | None = None
    content_format: Literal["text", "parts", "markdown"] | None = None

    _notes: list[str] = PrivateAttr(default_factory=list)

    @property
    def notes(self) -> list[str]:
        """What is done otherwise than asked, in words for people; whoever does it adds to the list."""
        return self._notes

    @field_validator("stop", mode="before")
    @classmethod
    def _one_stop(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value


class ChatRequest(RequestFields):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=1000)]
    max_completion_tokens: Annotated[int, Field(ge=1, lt=2**63)] | None = None
    modalities: Annotated[list[Annotated[str, Field(max_length=100)]], Field(min_length=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_TOP)] | None = None
    response_format: ResponseFormat | None = None
    # Still there where a call is required.
    tools: None = None
    tool_choice: None = None
    functions: None = None
    function_call: None = None

    @model_validator(mode="after")
    def _agrees(self) -> ChatRequest:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: true")
        if self.max_completion_tokens is not None:
            if self.max_tokens not in (None, self.max_completion_tokens):
                raise ValueError("max_tokens and max_completion_tokens are one setting, and differ")
            self.max_tokens = self.max_completion_tokens
        return self


class CompletionRequest(RequestFields):
    """`POST /v1/completions`: raw continuation, of one text or of several."""

    prompt: Annotated[list[Text], Field(min_length=1)]
    best_of: Annotated[int, Field(ge=1, le=1)] | None = None
    echo: Literal[False] | None = None
    logprobs: Annotated[int, Field(ge=0, le=MOST_TOP)] | None = None
    suffix: None = None

    @field_validator("prompt", mode="before")
    @classmethod
    def _one_prompt(cls, value: Any) -> Any:
        if not isinstance(value, (str, list)):
            raise ValueError("must be a string or a list of strings")
        return [value] if isinstance(value, str) else value


class ImagesRequest(RequestFields):
    """`POST /v1/images/generations`: `n` pictures of a text."""

    prompt: Text
    size: str | None = None
    response_format: Literal["b64_json", "url"] | None = None
    partial_images: Annotated[int, Field(ge=0, le=3)] | None = None
    # Settings of other requests that would say nothing here.
    mode: None = None
    max_images: None = None
    max_spans: None = None
    stop: None = None
    partial_every: None = None
    stream_options: None = None

    @model_validator(mode="after")
    def _one_size(self) -> ImagesRequest:
        if self.size not in (None, "auto") and self.image_size is not None:
            raise ValueError("size and image_size are one setting: give one of them")
        return self

    @field_validator("size")
    @classmethod
    def _is_size(cls, value: str | None) -> str | None:
        if value in (None, "auto") or re.fullmatch("[1-9][0-9]{0,4}x[1-9][0-9]{0,4}", value):
            return value
        raise ValueError("must be 'auto' or a width and a height in pixels like '512x512'")


class TokensRequest(Strict):
    """`POST /v1/tokens`: ids, or a text, to look at."""

    model: str | None = None
    ids: Annotated[list[int], Field(max_length=200_000)] | None = None
    text: Annotated[Text, Field(max_length=200_000)] | None = None

    @model_validator(mode="after")
    def _one(self) -> TokensRequest:
        if (self.ids is None) == (self.text is None):
            raise ValueError("give either ids or text")
        return self


R = TypeVar("R", bound=Strict)


def parse(kind: type[R], body: bytes) -> R:
    """A request of its JSON. Raises ApiError that names the first field that is wrong."""
    try:
        content = json.loads(body, parse_constant=_no_constant)
    except ApiError:
        raise
    except RecursionError:
        raise bad_request("the body is nested too deeply", code="invalid_json") from None
    except UnicodeDecodeError:
        raise bad_request("the body is not UTF-8", code="invalid_json") from None
    except ValueError as error:  # the words of the parser hold no part of the body
        raise bad_request(f"the body is not JSON: {error}", code="invalid_json") from None
    if not isinstance(content, dict):
        raise bad_request("the body must be a JSON object", code="invalid_json")
    read = {name for name, field in kind.model_fields.items() if field.annotation is not type(None)}
    content, notes = loosen(content, read)
    try:
        request = kind.model_validate(content)
        if isinstance(request, RequestFields):
            request.notes.extend(notes)
        return request
    except ValidationError as error:
        raise _explain(kind, error) from None


def _no_constant(name: str) -> None:
    raise bad_request(f"the body is not JSON: {name} is no JSON number", code="invalid_json")


def _explain(kind: type[Strict], error: ValidationError) -> ApiError:
    first = error.errors(include_url=False, include_input=False)[0]
    path: list[str] = []
    for i, step in enumerate(first["loc"]):
        # Without pydantic's name of the chosen union member.
        if not (step in _TAGS and i and isinstance(first["loc"][i - 1], int)):
            path.append(str(step))
    param = ".".join(path) or None
    message, code = first["msg"].removeprefix("Value error, "), "invalid_value"
    if first["type"] == "extra_forbidden":
        fields = [name for part in (Message, ImagePart, CodesPart, InputAudio, Sampling) for name in part.model_fields]
        known = kind.model_fields if len(path) == 1 else [*fields, "text", "url"]
        message, code = f"unknown field '{path[-1][:100]}'{did_you_mean(path[-1][:100], known)}", "unknown_parameter"
        return bad_request(message, param=param, code=code)
    if first["type"] == "missing":
        message, code = "is missing", "missing_required_parameter"
    elif first["type"] == "union_tag_invalid":
        message = "type must be one of " + first["ctx"]["expected_tags"].replace("'", "")
    elif first["type"] == "string_pattern_mismatch":
        message = "must be a width and a height in pixels like '512x512'"
    elif path and path[0] in _NOT_OFFERED:
        message = "this server does not have it; leave it out"
    return bad_request(f"{param}: {message}" if param else message, param=param, code=code)
