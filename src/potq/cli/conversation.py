"""A chat with a model: its turns, and the words that begin with a slash."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from potq.cli import console
from potq.errors import ConfigError, DataError

if TYPE_CHECKING:
    from potq.engine.generation import Settings
    from potq.engine.runners import Generated, Runner, Write

HELP = """\
/help           these lines
/reset          forget the chat; what the model is told first stays
/system [TEXT]  what the model is told first; without TEXT: nothing
/save FILE      the chat as JSON, in the form of the API's messages
/quit           end, as Ctrl-D does
A \\ at the end of a line goes on in the next. A space before it makes a message of what begins with a slash.
Ctrl-C stops an answer, and the chat goes on."""


def with_system(runner: Runner, turns: Sequence[Mapping[str, str]], system: str | None) -> list[Mapping[str, str]]:
    """``turns`` after what the model is told first.

    Raises:
        DataError: the model's chat template leaves that out, or refuses it.
    """
    if system is None:
        return list(turns)
    told = [{"role": "system", "content": system}, *turns]
    if runner.encode(told) == runner.encode(turns):
        raise DataError("the model's chat template leaves a system text out; say it in the prompt")
    return told


def note_lost(runner: Runner, text: str) -> None:
    """Say on stderr which characters of ``text`` have no tokens."""
    if lost := runner.lost(text):
        console.note(f"the tokenizer has no tokens for {', '.join(lost)}: they vanish from the prompt")


class Conversation:
    """A chat under way.

    Args:
        runner: the model.
        settings: how its answers are drawn.
        system: what it is told first.

    Attributes:
        turns: what was said so far, without ``system``.

    Raises:
        DataError: the model's chat template leaves ``system`` out, or there is no template.
    """

    def __init__(self, runner: Runner, settings: Settings, system: str | None = None) -> None:
        self.turns: list[Mapping[str, str]] = []
        self._runner, self._settings = runner, settings
        self._saved: Path | None = None  # a file that this chat wrote, and may write again
        self._words: dict[str, Callable[[str], str]] = {
            "/help": lambda _: HELP,
            "/reset": self._reset,
            "/system": self._tell,
            "/save": self._save,
        }
        self._system: str | None = None
        self._tell(system or "")

    def ask(self, text: str, write: Write) -> Generated:
        """The model's answer, piece by piece. Of one that is interrupted, what came is kept; an error keeps nothing.

        Raises:
            KeyboardInterrupt: Ctrl-C.
            PotqError: the chat is longer than the model's context, or the model broke.
        """
        asked, pieces = {"role": "user", "content": text}, list[str]()

        def keep(piece: str) -> None:
            pieces.append(piece)
            write(piece)

        note_lost(self._runner, text)
        try:
            written = self._runner.run([*self._told, *self.turns, asked], self._settings, keep)
        except KeyboardInterrupt:
            if answer := "".join(pieces):
                self.turns += [asked, {"role": "assistant", "content": answer}]
            raise
        self.turns += [asked, {"role": "assistant", "content": written.text}]
        return written

    def command(self, line: str) -> str:
        """Do what a line that begins with a slash says; returns what to tell.

        Raises:
            ConfigError: there is no such word, or it lacks something.
            DataError: a system text that the model's template leaves out, a file that cannot be written.
        """
        word, _, rest = line.partition(" ")
        if word not in self._words:
            raise ConfigError(f"there is no {word}; there are {', '.join(self._words)} and /quit")
        return self._words[word](rest.strip())

    @property
    def _told(self) -> list[Mapping[str, str]]:
        return [] if self._system is None else [{"role": "system", "content": self._system}]

    def _reset(self, _: str) -> str:
        self.turns.clear()
        return "the chat begins anew"

    def _tell(self, text: str) -> str:
        if text:
            with_system(self._runner, [{"role": "user", "content": "?"}], text)
        self._system = text or None
        return f"the model is told first: {text}" if text else "the model is told nothing first"

    def _save(self, name: str) -> str:
        from potq.files import write_whole

        if not name:
            raise ConfigError("/save wants a file's name")
        file = Path(name).expanduser().absolute()
        if file.exists() and file != self._saved:
            raise DataError(f"{name} exists; choose another name")
        content = json.dumps({"messages": [*self._told, *self.turns]}, ensure_ascii=False, indent=2)
        write_whole(file, f"{content}\n", f"cannot write {name}")
        self._saved = file
        return f"wrote {name}"
