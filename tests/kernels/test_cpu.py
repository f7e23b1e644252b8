"""The cpu kernels, bit for bit what an oracle computes that shares no code with them: plain torch, one rounding at a time.

The oracle is the arithmetic of docs/kernels.md. Every comparison runs on every instruction set that this computer has:
they equal each other too.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from potq import native
from potq.kernels.cpu import backend
from potq.kernels.weight import PackedWeight
from potq.numerics.grid import Grid, shift_terms, uniform
from potq.numerics.packing import pack
from potq.numerics.scheme import PRESETS, QuantScheme
from potq.numerics.tensor import QuantizedWeight

pytestmark = pytest.mark.skipif(native.missing() is not None, reason=native.missing() or "")

CPU = torch.device("cpu")
ISAS = {} if native.missing() else native.usable_isas()
SUPPORTED = sorted(name for name in PRESETS if PRESETS[name].grid.fits_int8)
GROUPS: list[Any] = [16, 32, 48, 64, 80, 128, "row", "tensor"]
SCALES = ["float16", "e8m0"]
ARITHMETICS = ["int8", "float"]
ALL_SCALES = {"float16": (0, 0x7C00), "e8m0": (0, 255)}  # every finite one: zero and subnormals too
PLAIN_SCALES = {"float16": (0x2000, 0x3800), "e8m0": (115, 128)}  # 2**-7..1/2, 2**-12..1


# ---- inputs --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Weight:
    """Codes and stored scales of a weight, before packing."""

    codes: Tensor
    scale: Tensor
    scheme: QuantScheme

    @property
    def columns(self) -> int:
        return self.codes.shape[1]

    @property
    def levels(self) -> Tensor:
        """int64, of every code."""
        return torch.tensor(self.scheme.grid.levels)[self.codes.long()]

    @cached_property
    def quantized(self) -> QuantizedWeight:
        return QuantizedWeight(pack(self.codes, self.scheme.grid.bits), self.scale, tuple(self.codes.shape), self.scheme)

    def kernel(self, isa: str) -> backend.Kernel:
        made = backend.Kernel(PackedWeight.of(self.quantized))
        made._isa = ISAS[isa]
        return made


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _scheme(name: str, group: Any = 64, scale_dtype: str = "float16") -> QuantScheme:
    signed = PRESETS[name].signed_scale and scale_dtype == "float16"
    return QuantScheme(name, group_size=group, scale_dtype=scale_dtype, signed_scale=signed)


def _weight(scheme: QuantScheme, rows: int, columns: int, seed: int = 0, scales: dict[str, Any] = PLAIN_SCALES) -> Weight:
    """Random codes, those that quantize never writes too, and random scales."""
    generator = _generator(seed)
    codes = torch.randint(0, 2**scheme.grid.bits, (rows, columns), generator=generator).to(torch.uint8)
    bits = torch.randint(*scales[scheme.scale_dtype], scheme.scale_shape(rows, columns), generator=generator)
    stored = bits.to(torch.uint8) if scheme.scale_dtype == "e8m0" else bits.to(torch.int16).view(torch.float16)
    if scheme.signed_scale:
        stored = torch.where(torch.rand(stored.shape, generator=generator) < 0.5, -stored, stored)
    return Weight(codes, stored, scheme)


def _activations(rows: int, columns: int, seed: int = 1) -> Tensor:
    """Normal values of very different sizes per run of 16 columns, with runs of zeros, and outliers in half of the rows."""
    generator = _generator(seed)
    runs = -(-columns // 16)
    size = 10.0 ** torch.randint(-3, 3, (rows, runs, 1), generator=generator)
    size *= torch.rand((rows, runs, 1), generator=generator) > 0.1
    x = (torch.randn((rows, runs, 16), generator=generator) * size).flatten(1)[:, :columns]
    outlier = torch.rand((rows, columns), generator=generator) < 0.02
    outlier[1::2] = False
    return torch.where(outlier, 300 * x, x).contiguous()


def _bias(rows: int) -> Tensor:
    return torch.randn(rows, generator=_generator(2))


# ---- the oracle ----------------------------------------------------------------------------------------------------


def fma(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """``a * b + c`` of float32, rounded once.

    The product is exact in float64. The sum is rounded to odd there (an inexact one to whichever neighbour has an odd
    mantissa), after which the rounding to float32 is that of the exact sum.
    """
    product, addend = a.double() * b.double(), c.double()
    total = product + addend
    back = total - product
    error = (product - (total - back)) + (addend - back)
    inexact = total.isfinite() & (error != 0) & (total.view(torch.int64) & 1 == 0)
    towards = torch.copysign(torch.tensor(torch.inf, dtype=torch.float64), error)
    return torch.where(inexact, torch.nextafter(total, towards), total).float()


def block_of(scheme: QuantScheme, columns: int) -> int:
    """Columns that share an activation scale."""
    group = scheme.group(columns)
    return 64 if group >= columns else max(block for block in (16, 32, 48, 64) if group % block == 0)


def in_blocks(matrix: Tensor, block: int) -> Tensor:
    """``(rows, columns) -> (rows, blocks, block)``, padded with zeros."""
    return torch.nn.functional.pad(matrix, (0, -matrix.shape[1] % block)).unflatten(1, (-1, block))


def scales_of(weight: Weight, blocks: int, block: int) -> Tensor:
    """Float32 value of the weight's scales, of every row and block."""
    stored, scheme = weight.scale, weight.scheme
    value = stored.float() if scheme.scale_dtype == "float16" else (2.0 ** (stored.double() - 127)).float()
    group = (
        torch.arange(blocks) * block // scheme.group(weight.columns) if value.shape[1] > 1 else torch.zeros(blocks).long()
    )
    return value.expand(len(weight.codes), -1)[:, group]


