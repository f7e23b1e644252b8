"""What every request passes before anything looks at it: counts, web pages' rights, keys, its size, the time it takes."""

from __future__ import annotations

import asyncio
import hmac
from typing import TYPE_CHECKING

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from potq.serve.failures import error_response, shutting_down

if TYPE_CHECKING:
    from potq.serve.metrics import Metrics
    from potq.serve.service import Service
    from potq.serve.settings import ServerSettings

_OPEN = frozenset({"/", "/health", "/docs", "/openapi.json"})  # need no key: they tell nothing of anybody


class Guard:
    """Middleware around the application.

    Args:
        app: what it protects.
        service: which may be about to end.
        settings: the server's.
    """

    def __init__(self, app: ASGIApp, service: Service, settings: ServerSettings) -> None:
        self._app, self._service, self._settings = app, service, settings
        self._keys = [key.encode() for key in settings.api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if (refused := self._refusal(scope)) is not None:
            await error_response(*refused)(scope, receive, send)
            return
        begun = False

        async def noted(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._app(scope, self._bounded(receive), noted)
        except Exception:  # of potq itself: uvicorn logs it
            if not begun:
                await error_response("the server made a mistake; its log says which", 500)(scope, receive, send)
            raise

    def _refusal(self, scope: Scope) -> tuple[str, int] | None:
        headers = Headers(scope=scope)
        if self._service.draining:
            return str(shutting_down()), 503
        if self._keys and scope["path"] not in _OPEN and not self._known(headers.get("authorization", "")):
            return "give an API key of this server, as Authorization: Bearer KEY", 401
        if int(headers.get("content-length", "0")) > self._settings.body_bytes:  # the HTTP parser takes digits alone
            return self._too_big(), 413
        return None

    def _known(self, authorization: str) -> bool:
        given = authorization.removeprefix("Bearer ").encode()
        same = [hmac.compare_digest(given, key) for key in self._keys]  # all are looked at: no time tells which
        return any(same)

    def _too_big(self) -> str:
        return f"the request is too big; at most {self._settings.body_bytes} bytes are read"

    def _bounded(self, receive: Receive) -> Receive:
        """``receive`` until the whole body came, in time and no more than allowed."""
        read, complete = 0, False
        deadline = asyncio.get_running_loop().time() + self._settings.patience

        async def bounded() -> Message:
            nonlocal read, complete
            if complete:
                return await receive()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(408, f"the request did not come within {self._settings.patience:g} seconds") from None
            read += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            if read > self._settings.body_bytes:
                raise HTTPException(413, self._too_big())
            return message

        return bounded


class Pages(CORSMiddleware):
    """Tells web pages whether they may use the server, in the API's form where they may not."""

    def preflight_response(self, request_headers: Headers) -> Response:
        """The answer to a browser's question."""
        found = super().preflight_response(request_headers)
        if found.status_code < 400:
            return found
        reason = bytes(found.body).decode()
        return error_response(f"{reason}; --cors-origin names pages that may use the server", found.status_code)


class Counted:
    """Middleware around all others: counts answers. HEAD is GET here; the protocol leaves the body out.

    Args:
        app: whose answers.
        metrics: what gets them.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        asked = {**scope, "method": "GET"} if scope["method"] == "HEAD" else scope

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                path = getattr(asked.get("route"), "path", "other")  # paths that clients make up are one
                self._metrics.requests.labels(path, str(message["status"])).inc()
            await send(message)

        await self._app(asked, receive, counted)
