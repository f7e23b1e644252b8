"""What ``potq quantize MODEL`` gives without any option, beside llama.cpp's files of as many bytes.

    python -m benchmarks.ptq.default --data DIR [--model smollm2] [--text test]   # TinyStories: 2 minutes on a core

Everything is quantized, embedding and head too, as a file has it. Bytes are those of all stored tensors: matrices with their
scales, and norms in float32; what a file holds beside them (tokenizer, config) is the same on both sides. Candidates are
compared on validation text; ``--text test`` measures those that were chosen, once. Rows of an earlier run are kept.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

import potq
from benchmarks.common.goals import Row, print_goals
from benchmarks.peers.ptq import ggml
from benchmarks.peers.ptq.peer import linears, replace_each
from benchmarks.ptq.goals import DEFAULT, DEFAULT_NOW, FIGURES, GEMMA, ROUNDED, contest
from benchmarks.ptq.last_words import QUESTIONS, questions, right
from benchmarks.ptq.settings import FULL, WINDOWS, Setting, figures, settings
from potq.data.text import read_documents
from potq.kernels import set_activations
from potq.nn.properties import tensor_bytes
from potq.numerics.grid import table

FEWER = 4  # windows of the larger models
STORIES = 150  # that questions are taken from
_TABLE = (-80, -62, -48, -36, -24, -16, -8, 0, 8, 18, 28, 36, 48, 60, 72, 96)  # 0.4 dB above apot4 on Gaussian weights
SIGNED = potq.QuantScheme(grid=table(_TABLE), group_size=32, signed_scale=True)
PROTOCOL = {
    "text": f"TinyStories: {WINDOWS} windows of 512 tokens, the last ones (test) and those before them (validation); "
    f"SmolLM2 and Gemma 3: the first {FEWER} windows of WikiText-2's test and validation texts, of 1024 and 512 tokens",
    "last words": f"{QUESTIONS} sentences of paragraphs of these texts, or of stories: the last {STORIES} (test), and as "
    "many before them (validation)",
    "weights": "all matrices, embedding and head too; activations never rounded",
    "bytes": "of all stored tensors",
}

Scheme = potq.QuantScheme | str
Made = tuple[Any, int]
"""A model, and the bytes of its tensors."""


def full(setting: Setting) -> Made:
    model = potq.load(setting.source, dtype="float32")
    return model, tensor_bytes(model)


def ours(setting: Setting, *, scheme: Scheme, embedding: Scheme, effort: str = "fast") -> Made:
    model = potq.load(setting.source, dtype="float32")
    calibration = setting.batches() if effort != "fast" else None
    potq.quantize(model, potq.PoTConfig(scheme=scheme, embedding=embedding, effort=effort), calibration)
    set_activations(model, "float")
    return model, tensor_bytes(model)


@torch.no_grad()
def theirs(setting: Setting, *, kind: str) -> Made:
    """Without importance matrix, as llama.cpp's own default is."""
    model, size = full(setting)
    words = model.get_input_embeddings()
    weights = sum(module.weight.numel() for module in linears(model).values()) + words.weight.numel()
    if model.get_output_embeddings().weight is not words.weight:
        raise ValueError(f"{setting.model} has a head of its own, which this script does not count")
    replace_each(model, lambda _, weight: ggml.quantize(weight, kind))
    words.weight.copy_(ggml.quantize(words.weight, kind))
    return model, size - 4 * weights + round(weights * ggml.bits(kind) / 8)


@dataclass(frozen=True)
class Contestant:
    """``final``: measured on the test text too."""

    scheme: str
    algorithm: str
    make: Callable[[Setting], Made]
    final: bool = True


def _rounded(name: str, scheme: Scheme, embedding: Scheme, *, final: bool = False) -> Contestant:
    return Contestant(name, ROUNDED, partial(ours, scheme=scheme, embedding=embedding), final)


CONTESTANTS = (
    Contestant(FULL, "-", full),
    Contestant("llama.cpp IQ4_NL", ROUNDED, partial(theirs, kind="iq4_nl")),
    Contestant("llama.cpp Q4_0", ROUNDED, partial(theirs, kind="q4_0"), False),
    Contestant("llama.cpp IQ4_XS", ROUNDED, partial(theirs, kind="iq4_xs"), False),
    _rounded("apot4, embedding int8", "apot4", "int8", final=True),
    _rounded(DEFAULT_NOW, DEFAULT_NOW, DEFAULT_NOW, final=True),
    _rounded("16 levels, two terms, signed scales", SIGNED, SIGNED),
    Contestant(DEFAULT_NOW, "balanced", partial(ours, scheme=DEFAULT_NOW, embedding=DEFAULT_NOW, effort="balanced")),
)


def known(data: Path) -> dict[str, Setting]:
    found = settings(data)
    return {**found, "gemma3": replace(found["smollm2"], model=GEMMA, source="gemma3", window=512, windows=16)}


def documents(setting: Setting, text: str) -> list[str]:
    """Paragraphs or stories."""
    if setting.text == setting.calibration:
        stories = [story.strip() for story in read_documents(str(setting.text))]
        return stories[-STORIES:] if text == "test" else stories[-2 * STORIES : -STORIES]
    file = setting.text if text == "test" else setting.text.parent / "wiki.valid.raw"
    return [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if not line.startswith(" =")]


def row(setting: Setting, text: str, contestant: Contestant) -> Row:
    model, size = contestant.make(setting)
    windows = FEWER if setting.text != setting.calibration else WINDOWS
    tokens = setting.tokens()[: windows * setting.window] if text == "test" else setting.validation(windows)
    answers = right(model, questions(potq.load_tokenizer(setting.source), documents(setting, text)))
    named = {"model": setting.model, "text": text, "scheme": contestant.scheme, "algorithm": contestant.algorithm}
    return {**named, "bytes": size, **figures(setting, model, tokens), "last_words": sum(answers) / len(answers)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("POTQ_DATA"), help="folder of texts and models")
    parser.add_argument("--model", choices=("tinystories", "smollm2", "gemma3"), default="tinystories")
    parser.add_argument("--text", choices=("validation", "test"), default="validation")
    parser.add_argument("--only", action="append", help="schemes to measure; default: all")
    parser.add_argument("--algorithm", action="append", help="algorithms to run; default: all")
    options = parser.parse_args()
    if options.data is None:
        parser.error("give --data DIR or set POTQ_DATA")
    setting = known(Path(options.data))[options.model]
    rows = DEFAULT.load(PROTOCOL)
    chosen = [
        each
        for each in CONTESTANTS
        if (options.only is None or each.scheme in options.only)
        and (options.algorithm is None or each.algorithm in options.algorithm)
    ]
    for contestant in chosen:
        name = (setting.model, options.text, contestant.scheme, contestant.algorithm)
        if name not in map(contest, rows) and (contestant.final or options.text != "test"):
            rows.append(row(setting, options.text, contestant))
            print(*name, *(f"{figure(rows[-1]):.4g}" for _, figure, _ in FIGURES), flush=True)
            DEFAULT.write(PROTOCOL, rows)
    print_goals(DEFAULT.judge(rows))


if __name__ == "__main__":
    main()
