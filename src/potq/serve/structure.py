"""Structured output by llguidance: which tokens a JSON schema allows next; and the bytes that each token stands for.

llguidance has no dependencies, refuses keywords that it does not know, bounds the work of a step, and its wheels serve every
Python version.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from llguidance import LLMatcher, LLTokenizer

from potq.errors import EngineError
from potq.serve.failures import RequestError

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions
    from transformers import PreTrainedTokenizerBase

    from potq.engine.scheduler import Mask

_SPACED: JsonCompileOptions = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
ANY_OBJECT: dict[str, Any] = {"type": "object"}


class Vocabulary:
    """A tokenizer's tokens as bytes, and grammars over them.

    Args:
        tokenizer: one that the ``tokenizers`` package runs.
        size: token ids that the model knows.
        ends: tokens that end a text.

    Raises:
        EngineError: a tokenizer in pure Python.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, size: int, ends: Sequence[int]) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise EngineError(f"{type(tokenizer).__name__} has no tokenizer.json; the server needs one")
        self._tokens = LLTokenizer(backend.to_str(), n_vocab=size, eos_token=list(ends) or None)

    def bytes_of(self, token: int) -> bytes:
        """A token's bytes, of which text may need several tokens' to make a character."""
        return self._tokens.decode_bytes([token])

    def text_of(self, token: int) -> str:
        """A token's text; its bytes, as ``bytes:\\xe2\\x82``, where they are no whole characters."""
        own = self.bytes_of(token)
        try:
            return own.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in own)

    def grammar(self, schema: dict[str, Any], field: str) -> str:
        """The grammar of a JSON schema.

        Raises:
            RequestError: the schema, the request's ``field``, has unknown or unsupported keywords, or no JSON meets it.
        """
        try:
            grammar = LLMatcher.grammar_from_json_schema(json.dumps(schema), defaults=_SPACED)
            failed, messages = LLMatcher.validate_grammar_with_warnings(grammar, self._tokens)
        except (ValueError, RecursionError) as error:
            failed, messages = True, [str(error)]
        if failed:
            raise RequestError(f"the JSON schema cannot be served: {messages[0]}", param=field)
        return grammar

    def mask(self, grammar: str) -> Mask:
        """What holds one text to ``grammar``."""
        return _Matcher(LLMatcher(self._tokens, grammar, log_level=0))


class _Matcher:
    """Which tokens may follow those of a text so far, which only grows."""

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher, self._read = matcher, 0

    def __call__(self, made: Sequence[int]) -> bytes:
        self._matcher.consume_tokens(list(made[self._read :]))
        self._read = len(made)
        allowed = self._matcher.compute_bitmask()
        if self._matcher.is_error():
            raise EngineError(f"no token can follow under the JSON schema ({self._matcher.get_error()})")
        return allowed
