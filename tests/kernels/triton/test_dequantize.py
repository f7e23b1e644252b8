"""Dequantization under Triton's interpreter: the reference's numbers, for every code and every scale."""

from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="triton is not installed: pip install 'potq[gpu]'")

from potq.errors import ConfigError
from potq.kernels.triton.dequantize import dequantize
from potq.kernels.triton.form import form_of
from potq.kernels.triton.weight import MANTISSA, GpuWeight
from potq.kernels.weight import PackedWeight
from potq.numerics import functional
from potq.numerics.grid import pot
from potq.numerics.packing import pack
from potq.numerics.scheme import PRESETS, QuantScheme
from potq.numerics.tensor import QuantizedWeight

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float16, torch.bfloat16]
POT = {"pot2": PRESETS["pot2"].grid, "pot2z": pot(2), "pot3": pot(3), "pot3nz": pot(3, zero=False), "pot4": pot(4)}
POT |= {"pot4nz": pot(4, zero=False), "pot3s2": pot(3, stride=2)}
PRESETS_HERE = sorted(name for name, scheme in PRESETS.items() if scheme.grid.bits in (2, 3, 4, 8))


def _scheme(name: str, **changes: object) -> QuantScheme:
    if name not in POT and PRESETS[name].signed_scale and "scale_dtype" not in changes:
        changes["signed_scale"] = True
    return QuantScheme(grid=POT[name] if name in POT else PRESETS[name].grid, **{"group_size": 32, **changes})


def _every_code(scheme: QuantScheme, scale: Tensor) -> QuantizedWeight:
    """Each scale of ``scale`` ``(rows, groups)`` over a group in which every code stands."""
    group = int(scheme.group_size)
    codes = torch.arange(group).remainder(2**scheme.grid.bits).to(torch.uint8)
    packed = pack(codes.repeat(scale.shape), scheme.grid.bits)
    return QuantizedWeight(packed, scale, (len(scale), group * scale.shape[1]), scheme)


def _arranged(weight: QuantizedWeight) -> GpuWeight:
    return GpuWeight.of(PackedWeight(weight.packed.to(DEVICE), weight.scale.to(DEVICE), weight.scheme, weight.shape[1]))


def _found(weight: QuantizedWeight, dtype: torch.dtype) -> Tensor:
    row_scale = None if weight.row_scale is None else weight.row_scale.to(DEVICE)
    return dequantize(_arranged(weight), dtype, row_scale).cpu()


def _check(weight: QuantizedWeight, dtype: torch.dtype) -> None:
    expected, found = weight.dequantize().to(dtype), _found(weight, dtype)
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
    written = ~expected.isnan() & ((expected != 0) | ~_minus_zero(weight))  # the code of -0 may keep its sign
    assert torch.equal(found.view(torch.int16)[written], expected.view(torch.int16)[written])


def _minus_zero(weight: QuantizedWeight) -> Tensor:
    grid = weight.scheme.grid
    never = 2 ** (grid.bits - 1) if grid.encoding == "sign-magnitude" and not grid.magnitudes[0] else -1
    return weight.codes() == never


def _check_scales(scheme: QuantScheme, patterns: Tensor, dtype: torch.dtype, per_row: int = 16) -> None:
    """Float16 scales of these bits: those that can be lifted, which is the fast kernel's work, then all of them."""
    scales = patterns.to(torch.int16).view(torch.float16)
    form, mantissa = form_of(scheme.grid), MANTISSA[dtype]
    if form.kind == "powers":
        regular = scales[scales.float() * form.lift(mantissa) <= torch.finfo(dtype).max]
        regular = torch.cat([regular, regular[-1:].expand(-len(regular) % per_row)]).view(-1, per_row)
        assert _arranged(_every_code(scheme, regular)).lifts(dtype)
        _check(_every_code(scheme, regular), dtype)
    _check(_every_code(scheme, scales.view(-1, per_row)), dtype)


