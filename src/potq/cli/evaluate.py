"""``potq eval``: perplexity, and divergence and BERTScore where asked for, with the protocols they were measured by."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import TYPE_CHECKING, Annotated

import typer

from potq.cli import console
from potq.cli.kernels import Activations
from potq.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from potq.evaluate.bertscore import ContinuationScore
    from potq.evaluate.divergence import Divergence
    from potq.evaluate.perplexity import Perplexity


def evaluate(
    model: Annotated[str, typer.Argument(help="Folder (packed or not), .gguf file, hub name, or smollm2.")],
    text: Annotated[
        str,
        typer.Option(
            help="A file, wikitext2, tinystories, a dataset as name:config:split, or pydoc (help topics of Python)."
        ),
    ],
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
        str | None, typer.Option(metavar="MODEL", help="The full-precision model, whose continuations BERTScore compares.")
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
    """Measure perplexity by the GPTQ protocol, the divergence from full precision, and BERTScore of what the model writes.

    potq eval out --text wiki.test.raw --window 1024 --windows 40

    potq eval out --text wikitext2 --kld smollm2

    potq eval out --text wikitext2 --bertscore roberta-large --reference smollm2
    """
    from potq.checkpoint.files import check_dtype, check_source
    from potq.checkpoint.source import resolve
    from potq.data.text import read_text

    if bertscore is None and {reference, layer, prompts, new_tokens} != {None}:
        raise ConfigError("--reference, --layer, --prompts and --new-tokens are for BERTScore; pass --bertscore ENCODER too")
    check_dtype(dtype)
    sources = list(filter(None, (model, reference, kld)))
    for source in sources:
        check_source(source)
    if bertscore is not None:
        resolve(bertscore)
    content = read_text(text)
    console.quiet_libraries()
    from potq.checkpoint.loading import check_language_model, load_tokenizer
    from potq.data.tokens import tokenize
    from potq.evaluate.perplexity import perplexity

    for source in sources:
        check_language_model(source, "potq eval")
    tokenizer = load_tokenizer(model)
    tokens = tokenize(tokenizer, content)
    use = cache(partial(_load, dtype=dtype, device=device, activations=activations))
    loaded, kernels = use(model)
    full = use(kld)[0] if kld is not None else None
    measure = None
    if bertscore is not None:
        compared = use(reference)[0] if reference is not None else None
        measure = _prepare(loaded, compared, tokenizer, tokens, bertscore, layer, prompts or 100, new_tokens or 64)
    with console.progress_bar("perplexity") as update:
        result = perplexity(loaded, tokens, window=window, max_windows=windows, progress=update)
    apart = _divergence(loaded, full, tokens, window, windows) if full is not None else None
    score = measure() if measure is not None else None
    if as_json:
        more = {name: each.to_dict() for name, each in (("kld", apart), ("bertscore", score)) if each is not None}
        console.emit_json({"model": model, "text": text, **result.to_dict(), **more, "kernels": kernels})
    else:
        _show(text, result, apart, score, kernels)


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
