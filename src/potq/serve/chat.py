"""``/v1/chat/completions``: the next turn of a chat, with tools and structured output."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from typing import TYPE_CHECKING, Any

from fastapi import Request, Response

from potq.serve.answers import Answer, head, streamed, whole
from potq.serve.failures import RequestError
from potq.serve.requests import ChatRequest, JsonBySchema, JsonObject, NamedTool, Tool
from potq.serve.responses import (
    Call,
    CalledFunction,
    ChatChoice,
    ChatChunk,
    ChatCompletion,
    ChatDelta,
    ChatLogprobs,
    ChatMessage,
    Finish,
    TokenLogprob,
    TopLogprob,
)
from potq.serve.structure import ANY_OBJECT
from potq.serve.tools import Called, ToolReader, Way, call_schema, way_of
from potq.serve.worker import Job

if TYPE_CHECKING:
    from collections.abc import Sequence

    from potq.engine.scheduler import TokenLogprobs
    from potq.serve.pieces import Piece
    from potq.serve.service import Service
    from potq.serve.structure import Vocabulary


async def chat(service: Service, body: ChatRequest, request: Request) -> Response:
    """Answer a chat.

    Raises:
        PotqError: what cannot be served.
    """
    service.check_model(body.model)
    if body.top_logprobs is not None and not body.logprobs:
        raise RequestError("top_logprobs wants logprobs; set it to true", param="top_logprobs")
    tools = _tools(body)
    schema, field = _schema(body, tools)
    if schema is not None and body.stop:
        raise RequestError("a stop text would cut the JSON; leave stop out", param="stop")
    grammar = None
    if schema is not None:
        grammar = await service.prompts.run(partial(service.vocabulary.grammar, schema, field))
    tokens = await service.prompts.run(partial(service.prompts.chat, body.messages, tools))
    logprobs = max(body.top_logprobs or 0, 1) if body.logprobs else 0
    most = service.context if body.most is None else body.most
    jobs = [
        Job(tokens, most, body.sampling(text), logprobs, mask=None if grammar is None else service.vocabulary.mask(grammar))
        for text in range(body.n)
    ]
    answer = await service.write(jobs, body.stop)
    writer = _Writer(service, body, tools, _forced(body, tools))
    if body.stream:
        return await streamed(request, answer, writer.events(answer))
    return await whole(request, answer, lambda: writer.whole(answer))


def _tools(body: ChatRequest) -> list[Tool]:
    """The tools that the model may use."""
    choice, tools = body.tool_choice, body.tools or []
    if not tools and choice not in (None, "none"):
        raise RequestError("tool_choice wants tools", param="tool_choice")
    if isinstance(choice, NamedTool) and choice.function.name not in {tool.function.name for tool in tools}:
        raise RequestError(f"there is no tool {choice.function.name!r} among tools", param="tool_choice")
    if choice == "none":
        return []
    if isinstance(choice, NamedTool):
        return [tool for tool in tools if tool.function.name == choice.function.name]
    return tools


def _forced(body: ChatRequest, tools: list[Tool]) -> list[Tool]:
    """The tools one of which the model has to call."""
    return tools if body.tool_choice == "required" or isinstance(body.tool_choice, NamedTool) else []


def _schema(body: ChatRequest, tools: list[Tool]) -> tuple[dict[str, Any] | None, str]:
    """The JSON schema of what the model may write, and the field that asks for it."""
    wanted = body.response_format
    structured = isinstance(wanted, JsonObject | JsonBySchema)
    if structured and tools:
        raise RequestError("an answer in JSON is no tool call; leave tools out, or set tool_choice to none", param="tools")
    if isinstance(wanted, JsonBySchema):
        return wanted.json_schema.schema_, "response_format.json_schema.schema"
    if structured:
        return ANY_OBJECT, "response_format"
    if forced := _forced(body, tools):  # of a single function the arguments alone: its schema may refer to itself
        return forced[0].function.parameters if len(forced) == 1 else call_schema(forced), "tools"
    return None, ""


class _Writer:
    """Pieces as the API's messages."""

    def __init__(self, service: Service, body: ChatRequest, tools: list[Tool], forced: list[Tool]) -> None:
        self._vocabulary = service.vocabulary if body.logprobs else None
        self._top, self._include_usage = body.top_logprobs or 0, body.include_usage
        self._head = head("chatcmpl", service.name)
        way: Way = way_of(service.prompts.template)
        if forced:  # held to a schema, which has no markers
            way = "arguments" if len(forced) == 1 else "json"
        names = [tool.function.name for tool in tools]
        self._readers = [ToolReader(way, names) if tools else None for _ in range(body.n)]
        self._begun = [False] * body.n

    async def events(self, answer: Answer) -> AsyncIterator[ChatChunk]:
        async for index, piece in answer.pieces():
            delta = self._delta(index, piece)
            if delta.delta.model_fields_set or delta.logprobs or delta.finish_reason:
                yield self._chunk([delta])
        if self._include_usage:
            yield ChatChunk(**self._head, object="chat.completion.chunk", choices=[], usage=answer.usage)

    async def whole(self, answer: Answer) -> ChatCompletion:
        deltas: list[list[ChatDelta]] = [[] for _ in self._readers]
        async for index, piece in answer.pieces():
            deltas[index].append(self._delta(index, piece))
        choices = [_joined(index, found) for index, found in enumerate(deltas)]
        return ChatCompletion(**self._head, object="chat.completion", choices=choices, usage=answer.usage)

    def _chunk(self, choices: list[ChatDelta]) -> ChatChunk:
        return ChatChunk(**self._head, object="chat.completion.chunk", choices=choices)

    def _delta(self, index: int, piece: Piece) -> ChatDelta:
        text, reader = piece.text, self._readers[index]
        calls: list[Called] = []
        if reader is not None:
            text = reader.put(text)
            if piece.finish is not None:
                rest, calls = reader.finish()
                text += rest
        said: dict[str, Any] = {} if self._begun[index] else {"role": "assistant"}
        self._begun[index] = True
        said |= {"content": text} if text else {}
        said |= {"tool_calls": [_call(call, place) for place, call in enumerate(calls)]} if calls else {}
        finish: Finish | None = "tool_calls" if calls and piece.finish == "stop" else piece.finish
        return ChatDelta(index=index, delta=ChatMessage(**said), logprobs=self._logprobs(piece), finish_reason=finish)

    def _logprobs(self, piece: Piece) -> ChatLogprobs | None:
        if self._vocabulary is None:
            return None
        entries = piece.logprobs[: piece.tokens]  # without that of the end token
        return ChatLogprobs(content=[_token(self._vocabulary, entry, self._top) for entry in entries])


