"""Perplexity of round-to-nearest quantization, preset by preset: ``python -m benchmarks.ptq.rtn_table [--data DIR]``.

Two models, each with its linears quantized (embedding and head in full precision), and once more with the embedding and head
at the same scheme:

* SmolLM2-135M (whose linears already lie on an asymmetric 4-bit grid, Q4_1: that flatters 4-bit integers) on the WikiText-2
  test set, first 40 windows of 1024 tokens;
* TinyStories-656K (true float32) on TinyStories text (stories joined by blank lines) and on WikiText-2, first 40 windows of
  512, its limit.

``--data`` (or the environment variable POTQ_DATA) is a folder with ``wikitext2/hf_joined_test.txt``,
``tinystories/tinystories_sample_2MiB.txt`` and ``tinystories-656k/``. Every row is kept as it comes; a killed run resumes.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from torch import Tensor

import potq
from benchmarks.common.goals import Row, print_goals
from benchmarks.common.results import summary
from benchmarks.ptq.accuracy import TREATMENTS, lines
from benchmarks.ptq.goals import RTN_TABLE
from potq.data.text import read_text
from potq.data.tokens import tokenize
from potq.evaluate.perplexity import perplexity
from potq.kernels import set_activations

SCHEMES = ("pot4", "apot4", "mxfp4", "int4", "pot3", "int3", "pot2", "int2")
ZERO_FREE = ("pot3nz", "int3_midrise")  # without calibration they are for models without massive activations
WINDOWS = 40
PROTOCOL = {
    "perplexity": "GPTQ protocol: text tokenized once, non-overlapping windows, exp(total nll / predicted tokens)",
    "windows": WINDOWS,
    "algorithm": "round to nearest, scales of least squared error (effort fast)",
    "group_size": "preset's own: 64, and 32 for mxfp4",
    "stories": "joined by blank lines",
}


@dataclass(frozen=True)
class Setting:
    """One model on one text."""

    model: str
    source: str
    text: str
    file: str
    window: int
    schemes: tuple[str, ...] = SCHEMES


@dataclass(frozen=True)
class Cell:
    """One row of the table to be measured."""

    model: str
    text: str
    window: int
    scheme: str
    embedding: str

    def measured_in(self, rows: list[dict[str, Any]]) -> bool:
        return any(all(row[key] == value for key, value in asdict(self).items()) for row in rows)


def settings(data: Path) -> list[Setting]:
    stories = str(data / "tinystories-656k")
    both = SCHEMES + ZERO_FREE
    wikitext = str(data / "wikitext2" / "hf_joined_test.txt")
    return [
        Setting(
            "TinyStories-656K", stories, "TinyStories", str(data / "tinystories" / "tinystories_sample_2MiB.txt"), 512, both
        ),
        Setting("TinyStories-656K", stories, "WikiText-2 test", wikitext, 512, both),
        Setting("SmolLM2-135M", "smollm2", "WikiText-2 test", wikitext, 1024),
    ]


def cells(setting: Setting) -> Iterator[Cell]:
    """Full precision first, then linears only, then everything at the scheme."""
    yield Cell(setting.model, setting.text, setting.window, "full precision", "full precision")
    for embedding in ("full precision", "same"):
        for scheme in setting.schemes:
            yield Cell(setting.model, setting.text, setting.window, scheme, embedding)


def read_tokens(setting: Setting) -> Tensor:
    """The setting's text as token ids."""
    return tokenize(potq.load_tokenizer(setting.source), read_text(setting.file))


def measure(cell: Cell, setting: Setting) -> Row:
    model, tokens = potq.load(setting.source), read_tokens(setting)
    bits, snr = 32.0, None
    if cell.scheme != "full precision":
        scheme = potq.PRESETS[cell.scheme]
        config = potq.PoTConfig(cell.scheme, embedding=scheme if cell.embedding == "same" else None, effort="fast")
        report = potq.quantize(model, config)
        set_activations(model, "float")  # what the weights cost, and nothing else
        bits, snr = report.quantized_bits_per_weight, sum(m.snr_db or 0 for m in report.modules) / len(report.modules)
    result = perplexity(model, tokens, window=setting.window, max_windows=WINDOWS)
    return {**asdict(cell), "bits_per_weight": bits, "mean_snr_db": snr, **summary(result)}


def show(rows: list[Row]) -> None:
    columns = sorted({(row["model"], row["text"], what) for row in rows for what in TREATMENTS})
    rendered = Table("scheme", "bits per weight", *map(", ".join, columns), title="Perplexity, round to nearest")
    for line in lines(rows, columns):
        rendered.add_row(*line)
    Console().print(rendered)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("POTQ_DATA"), help="folder of texts and models")
    options = parser.parse_args()
    data = options.data
    if data is None:
        parser.error("give --data DIR or set POTQ_DATA")
    console = Console(stderr=True)
    rows = RTN_TABLE.load(PROTOCOL)
    for setting in settings(Path(data)):
        for cell in cells(setting):
            if cell.measured_in(rows):
                continue
            rows.append(measure(cell, setting))
            console.print(f"{cell.model} {cell.text} {cell.scheme} embedding {cell.embedding}: {rows[-1]['perplexity']:.2f}")
            RTN_TABLE.write(PROTOCOL, rows)
    show(rows)
    print_goals(RTN_TABLE.judge(rows))


if __name__ == "__main__":
    main()
