"""What each step of post-training quantization brings: ``python -m benchmarks.ptq.ablation [--data DIR]``.

TinyStories-656K, pure PoT and 2-term grids at 2, 3 and 4 bits, linears only, groups of 64: PoTPTQ's step 1 (search for the
scales), its step 2 (refinement of the scales on a block's output) from the largest weight's scales, both, GPTQ, GPTQ with
joint refinement of codes and scales of a layer, of a block's output, and of the model's predictions. Rows are kept as they
come; a killed run resumes.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

import potq
from benchmarks.common.goals import Row, print_goals
from benchmarks.common.results import summary
from benchmarks.ptq.goals import ABLATION, GRIDS
from benchmarks.ptq.settings import SCHEMES, SEED, Setting, measure, quantized, settings
from potq.config import EFFORTS, Effort
from potq.nn.plan import plan
from potq.numerics.functional import decode_scale
from potq.numerics.scale_search import choose_scale
from potq.ptq.algorithms.rounding import SchemeRounding
from potq.ptq.sequential import SequentialCalibration

STEPS: dict[str, Effort] = {
    "absmax scales": Effort(),
    "step 1: searched scales": EFFORTS["fast"],
    "step 2 alone": EFFORTS["potptq"],
    "steps 1 and 2": EFFORTS["potptq"],
    "GPTQ": EFFORTS["gptq"],
    "GPTQ + layer": EFFORTS["balanced"],
    "GPTQ + layer + block": EFFORTS["balanced"].model_copy(update={"scope": "block"}),
    "GPTQ + layer + model": EFFORTS["best"],
    "model alone": EFFORTS["best"].model_copy(update={"compensate": False, "rounds": 0}),
}
UNSEARCHED = ("absmax scales", "step 2 alone")
PROTOCOL = {
    "model": "TinyStories-656K, its own text as in ptq_table",
    "steps": {name: effort.model_dump(mode="json") for name, effort in STEPS.items()},
    "seed": SEED,
}


class AbsmaxRounding(SchemeRounding):
    """Scales from the largest weight of a group: what step 2 starts from when there was no step 1."""

    def fit(self, block: Tensor, importance: Tensor) -> tuple[Tensor, Tensor | None]:
        return decode_scale(choose_scale(block, self._group, "absmax")), None


def row(setting: Setting, scheme: str, step: str) -> Row:
    began = time.perf_counter()
    if step in UNSEARCHED:
        model = potq.load(setting.source)
        config = potq.PoTConfig(scheme=SCHEMES[scheme], embedding=None)
        targets = plan(model, config).targets
        layers = SequentialCalibration(
            model, targets, STEPS[step], setting.batches(), seed=SEED, rounding=AbsmaxRounding.of
        ).run()
        for target in targets:
            model.get_submodule(target.name).weight.data = layers[target.name].weight.dequantize()
    else:
        model, _ = quantized(setting, scheme, STEPS[step])
    seconds = time.perf_counter() - began
    return {"scheme": scheme, "step": step, **summary(measure(setting, model)), "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("POTQ_DATA"), help="folder of texts and models")
    options = parser.parse_args()
    if options.data is None:
        parser.error("give --data DIR or set POTQ_DATA")
    setting = settings(Path(options.data))["tinystories"]
    protocol = {**PROTOCOL, "threads": torch.get_num_threads()}
    rows = ABLATION.load(protocol)
    for scheme in GRIDS:
        for step in STEPS:
            if any((r["scheme"], r["step"]) == (scheme, step) for r in rows):
                continue
            rows.append(row(setting, scheme, step))
            print(f"{scheme}, {step}: {rows[-1]['perplexity']:.3f} in {rows[-1]['seconds']:.0f} s", flush=True)
            ABLATION.write(protocol, rows)
    table = Table("step", *GRIDS, title="TinyStories-656K, perplexity")
    values = {(r["scheme"], r["step"]): f"{r['perplexity']:.2f}" for r in rows}
    for step in STEPS:
        table.add_row(step, *(values.get((scheme, step), "-") for scheme in GRIDS))
    Console(width=120).print(table)
    print_goals(ABLATION.judge(rows))


if __name__ == "__main__":
    main()
