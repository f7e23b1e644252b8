"""The co-processor's benchmark: what is compared, and a simulated core whose results are the integer model's."""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path

import pytest

import potq
from benchmarks.common.goals import Row
from benchmarks.hardware import coprocessor as benchmark
from benchmarks.hardware.coprocessor_goals import CORE, advantage
from potq.hardware import IntegerModel
from potq.hardware.rtl.coprocessor import coprocessor
from potq.numerics.scheme import QuantScheme
from tests.hardware.test_model import random_model

deep = pytest.mark.skipif(os.environ.get("HYPOTHESIS_PROFILE") != "deep", reason="builds a simulator: make check-deep")


def measured(scheme: str, area: float, perplexity: float) -> list[Row]:
    return [
        {"what": "system", "scheme": scheme, "cycles": 1000, "delay": 10.0, "area": area},
        {"what": "perplexity", "scheme": scheme, "effort": "fast", "perplexity": perplexity},
    ]


def test_only_what_is_as_good_as_int4_counts() -> None:
    int4, worse = measured("int4-g64-e8m0", 6e5, 40.0) + measured(CORE, 4e5, 40.0)[:1], measured("pot3-g64-e8m0", 5e5, 50.0)
    assert advantage(int4 + worse, "fast") == 0.0
    assert advantage(int4 + worse + measured("apot4-g64-e8m0", 7.5e5, 40.0), "fast") == 0.8
    assert advantage(worse, "fast") is None
    assert advantage(int4 + worse, "balanced") is None


def require() -> None:
    for program in ("verilator", "riscv64-unknown-elf-gcc"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    if importlib.util.find_spec("pythondata_cpu_picorv32") is None and "PICORV32" not in os.environ:
        pytest.skip("pip install pythondata-cpu-picorv32, or set PICORV32 to picorv32.v")


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
