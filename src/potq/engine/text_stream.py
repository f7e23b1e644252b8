"""Tokens to text, piece by piece."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CONTEXT = 6  # tokens that the next ones are decoded with: some tokenizers drop a space that begins a text
_INCOMPLETE = "\ufffd"  # what tokenizers write for bytes that are not (yet) a character


class TextStream:
    """Turns tokens into pieces of text as they come: whole characters, and nothing from the first stop text on.

    The pieces joined are what the tokenizer adds to the decoded prompt for all tokens, special ones left out.

    Args:
        tokenizer: the model's.
        prompt: the tokens before the first.
        stop: texts that end the text; they are not part of it.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int], stop: Sequence[str] = ()) -> None:
        self.text = ""  # all pieces so far
        self.stopped = False  # a stop text was found
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._held = ""  # what may be the start of a stop text
        self._window = list(prompt[-_CONTEXT:])
        self._known = len(self._decode())  # characters of the window that were taken

    def put(self, token: int) -> str:
        """The text that is certain with this token; often a word, sometimes nothing."""
        self._window.append(token)
        decoded = self._decode()
        whole = decoded.rstrip(_INCOMPLETE)
        fresh = whole[self._known :]
        self._known = max(self._known, len(whole))
        if len(self._window) > 2 * _CONTEXT and whole == decoded:
            self._window = self._window[-_CONTEXT:]
            self._known = len(self._decode())
        return self._emit(fresh, last=False)

    def finish(self) -> str:
        """What was held back. A character that the tokens end within comes as U+FFFD, as in the tokenizer's ``decode``."""
        fresh = self._decode()[self._known :]
        self._known += len(fresh)
        return self._emit(fresh, last=True)

    def _decode(self) -> str:
        text: str = self._tokenizer.decode(self._window, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

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
