"""What a block type can hold, decided from levels, scales and groups; equality is exact throughout."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from potq.errors import ExportError
from potq.export.blocks import Blocks, BlockType, encode, misfit, obstacle
from potq.numerics.grid import Grid
from potq.numerics.scheme import PRESETS, TRELLIS, QuantScheme
from potq.numerics.tensor import QuantizedWeight
from potq.ptq.algorithms.rtn import rtn

FOUR = BlockType("four", 32, tuple(range(-8, 8)), "float16", 4.5)
EIGHT = BlockType("eight", 32, tuple(range(-128, 128)), "float16", 8.5)
FP4 = BlockType("fp4", 32, PRESETS["mxfp4"].grid.levels, "e8m0", 4.25)
THREE = BlockType("three", 256, (-1, 0, 1), "float16", 2.0625)


def decode(blocks: list[Blocks], kind: BlockType) -> Tensor:
    """What the blocks say, float64 ``(out, in)``."""
    rows = []
    for part in blocks:
        scale = part.scales.double() if kind.scale == "float16" else 2.0 ** (part.scales.double() - 128)
        rows.append((torch.tensor(kind.levels).double()[part.codes.int()] * scale.unsqueeze(2)).flatten(1))
    return torch.cat(rows)


def quantized(scheme: QuantScheme, scale: float | Tensor, columns: int = 64, rows: int = 3) -> QuantizedWeight:
    """Random levels under a stored scale (float16), or E8M0 bytes."""
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(1))
    stored = torch.full(scheme.scale_shape(rows, columns), 1.0) * scale
    dtype = torch.float16 if scheme.scale_dtype == "float16" else torch.uint8
    plain = QuantScheme(grid=scheme.grid, group_size=scheme.group_size)
    found = QuantizedWeight.from_scale(weight, torch.ones(stored.shape, dtype=torch.float16), plain)
    row_scale = torch.full((rows, 1), 0.7, dtype=torch.float16) if scheme.row_scale else None
    return QuantizedWeight(found.packed, stored.to(dtype), (rows, columns), scheme, row_scale)


@pytest.mark.parametrize(
    ("scheme", "kind", "columns", "reason"),
    [
        (QuantScheme("pot3"), FOUR, 64, None),
        (QuantScheme("pot3nz"), FOUR, 64, "its levels are not among the type's"),  # +8
        (QuantScheme("pot4"), FOUR, 64, "its levels are not among the type's"),
        (QuantScheme("pot4"), EIGHT, 64, None),
        (QuantScheme("pot5"), EIGHT, 64, "its levels are not among the type's"),
        (QuantScheme(grid=Grid(bits=2, magnitudes=(16, 32))), FOUR, 64, None),  # 1 and 2, times 16
        (QuantScheme(grid=Grid(bits=2, magnitudes=(3, 24))), FOUR, 64, "its levels are not among the type's"),
        (QuantScheme("mxpot"), FP4, 64, None),
        (QuantScheme("pot3nz", scale_dtype="e8m0"), FP4, 64, None),
        (QuantScheme("pot3nz"), FP4, 64, "its scales are not powers of two"),
        (QuantScheme("mxpot", row_scale=True), FP4, 64, "its scales are not powers of two"),
        (QuantScheme("pot3"), FOUR, 160, None),  # the last group is shorter, and a block
        (QuantScheme("pot3"), FOUR, 80, "rows of 80 weights do not divide into blocks of 32"),
        (QuantScheme("pot3", group_size=48), FOUR, 96, "its groups of 48 do not divide into blocks of 32"),
        (QuantScheme("pot3", group_size=48), FOUR, 32, None),
        (QuantScheme("pot2z"), THREE, 512, "its groups of 64 do not divide into blocks of 256"),
        (QuantScheme("pot2z", group_size="row"), THREE, 512, None),
        (QuantScheme("pot2z", group_size="tensor"), THREE, 512, None),
        (QuantScheme("int2", group_size="row"), THREE, 512, "its levels are not among the type's"),
    ],
)
def test_obstacle(scheme: QuantScheme, kind: BlockType, columns: int, reason: str | None) -> None:
    assert obstacle(scheme, kind, columns) == reason


def encoded(weight: QuantizedWeight, kind: BlockType) -> list[Blocks] | None:
    """The blocks, or None where ``misfit`` and ``encode`` agree that there are none."""
    why = misfit(weight, kind)
    if why is None:
        return list(encode(weight, kind))
    with pytest.raises(ExportError, match="a scale is beyond the range"):
        list(encode(weight, kind))
    assert why == f"a scale is beyond the range of {kind.name}'s"
    return None


@pytest.mark.parametrize("name", TRELLIS)
def test_levels_along_a_path_are_exact(name: str) -> None:
    weight = rtn(torch.randn(5, 128, generator=torch.Generator().manual_seed(1)), TRELLIS[name])
    blocks = encoded(weight, EIGHT)
    assert blocks is not None
    assert torch.equal(decode(blocks, EIGHT), weight.dequantize().double())


KINDS = (FOUR, EIGHT, FP4, THREE)
VARIANTS: list[QuantScheme] = [
    *PRESETS.values(),
    *(QuantScheme(name, scale_dtype="e8m0", signed_scale=False) for name in PRESETS),
    *(QuantScheme(name, scale_dtype="e8m0", signed_scale=False, row_scale=True) for name in PRESETS),
    *(QuantScheme(name, group_size=size) for name in ("pot2z", "pot3", "pot4") for size in (256, "row", "tensor")),
]


EXACT = [
    (scheme, kind, columns)
    for scheme in VARIANTS
    for kind in KINDS
    for columns in (512, 512 + 32)
    if obstacle(scheme, kind, columns) is None
]


def test_there_is_something_to_test() -> None:
    assert {kind.name for _, kind, _ in EXACT} == {kind.name for kind in KINDS}
    assert len(EXACT) > 100


@pytest.mark.parametrize(("scheme", "kind", "columns"), EXACT, ids=lambda value: getattr(value, "name", value))
def test_what_no_obstacle_stands_against_is_exact(scheme: QuantScheme, kind: BlockType, columns: int) -> None:
    weight = quantized(scheme, 0.0371 if scheme.scale_dtype == "float16" else 122.0, columns)
    blocks = encoded(weight, kind)
    assert blocks is not None
    assert torch.equal(decode(blocks, kind), weight.dequantize().double())


def test_a_scale_out_of_range_is_none() -> None:
    least = 2.0**-14 * 64  # of float16's normal numbers, times pot4's reference
    scheme = QuantScheme("pot4")
    assert encoded(quantized(scheme, torch.tensor(least).half().float() * (1 + 2**-10)), EIGHT) is not None
    assert encoded(quantized(scheme, least / 2 * (1 + 2**-10)), EIGHT) is None  # one bit too many for a subnormal number
    assert encoded(quantized(scheme, least / 2), EIGHT) is not None  # a power of two


def test_blocks_that_lack_levels_take_another_shift() -> None:
    scheme = QuantScheme("pot3", group_size=32)
    small = 2.0**-13 * (1 + 2**-10)  # a quarter of it is no float16
    weight = torch.tensor([[0.0, 1.0] * 16, [0.0, -0.25] * 16])
    found = QuantizedWeight.from_scale(weight, torch.ones(2, 1, dtype=torch.float16), scheme)
    weak = QuantizedWeight(found.packed[:1], torch.tensor([[small]], dtype=torch.float16), (1, 32), scheme)
    blocks = encoded(weak, FOUR)
    assert blocks is not None
    assert torch.equal(decode(blocks, FOUR), weak.dequantize().double())
    least = QuantizedWeight(found.packed[1:], weak.scale, (1, 32), scheme)  # a quarter of the scale itself
    assert encoded(least, FOUR) is None


@pytest.mark.parametrize(("byte", "fits"), [(0, False), (1, False), (2, True), (254, True)])
def test_e8m0_bytes(byte: int, fits: bool) -> None:
    weight = quantized(PRESETS["mxfp4"], float(byte))
    blocks = encoded(weight, FP4)
    assert (blocks is not None) == fits
    if blocks is not None:
        assert torch.equal(decode(blocks, FP4), weight.dequantize().double())
        assert blocks[0].scales.unique().tolist() == [byte - 2]  # ours refers to the level 4.0, OCP's to 1.0


def test_zero_groups() -> None:
    zero = torch.zeros(2, 64)
    for name, kind, least in (("pot3", FOUR, torch.float16), ("mxfp4", FP4, torch.uint8)):
        scheme = PRESETS[name]
        weight = QuantizedWeight.from_scale(zero, torch.zeros(scheme.scale_shape(2, 64), dtype=least), scheme)
        blocks = encoded(weight, kind)
        assert blocks is not None
        assert not decode(blocks, kind).any()


def test_a_zero_scale_zeroes_a_grid_without_zero() -> None:
    weight = quantized(QuantScheme("pot2"), 0.0)
    blocks = encoded(weight, FOUR)
    assert blocks is not None
    assert not decode(blocks, FOUR).any()


def test_many_rows_come_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = quantized(PRESETS["pot3"], 0.05, rows=7)
    monkeypatch.setattr("potq.export.blocks._WEIGHTS_AT_ONCE", 2 * 64)
    blocks = encoded(weight, FOUR)
    assert blocks is not None
    assert [len(part.codes) for part in blocks] == [2, 2, 2, 1]
    assert torch.equal(decode(blocks, FOUR), weight.dequantize().double())
