"""What models on small processors are judged by: perplexity of the integer model, cycles of kernels and of whole tokens."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.common.goals import Goal, Row, at_least, at_most
from benchmarks.common.results import Benchmark

SHAPE = "128x128"
TOKEN = "token"
"""The shape of a whole one."""
TABLES = ("table", "pairs", "planes")
"""Kernels with a table of the inputs."""
TABLE_FREE = ("shift", "test_and_add", "buckets")
"""Kernels of less than 8 bits that neither multiply nor have one."""
BARREL, SERIAL = "PicoRV32 rv32i, barrel shifter", "PicoRV32 rv32i, serial shifter"
SEQUENTIAL, MULTIPLIER = "PicoRV32 rv32im, sequential", "PicoRV32 rv32im, fast multiplier"
SERV = "SERV rv32i"
IBEX_SLOW, IBEX = "Ibex rv32i", "Ibex rv32im, single-cycle multiplier"
EVERYWHERE = ", everywhere"
"""Behind a scheme: of embedding and head, too, which are int8 otherwise."""
MODEL_SCHEMES = {
    "TinyStories-656K": ("pot4", "apot4", "mxpot", "int4", "pot3", f"pot3{EVERYWHERE}", "pot3s", "int3", "pot2", "int2"),
    "SmolLM2-135M": ("pot4", "apot4", "mxpot", "int4", "pot3", "int3"),
}
"""What the integer model is tried with."""


def cycles(rows: Sequence[Row], core: str, scheme: str, kernels: Sequence[str]) -> float | None:
    """Cycles (or instructions) of a weight, by the fastest of some kernels."""
    found = [
        row["per_weight"]
        for row in rows
        if (row["core"], row["scheme"], row["shape"]) == (core, scheme, SHAPE) and row["kernel"] in kernels
    ]
    return min(found, default=None)


def _ratio(one: float | None, other: float | None) -> float | None:
    return round(one / other, 4) if one and other else None


def _model(rows: Sequence[Row]) -> list[Goal]:
    goals = []
    for model, most in (("TinyStories-656K", 1.02), ("SmolLM2-135M", 1.05)):
        ratios = {row["scheme"]: row["integer"] / row["packed"] for row in rows if row["model"] == model}
        complete = ratios.keys() >= set(MODEL_SCHEMES[model])
        name = f"{model}: perplexity of the integer model / the packed model's, the worst of all schemes"
        goals.append(at_most(name, most, round(max(ratios.values()), 4) if complete else None))
    return goals


def _cores(rows: Sequence[Row]) -> list[Goal]:
    at = f"{BARREL}, {SHAPE}"
    pot4 = cycles(rows, BARREL, "pot4", TABLE_FREE)
    loop, int4 = cycles(rows, BARREL, "int8", ("add_bytes",)), cycles(rows, BARREL, "int4", TABLE_FREE)
    goals = [
        at_most(f"{at}: cycles of a weight of pot4, no table", 28, pot4),
        at_least(f"{at}: int8 by the good loop / pot4, no table", 4.2, _ratio(loop, pot4)),
        at_least(f"{at}: the best int4 without table / pot4, no table", 1.25, _ratio(int4, pot4)),
    ]
    for scheme, most in (("pot4", 21), ("apot4", 21), ("pot3", 18), ("pot2", 13)):
        goals.append(
            at_most(f"{at}: cycles of a weight of {scheme}, with tables", most, cycles(rows, BARREL, scheme, TABLES))
        )
    multiplied = cycles(rows, SEQUENTIAL, "int8", ("multiply_bytes",))
    goals.append(
        at_least(
            f"{SEQUENTIAL}, {SHAPE}: int8 by multiplication / pot4, no table",
            1.8,
            _ratio(multiplied, cycles(rows, SEQUENTIAL, "pot4", TABLE_FREE)),
        )
    )
    others = [found for scheme in ("int4", "apot4") if (found := cycles(rows, SERV, scheme, TABLE_FREE))]
    goals.append(
        at_least(
            f"{SERV}, {SHAPE}: the best other 4-bit form without table / pot4, no table",
            1.05,
            _ratio(min(others, default=None), cycles(rows, SERV, "pot4", TABLE_FREE)),
        )
    )
    return [*goals, *_tokens(rows)]


def _tokens(rows: Sequence[Row]) -> list[Goal]:
    """Of a whole token."""
    found = {row["kernel"]: row["cycles"] for row in rows if row["shape"] == TOKEN and row["core"] == BARREL}
    name = f"{BARREL}: cycles of a token of TinyStories-656K"
    return [
        at_least(
            f"{name}, int8 by the library's multiplication / pot3", 8, _ratio(found.get("multiplication"), found.get("pot3"))
        ),
        at_least(f"{name}, int8 by the good loop / pot3", 3, _ratio(found.get("loop"), found.get("pot3"))),
    ]


MODEL = Benchmark("hardware_model", _model)
CORES = Benchmark("hardware_cores", _cores)
BENCHMARKS = (MODEL, CORES)
