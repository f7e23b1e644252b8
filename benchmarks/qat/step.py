"""What a step of quantization-aware training costs over one in full precision: time and peak memory.

``python -m benchmarks.qat.step [--data DIR] [--rounds 5]``. A step is forward, backward and AdamW on the same batch. Times
are of both models in one process, a step of each in turn; memory is the peak of a process of its own for each (Linux), the
model's loading not counted.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import re
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import potq
from benchmarks.common.goals import Row, print_goals
from benchmarks.qat.goals import STEP
from potq.qat import QATSettings, prepare, refresh_scales

CELLS = [*((scheme, "learned") for scheme in ("pot4", "pot3", "pot2", "apot4")), ("pot4", "searched"), ("pot4", "fixed")]
FULL, EMBEDDED = "full precision", "smollm2"
SEARCH_EVERY = QATSettings().search_every
MODELS = {"SmolLM2-135M": (EMBEDDED, (2, 512)), "TinyStories-656K": ("tinystories-656k", (8, 512))}
PROTOCOL = {
    "step": "forward, next-token loss, backward, AdamW; linears at the scheme in groups of 64, embedding and head int8",
    "batch": {model: f"{rows} x {length} tokens" for model, (_, (rows, length)) in MODELS.items()},
    "time": "median over rounds of the ratio to a full-precision step right before it; searched scales: the mean over "
    f"{SEARCH_EVERY} steps, of which one searches",
    "memory": "VmHWM of a process of its own over two steps, after a first one",
}


def make(source: str, scheme: str, scales: str) -> Any:
    model = potq.load(source, dtype="float32").requires_grad_(True).train()
    if scheme != FULL:
        prepare(model, potq.PoTConfig(scheme), QATSettings.model_validate({"scales": scales}))
    return model


class Stepper:
    """One model with its optimizer."""

    def __init__(self, source: str, scheme: str, scales: str, batch: tuple[int, int], dtype: str) -> None:
        self.model, self.dtype = make(source, scheme, scales), dtype
        vocabulary = self.model.config.vocab_size
        self.ids: Tensor = torch.randint(vocabulary, batch, generator=torch.Generator().manual_seed(0))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5, fused=True)

    def __call__(self, *, search: bool = False) -> float:
        """Seconds that a step takes."""
        if search:
            refresh_scales(self.model)
        began = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=self.dtype == "bfloat16"):
            loss = self.model(self.ids, labels=self.ids, use_cache=False).loss
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return time.perf_counter() - began


def ratio(source: str, scheme: str, scales: str, batch: tuple[int, int], dtype: str, rounds: int) -> dict[str, Any]:
    steppers = [Stepper(source, each, scales, batch, dtype) for each in (FULL, scheme)]
    for stepper in steppers:
        stepper(search=True)
    exact, plain, searched = [], [], []
    for _ in range(rounds):
        exact.append(steppers[0]())
        plain.append(steppers[1]())
        searched.append(steppers[1](search=True) if scales == "searched" else plain[-1])
    ratios = [(p + (s - p) / SEARCH_EVERY) / e for e, p, s in zip(exact, plain, searched, strict=True)]
    return {"exact": exact, "plain": plain, "searched": searched, "time_ratio": statistics.median(ratios)}


def peak(source: str, scheme: str, scales: str, batch: tuple[int, int], dtype: str) -> int:
    """Bytes; to be called in a process of its own."""
    stepper = Stepper(source, scheme, scales, batch, dtype)
    stepper()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    stepper()
    stepper(search=True)
    status = Path("/proc/self/status").read_text(encoding="ascii")
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    return int(found[1]) * 1024 if found else 0


def in_a_process(*arguments: Any) -> int:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(peak, arguments)


def measure(place: str, batch: tuple[int, int], cell: tuple[str, str, str], rounds: int, exact_peak: int) -> Row:
    scheme, scales, dtype = cell
    timed = ratio(place, scheme, scales, batch, dtype, rounds)
    used = in_a_process(place, scheme, scales, batch, dtype)
    memory = {"peak_bytes": used, "exact_peak_bytes": exact_peak, "memory_ratio": used / exact_peak}
    return {"scheme": scheme, "scales": scales, "dtype": dtype, **timed, **memory}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("POTQ_DATA"), help="folder of texts and models")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    if options.data is None:
        parser.error("give --data DIR or set POTQ_DATA")
    rows = STEP.load(PROTOCOL)
    done = {(row["model"], row["scheme"], row["scales"], row["dtype"]) for row in rows}
    for model, (source, batch) in MODELS.items():
        place = source if source == EMBEDDED else str(Path(options.data) / source)
        for dtype in ("float32", "bfloat16"):
            cells = [(*cell, dtype) for cell in CELLS if (model, *cell, dtype) not in done]
            exact_peak = in_a_process(place, FULL, "fixed", batch, dtype) if cells else 0
            for cell in cells:
                rows.append({"model": model, **measure(place, batch, cell, options.rounds, exact_peak)})
                print("{model} {dtype} {scheme} {scales}: x{time_ratio:.3f}, x{memory_ratio:.3f}".format(**rows[-1]))
                STEP.write(PROTOCOL, rows)
    print_goals(STEP.judge(rows))


if __name__ == "__main__":
    main()
