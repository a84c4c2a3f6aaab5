"""Every refusal as the OpenAI error object that clients know: {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    429: "rate_limit_error",
}


class ApiError(Exception):
    """What the client is told. `param` names the field, `code` is for programs."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.param = status, _sayable(message), _sayable(param)
        self.code, self.headers = code, headers

    def body(self) -> dict[str, Any]:
        kind = _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        return JSONResponse(self.body(), self.status, self.headers)


def _sayable(text: str | None) -> str | None:
    """Client's words in a message may hold lone surrogates, which no reply can; and they may be long."""
    return text and text.encode("utf-8", "replace").decode()[:1000]


def bad_request(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    return ApiError(400, message, param=param, code=code)


def too_many(message: str, retry_after: float) -> ApiError:
    """Come back in about `retry_after` seconds, at least one."""
    seconds = str(max(1, round(retry_after)))
    return ApiError(429, message, code="queue_full", headers={"Retry-After": seconds})
