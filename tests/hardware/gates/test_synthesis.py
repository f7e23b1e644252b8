"""Modules as gates and look-up tables, where yosys and its companions are."""

from __future__ import annotations

import os

import pytest

from potq.errors import MissingDependencyError, ModelError
from potq.hardware.gates import tools
from potq.hardware.gates.measure import Stream, sources_of, toggles_of
from potq.hardware.gates.synthesis import Gates, blocks, gates
from potq.hardware.rtl.design import Design, design_of
from potq.numerics.scheme import QuantScheme

wanted = tools.missing("yosys", "sta", cells=True)
measured = pytest.mark.skipif(wanted is not None, reason=wanted or "")
deep = pytest.mark.skipif(os.environ.get("HYPOTHESIS_PROFILE") != "deep", reason="takes minutes: make check-deep")


@pytest.fixture(scope="module")
def pot3() -> tuple[Design, Gates]:
    design = design_of(QuantScheme("pot3"))
    return design, gates(sources_of(design, "mac"), "pot3_g64_mac")


def test_what_is_missing_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(MissingDependencyError, match=r"apt-get install yosys opensta \(Debian, Ubuntu\)"):
        tools.require("yosys", "sta")


@measured
def test_a_power_of_two_takes_less_than_an_integer_of_as_many_bits(pot3: tuple[Design, Gates]) -> None:
    design = design_of(QuantScheme("int3"), structure="baugh-wooley")
    other = gates(sources_of(design, "mac"), "int3_g64_mac")
    assert 0.5 < pot3[1].area / other.area < 0.85
    assert 1 < pot3[1].delay < 10


@measured
def test_toggles_are_counted_and_the_netlist_is_checked(pot3: tuple[Design, Gates]) -> None:
    design, found = pot3
    still = Stream((0,) * 64, (0,) * 64)
    lively = Stream((3, 7) * 32, (127, -128) * 32)
    assert 0 < 4 * toggles_of(design, found, still) < toggles_of(design, found, lively)
    wrong = Design("pot3_g64", design_of(QuantScheme("pot3nz")).grid, "shift")
    with pytest.raises(ModelError, match="the netlist is wrong"):
        toggles_of(wrong, found, lively)


@measured
@deep
@pytest.mark.parametrize("family", ["ice40", "xc7"])
def test_look_up_tables_and_multiplier_blocks(family: str) -> None:
    design = design_of(QuantScheme("int8"), structure="multiply")
    text = sources_of(design, "mac")
    without, with_them = (blocks(text, "int8_g64_mac", family, dsp=dsp) for dsp in (False, True))  # type: ignore[arg-type]
    assert (without.dsps, with_them.dsps) == (0, 1)
    assert without.luts > with_them.luts