# ---- every code, many scales ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", sorted({*POT, *PRESETS_HERE}))
def test_every_code_under_scales_of_every_kind(name: str, dtype: torch.dtype) -> None:
    exponents = torch.arange(32)[:, None] << 10
    patterns = (exponents + torch.tensor([0, 1, 0x155, 0x3FF])).flatten()  # 0, subnormals, every octave, infinity, NaN
    group = 256 if PRESETS.get(name, PRESETS["pot4"]).grid.bits == 8 else 32
    _check_scales(_scheme(name, group_size=group), patterns, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", [*POT, "int4", "apot4", "mxpot"])
def test_every_code_under_every_e8m0_scale(name: str, dtype: torch.dtype) -> None:
    scheme, scales = _scheme(name, scale_dtype="e8m0"), torch.arange(255, dtype=torch.uint8)
    _check(_every_code(scheme, scales.view(-1, 17)), dtype)
    _check(_every_code(scheme, scales[:125].view(-1, 25)), dtype)  # below 1/2: lifted


@pytest.mark.slow
@pytest.mark.skipif(os.environ.get("HYPOTHESIS_PROFILE") != "deep", reason="takes minutes: make check-deep")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", [*POT, "pot3s", "apot4"])
def test_every_code_under_every_float16_scale(name: str, dtype: torch.dtype) -> None:
    scheme = _scheme(name)
    _check_scales(scheme, torch.arange(1 << (16 if scheme.signed_scale else 15)), dtype, per_row=256)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_which_scales_are_lifted(dtype: torch.dtype) -> None:
    for name, largest in {"pot4": 255.0, "pot3": 15.9375, "pot2z": 3.984375, "pot3nz": 65504.0, "pot2": 65504.0}.items():
        assert _arranged(_every_code(_scheme(name), torch.full((1, 2), largest, dtype=torch.float16))).lifts(dtype)
    for name, least in {"pot4": 256.0, "pot3": 16.0, "pot2z": 4.0, "pot2": float("nan")}.items():
        assert not _arranged(_every_code(_scheme(name), torch.full((1, 2), least, dtype=torch.float16))).lifts(dtype)
    assert not _arranged(_every_code(_scheme("int4"), torch.ones(1, 2, dtype=torch.float16))).lifts(dtype)


# ---- shapes, groups, scale formats ---------------------------------------------------------------------------------


def _random(scheme: QuantScheme, rows: int, columns: int) -> QuantizedWeight:
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))
    value = torch.rand(scheme.scale_shape(rows, columns)) + 0.5
    if scheme.signed_scale:
        value *= torch.randint(0, 2, value.shape) * 2 - 1
    scale = functional.encode_scale(value, scheme.scale_dtype)
    row_scale = torch.rand(rows, 1).half() if scheme.row_scale else None
    return QuantizedWeight.from_scale(weight, scale, scheme, row_scale)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("group", [16, 48, 64, "row", "tensor"])
@pytest.mark.parametrize("name", ["pot2", "pot3", "pot3s", "pot4", "int3", "apot4", "int8"])
def test_groups(name: str, group: int | str, dtype: torch.dtype) -> None:
    _check(_random(_scheme(name, group_size=group), 3, 168), dtype)  # 168: a shorter last group, a row with padding


@pytest.mark.parametrize("name", ["pot3", "pot4", "int4"])
def test_row_scales(name: str) -> None:
    _check(_random(_scheme(name, scale_dtype="e8m0", row_scale=True), 3, 96), torch.bfloat16)


@pytest.mark.parametrize("name", ["pot2", "pot3", "pot4", "int4"])
def test_rows_longer_than_a_block(name: str) -> None:
    _check(_random(_scheme(name, group_size=64), 2, 128 * 8 + 8), torch.float16)


def test_other_dtypes_are_refused() -> None:
    with pytest.raises(ConfigError, match="float16 or bfloat16, not float32"):
        _found(_random(_scheme("pot4"), 2, 32), torch.float32)
