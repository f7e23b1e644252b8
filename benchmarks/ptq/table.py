"""Perplexity against bits per weight: our grids, the integers and other people's formats under the same algorithms.

``python -m benchmarks.ptq.table [--model tinystories] [--data DIR]``. The linears are quantized, embedding and head stay in
full precision; groups of 64 and float16 scales unless a name says otherwise; bits per weight count all that is stored.
``--data`` (or the environment variable POTQ_DATA) is a folder with ``wikitext2/``, ``tinystories/`` and
``tinystories-656k/``. Rows are measured side by side, one process a core, and kept as they come; a killed run resumes, with
``--work DIR`` within a row too. Their ``seconds`` are those of a busy machine (``ptq/cost.py`` measures time). New rows have
the divergence from full precision beside perplexity. The whole test set comes last. Peers need packages of their own
(``benchmarks/README.md``); those that are missing are named.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import potq
from benchmarks.common.goals import Row, print_goals
from benchmarks.common.results import summary
from benchmarks.peers.ptq import PEERS, unavailable
from benchmarks.ptq.goals import SMOLLM2, TABLE
from benchmarks.ptq.plot import draw
from benchmarks.ptq.report import show
from benchmarks.ptq.settings import (
    ABSMAX,
    ASYMMETRIC,
    FULL,
    INTEGERS,
    PURE,
    SCHEMES,
    SEED,
    WINDOWS,
    Setting,
    figures,
    measure,
    quantized,
    settings,
)
from potq.config import EFFORTS

ALGORITHMS = ("fast", "gptq", "balanced", "best")
PROTOCOL = {
    "perplexity": f"GPTQ protocol: {WINDOWS} non-overlapping windows (SmolLM2: WikiText-2 test, 1024 tokens, the first "
    "ones; TinyStories: 512 tokens, the last ones, each story with its start token)",
    "calibration": "windows of 512 tokens: TinyStories 128 from before the evaluated ones, SmolLM2 64 of WikiText-2 train",
    "weights": "linears; embedding and head in full precision; activations never rounded",
    "seed": SEED,
    "efforts": {name: EFFORTS[name].model_dump(mode="json") for name in ALGORITHMS},
}
ORDER = ("fast", "gptq", "best", "balanced")  # what the goals need comes first
WHOLE = {(FULL, "-"), *((name, "best") for name in ("int2_asym", "pot2", "pot3", "apot3", "apot3s", "pot4", "apot4"))}
"""What is measured on the whole of WikiText-2's test set as well."""

_OURS = {"pot2", "pot3", "pot3s", "apot3", "apot3s", "pot4", "apot4"}
SLOW = {  # what SmolLM2 gets where a row takes minutes; best: the integers that won with gptq
    "gptq": {*_OURS, *PURE[2], *INTEGERS[2], *PURE[3], *INTEGERS[3], "int4", "int4_asym", "nf4"},
    "balanced": _OURS,
    "best": {*_OURS, "int2_asym", "int3", "int3_asym"},
    "peer": {  # of every library the settings that did best on TinyStories; AutoRound takes 40 minutes to two hours a row
        *(f"llama.cpp {kind} imatrix" for kind in ("IQ2_S", "Q2_K", "IQ3_XXS", "IQ3_S", "Q3_K")),
        *(f"llama.cpp {kind} imatrix" for kind in ("Q4_0", "IQ4_NL", "IQ4_XS", "Q4_K")),
        *("llama.cpp MXFP4", "bitsandbytes NF4 g64", "torchao int2 g64 HQQ scale", "torchao int3 g64", "torchao int4 g64"),
        *(f"HQQ {bits}-bit g64" for bits in (2, 3, 4)),
        *(f"{library} {bits}-bit g64 mse" for library in ("GPTQModel", "llm-compressor GPTQ") for bits in (2, 3, 4)),
    },
}

Cell = tuple[Setting, str, str, Path | None]


def cells(setting: Setting) -> list[tuple[str, str]]:
    """Scheme and algorithm of every row, full precision first, then peers."""
    missing = unavailable()
    found = [(name, algorithm) for algorithm in ORDER for name in (*SCHEMES, *ASYMMETRIC)]
    found += [(name + ABSMAX, "fast") for name in ("pot4", "apot4", "nf4")]
    found += [(name, "peer") for name in PEERS if name not in missing]
    if setting.model == SMOLLM2:
        found = [(name, algorithm) for name, algorithm in found if name in SLOW.get(algorithm, {name})]
    return [(FULL, "-"), *found]


