"""``potq generate``: continue a prompt."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from potq.cli import console
from potq.cli.conversation import note_lost, with_system
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
from potq.errors import ConfigError, DataError

if TYPE_CHECKING:
    from potq.engine.runners import Generated, Runner


def generate(
    model: Annotated[str, typer.Argument(help="Folder (packed or not), .gguf file, hub name, or smollm2.")],
    prompt: Annotated[
        str | None, typer.Argument(help="The text to continue; - reads it from standard input.", show_default=False)
    ] = None,
    prompt_file: Annotated[Path | None, typer.Option(help="A UTF-8 file that holds the prompt.", show_default=False)] = None,
    max_new_tokens: NewTokens = 64,
    temperature: Temperature = 0.0,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    min_p: MinP = 0.0,
    repetition_penalty: RepetitionPenalty = 1.0,
    seed: Seed = None,
    stop: Stop = None,
    chat: Annotated[bool, typer.Option("--chat", help="Ask by the model's chat template; prints the answer alone.")] = False,
    system: Annotated[str | None, typer.Option(help="For --chat: what the model is told first.", show_default=False)] = None,
    engine: UseEngine = None,
    threads: Threads = None,
    dtype: DType = "auto",
    device: Device = None,
    activations: Rounding = Activations.int8,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")] = False,
) -> None:
    """Continue a prompt; the text streams to stdout as it comes.

    potq generate out "The capital of France is"

    potq generate out --chat "What is the capital of France?" --system "Answer in one word."
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
    if system is not None and not chat:
        raise ConfigError("--system is for --chat; a plain prompt has no turns, write it there")
    check_dtype(dtype)
    where = check_source(model)
    if chat:
        check_chat_template(where)
    text = _prompt(prompt, prompt_file)
    console.quiet_libraries()
    with console.status(f"loading {model}"):
        runner = open_runner(
            model, engine=engine, dtype=dtype, device=device, activations=activations.value, threads=threads
        )
        asked = with_system(runner, [{"role": "user", "content": text}], system) if chat else text
        ids = runner.encode(asked)
    note_lost(runner, text)
    write = _nothing if as_json else _to_stdout
    write(runner.decode(ids) if runner.continues and not chat else "")
    began = time.perf_counter()
    written = runner.run(asked, settings, write)
    seconds = time.perf_counter() - began
    write("\n")
    if as_json:
        console.emit_json(_json(text, written, seconds, runner))
    else:
        _tell_speed(written, seconds, runner)
    if written.finish_reason == "context":
        room = f"the model's limit of {runner.limit} tokens, the prompt included"
        console.note(f"the text ends after {written.tokens} tokens, not {max_new_tokens}, at {room}")


def _prompt(given: str | None, file: Path | None) -> str:
    """The prompt from where it is. Of standard input or a file, the line feed at the end is left out."""
    if (given is None) == (file is None):
        raise ConfigError("give one prompt: a text, - for standard input, or --prompt-file FILE")
    text = _read(file) if given in (None, "-") else given
    if not text:
        raise DataError("the prompt is empty; give at least one character")
    return text


def _read(file: Path | None) -> str:
    try:
        content = sys.stdin.buffer.read() if file is None else file.expanduser().read_bytes()
        return content.decode().removesuffix("\n").removesuffix("\r")
    except OSError as error:
        raise DataError(f"cannot read the prompt {file} ({error.strerror})") from None
    except UnicodeDecodeError as error:
        source = "standard input" if file is None else file
        raise DataError(f"{source} is not UTF-8 ({error.reason} at byte {error.start}); convert it first") from None


def _json(prompt: str, written: Generated, seconds: float, runner: Runner) -> dict[str, object]:
    counts = {"tokens": written.tokens, "seconds": seconds, "tokens_per_second": written.tokens / seconds}
    ran = {"path": runner.name, "why_not_engine": runner.why_not_engine, "kernels": runner.kernels}
    return {"prompt": prompt, "text": written.text, "finish_reason": written.finish_reason, **counts, **ran}


def _tell_speed(written: Generated, seconds: float, runner: Runner) -> None:
    because = [f"not the engine: {runner.why_not_engine}"] if runner.why_not_engine else []
    speed = f"{written.tokens} tokens, {written.tokens / seconds:.1f} tokens/s"
    for line in [speed, *runner.lines, *because]:
        console.note(line)


def _to_stdout(piece: str) -> None:
    print(piece, end="", flush=True)


def _nothing(piece: str) -> None:
    pass
