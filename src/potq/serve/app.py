"""The routes of the server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException

from potq.errors import PotqError
from potq.serve import chat, completions
from potq.serve.failures import RequestError, on_http_error, on_invalid, on_potq_error
from potq.serve.guard import Counted, Guard, Pages
from potq.serve.requests import ChatRequest, CompletionRequest, DetokenizeRequest, TokenizeRequest
from potq.serve.responses import ChatCompletion, Completion, Content, Failed, Health, Model, Models, Tokens
from potq.serve.service import Service
from potq.serve.settings import ServerSettings
from potq.version import __version__

_FAILURES: dict[int | str, dict[str, Any]] = {kind: {"model": Failed} for kind in ("4XX", "5XX")}
_OR_EVENTS: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {}}}}
_PAGE = Path(__file__).with_name("static") / "index.html"
_PAGE_MAY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:"


def create_app(service: Service, settings: ServerSettings) -> FastAPI:
    """The application; it owns ``service``, which begins and ends with it."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.worker.start()
        yield
        await service.close()

    app = FastAPI(title="potq serve", version=__version__, lifespan=lifespan, redoc_url=None, responses=_FAILURES)
    app.add_exception_handler(PotqError, on_potq_error)
    app.add_exception_handler(HTTPException, on_http_error)
    app.add_exception_handler(RequestValidationError, on_invalid)
    app.add_middleware(Guard, service=service, settings=settings)
    if settings.origins:
        app.add_middleware(Pages, allow_origins=settings.origins, allow_methods=["*"], allow_headers=["*"])
    app.add_middleware(Counted, metrics=service.metrics)
    _add_openai(app, service)
    _add_others(app, service)
    return app


def _add_openai(app: FastAPI, service: Service) -> None:
    @app.get("/v1/models")
    async def models() -> Models:
        """The one model that is served."""
        return Models(object="list", data=[_model(service)])

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> Model:
        """The model, by its name."""
        service.check_model(name)
        return _model(service)

    @app.post("/v1/completions", response_model=Completion, responses=_OR_EVENTS)
    async def complete(body: CompletionRequest, request: Request) -> Response:
        """Continue texts or token ids."""
        return await completions.complete(service, body, request)

    @app.post("/v1/chat/completions", response_model=ChatCompletion, responses=_OR_EVENTS)
    async def converse(body: ChatRequest, request: Request) -> Response:
        """The next turn of a chat."""
        return await chat.chat(service, body, request)


def _add_others(app: FastAPI, service: Service) -> None:
    prompts = service.prompts
    page = _PAGE.read_text(encoding="utf-8")

    @app.post("/tokenize")
    async def tokenize(body: TokenizeRequest) -> Tokens:
        """Token ids of a prompt, those that begin a text included."""
        return Tokens(tokens=await prompts.run(lambda: prompts.ids(body.content)))

    @app.post("/detokenize")
    async def detokenize(body: DetokenizeRequest) -> Content:
        """The text of token ids."""
        return Content(content=await prompts.run(lambda: prompts.text(body.tokens)))

    @app.get("/health")
    async def health() -> Health:
        """Whether texts are served; 503 if not."""
        if service.worker.failure is not None:
            raise RequestError(str(service.worker.failure), status=503)
        return Health(status="ok")

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Figures for Prometheus."""
        return Response(service.metrics.page(), media_type=CONTENT_TYPE_LATEST)

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def chat_page() -> Response:
        return HTMLResponse(page, headers={"content-security-policy": _PAGE_MAY})


def _model(service: Service) -> Model:
    return Model(id=service.name, object="model", created=service.created, owned_by="potq", context=service.context)
