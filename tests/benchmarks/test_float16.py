"""The float16 unit of the circuits' benchmark: its netlist stores what numpy computes."""

from __future__ import annotations

import os

import numpy as np
import pytest

from benchmarks.hardware import float16
from potq.hardware.gates import tools
from potq.hardware.gates.synthesis import Gates, gates
from potq.hardware.gates.toggles import toggles

wanted = tools.missing("yosys", "sta", cells=True)
deep = os.environ.get("HYPOTHESIS_PROFILE") == "deep"
pytestmark = [
    pytest.mark.skipif(not deep, reason="takes minutes: make check-deep"),
    pytest.mark.skipif(wanted is not None, reason=wanted or ""),
]
COUNT = 4000
TIES = np.array([1, -1, 1 + 2**-10, -1 - 2**-10, 0.5, 2, -2, 2**-14, 0], np.float16)


@pytest.fixture(scope="module")
def unit() -> Gates:
    return gates(float16.source(), float16.NAME)


def numbers(kind: str, seed: int) -> np.ndarray:
    drawn = np.random.default_rng(seed)
    if kind == "ties":
        return drawn.choice(TIES, COUNT)
    spread = drawn.integers(-14, 14, COUNT) if kind == "far apart" else np.zeros(COUNT, int)
    return np.ldexp(drawn.standard_normal(COUNT), spread).astype(np.float16)


@pytest.mark.parametrize("kind", ["alike", "far apart", "ties"])
def test_the_netlist_adds_as_numpy_does(unit: Gates, kind: str) -> None:
    codes, given = (numbers(kind, seed).view(np.uint16).tolist() for seed in (0, 1))
    first = [int(place % 64 == 0) for place in range(COUNT)]
    stored = float16.sums(codes, given, first)
    assert toggles(unit.netlist, {"first": first, "code": codes, "activation": given}, "sum", stored) > 100 * COUNT


def test_sums_are_float32_s() -> None:
    codes = np.array([1.5, -2.0, 6e-8], np.float16).view(np.uint16).tolist()
    given = np.array([3.0, 0.25, 1.0], np.float16).view(np.uint16).tolist()
    found = np.array(float16.sums(codes, given, [1, 0, 0]), np.uint32).view(np.float32)
    assert found.tolist() == [0.0, 4.5, 4.0, 4.0]  # the last one is subnormal, and counts as zero
