"""Speed with less than the CPU has: rivals are held to the same, and the results say so."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import forced
from benchmarks.common import results
from benchmarks.common.results import Benchmark, described, instruction_set, machine
from potq import native

ROOT = Path(__file__).resolve().parents[2]
TIMED = Benchmark("some_speed", lambda rows: [], timed="cpu")


@pytest.fixture
def imitated(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """AVX2 forced on a CPU with AVX-512."""
    monkeypatch.setenv(forced.VARIABLE, "avx2")
    monkeypatch.setattr(native, "missing", lambda: None)
    monkeypatch.setattr(native, "best_isa", lambda: "avx512vnni")
    monkeypatch.setattr(native, "isa", lambda: os.environ[forced.VARIABLE])
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    return monkeypatch


def test_the_file_and_the_machine_tell_what_was_forced(imitated: pytest.MonkeyPatch) -> None:
    assert TIMED.file().name == "some_speed.avx2.json"
    found = machine("cpu")
    assert (found["isa"], found["forced_on"]) == ("avx2", "avx512vnni")
    assert instruction_set(found) == "AVX2 forced on AVX-512 VNNI"
    assert described(found).endswith("AVX2 forced on AVX-512 VNNI")
    assert forced.compiler_flags() == ["-march=x86-64-v3"]


def test_the_protocol_tells_who_is_held_and_who_is_not(imitated: pytest.MonkeyPatch) -> None:
    held, not_held = forced.held()["forced"].split("Not held")
    assert "ATEN_CPU_CAPABILITY=avx2" in held
    assert "ONEDNN_MAX_CPU_ISA=AVX2" in held
    assert "ONNX Runtime" in not_held


def test_what_rivals_cannot_be_held_to_is_refused(imitated: pytest.MonkeyPatch) -> None:
    imitated.setenv(forced.VARIABLE, "scalar")
    with pytest.raises(SystemExit, match="speed cannot be measured with POTQ_CPU_ISA=scalar: rivals are held to avx2 alone"):
        TIMED.file()


def test_a_torch_that_was_loaded_before_is_noticed(imitated: pytest.MonkeyPatch) -> None:
    imitated.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    with pytest.raises(SystemExit, match="torch computes with AVX512: set the variable before Python starts"):
        TIMED.file()


def test_rows_of_a_machine_that_has_no_more_are_not_mixed_with_forced_ones(
    imitated: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    imitated.setattr(results, "RESULTS", tmp_path)
    imitated.setattr(native, "best_isa", lambda: "avx2")
    TIMED.write({}, [{"speed": 1.0}])
    imitated.setattr(native, "best_isa", lambda: "avx512vnni")
    with pytest.raises(SystemExit, match=r"AVX2 forced on AVX-512 VNNI\. Speeds of two machines are not mixed"):
        TIMED.write({}, [{"speed": 2.0}])


def test_the_best_instruction_set_is_not_forced(imitated: pytest.MonkeyPatch) -> None:
    imitated.setenv(forced.VARIABLE, "avx512vnni")
    assert forced.forced() is None
    assert forced.held() == {}
    assert forced.compiler_flags() == ["-march=native"]
    assert "forced_on" not in machine("cpu")
    assert TIMED.file().name == "some_speed.avx512vnni.json"


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="AVX2 is x86's")
def test_the_package_holds_torch_before_it_is_loaded() -> None:
    program = "import benchmarks, torch; print(torch.backends.cpu.get_cpu_capability())"
    environment = {**os.environ, forced.VARIABLE: "avx2"}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "AVX2"
