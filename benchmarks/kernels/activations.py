"""What int8 activations cost, in perplexity of packed models: ``python -m benchmarks.kernels.activations``.

The cpu kernels round the inputs of every product, per row and block of at most 64 columns (docs/kernels.md); "float" leaves
them as they are. Everything else is the same: packed linears, embedding and head in int8 (the default), models, texts and
windows of ``ptq/rtn_table.py``, which also says what ``--data`` holds. Every row is kept as it comes; a killed run resumes.

``fine_share`` is the share of blocks, in one window, whose outlier makes the kernels round them to 16 bits.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import potq
from benchmarks.common.goals import Row, print_goals
from benchmarks.common.results import summary
from benchmarks.kernels.goals import ACTIVATIONS, ACTIVATIONS_COST, difference, find
from benchmarks.ptq.rtn_table import Setting, read_tokens, settings
from potq.evaluate.perplexity import perplexity
from potq.kernels import explain, set_activations
from potq.kernels.activations import in_units, is_fine
from potq.nn.packed_model import packed_modules

TEXTS = {"SmolLM2-135M": "WikiText-2 test", "TinyStories-656K": "TinyStories"}
SCHEMES = ("apot4", "pot4", "mxfp4")
WINDOWS = 40
PROTOCOL = {
    "perplexity": "GPTQ protocol: text tokenized once, non-overlapping windows, exp(total nll / predicted tokens)",
    "windows": WINDOWS,
    "weights": "round to nearest, scale by squared error over 16 candidates; embedding and head int8",
    "int8": "per row and block of at most 64 columns; to 16 bits where the integers' mean square is below 645",
    "fine_share": "of the blocks that are not all zero, in the first window, over all packed linears",
}


def pack(setting: Setting, scheme: str) -> Any:
    """The setting's model, packed.

    Raises:
        SystemExit: its linears would not run on the cpu kernels, where alone activations are rounded.
    """
    model = potq.load(setting.source)
    potq.quantize(model, potq.PoTConfig(scheme, scale_candidates=16))
    for kernel in {str(explain(linear)) for linear in linears(model)}:
        if not kernel.startswith("cpu"):
            raise SystemExit(f"{setting.model}, {scheme}: {kernel}")
    return model


def linears(model: nn.Module) -> list[Any]:
    """Every packed linear, the head too."""
    return [module for module in packed_modules(model).values() if isinstance(module, nn.Linear)]


def fine_blocks(input: Tensor, group: int) -> tuple[int, int]:
    """How many blocks of ``input (..., columns)`` the kernels round finely, and how many are not all zero."""
    units, step = in_units(input, group)
    some = step > 0
    return int((is_fine(units) & some).sum()), int(some.sum())


@contextmanager
def counted(model: nn.Module) -> Iterator[list[tuple[int, int]]]:
    """The counts of :func:`fine_blocks`, for every product that the packed linears compute meanwhile."""
    counts: list[tuple[int, int]] = []

    def count(module: Any, inputs: tuple[Tensor]) -> None:
        counts.append(fine_blocks(inputs[0], module.scheme.group(module.in_features)))

    handles = [linear.register_forward_pre_hook(count) for linear in linears(model)]
    try:
        yield counts
    finally:
        for handle in handles:
            handle.remove()


def fine_share(model: Any, window: Tensor) -> float:
    """The share of blocks that are rounded finely while ``model`` reads ``window`` (1-D)."""
    set_activations(model, "int8")
    with torch.no_grad(), counted(model) as counts:
        model(window[None], use_cache=False)
    fine, blocks = map(sum, zip(*counts, strict=True))
    return fine / blocks


def measure(setting: Setting, scheme: str, done: list[Row], windows: int) -> Iterator[Row]:
    """The rows of one packed model that are not in ``done``."""
    key = {"model": setting.model, "text": setting.text, "window": setting.window, "scheme": scheme}
    missing = [a for a in ACTIVATIONS if find(done, setting.model, scheme, a) is None]
    if not missing:
        return
    model, tokens = pack(setting, scheme), read_tokens(setting)
    share = fine_share(model, tokens[: setting.window])
    for activations in missing:
        set_activations(model, activations)
        found = perplexity(model, tokens, window=setting.window, max_windows=windows)
        row = {**key, "activations": activations, "kernel": str(explain(linears(model)[0])), **summary(found)}
        yield {**row, "fine_share": share} if activations == "int8" else row


def show(rows: list[Row]) -> None:
    table = Table(
        "model", "scheme", "float", "int8", "difference", "blocks rounded finely", title="Perplexity by activations"
    )
    for model in TEXTS:
        for scheme in SCHEMES:
            exact, rounded = (find(rows, model, scheme, a) for a in ACTIVATIONS)
            change = difference(rows, model, scheme)
            if exact is None or rounded is None or change is None:
                continue
            figures = [f"{row['perplexity']:.3f}" for row in (exact, rounded)]
            table.add_row(model, scheme, *figures, f"{100 * change:+.3f} %", f"{100 * rounded['fine_share']:.2f} %")
    Console(width=120).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("POTQ_DATA"), help="folder of texts and models")
    parser.add_argument("--windows", type=int, default=WINDOWS, help="of each text; with others than 40, nothing is kept")
    options = parser.parse_args()
    if options.data is None:
        parser.error("give --data DIR or set POTQ_DATA")
    keep = options.windows == WINDOWS
    rows = ACTIVATIONS_COST.load(PROTOCOL) if keep else []
    for setting in settings(Path(options.data)):
        if TEXTS[setting.model] != setting.text:
            continue
        for scheme in SCHEMES:
            for row in measure(setting, scheme, list(rows), options.windows):
                rows.append(row)
                print(f"{row['model']} {scheme} {row['activations']}: {row['perplexity']:.3f}", flush=True)
                if keep:
                    ACTIVATIONS_COST.write(PROTOCOL, rows)
    show(rows)
    print_goals(ACTIVATIONS_COST.judge(rows))


if __name__ == "__main__":
    main()