def reciprocal_reference(grid: Grid) -> Tensor:
    return torch.tensor(1 / grid.reference)


@dataclass(frozen=True)
class Rounded:
    """Activations as integers ``factor * coarse + fine`` (int32, of every row, block and column) and a float32 scale."""

    coarse: Tensor
    fine: Tensor
    outlier: Tensor
    scale: Tensor


def round_activations(blocks: Tensor, grid: Grid) -> Rounded:
    """``blocks (rows, blocks, block)``, float32."""
    one, amax = torch.tensor(1.0), blocks.abs().amax(-1, keepdim=True)  # amax of a NaN is NaN
    finite = amax.isfinite()
    rounds = finite & (amax >= 2.0**-120)
    steps = torch.where(rounds, blocks * (127 * one / amax), 0 * one)
    coarse = steps.round()  # half to even
    outlier = rounds & (coarse.square().sum(-1, keepdim=True) < 645 * blocks.shape[-1])
    fine = torch.where(outlier, ((steps - coarse) * 254).round(), 0 * one)
    scale = amax * torch.where(outlier, one / 32258, one / 127) * reciprocal_reference(grid)
    scale = torch.where(finite, torch.where(rounds, scale, 0 * one), torch.nan * one)
    return Rounded(coarse.int(), fine.int(), outlier.squeeze(-1), scale.squeeze(-1))


Sums = Callable[[Weight, Rounded], Tensor]


def multiplied_sums(weight: Weight, x: Rounded) -> Tensor:
    """int64 ``(blocks, rows of x, rows of weight)``, by multiplication."""
    levels = in_blocks(weight.levels, x.coarse.shape[-1]).permute(1, 2, 0)
    integers = torch.where(x.outlier[..., None], 254, 1) * x.coarse.long() + x.fine.long()
    return integers.transpose(0, 1) @ levels


def int8_oracle(weight: Weight, x: Tensor, bias: Tensor | None, sums: Sums = multiplied_sums) -> Tensor:
    rounded = round_activations(in_blocks(x.float(), block_of(weight.scheme, weight.columns)), weight.scheme.grid)
    total = sums(weight, rounded)
    assert torch.equal(total, total.int())  # int32 is wide enough
    scales = scales_of(weight, *rounded.coarse.shape[1:])
    y = _start(weight, x, bias)
    for b in range(len(total)):
        y = fma(total[b].int().float(), scales[:, b] * rounded.scale[:, b, None], y)
    return y.to(x.dtype)


def float_oracle(weight: Weight, x: Tensor, bias: Tensor | None) -> Tensor:
    block = block_of(weight.scheme, weight.columns)
    values, levels = in_blocks(x.float(), block)[:, None], in_blocks(weight.levels.float(), block)
    scales = scales_of(weight, levels.shape[1], block) * reciprocal_reference(weight.scheme.grid)
    partial = torch.zeros(len(x), *levels.shape[:2], 4)
    for k in range(0, block, 4):
        partial = fma(levels[..., k : k + 4], values[..., k : k + 4], partial)
    total = (partial[..., 0] + partial[..., 1]) + (partial[..., 2] + partial[..., 3])
    y = _start(weight, x, bias)
    for b in range(levels.shape[1]):
        y = fma(total[..., b], scales[:, b], y)
    return y.to(x.dtype)


def _start(weight: Weight, x: Tensor, bias: Tensor | None) -> Tensor:
    rows = len(weight.codes)
    return (torch.zeros(rows) if bias is None else bias.to(x.dtype).float()).expand(len(x), rows)


ORACLES = {"int8": int8_oracle, "float": float_oracle}


def same(found: Tensor, expected: Tensor) -> bool:
    """The same dtype, shape and bits; one NaN is as good as another."""
    wanted = torch.int32 if expected.dtype == torch.float32 else torch.int16
    unlike = found.isnan() != expected.isnan()
    return (
        found.dtype == expected.dtype and not unlike.any() and torch.equal(_plain(found, wanted), _plain(expected, wanted))
    )


def _plain(values: Tensor, integer: torch.dtype) -> Tensor:
    return torch.where(values.isnan(), 0, values.view(integer))


