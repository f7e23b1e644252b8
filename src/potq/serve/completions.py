"""``/v1/completions``: texts and token ids continued."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from fastapi import Request, Response

from potq.serve.answers import Answer, head, streamed, whole
from potq.serve.failures import RequestError
from potq.serve.places import Places
from potq.serve.requests import MOST_TEXTS, CompletionRequest
from potq.serve.responses import Completion, CompletionChoice, CompletionLogprobs
from potq.serve.worker import Job

if TYPE_CHECKING:
    from collections.abc import Sequence

    from potq.engine.scheduler import TokenLogprobs
    from potq.serve.pieces import Piece
    from potq.serve.service import Service
    from potq.serve.structure import Vocabulary

_DEFAULT_TOKENS = 16  # the API's


async def complete(service: Service, body: CompletionRequest, request: Request) -> Response:
    """Answer a request for completions.

    Raises:
        PotqError: what cannot be served.
    """
    service.check_model(body.model)
    prompts, ids = body.prompts, service.prompts
    if len(prompts) * body.n > MOST_TEXTS:
        raise RequestError(f"{len(prompts)} prompts with n {body.n}; a request may have {MOST_TEXTS} texts", param="n")
    encoded = await ids.run(lambda: [ids.ids(prompt) for prompt in prompts])
    logprobs = 0 if body.logprobs is None else max(body.logprobs, 1)
    most = _DEFAULT_TOKENS if body.max_tokens is None else body.max_tokens
    jobs = [
        Job(
            tokens,
            most,
            body.sampling(text),
            logprobs,
            echo=len(tokens) if body.echo else 0,
            stop_tokens=() if body.ignore_eos else None,
        )
        for tokens in encoded
        for text in range(body.n)
    ]
    echoed = [""] * len(jobs)
    if body.echo:
        texts = await ids.run(lambda: [p if isinstance(p, str) else ids.text(p) for p in prompts])
        echoed = [text for text in texts for _ in range(body.n)]
    writer = _Writer(service, body, [job.tokens[0] for job in jobs], echoed)
    answer = await service.write(jobs, body.stop)
    if body.stream:
        return await streamed(request, answer, writer.events(answer))
    return await whole(request, answer, lambda: writer.whole(answer))


class _Writer:
    """Pieces as the API's choices."""

    def __init__(self, service: Service, body: CompletionRequest, first: list[int], echoed: list[str]) -> None:
        self._vocabulary = service.vocabulary if body.logprobs is not None else None
        self._body, self._head = body, head("cmpl", service.name)
        self._first, self._echoed = first, echoed
        self._places = [Places(text, service.prompts.special) for text in echoed]

    async def events(self, answer: Answer) -> AsyncIterator[Completion]:
        async for index, piece in answer.pieces():
            yield Completion(**self._head, object="text_completion", choices=[self._choice(index, piece)])
        if self._body.include_usage:
            yield Completion(**self._head, object="text_completion", choices=[], usage=answer.usage)

    async def whole(self, answer: Answer) -> Completion:
        choices: list[CompletionChoice | None] = [None] * len(self._echoed)
        async for index, piece in answer.pieces():
            choices[index] = _joined(choices[index], self._choice(index, piece))
        found = [choice for choice in choices if choice is not None]
        return Completion(**self._head, object="text_completion", choices=found, usage=answer.usage)

    def _choice(self, index: int, piece: Piece) -> CompletionChoice:
        echoed, self._echoed[index] = self._echoed[index], ""
        logprobs = None
        if self._vocabulary is not None:
            entries = [*(piece.prompt or ()), *piece.logprobs]
            logprobs = self._logprobs(self._vocabulary, index, entries)
        return CompletionChoice(index=index, text=echoed + piece.text, logprobs=logprobs, finish_reason=piece.finish)

    def _logprobs(self, vocabulary: Vocabulary, index: int, entries: Sequence[TokenLogprobs | None]) -> CompletionLogprobs:
        found = CompletionLogprobs(tokens=[], token_logprobs=[], top_logprobs=[], text_offset=[])
        for entry in entries:  # a prompt's first token has none: nothing stands before it
            token = self._first[index] if entry is None else entry.token
            text = vocabulary.text_of(token)
            top = () if entry is None else entry.top[: self._body.logprobs]
            found.tokens.append(text)
            found.token_logprobs.append(None if entry is None else entry.logprob)
            found.top_logprobs.append(None if entry is None else {vocabulary.text_of(token): p for token, p in top})
            found.text_offset.append(self._places[index].take(token, vocabulary.bytes_of(token)))
        return found


def _joined(before: CompletionChoice | None, piece: CompletionChoice) -> CompletionChoice:
    if before is None:
        return piece
    before.text += piece.text
    before.finish_reason = piece.finish_reason
    if before.logprobs is not None and piece.logprobs is not None:
        for name, values in piece.logprobs:
            getattr(before.logprobs, name).extend(values)
    return before
