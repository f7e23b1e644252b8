"""Units placed and routed, where yosys and nextpnr are."""

from __future__ import annotations

import pytest

from potq.hardware.gates import tools
from potq.hardware.gates.measure import registered_mac
from potq.hardware.gates.routing import routed
from potq.hardware.rtl.design import design_of
from potq.numerics.scheme import QuantScheme

wanted = tools.missing("yosys", "nextpnr-ice40")


@pytest.mark.skipif(wanted is not None, reason=wanted or "")
def test_a_unit_has_cells_and_a_clock() -> None:
    design = design_of(QuantScheme("pot3"), name="unit")
    found = routed(registered_mac(design), "unit_registered", seeds=(1,))
    registers = design.sum_bits + 1 + 3 + 8
    assert registers < found.cells < 200
    assert 40 < found.megahertz < 400
