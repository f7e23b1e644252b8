"""The GPU benchmarks: their goals, from rows made up here, and what they compare, under Triton's interpreter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu import goals as gpu_goals
from benchmarks.gpu import plot as gpu_plot
from benchmarks.gpu import timing as gpu_timing

DTYPES = [torch.float16, torch.bfloat16]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def _rows(speed: float) -> list[dict[str, Any]]:
    """Times in which potq is ``speed`` times as fast as cuBLAS, and as its own copy."""
    rows: list[dict[str, Any]] = []
    for shape in ("4096x4096", "11008x4096", "8192x28672"):
        what = {"shape": shape, "dtype": "bfloat16"}
        for m in (1, 16):
            for name, time in (("cuBLAS", 100.0), ("pot4", 100 / speed), ("pot3", 90 / speed)):
                rows.append({"work": "product", "m": m, **what, "contestant": name, "microseconds": time})
            rows.append({"work": "product", "m": m, **what, "contestant": "peer", "skipped": "not installed"})
        for name, bandwidth in (("copy", 1000.0), ("pot2", 900.0), ("pot3", 900.0), ("pot4", 800.0)):
            rows.append({"work": "dequantize", **what, "contestant": name, "microseconds": 1.0, "GB/s": bandwidth})
    return rows


def test_goals_are_met_by_their_figures() -> None:
    found = {goal["name"].removesuffix(", at least"): goal for goal in gpu_goals.kernels(_rows(2.6))}
    assert found["pot2 dequantization, part of copy bandwidth, worst shape"]["met"]
    assert not found["pot4 dequantization, part of copy bandwidth, worst shape"]["met"]
    assert found["m=1, pot4, times faster than cuBLAS, 11008x4096"]["met"]
    assert not found["m=1, pot4, times faster than cuBLAS, 8192x28672"]["met"]
    assert found["m=1, pot3, times faster than pot4, 8192x28672"]["measured"] == pytest.approx(100 / 90)


def test_goals_without_rows_are_missed() -> None:
    assert [(goal["measured"], goal["met"]) for goal in gpu_goals.kernels([])] == [(None, False)] * 8


def test_the_plot(tmp_path: Path) -> None:
    path = tmp_path / "plot.png"
    assert gpu_plot.draw(_rows(2.0), path) == "drawn: plot.png"
    assert path.stat().st_size > 1000
    assert gpu_plot.draw([], path) == "no plot: no product was measured"


def test_what_does_not_compile_is_a_row_with_the_reason() -> None:
    def fails() -> None:
        raise RuntimeError("PassManager::run failed")

    assert gpu_timing.timed(fails) == {"skipped": "RuntimeError: PassManager::run failed"}
    rows = [row for row in _rows(2.0) if row["contestant"] != "pot4"] + [
        {"work": "product", "m": m, "shape": "8192x28672", "dtype": "bfloat16", "contestant": "pot4", "skipped": "failed"}
        for m in (1, 16)
    ]
    found = {goal["name"].removesuffix(", at least"): goal for goal in gpu_goals.kernels(rows)}
    assert found["m=1, pot4, times faster than cuBLAS, 8192x28672"]["measured"] is None


# ---- with triton ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("grid", "form"),
    [(g, f) for g in ("int2", "int3", "int4") for f in ("magic", "fused")] + [("pot3", "add"), ("pot2", "add")],
)
def test_the_other_forms_are_exact(grid: str, form: str, dtype: torch.dtype) -> None:
    pytest.importorskip("triton", reason="triton is not installed: pip install 'potq[gpu]'")
    from benchmarks.gpu import forms as gpu_forms
    from benchmarks.gpu import kernels as gpu_kernels

    weight = gpu_kernels.random_weight(grid, (3, 136), DEVICE)
    weight.scale.copy_(torch.tensor([2.0**-8, 2.0**-7 - 2.0**-15, 2.0**-9 * 1.25]))  # bfloat16 holds them, float16 lifted
    out = torch.empty(weight.shape, dtype=dtype, device=DEVICE)
    gpu_forms.launch(form, weight, out).run()
    assert torch.equal(out, weight.dequantize().to(dtype))


def test_a_form_of_another_grid_is_refused() -> None:
    pytest.importorskip("triton", reason="triton is not installed: pip install 'potq[gpu]'")
    from benchmarks.gpu import forms as gpu_forms
    from benchmarks.gpu import kernels as gpu_kernels
    from potq.errors import ConfigError

    with pytest.raises(ConfigError, match="no form 'magic' of pot4"):
        gpu_forms.launch("magic", gpu_kernels.random_weight("pot4", (2, 64), "cpu"), torch.empty(2, 64).half())


def test_everything_that_will_be_timed_runs() -> None:
    pytest.importorskip("triton", reason="triton is not installed: pip install 'potq[gpu]'")
    from benchmarks.gpu import kernels as gpu_kernels

    timed = list(gpu_kernels.dequantizations((2, 64), torch.bfloat16, DEVICE))
    timed += gpu_kernels.products((2, 64), 1, torch.float16, DEVICE)
    assert len(timed) == 1 + 8 + 3 + 2 * 3 + 1 + 8  # a copy, grids, other forms of PoT and of integers; cuBLAS, grids
    for _, moved, call in timed:
        call()
        assert moved > 0


DISASSEMBLY = """
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/              @!P0 LDG.E R6, desc[UR8][R2.64] ;
        /*0020*/                   HFMA2.MMA R5, R3, R8.reuse, -RZ ;
        /*0030*/                   LOP3.LUT R3, R10, 0x80008000, R3, 0xf8, !PT ;
        /*0040*/              @!UP1 UIADD3 UR7, UR7, UR8, URZ ;
        /*0050*/                   EXIT ;
        /*0060*/                   BRA `(.L_x_0);
        /*0070*/                   NOP;
"""


def test_instructions_are_counted_by_kind() -> None:
    pytest.importorskip("triton", reason="triton is not installed: pip install 'potq[gpu]'")
    from benchmarks.gpu import instructions as gpu_instructions

    names = gpu_instructions.parse(DISASSEMBLY)
    assert names == ["LDC", "LDG", "HFMA2", "LOP3", "UIADD3", "EXIT"]
    assert gpu_instructions.counted(names) == {"memory": 2, "float": 1, "control": 1, "integer": 2}


def test_the_instructions_of_decoding_are_compared() -> None:
    pytest.importorskip("triton", reason="triton is not installed: pip install 'potq[gpu]'")
    from benchmarks.gpu import instructions as gpu_instructions

    per_weight = {"potq": 5.0, "none": 3.0, "magic": 5.5, "fused": 4.5, "add": 9.0}
    rows = [
        {"capability": 90, "dtype": dtype, "bits": bits, "grid": f"{family}{bits}", "form": form, "per_weight": count}
        for dtype in ("float16", "bfloat16")
        for bits in (2, 3, 4)
        for family in ("pot", "int")
        for form, count in per_weight.items()
    ]
    found = gpu_goals.instructions(gpu_instructions.with_decoding(rows))
    assert [goal["met"] for goal in found] == [False] * 12  # int's own conversion, 5.0 here, is not above pot's
    cheaper = [row | {"per_weight": 4.8} if (row["grid"][:3], row["form"]) == ("pot", "potq") else row for row in rows]
    found = gpu_goals.instructions(gpu_instructions.with_decoding(cheaper))
    assert [goal["met"] for goal in found] == [True] * 6 + [False] * 6
    assert (found[0]["measured"], found[0]["target"]) == (1.8, 2.0)
