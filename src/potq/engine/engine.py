"""The decode engine: texts from a model folder by the compiled library alone (``csrc/engine``), without torch's modules."""

from __future__ import annotations

import ctypes
import os
import secrets
import threading
import weakref
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Self, Unpack, cast, get_args, overload

from potq import native
from potq.checkpoint.files import read_json
from potq.checkpoint.source import resolve
from potq.config import Activations, check_activations
from potq.engine.generation import (
    Chat,
    FinishReason,
    Generation,
    Ids,
    Settings,
    SettingsFields,
    encode,
    encode_chat,
    is_chat,
    token_ids,
)
from potq.engine.text_stream import TextStream
from potq.engine.threads import default_threads
from potq.engine.tokenizer import TextTokenizer, file_tokenizer, lost_characters
from potq.errors import ConfigError, EngineError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

_MAX_THREADS = 256
_STEP_TOKEN = 5  # of potq_state
_ENDS: dict[int, FinishReason] = {1: "token", 3: "context"}


class Engine:
    """A model that generates one text at a time, on the CPU.

    It computes in threads of its own, while Python's other threads go on. What successive prompts begin with alike is not
    computed again. One thread at a time may use it; others open their own.

    Args:
        path: a folder, packed or not, of GPT-2, Llama, Mistral, Qwen2, Qwen3, Qwen3-MoE, SmolLM3, OLMo 2, OLMoE, Granite,
            Gemma 3 (text), Phi-3 or Mixtral.
        threads: that compute; as many as torch's by default, see :func:`potq.engine.threads.default_threads`.
        context: tokens of room for prompt and text together; as many as the model knows by default.
        activations: whether inputs of packed products are rounded to int8 (fast), or not.

    Attributes:
        context: tokens of room.
        vocabulary: how many token ids there are.
        threads: that compute.
        isa: the instruction set in use.
        weight_bytes: bytes of the weights in memory.

    Raises:
        CheckpointError: ``path`` does not exist.
        ConfigError: ``threads``, ``context``, ``activations`` or ``POTQ_CPU_ISA`` that cannot be.
        EngineError: a model that the engine does not know, damaged files, no memory, no compiled library.

    Example:
        >>> import potq
        >>> with potq.Engine("packed", threads=1) as engine:
        ...     text = engine.generate([1, 2, 3], max_new_tokens=5).finish()
        ...     logits = engine.logits([1, 2, 3])
        >>> len(text.ids), logits.shape
        (5, torch.Size([3, 260]))
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        threads: int | None = None,
        context: int | None = None,
        activations: Activations = "int8",
    ) -> None:
        if reason := native.missing():
            raise EngineError(f"the engine is not available: {reason}")
        self._library = native.library()
        self._message = ctypes.create_string_buffer(2048)  # for the library's errors
        self._reason = self._message, len(self._message)
        self._lock = threading.Lock()
        self._text = 0  # number of the text that is under way
        self._process = os.getpid()
        self.path, self.activations = os.fspath(path), activations
        self._folder = _folder(path)
        options = _options(threads, context, activations)
        self._handle = self._library.potq_engine_open(os.fsencode(self._folder), options, *self._reason)
        if not self._handle:
            self._fail()
        self._closing = weakref.finalize(self, _close, self._library, self._handle, self._process)
        self._closing.atexit = False  # a thread may be at work in it even then
        facts = native.EngineFacts()
        self._library.potq_engine_describe(self._handle, facts)
        self.vocabulary: int = facts.vocabulary
        self.context: int = facts.context
        self.threads: int = facts.threads
        self.isa: str = native.ISAS[facts.isa]
        self.weight_bytes: int = facts.weight_bytes

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's; token ids as prompts need none.

        Raises:
            CheckpointError: it has no tokenizer.
        """
        from potq.checkpoint.loading import load_tokenizer

        return load_tokenizer(self.path)

    @cached_property
    def end_tokens(self) -> tuple[int, ...]:
        """Tokens that end a text: those of generation_config.json, else of config.json."""
        files = [self._folder / name for name in ("generation_config.json", "config.json")]
        found = [read_json(file).get("eos_token_id") for file in files if file.is_file()]
        ids = next((ids for ids in found if ids is not None), ())
        return (ids,) if isinstance(ids, int) else tuple(ids)

    @cached_property
    def _file_tokenizer(self) -> TextTokenizer | None:
        return file_tokenizer(self._folder)

    @property
    def _texts(self) -> TextTokenizer:
        """The tokenizer if it was asked for, which its user may have changed; else its like that needs no transformers."""
        loaded = "tokenizer" in self.__dict__
        return self.tokenizer if loaded or self._file_tokenizer is None else self._file_tokenizer

    def encode(self, prompt: str | Chat) -> list[int]:
        """Token ids of a text, or of a chat as the tokenizer's template writes it, up to where the model's turn begins.

        Raises:
            CheckpointError: no tokenizer.
            DataError: an empty prompt, half a surrogate pair, a chat without template.

        Example:
            >>> import potq
            >>> engine = potq.Engine("packed", threads=1)
            >>> engine.decode(engine.encode("the cat"))
            'the cat'
        """
        return encode_chat(self.tokenizer, prompt) if is_chat(prompt) else encode(self._texts, cast("str", prompt))

    def decode(self, ids: list[int]) -> str:
        """The text of token ids, special tokens left out.

        Raises:
            CheckpointError: no tokenizer.
        """
        return self._texts.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def lost(self, text: str) -> str:
        """Characters of ``text``, each once, that vanish: the tokenizer has no tokens for them, nor for their bytes.

        Raises:
            CheckpointError: no tokenizer.
        """
        return lost_characters(self._texts, text)

    @overload
    def generate(self, prompt: str | Chat, **settings: Unpack[SettingsFields]) -> Generation[str]: ...
    @overload
    def generate(self, prompt: Ids, **settings: Unpack[SettingsFields]) -> Generation[int]: ...
    def generate(self, prompt: str | Chat | Ids, **settings: Unpack[SettingsFields]) -> Generation[Any]:
        """Continue a prompt, piece by piece: ``for piece in engine.generate("Hello"): print(piece, end="")``.

        ``engine.generate("Hello").finish().text`` is the whole. The next call ends a text that was left unfinished.

        Args:
            prompt: a text; a chat (turns of ``{"role": ..., "content": ...}``, written by the tokenizer's template); or
                token ids: integers, or a tensor ``(count,)`` or ``(1, count)``. Ids give ids, the others text.
            settings: see :class:`potq.engine.generation.Settings`.

        Raises:
            CheckpointError: a prompt of text, and no tokenizer.
            ConfigError: settings out of range; stop texts with a prompt of ids.
            DataError: an empty prompt, invalid ids, a chat without template.
            EngineError: ids outside the vocabulary, a prompt that is longer than the context, an engine that is in use or
                closed. While it generates: outputs that are not finite.
        """
        given: dict[str, Any] = {**settings}
        chosen = Settings(**given)
        stream = None
        if isinstance(prompt, str) or is_chat(prompt):
            ids = array("i", self.encode(prompt))
            stream = TextStream(self._texts, ids, chosen.stop)
        elif chosen.stop:
            raise ConfigError("stop texts are for prompts of text; look at the ids of a prompt of ids yourself")
        else:
            ids = token_ids(cast("Ids", prompt))
        return Generation(partial(self._next, self._start(ids, chosen)), chosen, stream, self.decode)

    def logits(self, ids: Ids) -> Tensor:
        """What the model expects behind each token: float32 ``(count, vocabulary)``. Ends a text that is under way.

        Raises:
            DataError: invalid ids.
            EngineError: as in :meth:`generate`.
        """
        return self._append(ids, behind=0)

    def reset(self) -> None:
        """Forget what was read, so that the next prompt is computed from its first token."""
        with self.in_use() as engine:
            self._text += 1
            self._library.potq_engine_truncate(engine, 0)

    def close(self) -> None:
        """Give its memory and threads back; it is of no use afterwards.

        Raises:
            EngineError: another thread is using it.
        """
        if self._closing.alive and self._process == os.getpid():
            with self.in_use():
                self._closing()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = f"context={self.context}, threads={self.threads}, isa={self.isa!r}" if self._closing.alive else "closed"
        return f"Engine({self.path!r}, activations={self.activations!r}, {state})"

    def __reduce__(self) -> NoReturn:
        raise EngineError(f"an engine cannot be pickled or copied; open {self.path} again")

    @contextmanager
    def in_use(self) -> Iterator[int]:
        """The C engine, for :class:`potq.engine.scheduler.Scheduler`: nobody else may use it meanwhile.

        Raises:
            EngineError: another thread uses it, it is closed, or this process was forked since.
        """
        if self._process != os.getpid():  # its threads stayed behind
            raise EngineError("the engine was opened before this process was forked; open it after")
        if not self._lock.acquire(blocking=False):
            raise EngineError("another thread is using the engine; one thread at a time may, open one engine for each")
        try:
            if not self._closing.alive:
                raise EngineError(f"the engine is closed; open {self.path} again")
            yield self._handle
        finally:
            self._lock.release()

    def _fail(self) -> NoReturn:
        raise EngineError(self._message.value.decode(errors="replace"))

    def _start(self, ids: array[int], settings: Settings) -> int:
        """Begin a text; returns its number."""
        ends = (
            None
            if settings.stop_token_ids is None
            else (ctypes.c_int32 * max(len(settings.stop_token_ids), 1))(*settings.stop_token_ids)
        )
        with self.in_use() as engine:
            kept = self._library.potq_engine_start(
                engine, *ids.buffer_info(), sampling_of(settings), ends, len(settings.stop_token_ids or ()), *self._reason
            )
            if kept < 0:
                self._fail()
            self._text += 1
            return self._text

    def _next(self, text: int) -> int | FinishReason:
        """The next token, or the reason why the text ends."""
        token = ctypes.c_int32()
        while True:  # a long prompt takes several steps; in between, Ctrl-C is heard
            with self.in_use() as engine:
                if text != self._text:
                    raise EngineError("this text was ended by a later use of the engine; finish one before the next")
                step = self._library.potq_engine_next(engine, token, *self._reason)
                if step < 0:
                    self._fail()
            if step == _STEP_TOKEN:
                return token.value
            if step in _ENDS:
                return _ENDS[step]

    def _append(self, ids: Ids, *, behind: int, all: bool = True) -> Tensor:
        """Logits of tokens that follow the first ``behind`` of the sequence, or (``all=False``) of the last one alone."""
        import torch

        tokens = token_ids(ids)
        logits = torch.empty(len(tokens) if all else 1, self.vocabulary, dtype=torch.float32, device="cpu")
        with self.in_use() as engine:
            self._text += 1
            if self._library.potq_engine_truncate(engine, behind):
                raise EngineError(f"the sequence has fewer than {behind} tokens")
            if self._library.potq_engine_append(engine, *tokens.buffer_info(), logits.data_ptr(), all, *self._reason):
                self._fail()
        return logits


