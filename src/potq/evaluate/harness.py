"""The decode engine as a model of lm-evaluation-harness (extra ``eval``): its questions are answered many at once."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, has_bos_prefix, normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from potq.engine.generation import Settings
from potq.engine.scheduler import Event, Scheduler
from potq.engine.text_stream import TextStream
from potq.errors import ConfigError, DataError, EngineError

if TYPE_CHECKING:
    from potq.engine.engine import Engine
    from potq.nn.report import Progress

NEW_TOKENS = 256  # of an answer, where a task does not say; the harness's own number
_WAITING = 4  # texts per slot that are submitted: those behind them need no memory yet
_DRAWN = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


class _Question(Protocol):
    """What the scheduler is asked, and the answer as it comes."""

    tokens: Sequence[int]

    def submit(self, scheduler: Scheduler) -> int:
        """Queue it."""

    def take(self, event: Event) -> bool:
        """Whether the answer is complete with this event."""


Asked = TypeVar("Asked", bound=_Question)


@dataclass
class Score:
    """How likely the end of a text is.

    Its last token is forced rather than read: so a text may be one token longer than the context, as with the harness's own
    models, and nothing is computed that no answer needs.

    Attributes:
        tokens: the whole text, at least one token more than ``count``.
        count: tokens of its end.
        vocabulary: how many token ids there are.
        logprob: of the end, in nats.
        greedy: each of its tokens is the likeliest.
    """

    tokens: Sequence[int]
    count: int
    vocabulary: int
    logprob: float = math.nan
    greedy: bool = False

    def submit(self, scheduler: Scheduler) -> int:
        *read, last = self.tokens
        mask = bytearray(-(-self.vocabulary // 8))
        mask[last // 8] = 1 << last % 8
        forced, echo = bytes(mask), self.count - 1
        return scheduler.submit(read, max_new=1, stop_tokens=(), logprobs=1, echo=echo, mask=lambda _: forced)

    def take(self, event: Event) -> bool:
        entries = [entry for entry in (*(event.prompt_logprobs or ()), event.logprobs) if entry is not None]
        self.logprob = math.fsum(entry.logprob for entry in entries)
        self.greedy = all(entry.top[0][0] == entry.token for entry in entries)
        return True


@dataclass
class Answer:
    """A text that the model writes.

    Attributes:
        tokens: the prompt.
        most: new tokens, at most.
        settings: how they are drawn.
        stream: makes text of them, up to a stop text.
    """

    tokens: Sequence[int]
    most: int
    settings: Settings
    stream: TextStream

    def submit(self, scheduler: Scheduler) -> int:
        return scheduler.submit(self.tokens, max_new=self.most, sampling=self.settings)

    def take(self, event: Event) -> bool:
        if event.token is not None:
            self.stream.put(event.token)
        if event.finish is not None:
            self.stream.finish()
        return self.stream.stopped or event.finish is not None


class EngineLM(TemplateLM):
    """An engine that answers what lm-evaluation-harness asks. Texts that begin alike are computed once.

    Args:
        engine: an open engine, whose folder has a tokenizer.
        slots: texts that are computed at once.
        progress: called with questions that are answered, and all of their kind.

    Raises:
        CheckpointError: no tokenizer.

    Example:
        >>> import lm_eval, potq
        >>> from potq.evaluate.harness import EngineLM
        >>> with potq.Engine("packed", threads=1, activations="float") as engine:
        ...     [(logprob, greedy)] = EngineLM(engine).score([([1, 2], [3, 4])])
        >>> logprob < 0, greedy
        (True, False)
    """

    def __init__(self, engine: Engine, *, slots: int = 16, progress: Progress | None = None) -> None:
        super().__init__()
        self.tokenizer = engine.tokenizer
        self.max_length = engine.context
        self._vocabulary, self._slots = engine.vocabulary, slots
        self._scheduler = Scheduler(engine, slots=slots)
        self._progress = progress

    @property
    def eot_token_id(self) -> int | None:
        """The token that ends a text."""
        token: int | None = self.tokenizer.eos_token_id
        return token

    @property
    def prefix_token_id(self) -> int:
        """The token that stands before a text without context.

        Raises:
            DataError: the tokenizer has none.
        """
        begins = self.tokenizer.bos_token_id
        token = self.eot_token_id if begins is None else begins
        if token is None:
            raise DataError("the tokenizer has neither a token that begins nor one that ends a text; the task needs one")
        return int(token)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Token ids of a text, as the tokenizer begins one, unless the text begins so itself."""
        if add_special_tokens is None:
            begins = [token for token in (self.tokenizer.bos_token, self.tokenizer.eos_token) if token is not None]
            add_special_tokens = not has_bos_prefix(string, begins[:1])
        ids: list[int] = self.tokenizer.encode(string, add_special_tokens=add_special_tokens)
        return ids

    def score(self, pairs: Iterable[tuple[Sequence[int], Sequence[int]]]) -> list[tuple[float, bool]]:
        """For each context and continuation, as token ids: the continuation's log-probability in nats, and whether each of
        its tokens is the likeliest. A context that is too long loses its beginning.

        Raises:
            DataError: an empty one, or a continuation longer than the model's context.
        """
        asked = [self._score(context, continuation) for context, continuation in pairs]
        self._ask(asked, "likelihoods")
        return [(question.logprob, question.greedy) for question in asked]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-probabilities of whole texts, window by window."""
        windows = [self._windows(*request.args) for request in requests]
        scores = iter(self.score(pair for some in windows for pair in some))
        return [math.fsum(next(scores)[0] for _ in some) for some in windows]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """What the model writes after each context, up to one of the task's stop texts."""
        asked = [self._answer(*request.args, seed=number) for number, request in enumerate(requests)]
        self._ask(asked, "answers")
        return [question.stream.text for question in asked]

    def _loglikelihood_tokens(self, requests: Sequence[Any], **_: Any) -> list[tuple[float, bool]]:
        return self.score((context, continuation) for _, context, continuation in requests)

    def _score(self, context: Sequence[int], continuation: Sequence[int]) -> Score:
        if not context or not continuation:
            raise DataError("a question of the task has an empty context or answer")
        if len(continuation) > self.max_length:
            raise DataError(f"an answer of the task has {len(continuation)} tokens, the model's context {self.max_length}")
        tokens = [*context, *continuation][-(self.max_length + 1) :]
        return Score(tokens, len(continuation), self._vocabulary)

    def _windows(self, text: str) -> list[tuple[list[int], list[int]]]:
        """A text in pieces that fit, each with the context that it has room for."""
        ids = self.tok_encode(text)
        pieces = get_rolling_token_windows(ids, self.prefix_token_id, self.max_length, 1)
        return [make_disjoint_window(piece) for piece in pieces]

    def _answer(self, context: str, told: Mapping[str, Any], *, seed: int) -> Answer:
        ends = None if self.eot_token_id is None else self.tokenizer.decode([self.eot_token_id])
        until, most, settings = _told(told, ends, seed)
        if most >= self.max_length:
            raise DataError(f"the task wants answers of {most} tokens, the model's context has {self.max_length}")
        ids = self.tok_encode(context)[-(self.max_length - most) :]
        return Answer(ids, most, settings, TextStream(self.tokenizer, ids, until))

    def _ask(self, questions: Sequence[Asked], what: str) -> None:
        """Have them all answered. Those that begin alike come one after another, so that one finds the other's pages."""
        order = iter(sorted(questions, key=lambda question: list(question.tokens)))
        asked: dict[int, Asked] = {}
        done = 0
        while self._fill(asked, order):
            for event in self._scheduler.step():
                if (question := asked.get(event.request)) is None:
                    continue  # cancelled
                if event.finish == "error":
                    raise EngineError(event.message or "the engine failed")
                if question.take(event):
                    del asked[event.request]
                    self._scheduler.cancel(event.request)
                    done += 1
                    if self._progress is not None:
                        self._progress(done, len(questions), what)

    def _fill(self, asked: dict[int, Asked], order: Iterator[Asked]) -> bool:
        """Submit what has room to wait; False where all is answered."""
        while len(asked) < _WAITING * self._slots and (question := next(order, None)) is not None:
            asked[question.submit(self._scheduler)] = question
        return bool(asked)


def _told(told: Mapping[str, Any], ends: str | None, seed: int) -> tuple[list[str], int, Settings]:
    """What a task says of its answers: stop texts, new tokens, how they are drawn.

    Raises:
        ConfigError: something that the engine does not have.
    """
    rest = dict(normalize_gen_kwargs(dict(told), NEW_TOKENS))
    until, most = handle_stop_sequences(rest.pop("until"), ends), rest.pop("max_gen_toks")
    greedy = not rest.pop("do_sample") or not rest.get("temperature")
    drawn = {name: rest.pop(name) for name in _DRAWN if name in rest}
    if rest:
        raise ConfigError(f"the task wants {', '.join(rest)}, which the engine does not have; use --no-engine")
    if greedy:
        drawn = {name: value for name, value in drawn.items() if name == "repetition_penalty"}
    else:
        drawn["seed"] = seed
    return until, most, Settings(**drawn)