def assert_equals_the_oracle(weight: Weight, x: Tensor, bias: Tensor | None = None, arithmetic: Any = "int8") -> None:
    expected = ORACLES[arithmetic](weight, x, bias)
    for isa in ISAS:
        assert same(weight.kernel(isa)(x, bias, arithmetic), expected), isa


# ---- the oracle itself ---------------------------------------------------------------------------------------------


def _nearest_float32(value: Fraction) -> float:
    """``value`` rounded half to even, by exact arithmetic; for what does not overflow."""
    exponent = math.frexp(value)[1] - 1 if value else 0
    step = Fraction(2) ** (max(exponent, -126) - 23)
    return float(round(value / step) * step)


FLOATS = st.floats(-(2.0**40), 2.0**40, width=32)


@given(FLOATS, FLOATS, FLOATS, st.sampled_from([1.0, -1.0, 0.0]))
def test_the_oracles_fma_rounds_the_exact_sum_once(a: float, b: float, c: float, cancel: float) -> None:
    """Sums that cancel, and those that a rounding in float64 first would get wrong."""
    for addend in (c, cancel * float(torch.tensor(a) * torch.tensor(b)), c * 2.0**-45):
        addend32 = float(torch.tensor(addend))
        exact = Fraction(a) * Fraction(b) + Fraction(addend32)
        assert fma(torch.tensor(a), torch.tensor(b), torch.tensor(addend32)).item() == _nearest_float32(exact)


def test_the_oracles_fma_does_not_round_twice() -> None:
    """1 + 2**-24 + 2**-60, in float64 first, would be a tie and go to the even 1."""
    a, b, c = torch.tensor([1 + 2.0**-12]), torch.tensor([2.0**-24 - 2.0**-36 + 2.0**-48]), torch.tensor([1.0])
    assert (a.double() * b.double() + c.double()).float().item() == 1.0
    assert fma(a, b, c).item() == 1 + 2.0**-23


# ---- the native call -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("m", [1, 40])
def test_products_of_one_native_call_lie_one_behind_the_other(m: int) -> None:
    """As the struct of csrc/potq.h does in an array."""
    weights, x = [_weight(_scheme(name), 19, 70) for name in ("pot4", "pot3", "int8")], _activations(m, 70)
    kernels, outputs = [weight.kernel(native.isa()) for weight in weights], [torch.empty(m, 19) for _ in weights]
    pairs = zip(kernels, outputs, strict=True)
    products = b"".join(kernel.arguments(x, None, y, "int8") for kernel, y in pairs)
    assert native.library().potq_linear(products, len(weights), 2) == 0
    for weight, y in zip(weights, outputs, strict=True):
        assert same(y, int8_oracle(weight, x, None))


# ---- every format, every shape -------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale_dtype", SCALES)
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("name", SUPPORTED)
def test_int8_products_equal_the_oracle_for_every_format(name: str, group: Any, scale_dtype: str) -> None:
    weight = _weight(_scheme(name, group, scale_dtype), 19, 203)
    assert_equals_the_oracle(weight, _activations(5, 203), _bias(19))


@pytest.mark.parametrize("scale_dtype", SCALES)
@pytest.mark.parametrize("group", [16, 48, 64, "tensor"])
@pytest.mark.parametrize("name", SUPPORTED)
def test_float_products_equal_the_oracle_for_every_format(name: str, group: Any, scale_dtype: str) -> None:
    weight = _weight(_scheme(name, group, scale_dtype), 19, 139)
    assert_equals_the_oracle(weight, _activations(5, 139), _bias(19), "float")


SCHEMES = st.builds(_scheme, st.sampled_from(SUPPORTED), st.sampled_from(GROUPS), st.sampled_from(SCALES))
SHAPES = st.tuples(st.integers(1, 33), st.integers(1, 130), st.integers(1, 330))  # m, out, in
DTYPES = st.sampled_from([torch.float32, torch.bfloat16])


@given(SCHEMES, SHAPES, DTYPES, st.booleans(), st.sampled_from([PLAIN_SCALES, ALL_SCALES]), st.integers(0, 99))
def test_int8_products_equal_the_oracle_for_every_shape(
    scheme: QuantScheme, shape: tuple[int, int, int], dtype: torch.dtype, bias: bool, scales: dict[str, Any], seed: int
) -> None:
    m, rows, columns = shape
    weight = _weight(scheme, rows, columns, seed, scales)
    assert_equals_the_oracle(weight, _activations(m, columns, seed).to(dtype), _bias(rows).to(dtype) if bias else None)


