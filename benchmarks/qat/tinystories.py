"""Quantization-aware training of TinyStories-656K: how much of what rounding costs comes back, and by which means.

``python -m benchmarks.qat.tinystories [--data DIR] [--only PART]``. Parts: ``recovery`` (4, 3 and 2 bits, distilled from the
full-precision model, starting from the best post-training quantization), ``data`` (next-token loss beside the control: full
precision trained the same way), ``free`` (the teacher's own text only), ``ablation`` (where scales come from, how weights
are rounded; three seeds). Rows are kept as they come; a killed run resumes. Texts and windows are ``ptq/table.py``'s: the
last 40 windows of 512 tokens are for evaluation, training reads what stands before them.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import potq
from benchmarks.common.goals import Row, print_goals
from benchmarks.common.results import summary
from benchmarks.ptq.settings import WINDOWS, Setting, measure, settings
from benchmarks.qat.goals import CLOSED, NONE, TINYSTORIES
from potq.config import EFFORTS
from potq.kernels import set_activations
from potq.qat import QATSettings, convert, prepare
from potq.qat.objective import Objective
from potq.qat.recipe import LossRecipe, OptimizationRecipe
from potq.qat.text import written_by
from potq.qat.trainer import QATTrainer

SEEDS = (0, 1, 2)
STEPS, BATCH, RATE = {"recovery": 240, "data": 240, "free": 240, "ablation": 60}, 8, 3e-3
WRITTEN = 500_000
ABLATION = [
    ("fast", "pot4", "log"),
    *((start, scheme, "nearest") for start in ("fast", "best") for scheme in ("pot4", "pot2")),
]
SEARCHED = QATSettings(scales="searched")
PROTOCOL = {
    "perplexity": f"GPTQ protocol: the last {WINDOWS} windows of 512 tokens, each story with its start token",
    "weights": "linears in groups of 64; embedding and head in full precision; activations never rounded",
    "training": {"steps": STEPS, "sequences a step": BATCH, "tokens a sequence": 512, "learning rate": RATE},
    "searched scales": f"anew every {SEARCHED.search_every} steps, in the first {SEARCHED.search_until:.0%} of them",
    "text": f"stories before the evaluated ones, 0.49 million tokens; free: {WRITTEN} that the full-precision model wrote",
    "gap closed": "(rounded to nearest - trained) / (rounded to nearest - full precision)",
}


@dataclass(frozen=True)
class Cell:
    """One row: ``scheme`` "none" trains in full precision, ``start`` is an effort of post-training quantization."""

    part: str
    scheme: str
    start: str = "best"
    scales: str = "learned"
    rounding: str = "nearest"
    loss: str = "distillation"
    trained: bool = True
    seed: int = 0


def cells() -> list[Cell]:
    ptq = [Cell("ptq", scheme, effort, trained=False) for scheme in CLOSED for effort in ("fast", "best")]
    recovery = [Cell("recovery", scheme) for scheme in CLOSED] + [Cell("recovery", "pot4", seed=seed) for seed in SEEDS[1:]]
    data = [
        Cell("data", NONE, loss="next_token", start="-"),
        *(Cell("data", scheme, loss="next_token") for scheme in CLOSED),
    ]
    free = [Cell("free", "pot4")]
    ablation = [
        Cell("ablation", scheme, start, scales, rounding, seed=seed)
        for start, scheme, rounding in ABLATION
        for scales in ("fixed", "searched", "learned")
        for seed in SEEDS
    ]
    log = Cell("ptq", "pot4", "fast", rounding="log", trained=False)
    return [Cell("ptq", NONE, "-", trained=False), *ptq, log, *recovery, *data, *free, *ablation]


@cache
def stories(setting: Setting) -> Tensor:
    """What training reads, ``(n, 512)``."""
    rest = setting.stories()[: -WINDOWS * setting.window]
    return rest[: len(rest) // 512 * 512].view(-1, 512)


@cache
def written(setting: Setting) -> Tensor:
    teacher = potq.load(setting.source, dtype="float32")
    return written_by(teacher, None, tokens=WRITTEN, length=512, seed=0, tokenizer=potq.load_tokenizer(setting.source))


@cache
def quantized(setting: Setting, scheme: str, rounding: str, effort: str) -> Any:
    """By post-training quantization."""
    model = potq.load(setting.source, dtype="float32")
    config = potq.PoTConfig(scheme, rounding=rounding, embedding=None, effort=effort)
    potq.quantize(model, config, setting.batches() if EFFORTS[effort].calibrated else None)
    return model


def model_of(setting: Setting, cell: Cell) -> Any:
    """The model as training finds it, or the post-training quantization itself."""
    model = potq.load(setting.source, dtype="float32")
    if cell.scheme == NONE:
        return model
    start = quantized(setting, cell.scheme, cell.rounding, cell.start)
    if not cell.trained:
        return start
    prepare(model, None, QATSettings.model_validate({"scales": cell.scales}), start=start)
    return model


def train(setting: Setting, cell: Cell, model: Any) -> int:
    """Train ``model``; the number of tokens seen."""
    rows = written(setting) if cell.part == "free" else stories(setting)
    loss = LossRecipe.model_validate({"distillation": 0.0, cell.loss: 1.0})
    teacher = potq.load(setting.source, dtype="float32").requires_grad_(False) if loss.needs_teacher else None
    steps = STEPS[cell.part]
    recipe = OptimizationRecipe(steps=steps, batch=BATCH, learning_rate=RATE, save_every=10**6)
    model.requires_grad_(True)
    with tempfile.TemporaryDirectory() as folder:
        QATTrainer(model, Objective(loss, teacher), recipe, Path(folder), rows, None, seed=cell.seed).train()
    return steps * BATCH * 512


def row(setting: Setting, cell: Cell) -> Row:
    began, tokens = time.perf_counter(), 0
    model = model_of(setting, cell)
    if cell.trained:
        tokens = train(setting, cell, model)
        if cell.scheme != NONE:
            convert(model)
    if cell.scheme != NONE:
        set_activations(model, "float")
    result = summary(measure(setting, model.eval()))
    return {**result, **asdict(cell), "tokens": tokens, "seconds": time.perf_counter() - began}


def todo(rows: list[Row], only: list[str] | None) -> Iterator[Cell]:
    done = [{key: row[key] for key in asdict(Cell("", ""))} for row in rows]
    for cell in cells():
        if asdict(cell) not in done and (only is None or cell.part in ("ptq", *only)):
            yield cell


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("POTQ_DATA"), help="folder of texts and models")
    parser.add_argument("--only", action="append", help="parts to measure; default: all")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    if options.data is None:
        parser.error("give --data DIR or set POTQ_DATA")
    torch.set_num_threads(options.threads)
    setting = settings(options.data)["tinystories"]
    rows = TINYSTORIES.load(PROTOCOL)
    for cell in todo(rows, options.only):
        rows.append(row(setting, cell))
        print(f"{cell}: {rows[-1]['perplexity']:.3f} in {rows[-1]['seconds']:.0f} s", flush=True)
        TINYSTORIES.write(PROTOCOL, rows)
    print_goals(TINYSTORIES.judge(rows))


if __name__ == "__main__":
    main()
