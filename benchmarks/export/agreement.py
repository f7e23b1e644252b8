"""What ``export/measure.py`` asks of a written file: llama.cpp's texts and perplexity, stock transformers' logits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

import potq
from benchmarks.common.goals import Row
from benchmarks.export.llama import Scorer, Writer, perplexity, round_activations
from benchmarks.export.models import PROMPT_TOKENS, Subject
from benchmarks.export.targets import stock
from potq.kernels import registry, set_activations

NEW_TOKENS, SINGLE = 32, 64
WAYS = ("float", "int8", "rounded alike")
"""How our modules treat the inputs of products: exact, in their own blocks of 64, as llama.cpp does."""


def text_row(subject: Subject, folder: Path, path: Path) -> Row:
    """Equal texts and perplexities of the GGUF file ``path`` and the checkpoint in ``folder``.

    ``own_texts``: how many of its texts llama.cpp would write itself, given them in one pass instead of token by token.
    ``one_token_error``: relative difference of logits after a text of one token, median; in so few products, inputs that are
    rounded alike rarely come to lie on two sides of a boundary.
    """
    threads = torch.get_num_threads()
    writer = Writer(str(path), threads)
    texts = [(prompt, writer.text(prompt.tolist(), NEW_TOKENS)) for prompt in subject.prompts()]
    scorer = Scorer(str(path), subject.window, threads)
    windows, bos = subject.scored(), _bos(folder)
    row: Row = {"own_texts": _equal(scorer.logits, texts), "perplexity": perplexity(scorer.logits, windows, bos)}
    single = [(ids, scorer.logits(ids)) for ids in windows.flatten()[:SINGLE].split(1)]
    scorer.close()
    model = potq.load(folder, dtype="float32").eval()
    logits = _logits_of(model)
    for way in WAYS:
        set_activations(model, "int8" if way == "int8" else "float")
        with round_activations(model) if way == "rounded alike" else nullcontext():
            ours = perplexity(logits, windows, bos)
            row[way] = {"equal_texts": _equal(logits, texts), "perplexity": ours, "difference": row["perplexity"] / ours - 1}
            row[way]["one_token_error"] = median(_error(logits(ids), theirs) for ids, theirs in single)
    return row


def logits_row(subject: Subject, folder: Path, path: Path) -> Row:
    """Largest difference of the logits of stock transformers and ours in the folder's dtype, on some of the text."""
    ids = subject.scored()[:2, :128]
    found = stock(path, ids.tolist(), torch.get_num_threads())["logits"]
    with _reference():
        model = potq.load(folder, dtype=found.dtype).eval()
        set_activations(model, "float")
        with torch.inference_mode():
            ours = model(ids).logits
    return {"dtype": str(found.dtype), "logits": found.numel(), "largest_difference": float((found - ours).abs().max())}


@contextmanager
def _reference() -> Iterator[None]:
    """Packed modules compute with torch's own products, whose order of summation is the other side's too."""
    before = dict(registry.BACKENDS)
    del registry.BACKENDS["cpu"]
    registry.choose.cache_clear()
    try:
        yield
    finally:
        registry.BACKENDS.clear()
        registry.BACKENDS.update(before)  # in their order, which is that of preference
        registry.choose.cache_clear()


def _bos(folder: Path) -> int | None:
    """The token that a text begins with, if the tokenizer adds one."""
    tokenizer = potq.load_tokenizer(folder)
    plain, special = (len(tokenizer("a", add_special_tokens=flag)["input_ids"]) for flag in (False, True))
    return tokenizer.bos_token_id if special > plain else None


def _logits_of(model: Any) -> Callable[[Tensor], Tensor]:
    def logits(ids: Tensor) -> Tensor:
        with torch.inference_mode():
            found: Tensor = model(ids[None]).logits[0].float()
        return found

    return logits


def _error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def _equal(logits: Callable[[Tensor], Tensor], texts: list[tuple[Tensor, list[int]]]) -> int:
    """How many texts are those that ``logits`` would write: every token is the likeliest."""
    equal = 0
    for prompt, text in texts:
        found = logits(torch.cat([prompt, torch.tensor(text)])).argmax(-1)
        equal += found[PROMPT_TOKENS - 1 : -1].tolist() == text
    return equal
