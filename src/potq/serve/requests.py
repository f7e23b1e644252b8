"""What clients may ask: the OpenAI API's requests, as far as the engine can serve them. Unknown keys are refused by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, StringConstraints, Tag

from potq.engine.generation import Settings

_STOPS, _STOP_LENGTH = 16, 128
MOST_TEXTS = 128  # of a request
_SEEDS = 2**64
KIND = "kind of "  # begins the tags of a union's kinds, which errors have amid the names of fields


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _refused(reason: str, *harmless: object) -> BeforeValidator:
    """Of a field that the server has no use for: it may be left out, be null, or have one of the values without effect."""

    def check(value: object) -> None:
        if value is not None and value not in harmless:
            raise ValueError(reason)

    return BeforeValidator(check)


def _kinds(kind: Callable[[Any], object], reason: str) -> Discriminator:
    """Chooses by ``kind`` among a union's kinds, so that an error is that of one of them; ``reason`` where none fits."""
    return Discriminator(lambda value: f"{KIND}{kind(value)}", custom_error_type="kind", custom_error_message=reason)


def _is(kind: str) -> Tag:
    return Tag(KIND + kind)


def _several(stop: object) -> object:
    if stop is None or isinstance(stop, str):
        return () if stop is None else (stop,)
    if not isinstance(stop, list | tuple):
        raise ValueError("give a text, or a list of texts")
    return stop


_Stop = Annotated[str, StringConstraints(min_length=1, max_length=_STOP_LENGTH)]
Stops: TypeAlias = Annotated[tuple[_Stop, ...], BeforeValidator(_several), Field(max_length=_STOPS)]
_NO_PENALTY = _refused("the engine has no such penalty; use repetition_penalty", 0)


class StreamOptions(_Request):
    """What a stream tells beside its pieces."""

    include_usage: bool = Field(False, description="One more event before the end, with the tokens of the whole text.")


class _Generate(_Request):
    model: str | None = Field(None, description="The served model; see /v1/models.")
    temperature: float | None = Field(None, ge=0, le=100, description="0 is greedy. Default: 1.")
    top_p: float | None = Field(None, ge=0, le=1, description="Of the likeliest tokens that sum to p.")
    top_k: int = Field(0, ge=0, lt=2**31, description="Of the k likeliest tokens; 0: of all.")
    min_p: float = Field(0.0, ge=0, le=1, description="Of tokens p times as likely as the likeliest.")
    repetition_penalty: float = Field(1.0, gt=0, le=100, description="Above 1: repeat less.")
    seed: int | None = Field(None, ge=-(2**63), lt=_SEEDS, description="The same seed draws the same text.")
    n: int = Field(1, ge=1, le=MOST_TEXTS, description="So many texts.")
    stop: Stops = Field((), description=f"Up to {_STOPS} texts, of up to {_STOP_LENGTH} characters, that end the text.")
    stream: bool = Field(False, description="Send pieces as they come, as server-sent events.")
    stream_options: StreamOptions | None = None
    user: str | None = Field(None, description="Accepted; it has no effect.")
    frequency_penalty: Annotated[None, _NO_PENALTY] = None
    presence_penalty: Annotated[None, _NO_PENALTY] = None
    logit_bias: Annotated[None, _refused("the engine has no logit_bias; leave it out", {})] = None

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with the number of tokens."""
        return self.stream_options is not None and self.stream_options.include_usage

    def sampling(self, text: int) -> Settings:
        """How the ``text``-th of the texts is drawn. Each has a seed of its own, which the request's seed determines."""
        temperature = 1.0 if self.temperature is None else self.temperature
        if temperature == 0:  # what only a draw needs is allowed, and has no effect, as in the API
            return Settings(repetition_penalty=self.repetition_penalty)
        return Settings(
            temperature=temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            seed=None if self.seed is None else (self.seed + text) % _SEEDS,
        )


_Token = Annotated[int, Field(ge=0, lt=2**31)]
_Ids = Annotated[list[_Token], Field(min_length=1)]


_Texts = Annotated[list[str], Field(min_length=1, max_length=MOST_TEXTS)]
_Several = Annotated[list[_Ids], Field(min_length=1, max_length=MOST_TEXTS)]


def _prompt_kind(prompt: object) -> str:
    first = prompt[0] if isinstance(prompt, list) and prompt else None
    return type(prompt).__name__ if first is None else f"list of {type(first).__name__}"