@given(SCHEMES, SHAPES, DTYPES, st.booleans(), st.sampled_from([PLAIN_SCALES, ALL_SCALES]), st.integers(0, 99))
def test_float_products_equal_the_oracle_for_every_shape(
    scheme: QuantScheme, shape: tuple[int, int, int], dtype: torch.dtype, bias: bool, scales: dict[str, Any], seed: int
) -> None:
    m, rows, columns = shape[0] % 7 + 1, shape[1], shape[2] % 200 + 1
    weight, x = _weight(scheme, rows, columns, seed, scales), _activations(m, columns, seed).to(dtype)
    assert_equals_the_oracle(weight, x, _bias(rows).to(dtype) if bias else None, "float")


@pytest.mark.parametrize("arithmetic", ARITHMETICS)
@pytest.mark.parametrize("m", range(1, 34))
def test_every_number_of_activation_rows(m: int, arithmetic: str) -> None:
    """The kernels are compiled once per height of a panel."""
    for name in ("pot2", "pot3", "pot4", "int8"):
        assert_equals_the_oracle(_weight(_scheme(name), 17, 67), _activations(m, 67), None, arithmetic)


@pytest.mark.parametrize("name", ["pot2", "pot3", "pot4", "int8"])
@pytest.mark.parametrize("columns", [1, 2, 15, 16, 17, 63, 64, 65, 127, 129])
def test_widths_around_the_edges_of_blocks(name: str, columns: int) -> None:
    for group in (16, 64, 7 if columns <= 7 else 48, "row"):
        assert_equals_the_oracle(_weight(_scheme(name, group), 16, columns), _activations(3, columns))


@pytest.mark.usefixtures("_restore_threads")
@pytest.mark.parametrize("name", ["pot2", "pot3", "pot4", "int8"])
@pytest.mark.parametrize(
    ("m", "rows", "columns", "group"),
    [
        (7, 33, 2120, 16),
        (13, 81, 1090, 64),
        (30, 150, 2120, 1280),  # one scale for 20 blocks: more than are taken at a time
        (49, 17, 1100, "row"),
        (160, 18, 1100, 48),
        (300, 18, 4160, 64),  # a megabyte of activations is prepared at a time
    ],
)
def test_large_products_are_cut_in_every_direction(m: int, rows: int, columns: int, group: Any, name: str) -> None:
    weight, x = _weight(_scheme(name, group), rows, columns), _activations(m, columns)
    torch.set_num_threads(2)
    assert_equals_the_oracle(weight, x, _bias(rows))


@pytest.mark.parametrize(("m", "rows", "columns"), [(33, 35, 1100), (130, 17, 1090)])
def test_large_float_products_are_cut_in_every_direction(m: int, rows: int, columns: int) -> None:
    assert_equals_the_oracle(_weight(_scheme("pot3"), rows, columns), _activations(m, columns), _bias(rows), "float")


def test_an_empty_batch() -> None:
    weight = _weight(_scheme("pot4"), 5, 70)
    for isa in ISAS:
        for arithmetic in ARITHMETICS:
            assert weight.kernel(isa)(torch.empty(2, 0, 70), None, arithmetic).shape == (2, 0, 5)


@pytest.mark.parametrize("columns", [69, 71])
@pytest.mark.parametrize("name", ["pot2", "pot3", "pot4"])
def test_bits_behind_the_last_code_do_not_matter(name: str, columns: int) -> None:
    weight, x = _weight(_scheme(name), 5, columns), _activations(2, columns)
    bits = weight.scheme.grid.bits
    filled = torch.nn.functional.pad(weight.codes, (0, 1), value=2**bits - 1)
    dirty = pack(filled, bits)
    assert dirty.shape == weight.quantized.packed.shape
    assert not torch.equal(dirty, weight.quantized.packed)
    for isa, number in ISAS.items():
        kernel = backend.Kernel(PackedWeight(dirty, weight.scale, weight.scheme, columns))
        kernel._isa = number
        assert same(kernel(x, None, "int8"), weight.kernel(isa)(x, None, "int8")), isa


def test_packed_tensors_need_not_be_contiguous() -> None:
    weight, x = _weight(_scheme("pot4", 16), 9, 70), _activations(2, 70)
    packed, scale = weight.quantized.packed.T.contiguous().T, weight.scale.T.contiguous().T
    assert not packed.is_contiguous()
    strided = PackedWeight(packed, scale, weight.scheme, 70)
    assert same(backend.Kernel(strided)(x, None, "int8"), int8_oracle(weight, x, None))
    ids = torch.tensor([3, 8])
    found = backend.embedding(ids, strided, torch.float32)
    assert same(found, weight.quantized.dequantize()[ids])


def test_float16_activations_are_computed_in_float32() -> None:
    weight, x, bias = _weight(_scheme("pot4"), 9, 70), _activations(3, 70).half(), _bias(9).half()
    for arithmetic, oracle in ORACLES.items():
        found = weight.kernel("scalar")(x, bias, arithmetic)
        assert same(found, oracle(weight, x.float(), bias.float()).half())


# ---- the claim: no multiplication ----------------------------------------------------------------------------------


