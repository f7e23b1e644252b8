"""A trellis against grids of as many bits: synthetic sources, and TinyStories under potq's own algorithms.

``python -m benchmarks.trellis.measure [--data DIR] [--only SCHEME/ALGORITHM ...]``. The sources take seconds. Models, texts
and protocol are those of ``benchmarks.ptq.table``; rows are kept as they come, and what is there is not measured again.
``pot2t by blocks`` is the control of ``benchmarks.trellis.feedback``.
"""

from __future__ import annotations

import argparse
import os
from contextlib import nullcontext
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

GROUPS, GROUP, BLOCK = 4000, 64, 16
SOURCES = ("gaussian", "student t5")
OF_SOURCES = ("pot2", "int2_midrise", "pot2t", "int2t", "apot3", "apot3s", "int3_midrise", "apot3t")
BLOCKS = f"pot2t by blocks of {BLOCK}"
OF_MODELS = (
    *((scheme, algorithm) for algorithm in ("gptq", "fast", "balanced", "best") for scheme in ("pot2", "pot2t", "int2t")),
    (BLOCKS, "gptq"),
    *((scheme, algorithm) for algorithm in ("gptq", "best") for scheme in ("apot3s", "apot3t")),
)
PROTOCOL = {
    **TABLE_PROTOCOL,
    "sources": f"{GROUPS} groups of {GROUP} weights, seed {SEED}; a searched float16 scale each; decibels over all",
}


def source(name: str) -> Tensor:
    generator = torch.Generator().manual_seed(SEED)
    weight = torch.randn(GROUPS, GROUP, generator=generator)
    if name == "gaussian":
        return weight
    return weight / (torch.randn(5, GROUPS, GROUP, generator=generator).square().mean(0)).sqrt()


def model_row(setting: Setting, scheme: str, algorithm: str) -> Row:
    if scheme == FULL:
        model, bits = potq.load(setting.source), 32.0
    else:
        name = scheme.split(maxsplit=1)[0]
        with fed_back_by_blocks(BLOCK) if scheme == BLOCKS else nullcontext():
            model, bits = quantized(setting, name, algorithm)
    named = {"scheme": scheme, "algorithm": algorithm, "bits_per_weight": bits}
    return named | measure(setting, model).to_dict()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("POTQ_DATA"), help="folder of texts and models")
    parser.add_argument("--only", action="append", help="SCHEME/ALGORITHM to measure; default: all")
    options = parser.parse_args()
    if options.data is None:
        parser.error("give --data DIR or set POTQ_DATA")
    rows: list[Row] = TRELLIS.load(PROTOCOL)
    setting = settings(Path(options.data))["tinystories"]
    have = {(row["scheme"], row.get("source") or row["algorithm"]) for row in rows}
    for name in SOURCES:
        for scheme in OF_SOURCES:
            if (scheme, name) not in have:
                value = decibels(*rtn(source(name), potq.QuantScheme(scheme)).energies(source(name)))
                rows.append({"source": name, "scheme": scheme, "decibels": value})
    for scheme, algorithm in ((FULL, "-"), *OF_MODELS):
        asked = scheme == FULL or options.only is None or f"{scheme.split()[0]}/{algorithm}" in options.only
        if asked and (scheme, algorithm) not in have:
            rows.append(model_row(setting, scheme, algorithm))
            print(scheme, algorithm, f"{rows[-1]['perplexity']:.3f}", flush=True)
            TRELLIS.write(PROTOCOL, rows)
    TRELLIS.write(PROTOCOL, rows)
    print_goals(TRELLIS.judge(rows))


if __name__ == "__main__":
    main()
