"""``potq eval``: perplexity, and divergence and BERTScore where asked for, with their protocols; or the harness's tasks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from potq.cli import console
from potq.cli.kernels import Activations
from potq.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from potq.engine.runners import RunnerOptions
    from potq.evaluate.bertscore import ContinuationScore
    from potq.evaluate.divergence import Divergence
    from potq.evaluate.perplexity import Perplexity


def evaluate(
    model: Annotated[str, typer.Argument(help="Folder (packed or not), .gguf file, hub name, or smollm2.")],
    text: Annotated[
        str | None,
        typer.Option(
            help="A file, wikitext2, tinystories, a dataset as name:config:split, or pydoc (help topics of Python).",
            show_default=False,
        ),
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option(help="In place of --text: tasks of lm-evaluation-harness, with commas between.", show_default=False),
    ] = None,
    include_path: Annotated[
        Path | None, typer.Option(help="For --tasks: a folder of task files.", show_default=False)
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="For --tasks: the first so many questions of each.")] = None,
    num_fewshot: Annotated[
        int | None, typer.Option(min=0, help="For --tasks: examples in each prompt. Default: the task's.")
    ] = None,
    engine: Annotated[
        bool | None,
        typer.Option("--engine/--no-engine", help="For --tasks: the decode engine, or the modules. Default: it if it can."),
    ] = None,
    window: Annotated[int | None, typer.Option(help="Tokens per window. Default: 2048 or the model's limit.")] = None,
    windows: Annotated[int | None, typer.Option(min=1, help="Only the first so many windows. Default: all.")] = None,
    dtype: Annotated[str, typer.Option(help="What the model computes in.")] = "auto",
    device: Annotated[str | None, typer.Option(help="Device to run on, e.g. cuda. Default: cpu.")] = None,
    activations: Annotated[
        Activations, typer.Option(help="Inputs of packed products: exact, or rounded as generate does.")
    ] = Activations.float,
    kld: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Also the divergence from the predictions of MODEL, the full-precision one."),
    ] = None,
    bertscore: Annotated[
        str | None,
        typer.Option(
            metavar="ENCODER",
            help="Also BERTScore of greedy continuations with the text's own; the encoder's folder or hub name.",
        ),
    ] = None,
    reference: Annotated[
        str | None, typer.Option(metavar="MODEL", help="The full-precision model, which BERTScore and tasks compare with.")
    ] = None,
    prompts: Annotated[
        int | None, typer.Option(min=1, help="Prompts of 64 tokens that BERTScore continues. Default: 100.")
    ] = None,
    new_tokens: Annotated[int | None, typer.Option(min=1, help="Tokens per continuation. Default: 64.")] = None,
    layer: Annotated[
        int | None, typer.Option(min=1, help="Layer of the encoder. Default: bert-score's choice, or the last.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")] = False,
) -> None:
    """Measure perplexity by the GPTQ protocol, divergence from full precision, BERTScore of what is written; or task scores.

    potq eval out --text wiki.test.raw --window 1024 --windows 40

    potq eval out --text wikitext2 --kld smollm2

    potq eval out --text wikitext2 --bertscore roberta-large --reference smollm2

    potq eval out --tasks arc_easy,hellaswag --limit 100 --reference smollm2
    """
    from potq.checkpoint.files import check_dtype, check_source
    from potq.checkpoint.source import resolve
    from potq.cli import tasks as harness
    from potq.data.text import read_text

    scoring: dict[str, object] = {"layer": layer, "prompts": prompts, "new_tokens": new_tokens}
    if (text is None) == (tasks is None):
        raise ConfigError("give one of --text FILE, for perplexity, and --tasks NAMES")
    if text is not None:
        asking = {"include_path": include_path, "limit": limit, "num_fewshot": num_fewshot, "engine": engine}
        _refuse(asking, "for tasks alone; pass --tasks NAMES in place of --text")
    if tasks is not None:
        measured = {"window": window, "windows": windows, "kld": kld, "bertscore": bertscore}
        _refuse({**measured, **scoring}, "for --text alone; leave it out")
    elif bertscore is None:
        _refuse({"reference": reference, **scoring}, "for BERTScore; pass --bertscore ENCODER too")
    check_dtype(dtype)
    for source in filter(None, (model, reference, kld)):
        check_source(source)
    if bertscore is not None:
        resolve(bertscore)
    use = cache(partial(_load, dtype=dtype, device=device, activations=activations))
    if text is not None:
        content = read_text(text)
        console.quiet_libraries()
        score = None
        if bertscore is not None:
            score = partial(_prepare, encoder=bertscore, layer=layer, prompts=prompts or 100, new_tokens=new_tokens or 64)
        _by_text(model, text, content, window, windows, use, kld, reference, score, as_json=as_json)
    elif tasks is not None:
        asked = harness.Tasks(harness.names_of(tasks), include_path, limit, num_fewshot)
        console.quiet_libraries()
        options: RunnerOptions = {"dtype": dtype, "device": device, "activations": activations.value}
        harness.run(asked, model, reference, engine, options, as_json=as_json)


def _refuse(options: Mapping[str, object], why: str) -> None:
    """Refuse options that were given and mean nothing here; ``why`` says what they are for."""
    if given := [f"--{name.replace('_', '-')}" for name, value in options.items() if value is not None]:
        raise ConfigError(f"{', '.join(given)}: {why}")


def _by_text(
    model: str,
    text: str,
    content: str,
    window: int | None,
    windows: int | None,
    use: Callable[[str], tuple[PreTrainedModel, dict[str, int]]],
    kld: str | None,
    reference: str | None,
    score: Callable[..., Callable[[], ContinuationScore]] | None,
    *,
    as_json: bool,
) -> None:
    """Print perplexity, the divergence from ``kld``, and what ``score`` measures."""
    from potq.checkpoint.loading import check_language_model, load_tokenizer
    from potq.data.tokens import tokenize
    from potq.evaluate.perplexity import perplexity

    for source in filter(None, (model, kld, reference)):
        check_language_model(source, "potq eval")
    tokenizer = load_tokenizer(model)
    tokens = tokenize(tokenizer, content)
    loaded, kernels = use(model)
    full = use(kld)[0] if kld is not None else None
    compared = use(reference)[0] if reference is not None else None
    measure = score(loaded, compared, tokenizer, tokens) if score is not None else None
    with console.progress_bar("perplexity") as update:
        result = perplexity(loaded, tokens, window=window, max_windows=windows, progress=update)
    apart = _divergence(loaded, full, tokens, window, windows) if full is not None else None
    found = measure() if measure is not None else None
    if as_json:
        more = {name: each.to_dict() for name, each in (("kld", apart), ("bertscore", found)) if each is not None}
        console.emit_json({"model": model, "text": text, **result.to_dict(), **more, "kernels": kernels})
    else:
        _show(text, result, apart, found, kernels)


def _load(
    source: str, *, dtype: str, device: str | None, activations: Activations
) -> tuple[PreTrainedModel, dict[str, int]]:
    """A model, and what computes its packed products."""
    from potq.checkpoint.loading import load
    from potq.kernels import use_kernels

    with console.status(f"loading {source}"):
        model = load(source, dtype=dtype, device=device)
    return model, use_kernels(model, activations.value)


def _divergence(
    model: PreTrainedModel, reference: PreTrainedModel, tokens: Tensor, window: int | None, windows: int | None
) -> Divergence:
    from potq.evaluate.divergence import kl_divergence

    with console.progress_bar("divergence") as update:
        return kl_divergence(model, reference, tokens, window=window, max_windows=windows, progress=update)


def _prepare(
    model: PreTrainedModel,
    reference: PreTrainedModel | None,
    tokenizer: PreTrainedTokenizerBase,
    tokens: Tensor,
    encoder: str,
    layer: int | None,
    prompts: int,
    new_tokens: int,
) -> Callable[[], ContinuationScore]:
    """What measures BERTScore, with all that it needs: what is missing shows before anything is measured."""
    from potq.evaluate.bertscore import continuation_score
    from potq.evaluate.continuations import prompts_of
    from potq.evaluate.encoder import load_encoder

    with console.status(f"loading {encoder}"):
        places = prompts_of(tokens, prompts, new_tokens=new_tokens)
        judge = load_encoder(encoder, layer, device=model.device)

    def measure() -> ContinuationScore:
        with console.progress_bar("continuations") as update:
            return continuation_score(model, tokenizer, places, judge, reference=reference, progress=update)

    return measure


def _show(
    text: str, result: Perplexity, apart: Divergence | None, score: ContinuationScore | None, kernels: dict[str, int]
) -> None:
    from potq.kernels.explain import kernel_lines

    out = console.stdout()
    out.print(f"perplexity {result.perplexity:.3f}  on {text}", highlight=False)
    out.print(f"{result.protocol}; {result.seconds:.1f} s", style="dim", highlight=False)
    if apart is not None:
        shares = f"99 % of tokens at most {apart.percentile_99:.4f}, likeliest token the same in {apart.top1_agreement:.2%}"
        out.print(f"divergence {apart.mean:.5f} nats; {shares}", highlight=False)
        out.print(f"{apart.protocol}; {apart.seconds:.1f} s", style="dim", highlight=False)
    if score is not None:
        for line in _score_lines(score):
            out.print(line, highlight=False)
        out.print(f"{score.protocol}; {score.seconds:.1f} s", style="dim", highlight=False)
    for line in kernel_lines(kernels):
        out.print(line, style="dim", highlight=False)


def _score_lines(score: ContinuationScore) -> list[str]:
    pairs = (
        (score.model_true, "the model's continuations with the text's own"),
        (score.reference_true, "the reference's with the text's own"),
        (score.model_reference, "the model's with the reference's"),
    )
    return [f"BERTScore {f1.mean:.4f}  of {what}" for f1, what in pairs if f1 is not None]