def non_adjacent_form(level: int) -> list[tuple[int, int]]:
    """The fewest signed powers of two that sum to ``level``, as ``(sign, shift)``."""
    terms, shift = [], 0
    while level:
        if level & 1:
            sign = -1 if level & 2 else 1
            terms.append((sign, shift))
            level -= sign
        level >>= 1
        shift += 1
    return terms


def shift_add_sums(weight: Weight, x: Rounded) -> Tensor:
    """The sums of :func:`multiplied_sums` by shifts, additions and subtractions of int32 alone."""
    terms = [non_adjacent_form(level) for level in weight.scheme.grid.levels]
    count = max(map(len, terms))
    sign, shift = torch.tensor([form + [(0, 0)] * (count - len(form)) for form in terms], dtype=torch.int32).unbind(-1)
    codes = in_blocks(weight.codes, x.coarse.shape[-1]).long()

    def dot(integers: Tensor) -> Tensor:
        total = torch.zeros(len(integers), *codes.shape[:2], dtype=torch.int32)
        for t in range(count):
            shifted = integers[:, None] << shift[codes, t]
            total += torch.where(sign[codes, t] > 0, shifted, 0).sum(-1, dtype=torch.int32)
            total -= torch.where(sign[codes, t] < 0, shifted, 0).sum(-1, dtype=torch.int32)
        return total

    coarse, fine = dot(x.coarse), dot(x.fine)
    times_254 = (coarse << 8) - (coarse << 1)
    return (torch.where(x.outlier[:, None], times_254, coarse) + fine).permute(2, 0, 1)


@pytest.mark.parametrize("level", range(-128, 128))
def test_the_non_adjacent_form_sums_to_the_level_with_the_fewest_terms(level: int) -> None:
    form = non_adjacent_form(level)
    assert sum(sign << shift for sign, shift in form) == level
    assert len(form) == shift_terms(level)


@pytest.mark.parametrize("name", SUPPORTED)
def test_products_are_shifts_and_additions_of_int8_activations(name: str) -> None:
    """The papers' claim: the integer part of a product needs no multiplication, and the kernels compute just that."""
    weight, x = _weight(_scheme(name), 33, 200), _activations(6, 200)
    expected = int8_oracle(weight, x, _bias(33), shift_add_sums)
    for isa in ISAS:
        assert same(weight.kernel(isa)(x, _bias(33), "int8"), expected), isa


@given(SCHEMES, st.tuples(st.integers(1, 4), st.integers(1, 40), st.integers(1, 140)), st.integers(0, 99))
def test_products_are_shifts_and_additions_whatever_the_shape(
    scheme: QuantScheme, shape: tuple[int, int, int], seed: int
) -> None:
    weight, x = _weight(scheme, *shape[1:], seed), _activations(shape[0], shape[2], seed)
    expected = int8_oracle(weight, x, None, shift_add_sums)
    for isa in ISAS:
        assert same(weight.kernel(isa)(x, None, "int8"), expected), isa


@pytest.mark.parametrize("name", sorted(name for name in SUPPORTED if PRESETS[name].grid.is_power_of_two))
def test_a_pot_weight_is_one_shift_each(name: str) -> None:
    assert all(len(non_adjacent_form(level)) <= 1 for level in PRESETS[name].grid.levels)


# ---- integers ------------------------------------------------------------------------------------------------------


def _unit_weight(scheme: QuantScheme, codes: Tensor) -> Weight:
    """Scales such that ``w`` is the level."""
    shape, log2 = scheme.scale_shape(*codes.shape), scheme.grid.reference.bit_length() - 1
    if scheme.scale_dtype == "e8m0":
        return Weight(codes, torch.full(shape, 127 + log2, dtype=torch.uint8), scheme)
    return Weight(codes, torch.full(shape, 2.0**log2, dtype=torch.float16), scheme)


@pytest.mark.parametrize("columns", [64, 70, 192, 330])
@pytest.mark.parametrize("scale_dtype", SCALES)
@pytest.mark.parametrize("name", SUPPORTED)
def test_with_unit_scales_the_outputs_are_the_integer_sums(name: str, scale_dtype: str, columns: int) -> None:
    """Integers of 100..127 with a 127 in every block are their own rounding, and every sum stays below 2**24."""
    scheme, generator = _scheme(name, 64, scale_dtype), _generator(3)
    weight = _unit_weight(scheme, _weight(scheme, 35, columns).codes)
    x = torch.randint(100, 128, (4, columns), generator=generator)
    x[:, ::64] = 127
    x *= torch.randint(0, 2, x.shape, generator=generator) * 2 - 1
    expected = (x @ weight.levels.T).float()
    for isa in ISAS:
        assert torch.equal(weight.kernel(isa)(x.float(), None, "int8"), expected), isa


