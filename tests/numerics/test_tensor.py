"""QuantizedWeight: what it stores, what it restores, and which damage it reports."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch

from potq.errors import CheckpointError, ConfigError
from potq.numerics import functional, tensor
from potq.numerics.packing import pack
from potq.numerics.row_scale import choose_row_scale
from potq.numerics.scale_search import choose_scale
from potq.numerics.scheme import PRESETS, QuantScheme
from potq.numerics.tensor import QuantizedWeight, storage

NAMES = sorted(PRESETS)


def _quantized(name: str, shape: tuple[int, int] = (5, 71), **overrides: Any) -> QuantizedWeight:
    scheme = QuantScheme(name, **overrides)
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 0.02
    return QuantizedWeight.from_scale(weight, choose_scale(weight, scheme, "absmax"), scheme)


def _row_scaled(name: str, group_size: Any = 32, shape: tuple[int, int] = (5, 71)) -> QuantizedWeight:
    scheme = QuantScheme(name, group_size=group_size, scale_dtype="e8m0", signed_scale=False, row_scale=True)
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 0.02
    scale, row_scale = choose_row_scale(weight, scheme, method="absmax")
    return QuantizedWeight.from_scale(weight, scale, scheme, row_scale)


@pytest.mark.parametrize("group_size", [1, 32, "row", "tensor"])
@pytest.mark.parametrize("name", NAMES)
def test_from_scale_packs_the_codes_of_quantize(name: str, group_size: Any) -> None:
    scheme = QuantScheme(name, group_size=group_size)
    weight = torch.randn(5, 71, generator=torch.Generator().manual_seed(0))
    scale = choose_scale(weight, scheme)
    quantized = QuantizedWeight.from_scale(weight, scale, scheme)
    codes = functional.quantize(weight, scale, scheme)
    assert torch.equal(quantized.codes(), codes)
    assert torch.equal(quantized.packed, pack(codes, scheme.grid.bits))
    assert torch.equal(quantized.dequantize(), functional.dequantize(codes, scale, scheme))
    assert quantized.scale is scale
    assert (quantized.shape, quantized.scheme) == ((5, 71), scheme)
    quantized.validate("weight")


@pytest.mark.parametrize("group_size", [1, 32, "row", "tensor"])
@pytest.mark.parametrize("name", NAMES)
def test_bytes_are_what_bits_per_weight_says(name: str, group_size: Any) -> None:
    quantized = _quantized(name, group_size=group_size)
    assert quantized.nbytes == quantized.packed.numel() + quantized.scale.numel() * quantized.scale.element_size()
    assert 8 * quantized.nbytes / (5 * 71) == quantized.scheme.bits_per_weight(5, 71)


@pytest.mark.parametrize("group_size", [32, "tensor"])
@pytest.mark.parametrize("name", NAMES)
def test_empty_has_the_storage_of_a_quantized_weight(name: str, group_size: Any) -> None:
    quantized = _quantized(name, group_size=group_size)
    empty = QuantizedWeight.empty((5, 71), quantized.scheme, "meta")
    _assert_same_storage(empty, quantized)
    assert list(quantized.tensors()) == ["packed", "scale"]


def _assert_same_storage(empty: QuantizedWeight, quantized: QuantizedWeight) -> None:
    stored = quantized.tensors()
    assert storage((5, 71), quantized.scheme) == {name: (tuple(t.shape), t.dtype) for name, t in stored.items()}
    assert empty.tensors().keys() == stored.keys()
    for name, unfilled in empty.tensors().items():
        assert (unfilled.shape, unfilled.dtype, unfilled.device.type) == (
            stored[name].shape,
            stored[name].dtype,
            "meta",
        )


@pytest.mark.parametrize("group_size", [1, 32, "row"])
@pytest.mark.parametrize("name", NAMES)
def test_row_scales_are_stored_and_counted(name: str, group_size: Any) -> None:
    quantized = _row_scaled(name, group_size)
    assert list(quantized.tensors()) == ["packed", "scale", "row_scale"]
    _assert_same_storage(QuantizedWeight.empty((5, 71), quantized.scheme, "meta"), quantized)
    assert quantized.nbytes == quantized.packed.nbytes + quantized.scale.nbytes + 10
    assert 8 * quantized.nbytes / (5 * 71) == quantized.scheme.bits_per_weight(5, 71)
    restored = functional.dequantize(quantized.codes(), quantized.scale, quantized.scheme, quantized.row_scale)
    assert torch.equal(quantized.dequantize(), restored)
    quantized.validate("weight")


def test_row_scales_belong_to_schemes_that_have_them() -> None:
    with_rows, without = _row_scaled("pot4"), _quantized("pot4", scale_dtype="e8m0", group_size=32)
    with pytest.raises(ConfigError, match="pot4-g32-e8m0-row needs a row scale"):
        dataclasses.replace(with_rows, row_scale=None)
    with pytest.raises(ConfigError, match="pot4-g32-e8m0 has no row scale"):
        dataclasses.replace(without, row_scale=with_rows.row_scale)
    with pytest.raises(ConfigError, match="needs a row scale"):
        QuantizedWeight.from_scale(torch.ones(5, 71), with_rows.scale, with_rows.scheme)


def test_it_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        _quantized("pot4").shape = (1, 1)  # type: ignore[misc]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1.0])
def test_validate_reports_a_bad_float16_scale_by_name(value: float) -> None:
    quantized = _quantized("pot4")
    quantized.scale[1, 1] = quantized.scale[2, 0] = value
    with pytest.raises(CheckpointError, match=r"^lm_head: 2 scales are negative, infinite or NaN"):
        quantized.validate("lm_head")


def test_signed_scales_may_be_negative_and_nothing_else() -> None:
    quantized = _quantized("pot3s")
    quantized.scale[0, 0] = -65504.0
    quantized.validate("weight")
    quantized.scale[0, 0] = -math.inf
    with pytest.raises(CheckpointError, match=r"^weight: 1 scales"):
        quantized.validate("weight")


def test_validate_accepts_zero_and_extreme_scales() -> None:
    quantized = _quantized("pot4")
    quantized.scale[0, 0], quantized.scale[0, 1] = 0.0, 65504.0
    quantized.validate("weight")
    exponents = _quantized("mxpot")
    exponents.scale[0, 0], exponents.scale[0, 1] = 0, 254
    exponents.validate("weight")


def test_validate_reports_the_e8m0_byte_for_nan() -> None:
    quantized = _quantized("mxfp4")
    quantized.scale[0, 0] = 255
    with pytest.raises(CheckpointError, match=r"^weight: 1 scales"):
        quantized.validate("weight")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1.0])
def test_validate_reports_a_bad_row_scale_by_name(value: float) -> None:
    quantized = _row_scaled("pot4")
    assert quantized.row_scale is not None
    quantized.row_scale[2:4] = value
    with pytest.raises(CheckpointError, match=r"^lm_head: 2 row scales are negative, infinite or NaN"):
        quantized.validate("lm_head")
    quantized.row_scale[2:4] = 0.0
    quantized.validate("lm_head")


def test_validate_reports_scales_whose_product_is_beyond_float32() -> None:
    quantized = _row_scaled("pot4")
    assert quantized.row_scale is not None
    quantized.row_scale[1], quantized.scale[1, 2] = 2.0, 253
    quantized.validate("weight")
    quantized.scale[1, 2] = 254
    with pytest.raises(CheckpointError, match=r"^weight: 1 groups have weights beyond float32"):
        quantized.validate("weight")


@pytest.mark.parametrize("code", [3, 5, 7, 11, 13, 15])
def test_validate_reports_a_code_outside_mxpot(code: int) -> None:
    quantized = _quantized("mxpot", (2, 64))
    codes = quantized.codes()
    codes[1, 63] = code
    quantized.packed.copy_(pack(codes, 4))
    with pytest.raises(CheckpointError, match="codes outside the grid"):
        quantized.validate("weight")


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7])
@pytest.mark.parametrize("columns", range(1, 9))
def test_validate_reports_dirty_padding_of_every_width(bits: int, columns: int) -> None:
    quantized = _quantized(f"pot{bits}", (3, columns))
    quantized.validate("weight")
    codes = torch.full((3, -(-columns // 8) * 8), 2**bits - 1, dtype=torch.uint8)
    codes[:, :columns] = quantized.codes()
    # repack the row as if it were longer and cut each plane back to its own bytes: only the padding differs
    dirty, start = [], 0
    full = pack(codes, bits)
    for width in (2,) if bits == 2 else (2, 1) if bits == 3 else (4,) + (1,) * (bits - 4):
        dirty.append(full[:, start : start + -(-columns * width // 8)])
        start += codes.shape[1] * width // 8
    packed = torch.cat(dirty, dim=1)
    damaged = dataclasses.replace(quantized, packed=packed)
    assert torch.equal(damaged.codes(), quantized.codes())
    if torch.equal(packed, quantized.packed):
        assert columns * bits % 8 == 0  # no padding in this shape
        return
    with pytest.raises(CheckpointError, match=r"^weight: the padding"):
        damaged.validate("weight")


@pytest.mark.parametrize("name", ["pot4", "pot3", "pot2z"])
def test_minus_zero_reads_as_zero(name: str) -> None:
    quantized = _quantized(name, (1, 16))
    bits = quantized.scheme.grid.bits
    minus_zero = torch.full((1, 16), 2 ** (bits - 1), dtype=torch.uint8)
    damaged = dataclasses.replace(quantized, packed=pack(minus_zero, bits))
    assert not damaged.dequantize().any()
    assert not torch.signbit(damaged.dequantize()).any()


@pytest.mark.parametrize("block", [1, 200, 1 << 20])
@pytest.mark.parametrize("group_size", [32, "row", "tensor"])
@pytest.mark.parametrize("name", ["pot3", "pot4", "int8", "mxpot"])
def test_blocks_of_rows_change_neither_codes_nor_noise(
    name: str, group_size: Any, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheme = QuantScheme(name, group_size=group_size)
    weight = torch.randn(5, 71, generator=torch.Generator().manual_seed(0))
    scale = choose_scale(weight, scheme)
    monkeypatch.setattr(tensor, "_BLOCK", block)
    quantized = QuantizedWeight.from_scale(weight, scale, scheme)
    assert torch.equal(quantized.codes(), functional.quantize(weight, scale, scheme))
    expected = (quantized.dequantize().double() - weight.double()).square().sum().item()
    assert quantized.energies(weight)[1] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("block", [1, 200, 1 << 20])
def test_blocks_of_rows_keep_their_row_scales(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, weight = _row_scaled("pot4"), torch.randn(5, 71, generator=torch.Generator().manual_seed(0)) * 0.02
    monkeypatch.setattr(tensor, "_BLOCK", block)
    quantized = QuantizedWeight.from_scale(weight, expected.scale, expected.scheme, expected.row_scale)
    assert torch.equal(quantized.packed, expected.packed)
    noise = (quantized.dequantize().double() - weight.double()).square().sum().item()
    assert quantized.energies(weight)[1] == pytest.approx(noise, rel=1e-5)


def test_noise_of_the_dequantized_weight_itself_is_zero() -> None:
    quantized = _quantized("apot4")
    assert quantized.energies(quantized.dequantize())[1] == 0.0


def test_noise_leaves_the_weight_alone_and_takes_bfloat16() -> None:
    quantized, weight = _quantized("pot4"), torch.ones(5, 71, dtype=torch.bfloat16)
    expected = (quantized.dequantize().double() - 1).square().sum().item()
    assert quantized.energies(weight)[1] == pytest.approx(expected, rel=1e-5)
    assert (weight == 1).all()
