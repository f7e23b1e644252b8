"""What the server answers, in the shapes of the OpenAI API. A field that is not set is not sent."""

from __future__ import annotations

from typing import Literal, TypeAlias

from pydantic import BaseModel

Finish: TypeAlias = Literal["stop", "length", "tool_calls"]


class Usage(BaseModel):
    """Tokens of a request; with several texts, of all of them."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class CompletionLogprobs(BaseModel):
    """Of each token: its text, its log-probability, the likeliest tokens, and where it begins in the text."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(BaseModel):
    """One text, or a piece of it."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Finish | None


class Completion(BaseModel):
    """The answer of ``/v1/completions``, or an event of its stream."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = None


class TopLogprob(BaseModel):
    """A token that was likely; ``bytes`` are its own, of which text may need several tokens' to make a character."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    """The token that was taken."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    """Of the tokens of a message."""

    content: list[TokenLogprob]


class CalledFunction(BaseModel):
    """A function and its arguments, as JSON."""

    name: str
    arguments: str


class Call(BaseModel):
    """A tool call; ``index`` is for streams."""

    id: str
    type: Literal["function"]
    function: CalledFunction
    index: int | None = None


class ChatMessage(BaseModel):
    """What the model says, or a piece of it."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    tool_calls: list[Call] | None = None


class ChatChoice(BaseModel):
    """One answer."""

    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: Finish


class ChatCompletion(BaseModel):
    """The answer of ``/v1/chat/completions``."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class ChatDelta(BaseModel):
    """A piece of an answer."""

    index: int
    delta: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: Finish | None


class ChatChunk(BaseModel):
    """An event of the stream of ``/v1/chat/completions``."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChatDelta]
    usage: Usage | None = None


class Model(BaseModel):
    """A model that is served."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    context: int


class Models(BaseModel):
    """The answer of ``/v1/models``."""

    object: Literal["list"]
    data: list[Model]


class Tokens(BaseModel):
    """The answer of ``/tokenize``."""

    tokens: list[int]


class Content(BaseModel):
    """The answer of ``/detokenize``."""

    content: str


class Health(BaseModel):
    """The answer of ``/health``."""

    status: Literal["ok"]


class Failure(BaseModel):
    """What is wrong; ``param`` is the field of the request, where one is to blame."""

    message: str
    type: str
    param: str | None
    code: int


class Failed(BaseModel):
    """The answer to a request that cannot be served."""

    error: Failure
