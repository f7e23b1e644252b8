"""``potq eval``: perplexity, with the protocol it was measured by."""

from __future__ import annotations

from typing import Annotated

import typer

from potq.cli import console
from potq.cli.kernels import Activations, kernel_lines, use_kernels


def evaluate(
    model: Annotated[str, typer.Argument(help="Folder (packed or not), .gguf file, hub name, or smollm2.")],
    text: Annotated[
        str, typer.Option(help="A file, a dataset as name:config:split, or pydoc: CPython's own help topics.")
    ] = "pydoc",
    window: Annotated[int | None, typer.Option(help="Tokens per window. Default: 2048 or the model's limit.")] = None,
    windows: Annotated[int | None, typer.Option(min=1, help="Only the first so many windows. Default: all.")] = None,
    dtype: Annotated[str, typer.Option(help="What the model computes in.")] = "auto",
    device: Annotated[str | None, typer.Option(help="Where it runs, e.g. cuda. Default: cpu.")] = None,
    activations: Annotated[
        Activations, typer.Option(help="Inputs of packed products: exact, or rounded as generate does.")
    ] = Activations.float,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")] = False,
) -> None:
    """Measure perplexity by the GPTQ protocol.

    potq eval out --text wiki.test.raw --window 1024 --windows 40
    """
    from potq.data.text import read_text
    from potq.data.tokens import tokenize
    from potq.evaluate.perplexity import perplexity
    from potq.loading import load, load_tokenizer

    content = read_text(text)
    console.quiet_libraries()
    with console.status(f"loading {model}"):
        tokens = tokenize(load_tokenizer(model), content)
        loaded = load(model, dtype=dtype, device=device)
    kernels = use_kernels(loaded, activations)
    with console.progress_bar("perplexity") as update:
        result = perplexity(loaded, tokens, window=window, max_windows=windows, progress=update)
    if as_json:
        console.emit_json({"model": model, "text": text, **result.to_dict(), "kernels": kernels})
        return
    out = console.stdout()
    out.print(f"perplexity {result.perplexity:.3f}  on {text}", highlight=False)
    out.print(f"{result.protocol}; {result.seconds:.1f} s", style="dim", highlight=False)
    for line in kernel_lines(kernels):
        out.print(line, style="dim", highlight=False)