class CompletionRequest(_Generate):
    """``POST /v1/completions``: continue a text."""

    prompt: Annotated[
        Annotated[str, _is("str")]
        | Annotated[_Ids, _is("list of int")]
        | Annotated[_Texts, _is("list of str")]
        | Annotated[_Several, _is("list of list")],
        _kinds(_prompt_kind, "give a text or token ids, or a list of several"),
    ] = Field(description="A text or token ids, or several of them.")
    max_tokens: int | None = Field(None, ge=0, lt=2**31, description="New tokens, at most. Default: 16.")
    logprobs: int | None = Field(None, ge=0, le=20, description="Log-probabilities, and so many of the likeliest tokens'.")
    echo: bool = Field(False, description="The text begins with the prompt.")
    ignore_eos: bool = Field(False, description="Go on after tokens that end a text, to max_tokens: for tests of speed.")
    suffix: Annotated[None, _refused("the engine cannot fill in; leave suffix out", "")] = None
    best_of: Annotated[None, _refused("best_of is not served; use n, and choose", 1)] = None

    @property
    def prompts(self) -> list[str | list[int]]:
        """One or more texts, or token ids."""
        if isinstance(self.prompt, str) or isinstance(self.prompt[0], int):
            return [self.prompt]
        return list(self.prompt)


class TextPart(_Request):
    """A part of a message; the models read text alone."""

    type: Literal["text"]
    text: str


class FunctionCall(_Request):
    """A call that the model made in an earlier turn."""

    name: str
    arguments: str = Field(description="JSON.")


class ToolCall(_Request):
    """A tool call of an earlier turn."""

    id: str
    type: Literal["function"] = "function"
    function: FunctionCall
    index: int | None = Field(None, description="Accepted; calls are in the order of the list.")


def _type_name(value: object) -> str:
    return type(value).__name__


_Content = Annotated[
    Annotated[str, _is("str")] | Annotated[list[TextPart], _is("list")],
    _kinds(_type_name, "give a text, or a list of parts that are text"),
]


class Message(_Request):
    """A turn of a chat. What the official client keeps of an answer is one."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: _Content | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    refusal: str | None = None
    annotations: Annotated[None, _refused("the models read text alone; leave annotations out", [])] = None
    audio: Annotated[None, _refused("the models read text alone; leave audio out")] = None
    function_call: Annotated[None, _refused("use tool_calls")] = None

    @property
    def text(self) -> str:
        """Its content."""
        if self.content is None or isinstance(self.content, str):
            return self.content or ""
        return "".join(part.text for part in self.content)


class Function(_Request):
    """A function that the model may call."""

    name: str = Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")
    description: str | None = None
    parameters: dict[str, Any] = Field(default_factory=lambda: {"type": "object", "properties": {}})
    strict: bool | None = None


class Tool(_Request):
    """What the model may use."""

    type: Literal["function"]
    function: Function


class _Named(_Request):
    name: str


class NamedTool(_Request):
    """The tool that the model has to use."""

    type: Literal["function"]
    function: _Named


class JsonSchema(_Request):
    """A schema that the answer has to meet."""

    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = Field(None, description="Accepted; the answer always meets the schema.")


class PlainText(_Request):
    """Any text."""

    type: Literal["text"]


class JsonObject(_Request):
    """Any JSON object."""

    type: Literal["json_object"]


class JsonBySchema(_Request):
    """JSON that meets a schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


def _format_kind(wanted: object) -> object:
    return wanted.get("type") if isinstance(wanted, dict) else None


ResponseFormat: TypeAlias = Annotated[
    Annotated[PlainText, _is("text")]
    | Annotated[JsonObject, _is("json_object")]
    | Annotated[JsonBySchema, _is("json_schema")],
    _kinds(_format_kind, "give an object whose type is text, json_object or json_schema"),
]
_Choice = Annotated[
    Annotated[Literal["none", "auto", "required"], _is("str")] | Annotated[NamedTool, _is("dict")],
    _kinds(_type_name, "give none, auto, required, or an object that names a function"),
]


class ChatRequest(_Generate):
    """``POST /v1/chat/completions``: the next turn of a chat."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_tokens: int | None = Field(None, ge=1, lt=2**31, description="New tokens, at most. Default: what the context holds.")
    max_completion_tokens: int | None = Field(None, ge=1, lt=2**31, description="The newer name of max_tokens.")
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20, description="So many of the likeliest tokens'; wants logprobs.")
    tools: list[Tool] | None = Field(None, max_length=MOST_TEXTS)
    tool_choice: _Choice | None = None
    parallel_tool_calls: bool | None = Field(None, description="Accepted; it has no effect.")
    response_format: ResponseFormat | None = None

    @property
    def most(self) -> int | None:
        """New tokens, at most; None: what the context holds."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens


class TokenizeRequest(_Request):
    """``POST /tokenize``."""

    content: str


class DetokenizeRequest(_Request):
    """``POST /detokenize``."""

    tokens: list[_Token]
