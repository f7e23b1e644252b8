"""Tokens to text, piece by piece."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from potq.engine.tokenizer import TextTokenizer

_CONTEXT = 6  # tokens that the next ones are decoded with: some tokenizers drop a space that begins a text
_LONGEST = 4  # tokens of one character: UTF-8 has no more bytes
_INCOMPLETE = "\ufffd"  # what tokenizers write for bytes that are not (yet) a character


class TextStream:
    """Turns tokens into pieces of text as they come: whole characters, and nothing from the first stop text on.

    The pieces joined are what the tokenizer adds to the decoded prompt for all tokens, special ones left out. A character
    that begins in the prompt counts as added.

    Tokens are decoded in a window whose first token begins a character. Tokenizers with byte fallback (Llama 2's) decode a
    run of byte tokens as a whole, so a window that began inside a character would make U+FFFD of all that follow.

    Args:
        tokenizer: the model's.
        prompt: the tokens before the first.
        stop: texts that end the text; they are not part of it.
    """

    def __init__(self, tokenizer: TextTokenizer, prompt: Sequence[int], stop: Sequence[str] = ()) -> None:
        self.text = ""  # all pieces so far
        self.stopped = False  # a stop text was found
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._held = ""  # what may be the start of a stop text
        whole = _whole(tokenizer, prompt)
        start = self._start(prompt[:whole])
        self._window = list(prompt[start:])
        self._known = len(self._decode(prompt[start:whole]))  # characters of the window that were taken
        self._complete = whole - start  # tokens of the window that end with a whole character

    def put(self, token: int) -> str:
        """The text that is certain with this token; often a word, sometimes nothing."""
        self._window.append(token)
        decoded = self._decode(self._window)
        whole = decoded.rstrip(_INCOMPLETE)
        fresh = whole[self._known :]
        self._known = max(self._known, len(whole))
        if whole == decoded:
            if len(self._window) > 2 * _CONTEXT:
                self._window = self._window[self._start(self._window) :]
                self._known = len(self._decode(self._window))
            self._complete = len(self._window)
        return self._emit(fresh, last=False)

    def finish(self) -> str:
        """What was held back. A character that the tokens end within comes as U+FFFD; whole ones before it stay."""
        fresh = self._decode(self._window)[self._known :]
        if fresh.startswith(_INCOMPLETE):  # of the run that is not whole: without the characters before it, which are known
            fresh = self._decode(self._window[self._complete :])
        self._known, self._complete = self._known + len(fresh), len(self._window)
        return self._emit(fresh, last=True)

    def _start(self, tokens: Sequence[int]) -> int:
        """The last place in ``tokens`` with enough context behind it whose text is what all of them end with."""
        decoded = self._decode(tokens)
        for start in range(len(tokens) - _CONTEXT, 0, -1):
            if decoded.endswith(self._decode(tokens[start:])):
                return start
        return 0

    def _decode(self, tokens: Sequence[int]) -> str:
        return _decode(self._tokenizer, tokens)

    def _emit(self, fresh: str, *, last: bool) -> str:
        if self.stopped:
            return ""
        self._held += fresh
        found = [at for stop in self._stop if (at := self._held.find(stop)) >= 0]
        self.stopped = bool(found)
        end = min(found) if found else len(self._held) - (0 if last else self._possible_stop())
        piece, self._held = self._held[:end], self._held[end:]
        self.text += piece
        return piece

    def _possible_stop(self) -> int:
        """Length of the longest start of a stop text that the held text ends with."""
        lengths = (n for stop in self._stop for n in range(1, len(stop)) if self._held.endswith(stop[:n]))
        return max(lengths, default=0)


def _decode(tokenizer: TextTokenizer, tokens: Sequence[int]) -> str:
    return tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False)


def _whole(tokenizer: TextTokenizer, tokens: Sequence[int]) -> int:
    """How many of ``tokens`` there are without a character that the last ones only begin."""
    for count in range(len(tokens), max(-1, len(tokens) - _LONGEST), -1):
        if not _decode(tokenizer, tokens[:count]).endswith(_INCOMPLETE):
            return count
    return len(tokens)
