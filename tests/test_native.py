"""Finding and opening the compiled library, choosing an instruction set, and living without it."""

from __future__ import annotations

import ctypes.util
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import potq
from potq import native
from potq.errors import ConfigError
from potq.kernels import explain, registry
from potq.nn.packed import pack_module
from potq.numerics.scheme import PRESETS
from potq.ptq.algorithms.rtn import rtn

compiled_library = pytest.mark.skipif(native.missing() is not None, reason=native.missing() or "")


def _clear() -> None:
    for cached in (native.missing, native.library, native.usable_isas, native.isa, registry.choose, registry._warn_once):
        cached.cache_clear()


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing is remembered from other tests, nor by them."""
    _clear()
    monkeypatch.delenv("POTQ_CPU_ISA", raising=False)
    yield
    _clear()


def _linear() -> Any:
    weight = torch.randn(11, 70, generator=torch.Generator().manual_seed(0))
    return pack_module(nn.Linear(70, 11), rtn(weight, PRESETS["pot4"], method="absmax")).requires_grad_(False)


@compiled_library
@pytest.mark.skipif(sys.platform != "linux", reason="the libraries of a process are read from /proc")
@pytest.mark.parametrize("first", ["import torch; native.library()", "native.library(); import torch"])
def test_one_pool_of_threads_whoever_comes_first(first: str) -> None:
    maps = "open('/proc/self/maps').read().splitlines()"
    count = f"print(len({{line.split()[-1] for line in {maps} if 'libgomp' in line}}))"
    script = f"from potq import native; {first}; {count}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=300)
    assert done.stdout == "1\n"


# ---- without it ----------------------------------------------------------------------------------------------------


def test_without_the_library_the_reference_computes_and_warns_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "path", lambda: None)
    first, second, x = _linear(), _linear(), torch.randn(3, 70)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for linear in (first, second.bfloat16()):
            for _ in range(2):
                linear(x.to(linear.compute_dtype))
        explain(first)
    assert [warning.category for warning in caught] == [RuntimeWarning]
    assert "slow torch reference" in str(caught[0].message)
    assert "not installed" in str(caught[0].message)
    assert torch.equal(first(x), nn.functional.linear(x, first.quantized.dequantize(), first.bias))
    assert explain(first).backend == "reference"
    assert "not installed" in explain(first).rejected["cpu"]
    with pytest.raises(ConfigError, match="not installed"):
        native.library()


def test_without_the_library_other_devices_get_no_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "path", lambda: None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _linear().to("meta")(torch.empty(2, 70, device="meta"))


def test_a_file_that_is_no_library_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "libpotq.so"
    file.write_text("not a library")
    monkeypatch.setenv("POTQ_LIBRARY", str(file))
    assert native.path() == file
    reason = native.missing()
    assert reason is not None
    assert str(file) in reason
    assert "cannot be loaded" in reason
    with pytest.raises(ConfigError, match="cannot be loaded"):
        native.library()


def test_a_file_that_does_not_exist_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("POTQ_LIBRARY", str(tmp_path / "gone.so"))
    assert "gone.so cannot be loaded" in (native.missing() or "")


def test_another_library_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    other = ctypes.util.find_library("m")
    if other is None:
        pytest.skip("no libm to try")
    monkeypatch.setenv("POTQ_LIBRARY", other)
    assert "potq_abi" in (native.missing() or "")


@compiled_library
def test_a_library_of_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "ABI", native.ABI + 1)
    assert f"interface {native.ABI - 1}, not {native.ABI}" in (native.missing() or "")
    assert explain(_ignoring_the_warning(_linear)).backend == "reference"


def _ignoring_the_warning(make: Any) -> Any:
    made = make()
    with pytest.warns(RuntimeWarning, match="of another version"):
        made(torch.zeros(1, 70))
    return made


# ---- where it is ---------------------------------------------------------------------------------------------------


def test_the_library_is_found_in_any_folder_of_the_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An editable install keeps the sources and the built library in two folders."""
    monkeypatch.delenv("POTQ_LIBRARY", raising=False)
    monkeypatch.setattr(potq.__spec__, "submodule_search_locations", [str(tmp_path / "sources"), str(tmp_path)])
    assert native.path() is None
    assert "not installed" in (native.missing() or "")
    (tmp_path / "libpotq.so").write_bytes(b"")
    assert native.path() == tmp_path / "libpotq.so"


def test_an_empty_variable_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("POTQ_LIBRARY", "")
    monkeypatch.setattr(potq.__spec__, "submodule_search_locations", [str(tmp_path)])
    assert native.path() is None


# ---- instruction sets ----------------------------------------------------------------------------------------------


@compiled_library
def test_names_and_numbers_agree_with_the_library() -> None:
    opened = native.library()
    assert [opened.potq_isa_name(number).decode() for number in range(len(native.ISAS))] == list(native.ISAS)
    assert opened.potq_isa_name(len(native.ISAS)) is None
    assert opened.potq_isa_name(-1) is None
    assert {opened.potq_isa_usable(number) for number in (-1, len(native.ISAS))} == {-1}
    assert sorted(native._PREFERRED) == sorted(native.ISAS)
    assert opened.potq_abi() == native.ABI


@compiled_library
def test_every_computer_has_the_scalar_kernels_and_prefers_others() -> None:
    usable = native.usable_isas()
    assert usable["scalar"] == 0
    assert native.isa() in usable
    assert (native.isa() == "scalar") == (len(usable) == 1)


@compiled_library
def test_what_is_chosen_does_not_change_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    best = native.best_isa()
    monkeypatch.setenv("POTQ_CPU_ISA", "scalar")
    native.isa.cache_clear()
    assert (native.isa(), native.best_isa()) == ("scalar", best)


@compiled_library
def test_potq_cpu_isa_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    x, results = torch.randn(3, 70), []
    for name in native.usable_isas():
        monkeypatch.setenv("POTQ_CPU_ISA", name)
        native.isa.cache_clear()
        linear = _linear()
        linear.bias.zero_()
        results.append(linear(x))
        assert explain(linear).detail == name
    assert all(torch.equal(result, results[0]) for result in results)


@compiled_library
def test_an_unknown_instruction_set_is_refused_and_the_known_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POTQ_CPU_ISA", "sse9")
    with pytest.raises(ConfigError, match="sse9 is unknown; known are scalar, avx2, avxvnni, avx512vnni, neon"):
        _linear()(torch.zeros(1, 70))


@compiled_library
def test_an_unusable_instruction_set_is_refused_and_the_usable_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    other = next(name for name in native.ISAS if name not in native.usable_isas())
    monkeypatch.setenv("POTQ_CPU_ISA", other)
    with pytest.raises(ConfigError, match=f"POTQ_CPU_ISA={other} cannot be used: .*usable here: scalar"):
        explain(_linear())


@compiled_library
def test_the_environment_is_read_at_the_first_product() -> None:
    program = (
        "import torch; from potq import native; print(native.isa()); print(native.library().potq_has_openmp() in (0, 1))"
    )
    result = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "POTQ_CPU_ISA": "scalar"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.split() == ["scalar", "True"]
