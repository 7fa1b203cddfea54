"""Everything the API refuses or fails with, in OpenAI's shape: ``{"error": {message, type, param, code}}``.

Invariant: all four keys are always there, and no other body is ever sent for a status of 400 or more, but by uvicorn to whoever
speaks no HTTP. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

INVALID_REQUEST: Final = "invalid_request_error"
SERVER_ERROR: Final = "server_error"
RATE_LIMIT: Final = "rate_limit_error"
RETRY_AFTER_SECONDS: Final = 1


class ErrorDetail(msgspec.Struct, frozen=True):
    """What went wrong, and with which parameter."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(msgspec.Struct, frozen=True):
    """The body of every error, also of one that is sent inside a stream."""

    error: ErrorDetail


class ApiError(Exception):
    """A request ends with this status and body."""

    def __init__(self, status: int, detail: ErrorDetail, *, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail.message)
        self.status = status
        self.detail = detail
        self.headers = dict(headers or {})

    def body(self) -> bytes:
        """JSON."""
        return msgspec.json.encode(ErrorBody(self.detail))


def invalid(message: str, *, param: str | None = None, code: str | None = None) -> ApiError:
    """400: sending it again cannot help."""
    return ApiError(400, ErrorDetail(message, INVALID_REQUEST, param, code))


def unsupported(param: str, why: str) -> ApiError:
    """400: a parameter of OpenAI's API that this server would otherwise silently not obey."""
    return invalid(f"'{param}' is not supported: {why}", param=param, code="unsupported_parameter")


def context_length_exceeded(*, limit: int, prompt_tokens: int, max_tokens: int, param: str) -> ApiError:
    """400, in OpenAI's words; all figures in tokens."""
    return invalid(
        f"This model's maximum context length is {limit} tokens. However, you requested {prompt_tokens + max_tokens} tokens "
        f"({prompt_tokens} in the prompt, {max_tokens} in the completion). Please reduce the length of the prompt or completion.",
        param=param,
        code="context_length_exceeded",
    )


def text_too_long(*, limit: int, characters: int, least_tokens: int, param: str) -> ApiError:
    """The same, of a text that was not tokenized because it cannot fit."""
    return invalid(
        f"This model's maximum context length is {limit} tokens. However, your prompt has {characters} characters, which are at "
        f"least {least_tokens} tokens. Please reduce the length of the prompt.",
        param=param,
        code="context_length_exceeded",
    )


def model_not_found(model: str, *, served: str) -> ApiError:
    """404."""
    message = f"The model '{model}' does not exist; this server has '{served}'."
    return ApiError(404, ErrorDetail(message, INVALID_REQUEST, "model", "model_not_found"))


def unauthorized() -> ApiError:
    """401."""
    message = "Incorrect API key provided: send the server's key as 'Authorization: Bearer KEY'."
    return ApiError(401, ErrorDetail(message, INVALID_REQUEST, None, "invalid_api_key"), headers={"WWW-Authenticate": "Bearer"})


def too_large(limit_bytes: int) -> ApiError:
    """413."""
    detail = ErrorDetail(f"The request body is larger than {limit_bytes} bytes.", INVALID_REQUEST, None, "request_too_large")
    # The rest of the body is not read, so the connection cannot be used again.
    return ApiError(413, detail, headers={"Connection": "close"})


def too_slow(limit_seconds: float) -> ApiError:
    """408."""
    detail = ErrorDetail(f"The request body did not arrive in {limit_seconds:g} s.", INVALID_REQUEST, None, "request_timeout")
    return ApiError(408, detail, headers={"Connection": "close"})


def unavailable(reason: str, *, code: str = "service_unavailable") -> ApiError:
    """503: the same request may be sent again, here or elsewhere."""
    return ApiError(503, ErrorDetail(reason, SERVER_ERROR, None, code), headers={"Retry-After": str(RETRY_AFTER_SECONDS)})


def overloaded() -> ApiError:
    """429: so much is waiting that another request would wait for too long; it may be sent again, here later or elsewhere now."""
    message = "The engine has as many requests waiting as it takes. Please send this one again later."
    retry = {"Retry-After": str(RETRY_AFTER_SECONDS)}
    return ApiError(429, ErrorDetail(message, RATE_LIMIT, None, "rate_limit_exceeded"), headers=retry)


def internal(message: str) -> ApiError:
    """500: a fault of this server."""
    return ApiError(500, ErrorDetail(message, SERVER_ERROR, None, "internal_error"))


def for_status(status: int, message: str) -> ApiError:
    """What routing refuses: unknown paths and methods."""
    code = {404: "not_found", 405: "method_not_allowed"}.get(status)
    return ApiError(status, ErrorDetail(message, INVALID_REQUEST, None, code))
