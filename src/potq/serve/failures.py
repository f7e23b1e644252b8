"""Errors as clients of the OpenAI API read them: a status, and ``{"error": {"message", "type", "param", "code"}}``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from potq.errors import PotqError
from potq.serve.requests import KIND, ChatRequest, CompletionRequest
from potq.serve.responses import Failed, Failure
from potq.validation import meant

_RETRY_SECONDS = 1
_KEYS = sorted({*ChatRequest.model_fields, *CompletionRequest.model_fields})
_KINDS = {401: "authentication_error", 404: "not_found_error", 408: "timeout_error", 429: "rate_limit_error"}


class RequestError(PotqError):
    """A request that is refused.

    Args:
        message: what is wrong, and what to do.
        status: of HTTP.
        param: the field of the request.
    """

    def __init__(self, message: str, *, status: int = 400, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.param = status, param


def shutting_down() -> RequestError:
    """The answer to what the server has no time for."""
    return RequestError("the server is shutting down; ask again later", status=503)


def error_body(message: str, status: int, param: str | None = None) -> dict[str, Any]:
    """The body of an error."""
    kind = "server_error" if status >= 500 else _KINDS.get(status, "invalid_request_error")
    return Failed(error=Failure(message=message, type=kind, param=param, code=status)).model_dump()


def error_response(
    message: str, status: int, param: str | None = None, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """An error as the answer to a request."""
    again = {"retry-after": str(_RETRY_SECONDS)} if status in (429, 503) else {}
    return JSONResponse(error_body(message, status, param), status_code=status, headers={**again, **(headers or {})})


def status_of(error: PotqError) -> int:
    """The status that says whose mistake it is."""
    return error.status if isinstance(error, RequestError) else 400


async def on_potq_error(_: Request, error: Exception) -> JSONResponse:
    """A mistake that potq found in a request."""
    if not isinstance(error, PotqError):
        raise error
    return error_response(str(error), status_of(error), getattr(error, "param", None))


async def on_http_error(_: Request, error: Exception) -> JSONResponse:
    """A path or method that does not exist, a body that cannot be read."""
    if not isinstance(error, HTTPException):
        raise error
    headers = {name: "GET, HEAD" if value == "GET" else value for name, value in (error.headers or {}).items()}
    return error_response(error.detail, error.status_code, headers=headers)


async def on_invalid(_: Request, error: Exception) -> JSONResponse:
    """A body that is no JSON (400), or JSON with a field that cannot be (422, which names it)."""
    if not isinstance(error, RequestValidationError):
        raise error
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return error_response(f"the body is not JSON: {first['ctx']['error']} at character {first['loc'][-1]}", 400)
    if first["loc"] == ("body",):
        return error_response("the body is no JSON object; send one, with content-type: application/json", 422)
    places, reason = [str(part) for part in first["loc"][1:]], first["msg"].removeprefix("Value error, ")
    unknown = places.pop() if first["type"] == "extra_forbidden" else None  # a key may be called as a kind is
    fields = [place for place in places if not place.startswith(KIND)]
    if unknown is not None:
        fields, reason = [*fields, unknown], f"unknown key{meant(unknown, _KEYS)}"
    param = ".".join(fields)
    return error_response(f"{param}: {reason}" if param else reason, 422, param or None)
