"""``potq generate``: continue a prompt."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from potq.cli import console
from potq.cli.kernels import Activations
from potq.errors import DataError

if TYPE_CHECKING:
    from potq.engine.generation import Chat, Settings
    from potq.engine.runners import Runner


def generate(
    model: Annotated[str, typer.Argument(help="Folder (packed or not), .gguf file, hub name, or smollm2.")],
    prompt: Annotated[str, typer.Argument(help="The text to continue.")],
    max_new_tokens: Annotated[int, typer.Option("-n", "--max-new-tokens", min=1, help="Tokens to generate.")] = 64,
    temperature: Annotated[float, typer.Option(min=0, max=100, help="0 is greedy.")] = 0.0,
    top_k: Annotated[int, typer.Option(min=0, help="Sample from the k likeliest tokens; 0 from all.")] = 0,
    top_p: Annotated[float, typer.Option(min=0, max=1, help="Sample from the likeliest tokens that sum to p.")] = 1.0,
    min_p: Annotated[float, typer.Option(min=0, max=1, help="Sample from tokens p times as likely as the likeliest.")] = 0.0,
    repetition_penalty: Annotated[float, typer.Option(min=0.01, max=100, help="Above 1: repeat less.")] = 1.0,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of the sampling.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="End before this text; may be repeated.")] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Wrap the prompt in the model's chat template.")] = False,
    engine: Annotated[
        bool | None,
        typer.Option(
            "--engine/--no-engine", help="The decode engine, or transformers' modules. Default: the engine if it can."
        ),
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, max=256, help="CPU threads. Default: torch's number.")] = None,
    dtype: Annotated[
        str, typer.Option(help="Data type that the modules compute in. The engine supports auto only.")
    ] = "auto",
    device: Annotated[str | None, typer.Option(help="Device of the modules, e.g. cuda. Default: cpu.")] = None,
    activations: Annotated[
        Activations, typer.Option(help="Inputs of packed products: rounded to int8 (fast), or exact.")
    ] = Activations.int8,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")] = False,
) -> None:
    """Continue a prompt; the text streams to stdout as it comes.

    potq generate out "The capital of France is"
    """
    from potq.engine.generation import Settings, encode
    from potq.engine.runners import open_runner

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
    console.quiet_libraries()
    with console.status(f"loading {model}"):
        runner = open_runner(
            model, engine=engine, dtype=dtype, device=device, activations=activations.value, threads=threads
        )
        asked = _asked(runner, prompt, chat=chat)
        ids = encode(runner.tokenizer, asked)
        begin = runner.tokenizer.decode(ids, skip_special_tokens=True)
    settings = _within(runner.limit, len(ids), settings)
    write = _nothing if as_json else _to_stdout
    write(begin)
    began = time.perf_counter()
    text, tokens = runner.run(asked, settings, write)
    seconds = time.perf_counter() - began
    write("\n")
    if as_json:
        counts = {"tokens": tokens, "seconds": seconds, "tokens_per_second": tokens / seconds}
        ran = {"path": runner.name, "why_not_engine": runner.why_not_engine, "kernels": runner.kernels}
        console.emit_json({"prompt": prompt, "text": text, **counts, **ran})
        return
    because = [f"not the engine: {runner.why_not_engine}"] if runner.why_not_engine else []
    for line in [f"{tokens} tokens, {tokens / seconds:.1f} tokens/s", *runner.lines, *because]:
        console.note(line)


def _within(limit: int | None, prompt: int, settings: Settings) -> Settings:
    """No more new tokens than there are positions for; the last one needs none."""
    if limit is None:
        return settings
    if prompt > limit:
        raise DataError(f"the prompt has {prompt} tokens, the model's limit is {limit}; shorten it")
    return settings.model_copy(update={"max_new_tokens": min(settings.max_new_tokens, limit - prompt + 1)})


def _asked(runner: Runner, prompt: str, *, chat: bool) -> str | Chat:
    if not chat:
        return prompt
    if not runner.tokenizer.chat_template:
        raise DataError("the tokenizer has no chat template; leave --chat out")
    if not prompt:
        raise DataError("the prompt is empty; give at least one character")
    return [{"role": "user", "content": prompt}]


def _to_stdout(piece: str) -> None:
    print(piece, end="", flush=True)


def _nothing(piece: str) -> None:
    pass
