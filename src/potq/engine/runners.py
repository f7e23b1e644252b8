"""The two ways to generate: the decode engine where it knows the model, else transformers' modules."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, TypedDict, Unpack

import torch

from potq.checkpoint.loading import load, load_tokenizer
from potq.engine.engine import Engine
from potq.engine.generation import encode
from potq.engine.text_stream import TextStream
from potq.errors import EngineError
from potq.kernels import use_kernels
from potq.nn.plan import longest_text

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from potq.engine.generation import Chat, Settings
    from potq.kernels import Activations

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


class Runner(Protocol):
    """A loaded model that generates.

    Attributes:
        name: "engine" or "modules".
        lines: what computes, for people.
        kernels: the kernels of the modules, and how many modules run on each.
        limit: tokens of prompt and text together, if there is a limit.
        why_not_engine: None if it is the engine.
    """

    name: str
    why_not_engine: str | None
    lines: list[str]
    kernels: dict[str, int]
    tokenizer: PreTrainedTokenizerBase
    limit: int | None

    def run(self, prompt: str | Chat, settings: Settings, write: Write) -> tuple[str, int]:
        """Gives the pieces of the text to ``write``; returns the text, and how many tokens it took."""


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
        >>> text, count = runner.run("the cat", Settings(max_new_tokens=4), pieces.append)
        >>> text == "".join(pieces), count <= 4
        (True, True)
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
        self.tokenizer, self.limit = self.engine.tokenizer, self.engine.context
        self.lines = [f"the engine ({self.engine.isa}, {self.engine.threads} threads), {activations} activations"]
        self.kernels: dict[str, int] = {}

    def run(self, prompt: str | Chat, settings: Settings, write: Write) -> tuple[str, int]:
        generation = self.engine.generate(prompt, **dict(settings))
        for piece in generation:
            write(piece)
        return generation.text, len(generation.ids)


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
        self.why_not_engine = why_not_engine
        if threads is not None:
            torch.set_num_threads(threads)
        self.tokenizer = load_tokenizer(model)
        self.model: Any = load(model, dtype=dtype, device=device)
        self.limit = longest_text(self.model)
        self.kernels = use_kernels(self.model, activations)
        self.lines = ["transformers' modules", *(f"{count} modules on {kernel}" for kernel, count in self.kernels.items())]

    def run(self, prompt: str | Chat, settings: Settings, write: Write) -> tuple[str, int]:
        encoded = encode(self.tokenizer, prompt)
        stream = TextStream(self.tokenizer, encoded, settings.stop)
        ids = torch.tensor([encoded], device=self.model.device)
        output = self.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            streamer=_Streamer(stream, write),
            stopping_criteria=[lambda ids, *_, **__: torch.full((len(ids),), stream.stopped, device=ids.device)],
            **_options(settings),
        )
        return stream.text, output.shape[1] - ids.shape[1]


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


def _options(settings: Settings) -> dict[str, Any]:
    """Settings as transformers takes them. The seed is set here, and only if it was asked for."""
    options: dict[str, Any] = {
        "max_new_tokens": settings.max_new_tokens,
        "repetition_penalty": settings.repetition_penalty,
    }
    if settings.temperature == 0:
        return {**options, "do_sample": False, "temperature": None, "top_k": None, "top_p": None, "min_p": None}
    if settings.seed is not None:
        torch.manual_seed(settings.seed)
    drawn = {"temperature": settings.temperature, "top_k": settings.top_k, "top_p": settings.top_p}
    return {**options, **drawn, "do_sample": True, "min_p": settings.min_p or None}
