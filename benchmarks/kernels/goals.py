"""What the CPU kernels are judged by."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from functools import partial
from typing import cast

from benchmarks.common.goals import Goal, Row, at_most
from benchmarks.common.results import Benchmark
from benchmarks.kernels.rows import EVERY, LARGE, WIDTH_768, WIDTH_4096, Cell, Results
from potq.kernels import Activations

ACTIVATIONS: tuple[Activations, ...] = ("float", "int8")
TARGET = 0.002


def cpu(rows: Sequence[Row]) -> list[Goal]:
    """What the kernels are to reach on two threads; a ratio's goal is judged where it is worst."""
    results = Results(rows)
    faster, part = partial(_faster, results), partial(_part, results)
    pot4 = faster("pot4", "4-bit")
    return [
        _worst("m=1, 4 bits / best 4-bit peer, every shape", 1.0, EVERY, 1, pot4),
        _mean("m=1, 4 bits / best 4-bit peer, geometric mean", 1.2, EVERY, 1, pot4),
        _worst("m=1, 4 bits, part of read bandwidth, weights >= 8 MB", 0.85, LARGE, 1, part("pot4")),
        _worst("m=1, 3 bits, part of read bandwidth, same shapes", 0.80, LARGE, 1, part("pot3")),
        _worst("m=1, 2 bits, part of read bandwidth, same shapes", 0.75, LARGE, 1, part("pot2")),
        *(_worst(f"m={m}, 4 bits / best 4-bit peer, 4096-wide", 3.0, WIDTH_4096, m, pot4) for m in (16, 128)),
        *(_worst(f"m={m}, 4 bits / best 4-bit peer, 768-wide", 1.5, WIDTH_768, m, pot4) for m in (16, 128)),
        *(_worst(f"m={m}, 4 bits / torch dynamic int8", 0.9, EVERY, m, faster("pot4", "int8")) for m in (16, 128)),
        _worst("m=1, 4 bits / torch fp32, 4096-wide", 7.0, WIDTH_4096, 1, faster("pot4", "fp32")),
        _worst("m=1, 2 bits / torch fp32, 4096-wide", 12.0, WIDTH_4096, 1, faster("pot2", "fp32")),
    ]


def avx2(rows: Sequence[Row]) -> list[Goal]:
    """What they are to reach with AVX2 alone. Parts of bandwidth at 4 and 2 bits are asked of every machine already."""
    results = Results(rows)
    faster, part = partial(_faster, results), partial(_part, results)
    pot4, onnx = faster("pot4", "4-bit"), faster("pot2", "2-bit", "ONNX Runtime")
    return [
        _mean("AVX2: m=1, 4 bits / best 4-bit peer, geometric mean", 1.3, EVERY, 1, pot4),
        _worst("AVX2: m=1, 3 bits, part of read bandwidth, weights >= 8 MB", 0.85, LARGE, 1, part("pot3")),
        *(_worst(f"AVX2: m={m}, 4 bits / best 4-bit peer, every shape", 1.5, EVERY, m, pot4) for m in (16, 128)),
        *(_worst(f"AVX2: m={m}, 4 bits / torch dynamic int8", 1.0, EVERY, m, faster("pot4", "int8")) for m in (16, 128)),
        *(_worst(f"AVX2: m={m}, 2 bits / ONNX Runtime's 2 bits, every shape", 1.3, EVERY, m, onnx) for m in (1, 16, 128)),
    ]


def _faster(results: Results, contestant: str, group: str, whose: str = "") -> Callable[[Cell], float | None]:
    return lambda cell: results.speedup(cell, contestant, group, whose)


def _part(results: Results, contestant: str) -> Callable[[Cell], float | None]:
    return lambda cell: results.of_bandwidth(cell, contestant)


def _worst(name: str, target: float, shapes: Sequence[str], m: int, value: Callable[[Cell], float | None]) -> Goal:
    """Met if the least value over ``shapes`` reaches the target and none is missing."""
    found = [(v, shape) for shape in shapes if (v := value((shape, m))) is not None]
    if not found:
        return Goal(name=name, target=target, measured=None, met=False)
    least, where = min(found)
    missing = f", {len(shapes) - len(found)} shapes not measured" if len(found) < len(shapes) else ""
    met = least >= target and not missing
    return Goal(name=f"{name} (worst: {where}{missing})", target=target, measured=round(least, 4), met=met)


def _mean(name: str, target: float, shapes: Sequence[str], m: int, value: Callable[[Cell], float | None]) -> Goal:
    found = [v for shape in shapes if (v := value((shape, m))) is not None]
    if not found:
        return Goal(name=name, target=target, measured=None, met=False)
    mean = statistics.geometric_mean(found)
    return Goal(name=name, target=target, measured=round(mean, 4), met=mean >= target and len(found) == len(shapes))


def activations(rows: Sequence[Row]) -> list[Goal]:
    found = difference(rows, "SmolLM2-135M", "apot4")
    return [
        {
            "name": "SmolLM2-135M apot4: relative difference of perplexity, int8 activations against float",
            "target": f"<= {TARGET} either way",
            "measured": found,
            "met": found is not None and abs(found) <= TARGET,
        }
    ]


def call(rows: Sequence[Row]) -> list[Goal]:
    """Judged where it is worst."""
    worst = max((row["ratio"] for row in rows), default=None)
    return [at_most("time of a tiny PoTLinear's call / nn.Linear's, the worst case", 1.2, worst and round(worst, 3))]


def find(rows: Sequence[Row], model: str, scheme: str, activations: Activations) -> Row | None:
    wanted = {"model": model, "scheme": scheme, "activations": activations}
    return next((row for row in rows if wanted.items() <= row.items()), None)


def difference(rows: Sequence[Row], model: str, scheme: str) -> float | None:
    """``int8 / float - 1`` of the perplexities, if both were measured."""
    exact, rounded = (find(rows, model, scheme, a) for a in ACTIVATIONS)
    return cast(float, rounded["perplexity"] / exact["perplexity"]) - 1 if exact and rounded else None


CPU = Benchmark("cpu_kernels", cpu, timed="cpu", packages=("onnxruntime", "xllamacpp"), judge_kind={"avx2": avx2})
ACTIVATIONS_COST = Benchmark("activations", activations)
CALL = Benchmark("module_call", call, timed="cpu")
ROOFLINE = Benchmark("kernels_roofline", lambda rows: [], timed="cpu")  # says why; nothing is asked of it
BENCHMARKS = (CPU, ACTIVATIONS_COST, CALL, ROOFLINE)
