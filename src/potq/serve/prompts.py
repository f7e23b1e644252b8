"""Prompts to tokens, outside the event loop: a long text takes a while."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from potq.engine.generation import encode, encode_chat
from potq.engine.text_stream import TextStream
from potq.errors import DataError
from potq.serve.failures import RequestError
from potq.serve.tools import knows_tools, turns

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from potq.serve.requests import Message, Tool

Found = TypeVar("Found")


class Prompts:
    """What a model's tokenizer makes of requests. One thread does it all: tokenizers are not made for several.

    Args:
        tokenizer: the model's.
        vocabulary: token ids that the model knows.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, vocabulary: int) -> None:
        self._tokenizer, self._vocabulary = tokenizer, vocabulary
        self._thread = ThreadPoolExecutor(1, "potq-tokenizer")
        self.special = frozenset(tokenizer.all_special_ids)
        self.template = tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else ""

    async def run(self, work: Callable[[], Found]) -> Found:
        """Do ``work`` in the thread."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def ids(self, prompt: str | list[int]) -> list[int]:
        """Token ids of a text, or those that were given.

        Raises:
            DataError: an empty prompt.
            RequestError: ids outside the vocabulary.
        """
        if isinstance(prompt, str):
            return encode(self._tokenizer, prompt)
        return self._known(prompt)

    def chat(self, messages: Sequence[Message], tools: Sequence[Tool]) -> list[int]:
        """Token ids of a chat, up to where the model's turn begins.

        Raises:
            DataError: the model has no chat template, or it refuses the chat.
        """
        if not self.template:
            raise DataError("the model has no chat template; use /v1/completions")
        own = tools and knows_tools(self.template)
        told: dict[str, Any] = {"tools": [tool.model_dump(exclude_none=True) for tool in tools]} if own else {}
        return encode_chat(self._tokenizer, turns(messages, tools, self.template), **told)

    def text(self, ids: list[int]) -> str:
        """The text of token ids, special tokens included."""
        text: str = self._tokenizer.decode(self._known(ids), clean_up_tokenization_spaces=False)
        return text

    def stream(self, ids: Sequence[int], stops: Sequence[str]) -> TextStream:
        """What makes text of the tokens that follow ``ids``."""
        return TextStream(self._tokenizer, ids, stops)

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _known(self, ids: list[int]) -> list[int]:
        for token in ids:
            if token >= self._vocabulary:
                raise RequestError(f"token {token} is not in the vocabulary of {self._vocabulary}")
        return ids
