"""Many texts at once on one engine (``csrc/engine/scheduler.h``)."""

from __future__ import annotations

import ctypes
import os
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, NoReturn, TypeAlias

from potq import native
from potq.engine.engine import Engine, sampling_of, whole
from potq.engine.generation import Settings, token_ids
from potq.errors import EngineError

if TYPE_CHECKING:
    from numpy.typing import NDArray

Finish: TypeAlias = Literal["stop", "length", "cancelled", "error"]
Mask: TypeAlias = "Callable[[Sequence[int]], bytes | NDArray[Any] | None]"

_FINISHES: tuple[Finish | None, ...] = (None, "stop", "length", "cancelled", "error")  # potq_finish
_MOST = 2**31 - 1


class TokenLogprobs(NamedTuple):
    """How likely a token was, by the model's own outputs: before penalties, temperature and masks.

    Attributes:
        token: its id.
        logprob: natural logarithm of its probability.
        top: the likeliest tokens with theirs, likeliest first, as many as the request asked for.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Event:
    """What a step brought to a text.

    Attributes:
        request: its id, from :meth:`Scheduler.submit`.
        token: the new token; None where the text only ends. The token that ends a text is not part of it.
        logprobs: of that token, or of the one that ended the text, if they were asked for.
        prompt_logprobs: with the first event of a request that asked for ``echo`` and logprobs: an entry for each of the
            prompt's last ``echo`` tokens; None for its first.
        finish: why the text ended, None while it goes on: an end token (``"stop"``), ``max_new`` or a full context
            (``"length"``), :meth:`Scheduler.cancel`, an error.
        message: the error.
    """

    request: int
    token: int | None = None
    logprobs: TokenLogprobs | None = None
    prompt_logprobs: tuple[TokenLogprobs | None, ...] | None = None
    finish: Finish | None = None
    message: str | None = None


@dataclass(frozen=True)
class Statistics:
    """How a scheduler stands.

    Attributes:
        running: texts that have a slot.
        waiting: texts that wait for one, or for room in the cache.
        pages_used: pages of the cache that running texts hold.
        pages_total: all of them.
        shared_tokens: tokens of prompts, so far, that were not computed since another text began alike.
    """

    running: int
    waiting: int
    pages_used: int
    pages_total: int
    shared_tokens: int


@dataclass
class _Text:
    """What Python keeps of a text."""

    echo: int
    mask: Mask | None
    made: list[int]


class Scheduler:
    """Texts that are generated together, on the engine's model.

    Texts come and go at any token. A text is the same, to the bit, whatever others there are. What a prompt begins with is
    not computed again if another text, running or ended, began so: keys and values lie in pages of 64 tokens, which texts
    share. One thread calls it. The engine stays open as long; its own texts and the scheduler's do not disturb each other.

    Args:
        engine: an open engine.
        slots: texts that are computed at once, 1 to 64; others wait.
        cache_bytes: the most memory for keys and values; what all slots can use by default, or a quarter of the machine's
            memory where that is less.
        chunk: tokens of prompts in a step in which other texts go on, 1 to 128. Fewer let texts flow, more read prompts
            sooner. Where more prompts wait than texts go on, it is as many times more.

    Attributes:
        cache_bytes: the most memory for keys and values.

    Raises:
        ConfigError: a number that cannot be.
        EngineError: no memory.

    Example:
        >>> import potq
        >>> from potq.engine.scheduler import Scheduler
        >>> with potq.Engine("packed", threads=1) as engine:
        ...     scheduler = Scheduler(engine, slots=2)
        ...     first = scheduler.submit([1, 2, 3], max_new=4)
        ...     second = scheduler.submit([1, 2, 5], max_new=4)
        ...     events = []
        ...     while not scheduler.idle:
        ...         events += scheduler.step()
        >>> sum(event.finish is not None for event in events)
        2
    """

    def __init__(self, engine: Engine, *, slots: int = 16, cache_bytes: int | None = None, chunk: int = 16) -> None:
        options = native.SchedulerOptions(
            slots=whole("slots", slots, 1, 64),
            chunk=whole("chunk", chunk, 1, 128),
            cache_bytes=0 if cache_bytes is None else whole("cache_bytes", cache_bytes, 1, 2**63 - 1),
        )
        self._engine, self._library = engine, native.library()
        self._message = ctypes.create_string_buffer(2048)
        self._reason = self._message, len(self._message)
        with engine.in_use() as handle:
            self._handle = self._library.potq_scheduler_open(handle, options, *self._reason)
        if not self._handle:
            self._fail()
        self._closing = weakref.finalize(self, _close, self._library, self._handle, os.getpid())
        self._texts: dict[int, _Text] = {}
        self._failed: list[Event] = []  # by their masks, between two steps
        self.cache_bytes: int = self._facts().cache_bytes

    def submit(
        self,
        tokens: Sequence[int],
        *,
        max_new: int,
        sampling: Settings | None = None,
        stop_tokens: Sequence[int] | None = None,
        logprobs: int = 0,
        echo: int = 0,
        mask: Mask | None = None,
    ) -> int:
        """Queue a text; returns its id.

        Args:
            tokens: the prompt.
            max_new: new tokens, at most; fewer where the context ends. 0 reads the prompt alone.
            sampling: how tokens are drawn (its ``max_new_tokens`` and stops play no part); greedily by default.
            stop_tokens: tokens that end the text before them; None: the model's own.
            logprobs: how many of the likeliest tokens each token's :class:`TokenLogprobs` lists; 0: none are made.
            echo: logprobs of so many of the prompt's last tokens, too. What stands before them may be shared.
            mask: called with the new tokens so far, before each is chosen; returns which may be, a bit for each token
                (token i is bit ``i % 8`` of byte ``i // 8``), or None for all.

        Raises:
            ConfigError: a number that cannot be.
            DataError: invalid ids.
            EngineError: a request that can never be served: an empty prompt, ids outside the vocabulary, more than the
                context or the cache holds.
        """
        prompt = token_ids(tokens)
        address, count = prompt.buffer_info()
        sampling = sampling or Settings()
        ends = None if stop_tokens is None else token_ids(stop_tokens)
        request = native.Request(
            prompt=address,
            count=count,
            ends=None if ends is None else (ctypes.c_int32 * max(len(ends), 1))(*ends),
            end_count=len(ends or ()),
            most=whole("max_new", max_new, 0, _MOST),
            logprobs=whole("logprobs", logprobs, 0, _MOST),
            echo=whole("echo", echo, 0, _MOST),
            sampling=sampling_of(sampling),
        )
        with self._engine.in_use():
            number: int = self._library.potq_scheduler_submit(self._handle, request, *self._reason)
        if number < 0:
            self._fail()
        self._texts[number] = _Text(min(echo, count) if logprobs else 0, mask, [])
        self._allow(number)
        return number

    def step(self) -> list[Event]:
        """One forward pass: the next tokens of running texts, and a part of a prompt. Returns what it brought."""
        with self._engine.in_use():
            count = self._library.potq_scheduler_step(self._handle, *self._reason)
        if count < 0:
            self._fail()
        events, self._failed = self._failed, []
        found = native.Event()
        for index in range(count):
            self._library.potq_scheduler_event(self._handle, index, found)
            if found.request in self._texts:
                events.append(self._event(found))
        return events

    def cancel(self, request: int) -> None:
        """End a text; its room is free at once, and the next step says so. Ids of texts that ended are ignored."""
        if request in self._texts:
            with self._engine.in_use():
                self._library.potq_scheduler_cancel(self._handle, request)

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do, nor to say."""
        return not self._texts and not self._failed

    @property
    def statistics(self) -> Statistics:
        """How it stands."""
        facts = self._facts()
        return Statistics(facts.running, facts.waiting, facts.pages_used, facts.pages_total, facts.shared_tokens)

    def _facts(self) -> native.SchedulerFacts:
        facts = native.SchedulerFacts()
        self._library.potq_scheduler_describe(self._handle, facts)
        return facts

    def _event(self, found: native.Event) -> Event:
        text = self._texts[found.request]
        token = None if found.token < 0 else found.token
        finish = _FINISHES[found.finish]
        prompt_logprobs = None
        if text.echo:
            entries = _logprobs(found.prompt_logprobs, found.prompt_entries, found.entries)
            prompt_logprobs = (*[None] * (text.echo - len(entries)), *entries)
            text.echo = 0
        logprobs = None
        if found.logprobs:
            (logprobs,) = _logprobs(found.logprobs, found.entries, found.entries)
        if token is not None:
            text.made.append(token)
        if finish is not None:
            del self._texts[found.request]
        elif text.mask is not None:
            self._allow(found.request)
        message = found.message.decode(errors="replace") if finish == "error" else None
        return Event(found.request, token, logprobs, prompt_logprobs, finish, message)

    def _allow(self, request: int) -> None:
        """Ask a text's mask what may come next. One that fails ends its text, and no other."""
        text = self._texts[request]
        if text.mask is None:
            return
        try:
            allowed = text.mask(text.made)
            bits = None if allowed is None else bytes(allowed)
            if self._library.potq_scheduler_allow(self._handle, request, bits, len(bits or b""), *self._reason):
                self._fail()
        except Exception as error:  # whatever a caller's function raises
            self._library.potq_scheduler_cancel(self._handle, request)
            del self._texts[request]
            self._failed.append(Event(request, finish="error", message=f"the mask failed: {error}"))

    def _fail(self) -> NoReturn:
        raise EngineError(self._message.value.decode(errors="replace"))


def _close(library: ctypes.CDLL, handle: int, process: int) -> None:
    if process == os.getpid():
        library.potq_scheduler_close(handle)


def _logprobs(numbers: Any, count: int, each: int) -> list[TokenLogprobs]:
    """``count`` numbers from C, ``each`` for a token: itself, then the likeliest."""
    pairs = [(number.token, number.logprob) for number in numbers[:count]]
    return [TokenLogprobs(*pairs[i], tuple(pairs[i + 1 : i + each])) for i in range(0, count, each)]
