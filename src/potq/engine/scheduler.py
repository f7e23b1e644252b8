"""Many texts at once on one engine."""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import numpy as np

from potq.engine.engine import Engine
from potq.engine.generation import Settings, token_ids
from potq.errors import ConfigError, EngineError, PotqError

if TYPE_CHECKING:
    from numpy.typing import NDArray

Finish: TypeAlias = Literal["stop", "length", "cancelled", "error"]
Mask: TypeAlias = "Callable[[Sequence[int]], bytes | NDArray[Any] | None]"


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
        logprobs: of that token, if they were asked for.
        prompt_logprobs: with the first event of a request that asked for ``echo`` and logprobs: an entry for every token
            of the prompt, None for the first.
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
    request: int
    prompt: list[int]
    most: int
    sampling: Settings
    ends: frozenset[int]
    logprobs: int
    echo: bool
    mask: Mask | None
    made: list[int] = field(default_factory=list)
    random: Any = None


class Scheduler:
    """Texts that are generated together, on the engine's model.

    Texts come and go at any token. One thread calls it; while it lives, the engine is its own.

    Args:
        engine: an open engine.
        slots: texts that are computed at once; others wait.
        cache_bytes: the most memory for keys and values.
        chunk: tokens of prompts in a step in which other texts go on.

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

    def __init__(self, engine: Engine, *, slots: int = 16, cache_bytes: int | None = None, chunk: int = 32) -> None:
        if slots < 1 or chunk < 1:
            raise ConfigError(f"invalid slots or chunk ({slots}, {chunk}); both are at least 1")
        self._engine = engine
        self._texts: deque[_Text] = deque()
        self._cancelled: list[int] = []
        self._next = 1

    def submit(
        self,
        tokens: Sequence[int],
        *,
        max_new: int,
        sampling: Settings | None = None,
        stop_tokens: Sequence[int] | None = None,
        logprobs: int = 0,
        echo: bool = False,
        mask: Mask | None = None,
    ) -> int:
        """Queue a text; returns its id.

        Args:
            tokens: the prompt.
            max_new: new tokens, at most; fewer where the context ends.
            sampling: how tokens are drawn (its ``max_new_tokens`` and stops play no part); greedily by default.
            stop_tokens: tokens that end the text before them; None: the model's own.
            logprobs: how many of the likeliest tokens each token's :class:`TokenLogprobs` lists; 0: none are made.
            echo: logprobs of the prompt's tokens, too.
            mask: called with the new tokens so far, before each is chosen; returns which may be, a bit for each token
                (token i is bit ``i % 8`` of byte ``i // 8``), or None for all.

        Raises:
            EngineError: a request that can never be served: an empty prompt, ids outside the vocabulary, more than the
                context or the cache holds.
        """
        prompt = list(token_ids(tokens))
        sampling = sampling or Settings()
        if not 0 < len(prompt) <= self._engine.context:
            raise EngineError(f"a prompt of {len(prompt)} tokens; the context has room for 1 to {self._engine.context}")
        if any(not 0 <= token < self._engine.vocabulary for token in prompt):
            raise EngineError(f"the prompt has tokens outside the vocabulary of {self._engine.vocabulary}")
        ends = _end_tokens(self._engine._folder) if stop_tokens is None else stop_tokens
        most = min(max_new, self._engine.context - len(prompt) + 1)
        text = _Text(self._next, prompt, most, sampling, frozenset(ends), logprobs, echo, mask)
        text.random = np.random.default_rng(sampling.seed)
        self._texts.append(text)
        self._next += 1
        return text.request

    def step(self) -> list[Event]:
        """One forward pass: the next tokens of running texts, and a part of a prompt. Returns what it brought."""
        events = [Event(request, finish="cancelled") for request in self._cancelled]
        self._cancelled.clear()
        if self._texts:
            text = self._texts[0]
            try:
                event = self._advance(text)
            except PotqError as error:
                event = Event(text.request, finish="error", message=str(error))
            if event.finish:
                self._texts.remove(text)
            events.append(event)
        return events

    def cancel(self, request: int) -> None:
        """End a text; the next step says so. Ids of texts that ended are ignored."""
        for text in self._texts:
            if text.request == request:
                self._texts.remove(text)
                self._cancelled.append(request)
                return

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self._texts and not self._cancelled

    @property
    def statistics(self) -> Statistics:
        """How it stands."""
        running = min(1, len(self._texts))
        return Statistics(running, len(self._texts) - running, 0, 0, 0)

    def _advance(self, text: _Text) -> Event:
        behind = len(text.prompt) + len(text.made) - 1 if text.made else 0
        fed = text.made[-1:] or text.prompt
        logits = self._engine._append(fed, behind=behind).numpy()
        prompt_logprobs = None
        if not text.made and text.echo and text.logprobs:
            rows = zip(logits, text.prompt[1:], strict=False)
            prompt_logprobs = (None, *(_logprobs(row, token, text.logprobs) for row, token in rows))
        if text.most < 1:
            return Event(text.request, prompt_logprobs=prompt_logprobs, finish="length")
        token = self._choose(text, logits[-1])
        if token in text.ends:
            return Event(text.request, prompt_logprobs=prompt_logprobs, finish="stop")
        logprobs = _logprobs(logits[-1], token, text.logprobs) if text.logprobs else None
        text.made.append(token)
        finish: Finish | None = "length" if len(text.made) == text.most else None
        return Event(text.request, token, logprobs, prompt_logprobs, finish)

    def _choose(self, text: _Text, row: NDArray[np.float32]) -> int:
        scores = row.astype(np.float64)
        if text.mask is not None and (bits := text.mask(text.made)) is not None:
            allowed = np.unpackbits(np.frombuffer(bytes(bits), np.uint8), bitorder="little")[: len(scores)]
            scores[allowed == 0] = -math.inf
        if text.sampling.temperature == 0:
            return int(scores.argmax())
        weights = np.exp((scores - scores.max()) / text.sampling.temperature)
        return int(text.random.choice(len(weights), p=weights / weights.sum()))


def _end_tokens(folder: Path) -> list[int]:
    ids = None
    for name in ("config.json", "generation_config.json"):
        if (file := folder / name).exists():
            ids = json.loads(file.read_text()).get("eos_token_id", ids)
    return [ids] if isinstance(ids, int) else ids or []


def _logprobs(row: NDArray[np.float32], token: int, count: int) -> TokenLogprobs:
    scores = row.astype(np.float64) - row.max()
    scores -= math.log(np.exp(scores).sum())
    top = np.argsort(-scores, kind="stable")[:count]
    return TokenLogprobs(token, float(scores[token]), tuple((int(i), float(scores[i])) for i in top))
