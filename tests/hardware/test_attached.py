"""Firmware on a simulated core with a co-processor: its results are the integer model's."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import potq
from benchmarks.hardware import coprocessor as benchmark
from firmware.simulation import picorv32
from potq.hardware import IntegerModel
from potq.hardware.rtl.coprocessor import coprocessor
from potq.numerics.scheme import QuantScheme

from . import c_program
from .test_model import random_model

deep = pytest.mark.skipif(os.environ.get("HYPOTHESIS_PROFILE") != "deep", reason="builds a simulator: make check-deep")


def require() -> None:
    for program in ("verilator", "riscv64-unknown-elf-gcc"):
        c_program.require(program)
    c_program.require_core(picorv32())


def token(name: str, unit: str, folder: Path) -> int:
    """Cycles of a random model's token, by the co-processor of ``unit``."""
    require()
    scheme, model = QuantScheme(name), random_model("llama", quantized=False)
    potq.quantize(model, potq.PoTConfig(scheme=scheme, embedding=scheme))
    (folder / "unit.sv").write_text(coprocessor(benchmark.design(QuantScheme(unit))), encoding="utf-8")
    return benchmark.cycles(IntegerModel.from_packed(model, context=8), scheme, folder / "unit.sv", folder)


@pytest.mark.slow
@deep
@pytest.mark.parametrize(
    "name",
    [
        "pot2:group_size=32",
        "pot3:group_size=32:scale_dtype=e8m0",
        "pot3s:group_size=32",
        "apot4:group_size=32",
        "mxpot",
        "int8:group_size=32:scale_dtype=e8m0",
    ],
)
def test_a_co_processor_computes_what_python_does(name: str, tmp_path: Path) -> None:
    assert token(name, name, tmp_path) > 0


@pytest.mark.slow
@deep
def test_another_grid_s_co_processor_is_noticed(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="does not give what the integer model gives"):
        token("pot4:group_size=32:scale_dtype=e8m0", "int4:group_size=32:scale_dtype=e8m0", tmp_path)
