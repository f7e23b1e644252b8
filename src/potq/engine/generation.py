"""A text that is being generated: what is asked for, and its pieces as they come."""

from __future__ import annotations

import inspect
import sys
from array import array
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Generic, Literal, Self, TypeAlias, TypedDict, TypeGuard, TypeVar

from pydantic import BeforeValidator, Field, StringConstraints, model_validator

from potq.engine.text_stream import TextStream
from potq.errors import DataError, EngineError
from potq.validation import Strict

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from potq.engine.tokenizer import TextTokenizer

Chat: TypeAlias = Sequence[Mapping[str, str]]  # turns of "role" and "content"
Ids: TypeAlias = "Iterable[int] | Tensor"
FinishReason: TypeAlias = Literal["token", "stop", "length", "context"]
Piece = TypeVar("Piece", str, int)


class SettingsFields(TypedDict, total=False):
    """:class:`Settings` as keyword arguments."""

    max_new_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    seed: int | None
    stop: str | Sequence[str]
    stop_token_ids: Sequence[int] | None


def _several(stop: object) -> object:
    return (stop,) if isinstance(stop, str) else stop


class Settings(Strict):
    """How a text goes on. Tokens are drawn in this order: repetition penalty, temperature, top-k, top-p, min-p.

    Attributes:
        max_new_tokens: at most so many.
        temperature: 0 takes the likeliest token.
        top_k: of the k likeliest; 0 is all.
        top_p: of the fewest likeliest that have this probability together; 1 is all.
        min_p: of those at least this probable, relative to the likeliest; 0 is all.
        repetition_penalty: divides the logits of tokens that stand in prompt or text (multiplies negative ones).
        seed: the same seed draws the same tokens; None draws others each time.
        stop: a text, or several, that end the text before them.
        stop_token_ids: tokens that end the text before them; None is those of generation_config.json, else of config.json.

    Raises:
        ConfigError: a value out of range; top_k, top_p, min_p or a seed at temperature 0, where they change nothing.
    """

    max_new_tokens: Annotated[int, Field(ge=1)] = 128
    temperature: Annotated[float, Field(ge=0, le=100)] = 0.0
    top_k: Annotated[int, Field(ge=0, lt=2**31)] = 0
    top_p: Annotated[float, Field(ge=0, le=1)] = 1.0
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    repetition_penalty: Annotated[float, Field(gt=0, le=100)] = 1.0
    seed: Annotated[int, Field(ge=0, lt=2**64)] | None = None
    stop: Annotated[tuple[Annotated[str, StringConstraints(min_length=1)], ...], BeforeValidator(_several)] = ()
    stop_token_ids: tuple[Annotated[int, Field(ge=0, lt=2**31)], ...] | None = None

    @model_validator(mode="after")
    def _a_draw_has_a_temperature(self) -> Settings:
        if self.temperature == 0:
            fields, draws = type(self).model_fields, ("top_k", "top_p", "min_p", "seed")
            if idle := [name for name in draws if getattr(self, name) != fields[name].default]:
                raise ValueError(
                    f"{', '.join(idle)} has no effect at temperature 0, which takes the likeliest token: "
                    "give a temperature, or leave it out"
                )
        return self


def encode(tokenizer: TextTokenizer, text: str) -> list[int]:
    """Token ids of a text.

    Raises:
        DataError: there is nothing to encode, half a surrogate pair.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"the prompt is not valid Unicode ({error})") from None
    ids = tokenizer.encode(text) if text else []
    if not ids:
        raise DataError("the prompt is empty; give at least one character")
    return ids


def encode_chat(tokenizer: PreTrainedTokenizerBase, chat: Sequence[Mapping[str, Any]], **told: Any) -> list[int]:
    """Token ids of a chat as its template writes it, up to where the model's turn begins.

    Args:
        told: what else the template is told, such as ``tools``.

    Raises:
        DataError: no (or a failing) chat template.
    """
    if not tokenizer.chat_template:
        raise DataError("the tokenizer has no chat template; give the prompt as a text")
    try:
        encoded = tokenizer.apply_chat_template(list(chat), add_generation_prompt=True, return_dict=True, **told)
    except Exception as error:  # whatever a template raises
        raise DataError(f"the chat template refuses this chat ({error})") from error
    ids: list[int] = encoded["input_ids"]
    return ids


def is_chat(prompt: object) -> TypeGuard[Chat]:
    """Whether it is turns, rather than a text or token ids."""
    return isinstance(prompt, Sequence) and len(prompt) > 0 and isinstance(prompt[0], Mapping)


def token_ids(ids: Ids) -> array[int]:
    """``ids`` as int32; a tensor may have the shape ``(count,)`` or ``(1, count)``.

    Raises:
        DataError: they are not 32-bit integers in one sequence.
    """
    if isinstance(ids, bytes | bytearray):
        raise DataError("a prompt of bytes is neither a text nor token ids; decode it")
    if _is_tensor(ids):
        if ids.ndim == 2 and len(ids) == 1:
            ids = ids[0]
        if ids.ndim != 1:
            raise DataError(f"one sequence of token ids is (count,) or (1, count); the tensor is {tuple(ids.shape)}")
        ids = ids.tolist()
    try:
        return array("i", iter(ids))
    except (TypeError, OverflowError) as error:
        raise DataError(f"token ids are whole numbers in one sequence ({error})") from None


def _is_tensor(ids: Ids) -> TypeGuard[Tensor]:
    """Asked without loading torch: without it there are none."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(ids, torch.Tensor)


class Generation(Iterator[Piece], Generic[Piece]):
    """Pieces of a text as they are generated: of text where the prompt was text or a chat, else token ids.

    Breaking off is allowed at any time.

    Attributes:
        ids: the new tokens so far, without the one that ended the text.
        finish_reason: why it ended: one of the model's end tokens (``"token"``), a stop text (``"stop"``),
            ``max_new_tokens`` (``"length"``), a full context (``"context"``); None before it did.
    """

    def __init__(
        self,
        step: Callable[[], int | FinishReason],
        settings: Settings,
        stream: TextStream | None,
        decode: Callable[[list[int]], str],
    ) -> None:
        self.ids: list[int] = []
        self.finish_reason: FinishReason | None = None
        self._step, self._settings = step, settings
        self._stream, self._decode = stream, decode
        self._pieces: Generator[Any, None, None] = self._tokens() if stream is None else self._texts(stream)

    @property
    def text(self) -> str:
        """The text so far."""
        return self._decode(self.ids) if self._stream is None else self._stream.text

    def finish(self) -> Self:
        """Generates what is left."""
        for _ in self:
            pass
        return self

    def __next__(self) -> Piece:
        if inspect.getgeneratorstate(self._pieces) == inspect.GEN_RUNNING:
            raise EngineError("another thread waits for this text already; a text has one reader at a time")
        piece: Piece = next(self._pieces)
        return piece

    def _tokens(self) -> Generator[int, None, None]:
        while self.finish_reason is None:
            token = self._step()
            if isinstance(token, str):
                self.finish_reason = token
                return
            self.ids.append(token)
            if len(self.ids) == self._settings.max_new_tokens:
                self.finish_reason = "length"
            yield token

    def _texts(self, stream: TextStream) -> Generator[str, None, None]:
        for token in self._tokens():
            piece = stream.put(token)
            if stream.stopped:
                self.finish_reason = "stop"
            if piece:
                yield piece
        if piece := stream.finish():
            yield piece
