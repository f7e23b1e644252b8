"""``potq generate``: continue a prompt."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from potq.cli import console
from potq.cli.kernels import Activations, kernel_lines, use_kernels
from potq.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def generate(
    model: Annotated[str, typer.Argument(help="Folder (packed or not), .gguf file, hub name, or smollm2.")],
    prompt: Annotated[str, typer.Argument(help="The text to continue.")],
    max_new_tokens: Annotated[int, typer.Option("-n", "--max-new-tokens", min=1, help="Tokens to generate.")] = 64,
    temperature: Annotated[float, typer.Option(min=0, help="0 is greedy.")] = 0.0,
    top_k: Annotated[int, typer.Option(min=0, help="Sample from the k likeliest tokens; 0 from all.")] = 0,
    top_p: Annotated[float, typer.Option(min=0, max=1, help="Sample from the likeliest tokens that sum to p.")] = 1.0,
    seed: Annotated[int | None, typer.Option(help="Seed of the sampling.")] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Wrap the prompt in the model's chat template.")] = False,
    dtype: Annotated[str, typer.Option(help="What the model computes in.")] = "auto",
    device: Annotated[str | None, typer.Option(help="Where it runs, e.g. cuda. Default: cpu.")] = None,
    activations: Annotated[
        Activations, typer.Option(help="Inputs of packed products: rounded to int8 (fast), or exact.")
    ] = Activations.int8,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")] = False,
) -> None:
    """Continue a prompt; the text streams to stdout as it comes.

    potq generate out "The capital of France is"
    """
    from potq.loading import load, load_tokenizer

    console.quiet_libraries()
    with console.status(f"loading {model}"):
        tokenizer = load_tokenizer(model)
        loaded = load(model, dtype=dtype, device=device)
    kernels = use_kernels(loaded, activations)
    ids = _encode(tokenizer, prompt, chat=chat).to(loaded.device)
    mask = ids.new_ones(ids.shape)
    options = {"max_new_tokens": max_new_tokens, **_sampling(temperature, top_k, top_p, seed)}
    began = time.perf_counter()
    output = loaded.generate(ids, attention_mask=mask, **options, streamer=None if as_json else _streamer(tokenizer))[
        0, ids.shape[1] :
    ]
    seconds = time.perf_counter() - began
    speed = len(output) / seconds
    if as_json:
        text = tokenizer.decode(output, skip_special_tokens=True)
        counts = {"tokens": len(output), "seconds": seconds, "tokens_per_second": speed}
        console.emit_json({"prompt": prompt, "text": text, **counts, "kernels": kernels})
        return
    for line in [f"{len(output)} tokens, {speed:.1f} tokens/s", *kernel_lines(kernels)]:
        console.stderr.print(line, style="dim", highlight=False)


def _encode(tokenizer: PreTrainedTokenizerBase, prompt: str, *, chat: bool) -> Any:
    if not prompt:
        raise DataError("the prompt is empty; give at least one character")
    if not chat:
        return tokenizer(prompt, return_tensors="pt")["input_ids"]
    if not tokenizer.chat_template:
        raise DataError("the tokenizer has no chat template; leave --chat out")
    turns = [{"role": "user", "content": prompt}]
    return tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)[
        "input_ids"
    ]


def _sampling(temperature: float, top_k: int, top_p: float, seed: int | None) -> dict[str, Any]:
    """Generation options; the seed is set here only, and only if it was asked for."""
    if temperature == 0:
        return {"do_sample": False, "temperature": None, "top_k": None, "top_p": None}
    if seed is not None:
        import torch

        torch.manual_seed(seed)
    return {"do_sample": True, "temperature": temperature, "top_k": top_k, "top_p": top_p}


def _streamer(tokenizer: PreTrainedTokenizerBase) -> Any:
    from transformers import TextStreamer

    return TextStreamer(tokenizer, skip_special_tokens=True)
