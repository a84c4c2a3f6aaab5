"""Log-probabilities as OpenAI's clients read them: entries of a chat, and the lists of a completion.

What they are stands in `generation.logprobs`. Beside OpenAI's fields an entry has the `id` and its `modality` (`marker` for a
special id); an id that is no text has a name instead of bytes: `<image 17>` for a code, `[begin image]` for a marker.
"""

from __future__ import annotations

import codecs
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from chameleon_jax.generation.logprobs import Logprobs
from chameleon_jax.generation.reader import MARKER, Pieces
from chameleon_jax.serving.schema import ChatRequest, CompletionRequest, RequestFields


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenLogprob:
    """One id as a chat's entry, and how many characters of the choice's text are whole before it."""

    entry: dict[str, Any]
    offset: int


def asked_logprobs(request: RequestFields) -> int | None:
    """How many alternatives of each id the client wants to hear of; None for no log-probabilities at all."""
    if isinstance(request, ChatRequest):
        return (request.top_logprobs or 0) if request.logprobs else None
    return request.logprobs if isinstance(request, CompletionRequest) else None


class LogprobWriter:
    """Writes the entries of one choice, whose ids come piece by piece."""

    def __init__(self, pieces: Pieces):
        self._pieces = pieces
        self._offset = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def write(self, ids: Sequence[int], logprobs: Logprobs) -> tuple[TokenLogprob, ...]:
        return tuple(self._write(id, logprobs[i : i + 1]) for i, id in enumerate(map(int, ids)))

    def _write(self, id: int, logprobs: Logprobs) -> TokenLogprob:
        top = zip(logprobs.top_ids[0], logprobs.top[0], strict=True)
        entry = self._describe(id, logprobs.chosen[0])
        entry["top_logprobs"] = [self._describe(int(other), logprob) for other, logprob in top]
        written, is_text = TokenLogprob(entry=entry, offset=self._offset), entry["bytes"] is not None
        # What is no text ends the run, and with it a character that is not whole.
        self._offset += len(self._decoder.decode(bytes(entry["bytes"] or ()), final=not is_text))
        return written

    def _describe(self, id: int, logprob: np.floating) -> dict[str, Any]:
        owner = self._pieces.owner(id)
        if owner is self._pieces.vocab.text:
            encoded = self._pieces.text_bytes(id)
            token, encoded = encoded.decode(errors="replace"), list(encoded)
        else:
            token, encoded = f"<{owner.name} {id - owner.start}>" if owner else self._pieces.name(id), None
        return {
            "token": token,
            "logprob": float(logprob),
            "bytes": encoded,
            "id": id,
            "modality": owner.name if owner else MARKER,
        }


def chat_logprobs(tokens: Sequence[TokenLogprob] | None) -> dict[str, Any] | None:
    """`logprobs` of a choice of a chat."""
    return None if tokens is None else {"content": [token.entry for token in tokens], "refusal": None}


def completion_logprobs(tokens: Sequence[TokenLogprob] | None) -> dict[str, Any] | None:
    """`logprobs` of a choice of a completion, OpenAI's legacy form; the id itself is always among its alternatives."""
    if tokens is None:
        return None
    entries = [token.entry for token in tokens]
    return {
        "tokens": [_legacy_name(entry) for entry in entries],
        "token_logprobs": [entry["logprob"] for entry in entries],
        "top_logprobs": [
            {_legacy_name(other): other["logprob"] for other in (*entry["top_logprobs"], entry)} for entry in entries
        ],
        "text_offset": [token.offset for token in tokens],
        "token_ids": [entry["id"] for entry in entries],
    }


def _legacy_name(entry: dict[str, Any]) -> str:
    """As OpenAI writes bytes that are no whole characters, so that no two ids of text share a name."""
    encoded = entry["bytes"]
    if encoded is None or bytes(encoded).decode(errors="replace").encode() == bytes(encoded):
        return entry["token"]
    return "bytes:" + "".join(f"\\x{byte:02x}" for byte in encoded)
