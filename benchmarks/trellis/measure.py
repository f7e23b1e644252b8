"""A trellis against grids of as many bits: synthetic sources, and models under potq's own algorithms.

    python -m benchmarks.trellis.measure [--data DIR] [--model smollm2] [--draw N] [--only SCHEME/ALGORITHM ...]

The sources take seconds. Models, texts and protocol are those of ``benchmarks.ptq.table``; rows are kept as they come, and
what is there is not measured again. A draw of the calibration windows is a seed; goals are judged by the mean of the draws
that there are. ``pot2t by blocks`` is the control of ``benchmarks.trellis.feedback``.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

import potq
from benchmarks.common.goals import Row, print_goals
from benchmarks.ptq.settings import FULL, SEED, Setting, measure, quantized, settings
from benchmarks.ptq.table import PROTOCOL as TABLE_PROTOCOL
from benchmarks.trellis.feedback import fed_back_by_blocks
from benchmarks.trellis.goals import TRELLIS
from potq.nn.report import decibels
from potq.ptq.algorithms.rtn import rtn

GROUPS, GROUP, BLOCK, DRAWS = 4000, 64, 16, 3
SOURCES = ("gaussian", "student t5")
OF_SOURCES = ("pot2", "int2_midrise", "pot2t", "int2t", "apot3", "apot3s", "int3_midrise", "apot3t")
BLOCKS = f"pot2t by blocks of {BLOCK}"
OF_MODELS = (
    *((scheme, algorithm) for algorithm in ("gptq", "fast", "balanced", "best") for scheme in ("pot2", "pot2t", "int2t")),
    (BLOCKS, "gptq"),
    ("int2_midrise", "best"),
    *((scheme, algorithm) for algorithm in ("gptq", "best") for scheme in ("apot3s", "apot3t")),
)
PROTOCOL = {
    **TABLE_PROTOCOL,
    "draws": f"the calibration windows of seeds 0 to {DRAWS - 1}, as far as there are rows",
    "sources": f"{GROUPS} groups of {GROUP} weights, seed {SEED}; a searched float16 scale each; decibels over all",
}


def source(name: str) -> Tensor:
    generator = torch.Generator().manual_seed(SEED)
    weight = torch.randn(GROUPS, GROUP, generator=generator)
    if name == "gaussian":
        return weight
    return weight / (torch.randn(5, GROUPS, GROUP, generator=generator).square().mean(0)).sqrt()


def source_rows() -> Iterator[Row]:
    for name in SOURCES:
        for scheme in OF_SOURCES:
            value = decibels(*rtn(source(name), potq.QuantScheme(scheme)).energies(source(name)))
            yield {"source": name, "scheme": scheme, "decibels": value}


def model_row(setting: Setting, scheme: str, algorithm: str) -> Row:
    if scheme == FULL:
        model, bits = potq.load(setting.source), 32.0
    else:
        name = scheme.split(maxsplit=1)[0]
        with fed_back_by_blocks(BLOCK) if scheme == BLOCKS else nullcontext():
            model, bits = quantized(setting, name, algorithm)
    named = {"model": setting.model, "scheme": scheme, "algorithm": algorithm, "draw": setting.seed}
    return named | {"bits_per_weight": bits} | measure(setting, model).to_dict()


def cells(draw: int, only: list[str] | None) -> Iterator[tuple[str, str, int]]:
    """What there is to be measured. Without calibration nothing is drawn."""
    yield FULL, "-", 0
    for scheme, algorithm in OF_MODELS:
        if only is None or f"{scheme.split()[0]}/{algorithm}" in only:
            yield scheme, algorithm, 0 if algorithm == "fast" else draw


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("POTQ_DATA"), help="folder of texts and models")
    parser.add_argument("--model", choices=("tinystories", "smollm2"), default="tinystories")
    parser.add_argument("--draw", type=int, choices=range(DRAWS), default=0, help="of the calibration windows")
    parser.add_argument("--only", action="append", help="SCHEME/ALGORITHM to measure; default: all")
    options = parser.parse_args()
    if options.data is None:
        parser.error("give --data DIR or set POTQ_DATA")
    rows: list[Row] = TRELLIS.load(PROTOCOL) or [*source_rows()]
    setting = settings(Path(options.data))[options.model]
    for scheme, algorithm, draw in cells(options.draw, options.only):
        if not any((scheme, algorithm, draw) == (row["scheme"], row["algorithm"], row["draw"]) for row in of(rows, setting)):
            rows.append(model_row(replace(setting, seed=draw), scheme, algorithm))
            print(scheme, algorithm, draw, f"{rows[-1]['perplexity']:.3f}", flush=True)
            TRELLIS.write(PROTOCOL, rows)
    TRELLIS.write(PROTOCOL, rows)
    print_goals(TRELLIS.judge(rows))


def of(rows: list[Row], setting: Setting) -> list[Row]:
    """The rows of one model."""
    return [row for row in rows if row.get("model") == setting.model]


if __name__ == "__main__":
    main()
