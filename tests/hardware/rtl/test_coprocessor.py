"""The co-processor: what it takes, and that it scales as the C program does. Firmware runs on it in ``test_attached.py``."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from potq.errors import ConfigError
from potq.hardware.gates import tools
from potq.hardware.matrix import IntegerMatrix
from potq.hardware.rtl.coprocessor import coprocessor, lanes_of, unit
from potq.hardware.rtl.design import Design, design_of
from potq.numerics.scheme import QuantScheme
from potq.ptq.algorithms.rtn import rtn

SCHEMES = ("pot2:scale_dtype=e8m0", "pot3s", "int4", "mxpot", "int8:group_size=64:scale_dtype=e8m0")


def designed(name: str, **options: int) -> Design:
    scheme = QuantScheme(name)
    changes: dict[str, Any] = {"lanes": lanes_of(scheme.grid.bits), **options}
    return design_of(scheme, name="unit", **changes)


@pytest.mark.parametrize(
    ("scheme", "options", "message"),
    [
        ("pot5", {"lanes": 16}, "unit: codes have 5 bits; the co-processor takes 2, 3, 4 or 8"),
        ("pot4", {"lanes": 8}, "two registers hold 16 codes; design it with so many lanes"),
        ("pot4", {"activation_bits": 4}, "takes activations of 8 bits, found 4"),
        ("pot4:group_size=48", {}, "takes groups of 32 or 64, found 48"),
        ("pot4:group_size=128", {}, "takes groups of 32 or 64, found 128"),
    ],
)
def test_what_two_registers_do_not_hold_is_refused(scheme: str, options: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        coprocessor(designed(scheme, **options))


@pytest.mark.parametrize("name", ["pot2", "pot3", "pot4", "mxpot", "apot4", "int4", "int8"])
@pytest.mark.parametrize("group", [32, 64])
def test_sums_are_shifted_to_the_left_as_in_the_c_program(name: str, group: int) -> None:
    scheme = QuantScheme(name, group_size=group, scale_dtype="e8m0")
    weight = torch.randn(2, group, generator=torch.Generator().manual_seed(0))
    matrix = IntegerMatrix.from_weight(name, rtn(weight, scheme))
    assert matrix.is_shift
    assert set(matrix.mantissas.flatten().tolist()) == {1 << unit(design_of(scheme, lanes=lanes_of(scheme.grid.bits)))}


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.skipif(tools.missing("verilator") is not None, reason=tools.missing("verilator") or "")
def test_verilator_has_no_complaint(name: str, tmp_path: Path) -> None:
    (tmp_path / "unit.sv").write_text(coprocessor(designed(name)), encoding="utf-8")
    # an instruction has fields that nobody reads, and the file three modules
    warnings = ("-Wall", "-Wno-UNUSEDSIGNAL", "-Wno-DECLFILENAME")
    command = ["verilator", "--lint-only", *warnings, "--top-module", "unit_coprocessor", "unit.sv"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