def _close(library: ctypes.CDLL, handle: int, process: int) -> None:
    if process == os.getpid():  # a forked process has its memory, but not its threads
        library.potq_engine_close(handle)


def _folder(path: str | os.PathLike[str]) -> Path:
    where = resolve(path)
    if where.gguf_file is not None:
        raise EngineError(
            f"the engine reads folders of safetensors, {path} is a GGUF file; potq quantize makes a folder of it"
        )
    if where.folder is None:
        raise EngineError(f"the engine reads folders, and {path} is none here; download or potq quantize a model of the hub")
    return where.folder


def _options(threads: int | None, context: int | None, activations: Activations) -> native.EngineOptions:
    check_activations(activations)
    return native.EngineOptions(
        threads=min(default_threads(), _MAX_THREADS) if threads is None else whole("threads", threads, 1, _MAX_THREADS),
        context=0 if context is None else whole("context", context, 1, 2**31 - 1),
        arithmetic=get_args(Activations).index(activations),
        isa=native.usable_isas()[native.isa()],
    )


def sampling_of(settings: Settings) -> native.EngineSampling:
    """The settings as the library takes them; without a seed, a random one."""
    return native.EngineSampling(
        temperature=settings.temperature,
        top_p=settings.top_p,
        min_p=settings.min_p,
        repetition_penalty=settings.repetition_penalty,
        top_k=settings.top_k,
        seed=secrets.randbits(64) if settings.seed is None else settings.seed,
    )


def whole(name: str, value: int, least: int, most: int) -> int:
    """``value``, a setting called ``name``.

    Raises:
        ConfigError: it is not an integer, or out of range.
    """
    if not isinstance(value, int) or not least <= value <= most:
        raise ConfigError(f"invalid {name} {value!r}; use an integer in {least}..{most}")
    return value
