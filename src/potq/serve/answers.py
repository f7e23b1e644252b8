"""A request's texts on their way to the client: in one, or as server-sent events; they end where the client leaves."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, TypedDict

from fastapi import Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel
from starlette.types import Receive, Scope, Send

from potq.errors import PotqError
from potq.serve.failures import error_body, status_of
from potq.serve.metrics import Clock
from potq.serve.pieces import Piece, pieces
from potq.serve.responses import Usage

if TYPE_CHECKING:
    from potq.engine.text_stream import TextStream
    from potq.serve.worker import Batch

_GONE = 499  # the status, by nginx's custom, of a request whose client left; nobody reads it


class Head(TypedDict):
    """What all events of an answer have in common."""

    id: str
    created: int
    model: str


def head(prefix: str, model: str) -> Head:
    """A new answer's."""
    return Head(id=f"{prefix}-{secrets.token_hex(12)}", created=int(time.time()), model=model)


class Answer:
    """The texts of a request as they are written.

    Attributes:
        usage: the tokens so far.
    """

    def __init__(self, batch: Batch, streams: Sequence[TextStream], clock: Clock, prompt_tokens: int) -> None:
        self._batch, self._streams, self._clock = batch, streams, clock
        self._prompt_tokens, self._tokens = prompt_tokens, 0

    @property
    def usage(self) -> Usage:
        total = self._prompt_tokens + self._tokens
        return Usage(prompt_tokens=self._prompt_tokens, completion_tokens=self._tokens, total_tokens=total)

    async def pieces(self) -> AsyncIterator[tuple[int, Piece]]:
        """Pieces, with the index of their text.

        Raises:
            PotqError: a job that can never be served, no possible token, an engine that stopped.
        """
        async for index, piece in pieces(self._batch, self._streams):
            self._clock.tick(index, piece)
            self._tokens += piece.tokens
            yield index, piece

    def cancel(self) -> None:
        """End what is not over."""
        self._batch.cancel()


async def whole(request: Request, answer: Answer, collect: Callable[[], Awaitable[BaseModel]]) -> Response:
    """An answer in one; its texts end where the client leaves."""
    work, gone = asyncio.ensure_future(collect()), asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait([work, gone], return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            return Response(status_code=_GONE)
        return Response(work.result().model_dump_json(exclude_unset=True), media_type="application/json")
    finally:
        work.cancel()
        gone.cancel()
        answer.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class EventStream(StreamingResponse):
    """An answer as server-sent events; its texts end where the client leaves.

    Args:
        answer: whose ``events`` these are.
            The first was awaited: what is refused has its status.
    """

    media_type = "text/event-stream"

    def __init__(self, answer: Answer, first: BaseModel, events: AsyncIterator[BaseModel]) -> None:
        super().__init__(_lines(first, events), headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._answer.cancel()


async def streamed(request: Request, answer: Answer, events: AsyncIterator[BaseModel]) -> Response:
    """Send ``events`` as they come."""
    waiting, gone = asyncio.ensure_future(anext(events)), asyncio.ensure_future(_gone(request))
    begun = False
    try:
        await asyncio.wait([waiting, gone], return_when=asyncio.FIRST_COMPLETED)
        if not waiting.done():
            return Response(status_code=_GONE)
        response = EventStream(answer, waiting.result(), events)
        begun = True
        return response
    finally:
        gone.cancel()
        if not begun:
            waiting.cancel()
            answer.cancel()


async def _lines(first: BaseModel, events: AsyncIterator[BaseModel]) -> AsyncIterator[str]:
    try:
        yield f"data: {first.model_dump_json(exclude_unset=True)}\n\n"
        async for event in events:
            yield f"data: {event.model_dump_json(exclude_unset=True)}\n\n"
    except PotqError as error:  # the status is sent; clients know an error by its key
        yield f"data: {json.dumps(error_body(str(error), status_of(error)))}\n\n"
    yield "data: [DONE]\n\n"
