"""Tokens to text: pieces as they come, stop texts, log-probabilities beside the text they belong to."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from potq.engine.scheduler import Event, TokenLogprobs
    from potq.engine.text_stream import TextStream
    from potq.serve.worker import Batch

Ended: TypeAlias = Literal["stop", "length"]


@dataclass
class Piece:
    """A piece of a text.

    Attributes:
        text: whole characters, nothing of a stop text.
        tokens: how many were made since the piece before.
        logprobs: of the tokens that the text is made of; in the last piece of the token that ended it, too.
        prompt: those of the prompt, in the first piece, where they were asked for.
        finish: why the text ended, in its last piece.
    """

    text: str = ""
    tokens: int = 0
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    prompt: Sequence[TokenLogprobs | None] | None = None
    finish: Ended | None = None

    def add(self, event: Event, stream: TextStream) -> None:
        """What ``event`` brings to the text of ``stream``."""
        self.prompt = event.prompt_logprobs or self.prompt
        if event.logprobs is not None:
            self.logprobs.append(event.logprobs)
        if event.token is not None:
            self.tokens += 1
            self.text += stream.put(event.token)
        if event.finish is not None and not stream.stopped:
            self.text += stream.finish()
            self.finish = "length" if event.finish == "length" else "stop"
        if stream.stopped:  # what stands behind belongs to the stop text
            self.finish, self.logprobs = "stop", []


async def pieces(batch: Batch, streams: Sequence[TextStream]) -> AsyncIterator[tuple[int, Piece]]:
    """What the texts of ``batch`` say, with their indices. A text is cancelled where a stop text ends it.

    Raises:
        PotqError: as in :meth:`potq.serve.worker.Batch.events`.
    """
    held = [Piece() for _ in streams]
    async for index, event in batch.events():
        piece, stream = held[index], streams[index]
        if stream.stopped:
            continue  # tokens that were made before the engine heard of it
        piece.add(event, stream)
        if stream.stopped:
            batch.cancel(index)
        if piece.text or piece.prompt or piece.finish:
            held[index] = Piece()
            yield index, piece