@pytest.mark.parametrize("signs", ["same", "opposite", "alternating"])
@pytest.mark.parametrize("name", SUPPORTED)
def test_the_largest_levels_times_the_largest_activations_do_not_saturate(name: str, signs: str) -> None:
    """Pairs of bytes that a multiply-add in 16 bits would clip: 2 * 128 * 127 per pair in either sign."""
    scheme, columns = _scheme(name), 256
    levels = scheme.grid.levels
    low, high = levels.index(min(levels)), levels.index(max(levels))
    rows = [[low] * columns, [high] * columns, [low, high] * (columns // 2), [low, low, high, high] * (columns // 4)]
    weight = _unit_weight(scheme, torch.tensor(rows * 5, dtype=torch.uint8))
    x = torch.full((6, columns), 127)
    if signs == "opposite":
        x = -x
    elif signs == "alternating":
        x[:, ::2] *= -1
    expected = (x @ weight.levels.T).float()
    for isa in ISAS:
        assert torch.equal(weight.kernel(isa)(x.float(), None, "int8"), expected), isa


def test_every_pair_of_an_int8_level_and_an_activation() -> None:
    scheme = _scheme("int8", 16)
    weight = _unit_weight(scheme, torch.arange(256).to(torch.uint8)[:, None].expand(256, 16).contiguous())
    for value in range(0, 128, 9):
        x = torch.full((1, 16), 127.0)
        x[0, 3], x[0, 7] = value, -value
        x[0, 8:] *= -1
        assert_equals_the_oracle(weight, x)


# ---- activations ---------------------------------------------------------------------------------------------------


def _oracle_rounding(weight: Weight, x: Tensor) -> Rounded:
    return round_activations(in_blocks(x.float(), block_of(weight.scheme, weight.columns)), weight.scheme.grid)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("arithmetic", ARITHMETICS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_with_nan_or_infinity_spoils_itself_only(value: float, arithmetic: Any, dtype: torch.dtype) -> None:
    weight, clean = _weight(_scheme("pot4"), 21, 200), _activations(14, 200).to(dtype)
    spoilt = clean.clone()
    spoilt[5, 100] = spoilt[11, 199] = value
    others = [row for row in range(14) if row not in (5, 11)]
    for isa in ISAS:
        kernel = weight.kernel(isa)
        found = kernel(spoilt, None, arithmetic)
        assert same(found[others], kernel(clean, None, arithmetic)[others]), isa
        assert not found[[5, 11]].isfinite().all(1).any(), isa
    if arithmetic == "int8":
        assert found[[5, 11]].isnan().all()
    assert_equals_the_oracle(weight, spoilt, None, arithmetic)


def test_blocks_of_zeros_give_the_bias() -> None:
    weight, bias = _weight(_scheme("pot2"), 19, 130), _bias(19)
    for arithmetic in ARITHMETICS:
        for isa in ISAS:
            for zero in (0.0, -0.0):
                found = weight.kernel(isa)(torch.full((3, 130), zero), bias, arithmetic)
                assert same(found, bias.expand(3, 19).contiguous()), (arithmetic, isa)


@pytest.mark.parametrize("power", [-149, -130, -126, -121, -120, -119, 0, 120, 127])
def test_activations_of_any_magnitude(power: int) -> None:
    """Blocks below 2**-120 count as zero; at the other end 127 / amax must not vanish."""
    weight, x = _weight(_scheme("apot4", 32, "e8m0"), 17, 96), torch.rand(3, 96, generator=_generator(4)) * 2.0**power
    x[:, 1::32] = 2.0**power  # amax, to the bit
    x[1, 40] = -(2.0**power)
    assert_equals_the_oracle(weight, x)
    assert _oracle_rounding(weight, x).coarse.any() == (power >= -120)
    assert_equals_the_oracle(weight, x, None, "float")


def test_the_largest_float_as_an_activation() -> None:
    x = torch.full((2, 64), torch.finfo(torch.float32).max)
    x[1, 1:] = 1.0
    for scale_dtype in SCALES:
        weight = _weight(_scheme("pot4", 64, scale_dtype), 16, 64)
        assert_equals_the_oracle(weight, x)
        assert_equals_the_oracle(weight, x, None, "float")


def test_halves_are_rounded_to_even() -> None:
    x = torch.arange(-63.5, 64.5, 1.0).repeat(2, 2)
    x[:, ::64] = 127.0
    x[1] += 0.0078125
    weight = _weight(_scheme("int4"), 16, 256)
    assert (_oracle_rounding(weight, x).coarse[0, 0, 1:9] % 2 == 0).all()
    assert_equals_the_oracle(weight, x)


@pytest.mark.parametrize("block", [32, 48, 64])
def test_around_the_threshold_of_an_outlier_block(block: int) -> None:
    """A block is rounded finely if its integers' mean square is below 645 (which one of 16 columns cannot be)."""
    x = torch.full((9, 3 * block), 100.4)
    x[:, ::block] = 127.0
    for row, excess in enumerate(range(-4, 5)):
        x[row, block : 2 * block] = _integers(block, 645 * block + excess)
    x[:, 2 * block + 1 :] = 0.3
    weight = _weight(_scheme("pot3", block), 17, 3 * block)
    assert _oracle_rounding(weight, x).outlier.T.tolist() == [[False] * 9, [True] * 4 + [False] * 5, [True] * 9]
    assert_equals_the_oracle(weight, x)


def _integers(count: int, squares: int) -> Tensor:
    """``count`` integers of at most 127, the first 127, whose squares sum to ``squares``."""
    rest = squares - 127**2
    usual = math.isqrt(rest // (count - 1))
    rest -= (count - 5) * usual**2
    for a, b, c in itertools.product(range(127), repeat=3):  # a sum of four squares, as every number is
        d = math.isqrt(max(0, rest - a * a - b * b - c * c))
        if a * a + b * b + c * c + d * d == rest:
            return torch.tensor([127, *[usual] * (count - 5), a, b, c, d])
    raise AssertionError("Lagrange was wrong")


def test_small_values_beside_an_outlier_survive() -> None:
    """Plain int8 would round the small ones to zero."""
    weight = _weight(_scheme("int8"), 40, 64)
    x = torch.randn(4, 64, generator=_generator(5))
    x[:, 7] = 300.0
    exact = torch.nn.functional.linear(x.double(), weight.quantized.dequantize().double())
    without = x.clone()
    without[:, 7] = 0
    contribution = torch.nn.functional.linear(without.double(), weight.quantized.dequantize().double())
    for isa in ISAS:
        error = weight.kernel(isa)(x, None, "int8").double() - exact
        assert error.norm() < 0.02 * contribution.norm(), isa
    assert_equals_the_oracle(weight, x)


@pytest.mark.parametrize("name", SUPPORTED)
def test_both_arithmetics_are_close_to_the_exact_product(name: str) -> None:
    weight, x, bias = _weight(_scheme(name), 50, 300), torch.randn(8, 300, generator=_generator(6)), _bias(50)
    exact = torch.nn.functional.linear(x.double(), weight.quantized.dequantize().double(), bias.double())
    for isa in ISAS:
        kernel = weight.kernel(isa)
        assert (kernel(x, bias, "float").double() - exact).norm() < 1e-6 * exact.norm(), isa
        assert (kernel(x, bias, "int8").double() - exact).norm() < 0.01 * exact.norm(), isa


# ---- scales --------------------------------------------------------------------------------------------------------


EDGES = {
    "float16": torch.tensor([0, 1, 2, 0x3FF, 0x400, 0x401, 0x3C00, 0x7BFF], dtype=torch.int16).view(torch.float16),
    "e8m0": torch.tensor([0, 1, 2, 64, 126, 127, 253, 254], dtype=torch.uint8),
}


@pytest.mark.parametrize("size", [2.0**-110, 2.0**-20, 1.0, 2.0**30, 2.0**110])
@pytest.mark.parametrize("arithmetic", ARITHMETICS)
@pytest.mark.parametrize("scale_dtype", SCALES)
def test_scales_at_the_edges_of_their_format(scale_dtype: str, arithmetic: Any, size: float) -> None:
    """Zero, subnormals, the largest: products underflow and overflow as one float32 multiplication does."""
    for name in ("pot4", "pot3nz", "int8"):
        weight = _weight(_scheme(name, 16, scale_dtype), 24, 128)
        edges = EDGES[scale_dtype].view(1, 8)
        rows = [edges.roll(shift, 1) for shift in range(8)]
        alone = [edges[:, i : i + 1].expand(1, 8) for i in range(8)]
        weight = replace(weight, scale=torch.cat(rows + alone + rows))
        assert_equals_the_oracle(weight, size * torch.randn(3, 128, generator=_generator(7)), None, arithmetic)


def test_groups_with_a_zero_scale_add_nothing() -> None:
    weight, x = _weight(_scheme("pot2", 32), 17, 96), _activations(3, 96)
    scale = weight.scale.clone()
    scale[:, 1] = 0
    changed = x.clone()
    changed[:, 32:64] = 5.0
    zeroed = replace(weight, scale=scale)
    for isa in ISAS:
        assert same(zeroed.kernel(isa)(x, None, "int8"), zeroed.kernel(isa)(changed, None, "int8")), isa


# ---- independence --------------------------------------------------------------------------------------------------


@pytest.fixture
def _restore_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("_restore_threads")
@pytest.mark.parametrize("m", [1, 33])
@pytest.mark.parametrize("arithmetic", ARITHMETICS)
def test_results_do_not_depend_on_the_number_of_threads(arithmetic: Any, m: int) -> None:
    weight, x = _weight(_scheme("pot4"), 300, 330), _activations(m, 330)
    ids = torch.randint(0, 300, (700,), generator=_generator(8))
    for isa in ISAS:
        results, rows = [], []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            kernel = weight.kernel(isa)  # its tiles are packed by as many
            results.append(kernel(x, None, arithmetic))
            rows.append(backend.embedding(ids, PackedWeight.of(weight.quantized), torch.float32))
        assert same(results[1], results[0]), isa
        assert same(results[2], results[0]), isa
        assert same(rows[1], rows[0])
        assert same(rows[2], rows[0])


@pytest.mark.parametrize("arithmetic", ARITHMETICS)
@pytest.mark.parametrize("name", ["pot2", "pot3", "pot4", "int8"])
def test_a_row_gives_the_same_alone_and_in_any_batch(name: str, arithmetic: Any) -> None:
    weight, x, bias = _weight(_scheme(name), 35, 200), _activations(33, 200), _bias(35)
    for isa in ISAS:
        kernel = weight.kernel(isa)
        whole = kernel(x, bias, arithmetic)
        alone = torch.cat([kernel(x[i : i + 1], bias, arithmetic) for i in range(33)])
        parts = torch.cat([kernel(part, bias, arithmetic) for part in x.split([2, 3, 4, 5, 7, 12])])
        assert same(alone, whole), isa
        assert same(parts, whole), isa
        assert same(kernel(x.flip(0).view(3, 11, 200), bias, arithmetic).view(33, 35).flip(0), whole), isa


# ---- look-up -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale_dtype", SCALES)
@pytest.mark.parametrize("group", [16, 64, "row", "tensor"])
@pytest.mark.parametrize("name", SUPPORTED)
def test_embedding_gives_the_dequantized_rows(name: str, group: Any, scale_dtype: str, dtype: torch.dtype) -> None:
    weight = _weight(_scheme(name, group, scale_dtype), 13, 75, scales=ALL_SCALES).quantized
    ids = torch.tensor([[0, 12, 3], [3, 3, 7]])
    found = backend.embedding(ids, PackedWeight.of(weight), dtype)
    assert same(found, weight.dequantize()[ids].to(dtype))


@pytest.mark.parametrize("shape", [(), (1,), (0,), (2, 3, 4), (2, 0)])
@pytest.mark.parametrize("integer", [torch.int32, torch.int64])
def test_embedding_takes_ids_of_any_shape(shape: tuple[int, ...], integer: torch.dtype) -> None:
    weight = _weight(_scheme("pot3"), 13, 75).quantized
    ids = torch.randint(0, 13, shape, generator=_generator(9)).to(integer)
    found = backend.embedding(ids, PackedWeight.of(weight), torch.float32)
    assert found.shape == (*shape, 75)
    assert same(found, weight.dequantize()[ids.long()])


@pytest.mark.parametrize("index", [13, -1, -(2**40), 2**40])
def test_embedding_refuses_ids_outside_the_table(index: int) -> None:
    weight = _weight(_scheme("pot3"), 13, 75).quantized
    with pytest.raises(IndexError, match=str(index)):
        backend.embedding(torch.tensor([[0, 2], [index, 1]]), PackedWeight.of(weight), torch.float32)


@given(SCHEMES, st.integers(1, 40), st.integers(1, 150), st.integers(0, 99))
def test_embedding_of_any_shape(scheme: QuantScheme, rows: int, columns: int, seed: int) -> None:
    weight = _weight(scheme, rows, columns, seed, ALL_SCALES).quantized
    ids = torch.randint(0, rows, (9,), generator=_generator(seed))
    found = backend.embedding(ids, PackedWeight.of(weight), torch.float32)
    assert same(found, weight.dequantize()[ids])


# ---- what it supports ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("group", [1, 7, 24, 100])
def test_groups_that_are_no_multiple_of_16_need_to_span_the_row(group: int) -> None:
    scheme = _scheme("pot4", group)
    reason = backend.supports(scheme, (4, group + 1), CPU, torch.float32)
    assert reason is not None
    assert "multiple of 16" in reason
    assert backend.supports(scheme, (4, group), CPU, torch.float32) is None
    assert_equals_the_oracle(_weight(scheme, 4, group), _activations(2, group))


@pytest.mark.parametrize(
    ("grid", "reason"),
    [
        (PRESETS["pot5"].grid, "exceed int8"),
        (PRESETS["pot6"].grid, "exceed int8"),
        (uniform(5), "2, 3, 4 and 8 bits"),
        (Grid(bits=8, magnitudes=tuple(range(128))), "two's complement"),
    ],
)
def test_grids_without_a_kernel_are_refused(grid: Grid, reason: str) -> None:
    found = backend.supports(QuantScheme(grid=grid), (4, 64), CPU, torch.float32)
    assert found is not None
    assert reason in found


def test_other_devices_and_dtypes_are_refused() -> None:
    found = backend.supports(_scheme("pot4"), (4, 64), torch.device("meta"), torch.float32)
    assert found is not None
    assert "meta" in found
    found = backend.supports(_scheme("pot4"), (4, 64), CPU, torch.float64)
    assert found is not None
    assert "float64" in found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", SUPPORTED)
def test_every_preset_whose_levels_fit_int8_is_supported(name: str, dtype: torch.dtype) -> None:
    assert backend.supports(PRESETS[name], (5, 130), CPU, dtype) is None