def _call(call: Called, place: int) -> Call:
    return Call(id=call.id, type="function", function=CalledFunction(name=call.name, arguments=call.arguments), index=place)


def _token(vocabulary: Vocabulary, entry: TokenLogprobs, top: int) -> TokenLogprob:
    likely = [TopLogprob(**_spelled(vocabulary, token), logprob=logprob) for token, logprob in entry.top[:top]]
    return TokenLogprob(**_spelled(vocabulary, entry.token), logprob=entry.logprob, top_logprobs=likely)


def _spelled(vocabulary: Vocabulary, token: int) -> dict[str, Any]:
    own = vocabulary.bytes_of(token)
    return {"token": own.decode(errors="replace"), "bytes": list(own)}


def _joined(index: int, deltas: Sequence[ChatDelta]) -> ChatChoice:
    """A message of its pieces."""
    text = "".join(piece.delta.content or "" for piece in deltas)
    found = [call for piece in deltas for call in piece.delta.tool_calls or ()]
    calls = [Call(id=call.id, type=call.type, function=call.function) for call in found]  # the index is for streams
    entries = [entry for piece in deltas if piece.logprobs is not None for entry in piece.logprobs.content]
    said: dict[str, Any] = {"role": "assistant", "content": text or None if calls else text}
    said |= {"tool_calls": calls} if calls else {}
    return ChatChoice(
        index=index,
        message=ChatMessage(**said),
        logprobs=None if deltas[-1].logprobs is None else ChatLogprobs(content=entries),
        finish_reason=deltas[-1].finish_reason or "stop",
    )
