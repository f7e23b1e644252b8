"""``potq chat``: a chat in the terminal, or by lines for scripts."""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated

import typer

from potq.cli import console
from potq.cli.conversation import Conversation
from potq.cli.kernels import Activations
from potq.cli.sampling import (
    Device,
    DType,
    MinP,
    NewTokens,
    RepetitionPenalty,
    Rounding,
    Seed,
    Stop,
    Temperature,
    Threads,
    TopK,
    TopP,
    UseEngine,
)
from potq.errors import DataError, PotqError

if TYPE_CHECKING:
    from potq.engine.runners import Generated

_QUIT = "/quit"


def chat(
    model: Annotated[str, typer.Argument(help="Folder (packed or not), .gguf file, hub name, or smollm2.")],
    system: Annotated[str | None, typer.Option(help="What the model is told first.", show_default=False)] = None,
    max_new_tokens: NewTokens = 1024,
    temperature: Temperature = 0.0,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    min_p: MinP = 0.0,
    repetition_penalty: RepetitionPenalty = 1.0,
    seed: Seed = None,
    stop: Stop = None,
    engine: UseEngine = None,
    threads: Threads = None,
    dtype: DType = "auto",
    device: Device = None,
    activations: Rounding = Activations.int8,
    as_json: Annotated[bool, typer.Option("--json", help="Print each answer as a line of JSON on stdout.")] = False,
) -> None:
    """Chat with a model by its chat template; /help says what else a line may be.

    potq chat out --system "Answer in one word."

    Where standard input is no terminal, each of its lines is a message, and the answers go to stdout.
    """
    from potq.checkpoint.files import check_dtype, check_source
    from potq.engine.generation import Settings
    from potq.engine.runners import open_runner
    from potq.engine.tokenizer import check_chat_template

    settings = Settings(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
        stop=tuple(stop or ()),
    )
    check_dtype(dtype)
    check_chat_template(check_source(model))
    console.quiet_libraries()
    with console.status(f"loading {model}"):
        runner = open_runner(
            model, engine=engine, dtype=dtype, device=device, activations=activations.value, threads=threads
        )
        conversation = Conversation(runner, settings, system)
    if sys.stdin.isatty() and sys.stdout.isatty() and not as_json:
        for line in runner.lines:
            console.note(line)
        console.note("/help says what a line may be; Ctrl-D ends")
        _in_terminal(conversation, runner.limit)
    else:
        _by_lines(conversation, runner.limit, as_json=as_json)


def _in_terminal(conversation: Conversation, limit: int | None) -> None:
    """Ask until the end; Ctrl-C stops an answer, an error is told, and the chat goes on."""
    with suppress(ImportError):
        importlib.import_module("readline")  # input() uses it: lines can be edited, and come back
    for message in _messages(_typed):
        try:
            if message.startswith("/"):
                console.note(conversation.command(message))
                continue
            began = time.perf_counter()
            written = conversation.ask(message, _write)
            speed = f"{written.tokens} tokens, {written.tokens / (time.perf_counter() - began):.1f} tokens/s"
            console.note("\n".join(["", speed, *_cut(written, limit)]))
        except KeyboardInterrupt:
            console.note("\nstopped; the chat goes on")
        except PotqError as error:
            console.error(str(error))


def _by_lines(conversation: Conversation, limit: int | None, *, as_json: bool) -> None:
    """Answer every line; an error ends it all."""
    lines = _piped()
    for message in _messages(lambda _: next(lines, None)):
        if message.startswith("/"):
            console.note(conversation.command(message))
            continue
        began = time.perf_counter()
        written = conversation.ask(message, _drop if as_json else _write)
        print(_json(written, time.perf_counter() - began) if as_json else "", flush=True)
        for line in _cut(written, limit):
            console.note(line)


def _messages(read: Callable[[str], str | None]) -> Iterator[str]:
    """Messages, of one line or of several that a ``\\`` joins, until the end or /quit; ``read`` is told what to show."""
    said = ""
    while (line := read("... " if said else "> ")) is not None:
        if line.endswith("\\"):
            said += f"{line[:-1]}\n"
            continue
        message, said = said + line, ""
        if message.strip() == _QUIT:
            return
        if message.strip():
            yield message
    if said.strip():  # the input ends after a \
        yield said.removesuffix("\n")


def _typed(prompt: str) -> str | None:
    """A line of the terminal; None at the end. Ctrl-C drops the line."""
    while True:
        try:
            return input(prompt)
        except EOFError:
            print()
            return None
        except KeyboardInterrupt:
            console.note(f"\nCtrl-D or {_QUIT} ends")
        except UnicodeDecodeError as error:
            console.error(f"the line is not UTF-8 ({error.reason})")


def _piped() -> Iterator[str]:
    """The lines of standard input."""
    for number, line in enumerate(sys.stdin.buffer, 1):
        try:
            yield line.decode().removesuffix("\n").removesuffix("\r")
        except UnicodeDecodeError as error:
            raise DataError(f"line {number} of standard input is not UTF-8 ({error.reason}); convert it first") from None


def _cut(written: Generated, limit: int | None) -> list[str]:
    """What to say of an answer that did not end by itself."""
    if written.finish_reason == "length":
        return [f"the answer was cut after {written.tokens} tokens; -n allows more"]
    if written.finish_reason == "context":
        return [f"the model's limit of {limit} tokens, all turns included, cut the answer; /reset begins anew"]
    return []


def _json(written: Generated, seconds: float) -> str:
    speed = {"seconds": seconds, "tokens_per_second": written.tokens / seconds}
    return json.dumps(written._asdict() | speed, allow_nan=False)


def _write(piece: str) -> None:
    print(piece, end="", flush=True)


def _drop(piece: str) -> None:
    pass
