"""The two ways to generate: the decode engine where it knows the model, else transformers' modules."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypedDict, Unpack, cast

from potq.checkpoint.files import read_config
from potq.checkpoint.source import resolve
from potq.config import Activations
from potq.engine.engine import Engine
from potq.engine.generation import FinishReason, encode, encode_chat, is_chat
from potq.engine.text_stream import TextStream
from potq.engine.tokenizer import lost_characters
from potq.errors import DataError, EngineError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from potq.engine.generation import Chat, Settings

Write = Callable[[str], None]


class RunnerOptions(TypedDict, total=False):
    """How to run a model.

    Attributes:
        dtype: what the modules compute in; the engine knows "auto" alone.
        device: where the modules run; the engine knows the CPU alone.
        activations: whether inputs of packed products are rounded to int8 (fast), or not.
        threads: that compute; as many as torch's by default.
    """

    dtype: str
    device: str | None
    activations: Activations
    threads: int | None


class Generated(NamedTuple):
    """What a runner wrote.

    Attributes:
        text: all of it.
        tokens: how many it took.
        finish_reason: why it ended: an end token (``"token"``), a stop text (``"stop"``), ``max_new_tokens`` (``"length"``),
            no room for more (``"context"``).
    """

    text: str
    tokens: int
    finish_reason: FinishReason


class Runner(Protocol):
    """A loaded model that generates.

    Attributes:
        name: "engine" or "modules".
        lines: what computes, for people.
        kernels: the kernels of the modules, and how many modules run on each.
        limit: tokens of prompt and text together, if there is a limit.
        continues: the text continues the prompt. An encoder-decoder's answers it, and has the limit for itself.
        why_not_engine: None if it is the engine.
    """

    name: str
    why_not_engine: str | None
    lines: list[str]
    kernels: dict[str, int]
    limit: int | None
    continues: bool

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's."""

    def encode(self, prompt: str | Chat) -> list[int]:
        """Token ids of a prompt, of which there may be ``limit``."""

    def decode(self, ids: list[int]) -> str:
        """The text of token ids, special tokens left out."""

    def lost(self, text: str) -> str:
        """Characters of ``text``, each once, that the tokenizer has no tokens for."""

    def run(self, prompt: str | Chat, settings: Settings, write: Write) -> Generated:
        """Gives the pieces of the text to ``write`` as they come."""


def open_runner(model: str, *, engine: bool | None = None, **options: Unpack[RunnerOptions]) -> Runner:
    """Load ``model``, a folder, ``.gguf`` file or hub name, to generate with.

    Args:
        engine: True for the decode engine, False for transformers' modules, None for the engine if it can.
        options: see :class:`RunnerOptions`.

    Raises:
        EngineError: the engine was asked for and cannot take the model or the options.
        PotqError: the modules cannot load it, as in :func:`potq.load`.

    Example:
        >>> import potq
        >>> from potq.engine.generation import Settings
        >>> runner = potq.open_runner("packed", threads=1)
        >>> runner.name, runner.limit
        ('engine', 128)
        >>> pieces = []
        >>> written = runner.run("the cat", Settings(max_new_tokens=4), pieces.append)
        >>> written.text == "".join(pieces), written.tokens, written.finish_reason
        (True, 4, 'length')
    """
    if engine is False:
        return ModulesRunner(model, "the modules were asked for", **options)
    try:
        return EngineRunner(model, **options)
    except EngineError as error:
        if engine:
            raise
        return ModulesRunner(model, str(error), **options)


class EngineRunner:
    """The decode engine.

    Raises:
        EngineError: it cannot take this model, or these options, which are the modules'.
    """

    name = "engine"
    why_not_engine: str | None = None
    limit: int | None
    continues = True

    def __init__(
        self,
        model: str,
        *,
        dtype: str = "auto",
        device: str | None = None,
        activations: Activations = "int8",
        threads: int | None = None,
    ) -> None:
        if device not in (None, "cpu"):
            raise EngineError(f"the engine runs on the CPU, not on {device}")
        if dtype != "auto":
            raise EngineError(f"the engine computes in float32; dtype {dtype} is for the modules")
        self.engine = Engine(model, threads=threads, activations=activations)
        self.limit = self.engine.context
        packed = "quantization_config" in read_config(resolve(model))
        rounding = f", {activations} activations" if packed else ""  # those of packed products
        self.lines = [f"the engine ({self.engine.isa}, {self.engine.threads} threads){rounding}"]
        self.kernels: dict[str, int] = {}

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.engine.tokenizer

    def encode(self, prompt: str | Chat) -> list[int]:
        ids = self.engine.encode(prompt)
        _room(self.limit, ids)
        return ids

    def decode(self, ids: list[int]) -> str:
        return self.engine.decode(ids)

    def lost(self, text: str) -> str:
        return self.engine.lost(text)

    def run(self, prompt: str | Chat, settings: Settings, write: Write) -> Generated:
        generation = self.engine.generate(prompt, **dict(settings))
        for piece in generation:
            write(piece)
        return Generated(generation.text, len(generation.ids), cast("FinishReason", generation.finish_reason))


