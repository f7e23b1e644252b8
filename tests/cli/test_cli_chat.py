"""``potq chat``: by lines, and in a terminal."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from cli_helpers import refused
from potq import native
from potq.cli.app import app
from potq.cli.conversation import Conversation
from potq.engine.generation import Settings
from potq.engine.runners import EngineRunner, Generated, Write, open_runner
from potq.errors import ConfigError, DataError, EngineError

compiled = pytest.mark.skipif(native.missing() is not None, reason=native.missing() or "")
BOTH = pytest.mark.parametrize("path", [pytest.param("--engine", marks=compiled), "--no-engine"])


def said(folder: Path, lines: str | bytes, *words: str) -> Result:
    return CliRunner().invoke(app, ["chat", str(folder), "--threads", "1", *words], input=lines)


def turns(*texts: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(texts)]


# ---- by lines


@BOTH
def test_a_line_is_a_message_and_what_was_said_is_told_again(chat_folder: Path, one_thread: None, path: str) -> None:
    result = said(chat_folder, "the cat\n\nthe mat\n", "-n", "5", "--json", path)
    assert result.exit_code == 0, result.exception
    first, second = map(json.loads, result.stdout.splitlines())
    runner, settings = open_runner(str(chat_folder), engine=path == "--engine"), Settings(max_new_tokens=5)
    expected = runner.run(turns("the cat"), settings, lambda _: None)
    assert (first["text"], first["tokens"], first["finish_reason"]) == expected
    again = runner.run(turns("the cat", expected.text, "the mat"), settings, lambda _: None)
    assert second["text"] == again.text
    assert second["tokens_per_second"] == pytest.approx(second["tokens"] / second["seconds"])
    assert "the answer was cut after 5 tokens; -n allows more" in result.stderr
    plain = said(chat_folder, "the cat\nthe mat", "-n", "5", path)
    assert plain.stdout == f"{first['text']}\n{second['text']}\n"


def answers(folder: Path, lines: str, *words: str) -> list[str]:
    result = said(folder, lines, "-n", "4", "--json", *words)
    assert result.exit_code == 0, result.exception
    return [json.loads(line)["text"] for line in result.stdout.splitlines()]


@compiled
def test_words_with_a_slash(chat_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[tuple[str, str]]] = []
    run = EngineRunner.run

    def listen(self: EngineRunner, prompt: Any, *rest: Any) -> Generated:
        asked.append([(turn["role"], turn["content"]) for turn in prompt])
        return run(self, prompt, *rest)

    monkeypatch.setattr(EngineRunner, "run", listen)
    lines = "a\n/reset\n/system be brief\nb\n/system\n/reset\nc\n/quit\nd\n"
    assert len(answers(chat_folder, lines, "--system", "be long")) == 3
    assert asked == [
        [("system", "be long"), ("user", "a")],
        [("system", "be brief"), ("user", "b")],
        [("user", "c")],
    ]
    shown = said(chat_folder, "/help\n")
    assert "/save FILE" in shown.stderr
    assert shown.stdout == ""


def test_save(chat_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "zwölf.json"
    [answer] = answers(chat_folder, f"/system be brief\nthe ö\n/save {file}\n")
    saved = json.loads(file.read_text(encoding="utf-8"))
    assert saved == {"messages": [{"role": "system", "content": "be brief"}, *turns("the ö", answer)]}
    assert answers(chat_folder, f"the\n/save {tmp_path}/new\n/save {tmp_path}/new\n")  # its own file may be written again
    refusals = {
        f"/save {file}": "exists; choose another name",
        f"/save {tmp_path}/none/a": "No such file",
        "/save": "wants a file",
        "/sav": "there is no /sav; there are /help, /reset, /system, /save and /quit",
    }
    for line, message in refusals.items():
        result = said(chat_folder, f"{line}\nthe cat\n")
        assert isinstance(result.exception, DataError | ConfigError)
        assert message in str(result.exception)
        assert result.stdout == ""
    assert json.loads(file.read_text(encoding="utf-8")) == saved


def test_messages_of_several_lines(chat_folder: Path) -> None:
    runner = open_runner(str(chat_folder))
    expected = runner.run(turns("the\ncat"), Settings(max_new_tokens=4), lambda _: None).text
    assert answers(chat_folder, "the\\\ncat\n") == answers(chat_folder, "the\\\ncat\\") == [expected]
    slash = runner.run(turns(" /help"), Settings(max_new_tokens=4), lambda _: None).text
    assert answers(chat_folder, " /help\r\n") == [slash]


def test_options(chat_folder: Path) -> None:
    drawn = [answers(chat_folder, "the\n", "--temperature", "3", "--seed", seed) for seed in ("1", "1", "2")]
    assert drawn[0] == drawn[1] != drawn[2]
    assert "seed has no effect at temperature 0" in refused(ConfigError, "chat", chat_folder, "--seed", "1")
    whole = answers(chat_folder, "the cat\n", "-n", "24")[0]
    assert answers(chat_folder, "the cat\n", "-n", "24", "--stop", whole[2:4]) == [whole[: whole.index(whole[2:4])]]


def test_what_cannot_be_said(chat_folder: Path, packed_folder: Path) -> None:
    assert "the tokenizer has no chat template" in refused(DataError, "chat", packed_folder)
    result = said(chat_folder, b"the\na\xff\n", "-n", "2")
    assert "line 2 of standard input is not UTF-8" in str(result.exception)


@pytest.mark.parametrize("words", [["--system", "be brief"], []], ids=["option", "word"])
def test_a_system_text_that_nobody_reads(packed_folder: Path, words: list[str]) -> None:
    file = packed_folder / "tokenizer_config.json"
    silent = "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}"
    file.write_text(json.dumps({**json.loads(file.read_text()), "chat_template": silent}))
    result = said(packed_folder, "/system be brief\n", *words)
    assert "leaves a system text out" in str(result.exception)


@BOTH
def test_a_full_context(chat_folder: Path, packed_folder: Path, path: str) -> None:
    config = packed_folder / "config.json"
    for name in ("tokenizer_config.json", "config.json"):
        (packed_folder / name).write_bytes((chat_folder / name).read_bytes())
    changes = {"max_position_embeddings": 64, "eos_token_id": None}
    config.write_text(json.dumps({**json.loads(config.read_text()), **changes}))
    (packed_folder / "generation_config.json").unlink()
    result = said(packed_folder, "the cat\nthe mat\n", path)
    assert "the model's limit of 64 tokens, all turns included, cut the answer; /reset begins anew" in result.stderr
    assert isinstance(result.exception, DataError | EngineError)  # the next turn does not fit
    assert "64" in str(result.exception)


# ---- interrupted


class Slow:
    """A model that is interrupted, at first."""

    limit = None

    def __init__(self, *pieces: str) -> None:
        self.asked: list[Sequence[Mapping[str, str]]] = []
        self._pieces = pieces

    def lost(self, text: str) -> str:
        return ""

    def run(self, prompt: Sequence[Mapping[str, str]], settings: Settings, write: Write) -> Generated:
        self.asked.append(prompt)
        for piece in self._pieces:
            write(piece)
        if len(self.asked) == 1:
            raise KeyboardInterrupt
        return Generated("yes", 1, "token")


@pytest.mark.parametrize(("pieces", "kept"), [(["", "so ", "far"], ["a", "so far"]), ([], [])])
def test_what_came_of_an_answer_that_was_stopped_is_kept(pieces: list[str], kept: list[str]) -> None:
    runner: Any = Slow(*pieces)
    conversation = Conversation(runner, Settings())
    with pytest.raises(KeyboardInterrupt):
        conversation.ask("a", lambda _: None)
    conversation.ask("b", lambda _: None)
    assert list(runner.asked[1]) == turns(*kept, "b")
    assert conversation.turns == turns(*kept, "b", "yes")


class Terminal:
    """``potq chat`` in a terminal of its own."""

    def __init__(self, *words: str) -> None:
        self._end, theirs = os.openpty()
        # where the tests run in the background, their SIGINT is ignored, and so would be a child's
        script = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from potq.cli import main; main()"
        command = [sys.executable, "-c", script, "chat", *words]
        environment = {**os.environ, "TERM": "dumb"}
        self.process = subprocess.Popen(
            command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, start_new_session=True
        )
        os.close(theirs)
        self._seen = ""

    def until(self, text: str) -> str:
        """What comes before ``text``."""
        assert self._wait(lambda: text in self._seen, 120), self._seen
        before, _, self._seen = self._seen.partition(text)
        return before

    def more(self) -> None:
        """Wait until something comes."""
        assert self._wait(lambda: bool(self._seen.strip()), 120)

    def interrupt(self, text: str) -> None:
        """Ctrl-C, again every few seconds until ``text`` comes: one that falls just before a read is seen only after it."""
        for _ in range(10):
            self.process.send_signal(signal.SIGINT)
            if self._wait(lambda: text in self._seen, 10):
                break
        self.until(text)

    def _wait(self, true: Callable[[], bool], seconds: float) -> bool:
        end = time.monotonic() + seconds
        while not true() and (left := end - time.monotonic()) > 0:
            if select.select([self._end], [], [], left)[0]:
                self._seen += os.read(self._end, 1 << 16).decode(errors="replace")
        return true()

    def type(self, text: str) -> None:
        os.write(self._end, text.encode())

    def close(self) -> None:
        self.process.kill()
        self.process.wait(60)
        os.close(self._end)


@pytest.fixture
def endless(chat_folder: Path, packed_folder: Path) -> Path:
    """A model that chats and never ends by itself, with room for minutes of it."""
    for name in ("tokenizer_config.json", "config.json"):
        (packed_folder / name).write_bytes((chat_folder / name).read_bytes())
    config = packed_folder / "config.json"
    changes = {"max_position_embeddings": 1 << 18, "eos_token_id": None}
    config.write_text(json.dumps({**json.loads(config.read_text()), **changes}))
    (packed_folder / "generation_config.json").unlink()
    return packed_folder


@pytest.fixture
def terminal(endless: Path) -> Iterator[Terminal]:
    found = Terminal(str(endless), "--threads", "1", "-n", "200000")
    yield found
    found.close()


@compiled
def test_in_a_terminal_ctrl_c_stops_an_answer_and_the_chat_goes_on(terminal: Terminal, tmp_path: Path) -> None:
    assert "the engine" in terminal.until("Ctrl-D ends")
    terminal.until("> ")
    terminal.type("the cat\n")
    terminal.until("the cat\r\n")  # the terminal's echo
    terminal.more()
    terminal.interrupt("stopped; the chat goes on")
    terminal.until("> ")
    terminal.interrupt("Ctrl-D or /quit ends")
    terminal.until("> ")
    terminal.type("/nothing\n")
    terminal.until("there is no /nothing")
    terminal.until("> ")
    file = tmp_path / "chat.json"
    terminal.type(f"/save {file}\n")
    terminal.until("wrote ")
    terminal.until("> ")  # before the prompt, the terminal itself takes Ctrl-D, and nothing reaches the chat
    user, assistant = json.loads(file.read_text(encoding="utf-8"))["messages"]
    assert user["content"] == "the cat"
    assert assistant["content"]
    terminal.type("\x04")
    assert terminal.process.wait(60) == 0
