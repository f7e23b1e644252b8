"""What the circuits are judged by: areas and toggles against the smallest hand-made unit of as many bits."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.common.goals import Goal, Row, at_least, at_most
from benchmarks.common.results import Benchmark

AREAS = (
    ("mac", "pot4", "int4", 0.84),
    ("mac", "pot4", "int8", 0.48),
    ("mac", "mxpot", "int4", 0.68),
    ("mac", "pot3", "int3", 0.73),
    ("dot", "pot4", "int4", 0.76),
    ("dot", "mxpot", "int4", 0.62),
    ("dot", "pot3", "int3", 0.66),
)
NAMES = {"mac": "multiply-accumulate", "dot": "16-lane dot product"}


def smallest(rows: Sequence[Row], what: str, scheme: str) -> Row | None:
    """The scheme's unit of the least area, whatever its structure."""
    found = [row for row in rows if row["what"] == what and row["scheme"] == scheme]
    return min(found, key=lambda row: float(row["area"]), default=None)


def ratio(rows: Sequence[Row], what: str, scheme: str, other: str) -> float | None:
    """Of two areas."""
    one, two = smallest(rows, what, scheme), smallest(rows, what, other)
    return round(one["area"] / two["area"], 4) if one and two else None


def toggle_ratio(rows: Sequence[Row], scheme: str, other: str, layer: str) -> float | None:
    """Of the toggles of two units of least area, on the products of one layer."""
    one, two = smallest(rows, "mac", scheme), smallest(rows, "mac", other)
    return round(one["toggles"][layer] / two["toggles"][layer], 4) if one and two else None


def scale_ratio(rows: Sequence[Row], scheme: str) -> float | None:
    """Area of the scaling unit for powers of two over that for float16 scales."""
    found = {row["scale"]: row["area"] for row in rows if row["what"] == "scale" and row["scheme"] == scheme}
    return round(found["e8m0"] / found["float16"], 4) if {"e8m0", "float16"} <= found.keys() else None


def gates(rows: Sequence[Row]) -> list[Goal]:
    return [
        *(
            at_most(f"area of a {NAMES[what]}: {scheme} / {other}", most, ratio(rows, what, scheme, other))
            for what, scheme, other, most in AREAS
        ),
        *(
            at_most(f"toggles on {layer}: pot3 / int3", 0.7, toggle_ratio(rows, "pot3", "int3", layer))
            for layer in ("SmolLM2", "TinyStories")
        ),
        at_most("area of a scaling unit, pot4's sums: E8M0 / float16", 0.3, scale_ratio(rows, "pot4")),
    ]


def frontier(rows: Sequence[Row]) -> list[Goal]:
    return [
        at_least(f"{model}: area of int4 / the smallest PoT variant of no worse perplexity, int8 activations", 1.15, found)
        for model, found in ((model, advantage(rows, model)) for model in ("SmolLM2", "TinyStories"))
    ]


def advantage(rows: Sequence[Row], model: str) -> float | None:
    """Area of int4 in groups of 64 over that of the smallest PoT variant that is as good; 0 where none is."""
    points = [row for row in rows if row["model"] == model and row.get("activation_bits") == 8]
    int4 = next((row for row in points if row["scheme"] == "int4-g64"), None)
    if int4 is None:
        return None
    good = [row for row in points if "pot" in row["scheme"] and row["perplexity"] <= int4["perplexity"]]
    return round(_area(int4) / min(map(_area, good)), 4) if good else 0.0


def _area(row: Row) -> float:
    """Of a dot product, for each lane, with its share of a scaling unit."""
    return float(row["circuit"]["dot"] + row["circuit"]["scaling"])


GATES = Benchmark("hardware_gates", gates)
FRONTIER = Benchmark("hardware_frontier", frontier)
BENCHMARKS = (GATES, FRONTIER)