class ModulesRunner:
    """The modules that ``potq.load`` loads."""

    name = "modules"

    def __init__(
        self,
        model: str,
        why_not_engine: str | None = None,
        *,
        dtype: str = "auto",
        device: str | None = None,
        activations: Activations = "int8",
        threads: int | None = None,
    ) -> None:
        import torch

        from potq.checkpoint.architecture import require_language_model
        from potq.checkpoint.loading import class_at, load, load_tokenizer
        from potq.kernels.explain import kernel_lines, use_kernels
        from potq.nn.classes import answers, predicts_next
        from potq.nn.properties import longest_text

        self.why_not_engine = why_not_engine
        kind = class_at(model)
        self.continues = kind is None or predicts_next(kind)
        if kind is not None and not answers(kind):
            require_language_model(model, kind, "generating text")
        if threads is not None:
            torch.set_num_threads(threads)
        self.tokenizer = load_tokenizer(model)
        self.model: Any = load(model, dtype=dtype, device=device)
        self.limit = longest_text(self.model)
        self.kernels = use_kernels(self.model, activations)
        self.lines = ["transformers' modules", *kernel_lines(self.kernels)]

    def encode(self, prompt: str | Chat) -> list[int]:
        import torch

        from potq.data.tokens import require_own_tokens

        ids = encode_chat(self.tokenizer, prompt) if is_chat(prompt) else encode(self.tokenizer, cast("str", prompt))
        _room(self.limit, ids)
        require_own_tokens(self.model, torch.tensor(ids), "the prompt")
        return ids

    def decode(self, ids: list[int]) -> str:
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def lost(self, text: str) -> str:
        return lost_characters(self.tokenizer, text)

    def run(self, prompt: str | Chat, settings: Settings, write: Write) -> Generated:
        import torch

        encoded = self.encode(prompt)
        before = encoded if self.continues else []  # the new tokens
        room = _room(self.limit, before)
        stream = TextStream(self.tokenizer, before, settings.stop)
        ids = torch.tensor([encoded], device=self.model.device)
        output = self.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            streamer=_Streamer(stream, write),
            stopping_criteria=[lambda ids, *_, **__: torch.full((len(ids),), stream.stopped, device=ids.device)],
            **_options(settings, room),
        )
        new = output[0, len(before) or 1 :].tolist()  # a decoder of its own begins with a token that is no text
        return Generated(stream.text, len(new), self._reason(new, settings, stopped=stream.stopped))

    def _reason(self, new: list[int], settings: Settings, *, stopped: bool) -> FinishReason:
        if stopped:
            return "stop"
        ends = self.model.generation_config.eos_token_id if settings.stop_token_ids is None else settings.stop_token_ids
        if new and new[-1] in (ends if isinstance(ends, list | tuple) else (ends,)):
            return "token"
        return "length" if len(new) == settings.max_new_tokens else "context"


def _room(limit: int | None, prompt: list[int]) -> int | None:
    """How many tokens may follow a prompt, if there is a limit; the last one needs no position.

    Raises:
        DataError: the prompt alone is too long.
    """
    if limit is None:
        return None
    if len(prompt) > limit:
        raise DataError(f"the prompt has {len(prompt)} tokens, the model's limit is {limit}; shorten it")
    return limit - len(prompt) + 1


class _Streamer:
    """What transformers hands the tokens to; those of the prompt come first."""

    def __init__(self, stream: TextStream, write: Write) -> None:
        self._stream, self._write = stream, write
        self._prompt_came = False

    def put(self, ids: Tensor) -> None:
        for token in ids.flatten().tolist() if self._prompt_came else ():
            self._write(self._stream.put(token))
        self._prompt_came = True

    def end(self) -> None:
        self._write(self._stream.finish())


def _options(settings: Settings, room: int | None) -> dict[str, Any]:
    """Settings as transformers takes them. The seed is set here, and only if it was asked for."""
    import torch

    most = settings.max_new_tokens
    options: dict[str, Any] = {
        "max_new_tokens": most if room is None else min(most, room),
        "repetition_penalty": settings.repetition_penalty,
    }
    if settings.stop_token_ids is not None:
        options["eos_token_id"] = list(settings.stop_token_ids) or [-1]  # no token has that id
    if settings.temperature == 0:
        return {**options, "do_sample": False, "temperature": None, "top_k": None, "top_p": None, "min_p": None}
    if settings.seed is not None:
        torch.manual_seed(settings.seed)
    drawn = {"temperature": settings.temperature, "top_k": settings.top_k, "top_p": settings.top_p}
    return {**options, **drawn, "do_sample": True, "min_p": settings.min_p or None}