def in_processes(measuring: Callable[..., Row], todo: list[Cell], workers: int) -> Iterator[Row]:
    """Rows as they are ready, of ``workers`` processes that share the processor's cores."""
    threads = max(1, (os.cpu_count() or 1) // workers)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, spawn, initializer=torch.set_num_threads, initargs=(threads,)) as pool:
        try:
            for done in as_completed([pool.submit(measuring, *cell) for cell in todo]):
                yield done.result()
        finally:
            pool.shutdown(cancel_futures=True)


def row(setting: Setting, scheme: str, algorithm: str, work: Path | None, tokens: Tensor | None = None) -> Row:
    """One line of the table, on the setting's own text or on ``tokens``."""
    began = time.perf_counter()
    model, bits = contestant(setting, scheme, algorithm, work)
    seconds = time.perf_counter() - began
    named = {"model": setting.model, "scheme": scheme, "algorithm": algorithm, "bits_per_weight": bits}
    found = figures(setting, model, setting.tokens() if tokens is None else tokens)
    return {**named, **found, "seconds": seconds, "threads": torch.get_num_threads()}


def whole(setting: Setting, scheme: str, algorithm: str, work: Path | None) -> Row:
    model, _ = contestant(setting, scheme, algorithm, work)
    found = summary(measure(setting, model, whole=True))
    return {"model": setting.model, "scheme": scheme, "algorithm": algorithm, "whole": found}


def contestant(setting: Setting, scheme: str, algorithm: str, work: Path | None) -> tuple[Any, float]:
    """The model of a row, and its bits per weight."""
    if scheme == FULL:
        return potq.load(setting.source), 32.0
    if algorithm == "peer":
        model = potq.load(setting.source)
        return model, PEERS[scheme].apply(model, setting.batches())
    return quantized(setting, scheme, algorithm, work)


def identity(row: Row) -> tuple[str, str, str]:
    return row["model"], row["scheme"], row["algorithm"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("POTQ_DATA"), help="folder of texts and models")
    parser.add_argument("--model", choices=("tinystories", "smollm2"), action="append", help="default: both")
    parser.add_argument("--only", action="append", help="schemes to measure; default: all")
    parser.add_argument("--algorithm", action="append", help="algorithms to run; default: all")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="rows at a time; default: one a core")
    parser.add_argument("--work", type=Path, help="where rows leave finished blocks and models; default: nowhere")
    options = parser.parse_args()
    if options.data is None:
        parser.error("give --data DIR or set POTQ_DATA")
    rows = TABLE.load(PROTOCOL)
    known = settings(Path(options.data))
    chosen = [known[name] for name in options.model or known]
    asked = [
        (setting, scheme, algorithm, options.work)
        for setting in chosen
        for scheme, algorithm in cells(setting)
        if (options.only is None or scheme in (FULL, *options.only))
        and (options.algorithm is None or algorithm in ("-", *options.algorithm))
    ]

    def left(wanted: str) -> list[Cell]:
        have = {identity(row) for row in rows if wanted in row}
        return [cell for cell in asked if (cell[0].model, *cell[1:3]) not in have]

    for_whole = [cell for cell in left("whole") if cell[1:3] in WHOLE and cell[0].model == SMOLLM2]
    for measuring, todo in ((row, left("perplexity")), (whole, for_whole)):
        for found in in_processes(measuring, todo, options.workers):
            old = next((row for row in rows if identity(row) == identity(found)), {})
            rows = [*(row for row in rows if row is not old), old | found]
            print(*identity(found), f"{found.get('whole', found)['perplexity']:.3f}", flush=True)
            TABLE.write(PROTOCOL, rows)
    for setting in chosen:
        show(rows, setting.model)
    for name, reason in unavailable().items():
        print(f"not measured: {name}: {reason}")
    print(draw(rows, TABLE.picture()))
    print_goals(TABLE.judge(rows))


if __name__ == "__main__":
    main()
