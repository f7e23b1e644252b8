"""The reference math against brute force: nearest levels, stored scales, groups, exact dequantization."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from potq.errors import ConfigError
from potq.numerics import functional
from potq.numerics.functional import (
    codebook,
    decode_scale,
    dequantize,
    encode_scale,
    join_groups,
    level_table,
    nearest_code,
    nearest_index,
    nearest_level,
    quantize,
    split_groups,
    thresholds,
)
from potq.numerics.grid import Grid, pot, table, uniform
from potq.numerics.scheme import PRESETS, QuantScheme
from potq.numerics.tensor import storage

CPU = torch.device("cpu")
NAMES = sorted(PRESETS)
SIGN_MAGNITUDE = [name for name in NAMES if PRESETS[name].grid.encoding == "sign-magnitude"]
TABLES = [name for name in NAMES if PRESETS[name].grid.encoding == "table"]
LUT = [name for name in SIGN_MAGNITUDE + TABLES if max(PRESETS[name].grid.levels) < 1 << 15]
GROUP_SIZES = [1, 3, 64, 1000, "row", "tensor"]
FLOATS = st.floats(width=32, allow_nan=False)


def _brute_force_code(x: float, grid: Grid) -> int:
    """The code of the nearest level in exact arithmetic; ties as the module's docstring says; never an unused code."""
    exact = Fraction(x)
    minus_zero = {len(grid.magnitudes)} if grid.encoding == "sign-magnitude" and grid.magnitudes[0] == 0 else set()
    codes = set(range(2**grid.bits)) - grid.unused_codes - minus_zero
    if grid.encoding != "sign-magnitude":
        return min(codes, key=lambda code: (abs(exact - grid.levels[code]), -grid.levels[code]))
    return min(codes, key=lambda code: (abs(exact - grid.levels[code]), -abs(grid.levels[code]), code))


def _around(values: Tensor) -> Tensor:
    """The values, their neighbours in float32, and the same with the other sign."""
    up, down = (torch.nextafter(values, torch.tensor(end)) for end in (math.inf, -math.inf))
    near = torch.cat([values, up, down])
    return torch.cat([near, -near])


def _critical(grid: Grid) -> Tensor:
    """Inputs where a rounding goes wrong if it can: at and next to every level and every midpoint, and the extremes."""
    levels = torch.tensor(sorted(grid.levels), dtype=torch.float64)
    middles = (levels[1:] + levels[:-1]) / 2
    extremes = torch.tensor([0.0, 1e-45, 1e-38, 0.49, 127.5, 1e9, 3e38], dtype=torch.float64)
    return _around(torch.cat([levels, middles, extremes]).float())


def _weight(rows: int, columns: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator) * 0.05


def _absmax(weight: Tensor, scheme: QuantScheme) -> Tensor:
    """Stored absmax scales, group by group, written apart from the library's own search."""
    rows, groups = scheme.scale_shape(*weight.shape)
    size = scheme.group(weight.shape[1])
    cut = [weight.reshape(1, -1)] if scheme.group_size == "tensor" else list(weight.split(size, dim=1))
    assert len(cut) == groups
    largest = torch.stack([part.abs().amax(1) for part in cut], dim=1)
    assert largest.shape == (rows, groups)
    return encode_scale(largest * scheme.grid.reference / max(scheme.grid.levels), scheme.scale_dtype)


# ---- nearest level -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_nearest_code_is_the_exact_argmin_at_every_critical_point(name: str) -> None:
    grid = PRESETS[name].grid
    x = _critical(grid)
    expected = [_brute_force_code(value, grid) for value in x.tolist()]
    wrong = [
        (value, code, best)
        for value, code, best in zip(x.tolist(), nearest_code(x, PRESETS[name]).tolist(), expected, strict=True)
        if code != best
    ]
    assert not wrong


@pytest.mark.parametrize("name", NAMES)
@given(values=st.lists(st.one_of(FLOATS, st.floats(-140, 140, width=32)), min_size=1, max_size=20))
def test_nearest_code_is_the_exact_argmin(name: str, values: list[float]) -> None:
    finite = [value for value in values if math.isfinite(value)] or [0.0]
    codes = nearest_code(torch.tensor(finite), PRESETS[name])
    assert codes.dtype == torch.uint8
    assert codes.tolist() == [_brute_force_code(value, PRESETS[name].grid) for value in finite]


@pytest.mark.parametrize("name", NAMES)
def test_infinity_takes_the_largest_level_of_its_sign(name: str) -> None:
    levels = PRESETS[name].grid.levels
    codes = nearest_code(torch.tensor([math.inf, -math.inf]), PRESETS[name]).tolist()
    assert [levels[code] for code in codes] == [max(levels), min(levels)]


@pytest.mark.parametrize("name", SIGN_MAGNITUDE)
def test_ties_go_to_the_larger_magnitude(name: str) -> None:
    grid = PRESETS[name].grid
    distinct = sorted(set(grid.magnitudes))
    middles = torch.tensor([(low + high) / 2 for low, high in pairwise(distinct)])
    for sign in (1, -1):
        codes = nearest_code(sign * middles, PRESETS[name]).tolist()
        assert [grid.levels[code] for code in codes] == [sign * high for high in distinct[1:]]


def test_ties_of_integers_go_to_the_larger_level() -> None:
    codes = nearest_code(torch.tensor([0.5, -0.5, 1.5, -1.5, -8.5, 7.5]), PRESETS["int4"]).tolist()
    assert [PRESETS["int4"].grid.levels[code] for code in codes] == [1, 0, 2, -1, -8, 7]


def test_ties_of_tables_go_to_the_larger_level() -> None:
    scheme = QuantScheme(grid=table((-5, -2, 1, 8)))
    assert nearest_code(torch.tensor([-3.5, -0.5, 4.5]), scheme).tolist() == [1, 2, 3]
    assert nearest_level(torch.tensor([-3.5, -0.5, 4.5]), scheme).tolist() == [-2, 1, 8]


@pytest.mark.parametrize(
    "levels",
    [
        (-1, 0, 1, 2),
        (-9, -8, -7, 1),
        (-1, 2, 3, 4096),
        (-(2**15), -3, -1, 2**13 - 1),
        (-(2**63), -(2**40), 2**18, 2**40),
        (-300, *range(-127, 127), 4095),
    ],
    ids=lambda levels: f"{levels[0]}..{levels[-1]}",
)
def test_any_table_rounds_to_the_exact_argmin(levels: tuple[int, ...]) -> None:
    """Looked up, or searched for beyond 2**15."""
    scheme = QuantScheme(grid=table(levels))
    x = _critical(scheme.grid)
    codes = nearest_code(x, scheme)
    assert codes.tolist() == [_brute_force_code(value, scheme.grid) for value in x.tolist()]
    assert torch.equal(nearest_level(x, scheme).double(), torch.tensor(levels, dtype=torch.float64)[codes.int()])


@pytest.mark.parametrize("name", LUT)
def test_table_look_up_equals_searching_the_thresholds(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = PRESETS[name].grid
    x = torch.cat([_critical(grid), torch.linspace(1.1 * min(grid.levels), 1.1 * max(grid.levels), 5001)])
    x = x if grid.encoding == "table" else x.abs()
    looked_up = nearest_index(x, grid, "nearest")
    monkeypatch.setattr(functional, "_LUT_LIMIT", 0)
    assert torch.equal(looked_up, nearest_index(x, grid, "nearest"))


@pytest.mark.parametrize("name", NAMES)
def test_nearest_level_is_the_level_of_the_nearest_code(name: str) -> None:
    grid = PRESETS[name].grid
    x = _critical(grid)
    x = x[x != 0]  # a grid without zero may send -0.0 to either side: both are as near
    expected = torch.tensor(grid.levels, dtype=torch.float64)[nearest_code(x, PRESETS[name]).int()]
    assert torch.equal(nearest_level(x, PRESETS[name]).double(), expected)


@pytest.mark.parametrize("rounding", ["nearest", "log"])
@pytest.mark.parametrize("name", SIGN_MAGNITUDE)
def test_minus_zero_and_unused_codes_are_never_written(name: str, rounding: str) -> None:
    if rounding == "log" and not PRESETS[name].grid.is_power_of_two:
        pytest.skip("log rounding needs a power-of-two grid")
    scheme = QuantScheme(name, rounding=rounding)
    never = set(scheme.grid.unused_codes) | ({2 ** (scheme.grid.bits - 1)} if scheme.grid.has_zero else set())
    x = torch.cat([_critical(scheme.grid), torch.linspace(-2, 2, 999), torch.tensor([-0.0])])
    written = set(nearest_code(x, scheme).tolist())
    assert not written & never
    assert written <= set(range(2**scheme.grid.bits))
    assert {scheme.grid.levels[code] for code in written} == set(scheme.grid.levels)  # and every level can be written


# ---- rounding="log" ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["pot3", "pot3nz", "pot4", "pot5", "pot6", "pot7"])
def test_log_rounding_changes_at_sqrt2_times_every_power(name: str) -> None:
    scheme = QuantScheme(name, rounding="log")
    exponents = [m.bit_length() - 1 for m in scheme.grid.magnitudes if m][:-1]
    below = torch.tensor([1.414 * 2.0**e for e in exponents])
    above = torch.tensor([1.415 * 2.0**e for e in exponents])
    for sign in (1, -1):
        assert nearest_level(sign * below, scheme).tolist() == [sign * 2.0**e for e in exponents]
        assert nearest_level(sign * above, scheme).tolist() == [sign * 2.0 ** (e + 1) for e in exponents]


def test_log_rounding_puts_zero_one_octave_below_the_least_magnitude() -> None:
    scheme = QuantScheme("pot4", rounding="log")
    assert nearest_level(torch.tensor([0.7071, 0.7072, -0.7071, -0.7072]), scheme).tolist() == [0, 1, 0, -1]


def test_log_rounding_with_stride_two_changes_at_two() -> None:
    scheme = QuantScheme("pot2", rounding="log")
    assert nearest_level(torch.tensor([1.99, 2.01, 0.0]), scheme).tolist() == [1, 4, 1]


def test_nearest_rounding_changes_at_one_and_a_half() -> None:
    assert nearest_level(torch.tensor([1.49, 1.5, 11.9, 12.0]), PRESETS["pot4"]).tolist() == [1, 2, 8, 16]


@pytest.mark.parametrize("name", ["apot4", "apot3", "mxfp4", "int2", "int3", "int4", "int8", "int3_midrise", "nf4", "iq4nl"])
def test_log_rounding_is_refused_off_power_of_two_grids(name: str) -> None:
    with pytest.raises(ConfigError, match="power-of-two grid"):
        quantize(torch.ones(1, 4), torch.ones(1, 1, dtype=torch.float16), QuantScheme(name, rounding="log"))


def test_thresholds_merge_repeated_magnitudes() -> None:
    assert thresholds(PRESETS["mxpot"].grid, "nearest", CPU).tolist() == [0.5, 1.5, 3.0, 6.0]


def test_thresholds_of_a_table_lie_between_its_levels() -> None:
    assert thresholds(table((-5, -2, 1, 8)), "nearest", CPU).tolist() == [-3.5, -0.5, 4.5]


# ---- codebook ------------------------------------------------------------------------------------------------------

LOG = [QuantScheme(name, rounding="log") for name in SIGN_MAGNITUDE if PRESETS[name].grid.is_power_of_two]
WIDE = [QuantScheme(grid=table((-7, *range(0, 510, 2)))), QuantScheme(grid=table((-(2**40), -1, 1, 2**20)))]
INTEGERS = [QuantScheme(grid=uniform(bits)) for bits in (5, 6, 7)]
ROUNDED = [*PRESETS.values(), *LOG, *INTEGERS, *WIDE]


@pytest.mark.parametrize("scheme", ROUNDED, ids=lambda scheme: f"{scheme.name}")
def test_codebook_holds_the_distinct_levels_and_what_lies_between(scheme: QuantScheme) -> None:
    levels, boundaries = codebook(scheme, CPU)
    assert (levels.dtype, boundaries.dtype) == (torch.float32, torch.float32)
    assert sorted(set(scheme.grid.levels)) == [Fraction(level) * scheme.grid.reference for level in levels.tolist()]
    assert len(boundaries) == len(levels) - 1
    assert (levels[:-1] < boundaries).all()
    assert (boundaries < levels[1:]).all()


@pytest.mark.parametrize("scheme", ROUNDED, ids=lambda scheme: f"{scheme.name}")
@given(seed=st.integers(0, 2**32), spread=st.floats(-20, 2))
def test_looking_up_the_codebook_rounds_as_the_scheme_does(scheme: QuantScheme, seed: int, spread: float) -> None:
    """Ties as well."""
    levels, boundaries = codebook(scheme, CPU)
    x = torch.randn(500, generator=torch.Generator().manual_seed(seed)) * 2.0**spread
    x = torch.cat([x, _around(boundaries)]) + 0.0  # a level has no -0 to belong to
    reference = scheme.grid.reference
    assert torch.equal(levels[torch.bucketize(x, boundaries, right=True)], nearest_level(x * reference, scheme) / reference)


def test_codebook_of_log_rounding_is_symmetric() -> None:
    levels, boundaries = codebook(QuantScheme("pot3nz", rounding="log"), CPU)
    root = math.sqrt(0.5)
    assert levels.tolist() == [-1, -0.5, -0.25, -0.125, 0.125, 0.25, 0.5, 1]
    expected = torch.tensor([-root, -root / 2, -root / 4, 0, root / 4, root / 2, root])
    torch.testing.assert_close(boundaries, expected)
    levels, boundaries = codebook(QuantScheme("pot3", rounding="log"), CPU)
    assert levels.tolist() == [-1, -0.5, -0.25, 0, 0.25, 0.5, 1]
    torch.testing.assert_close(boundaries, torch.tensor([-root, -root / 2, -root / 4, root / 4, root / 2, root]))
    # on a tie the larger magnitude is taken, on both sides of zero
    ties = torch.where(boundaries < 0, boundaries.nextafter(torch.tensor(-1.0)), boundaries)
    assert torch.equal(ties, -ties.flip(0))


def test_codebook_is_made_once() -> None:
    assert codebook(PRESETS["pot4"], CPU)[0] is codebook(QuantScheme("pot4"), CPU)[0]


# ---- stored scales -------------------------------------------------------------------------------------------------


def test_every_e8m0_byte_decodes_and_encodes_exactly() -> None:
    stored = torch.arange(255, dtype=torch.uint8)
    values = decode_scale(stored)
    assert values.dtype == torch.float32
    assert values.tolist() == [2.0 ** (byte - 127) for byte in range(255)]
    assert torch.equal(encode_scale(values, "e8m0"), stored)


def test_e8m0_rounds_in_the_log_domain_and_saturates() -> None:
    scales = torch.tensor([1.414, 1.415, 3.0, 0.0, 1e-45, 2.0**-127, 3.4e38, math.inf])
    assert encode_scale(scales, "e8m0").tolist() == [127, 128, 129, 0, 0, 0, 254, 254]


@given(st.floats(2.0**-126, 2.0**127, width=32))
def test_e8m0_is_within_half_an_octave(scale: float) -> None:
    decoded = decode_scale(encode_scale(torch.tensor([scale]), "e8m0")).item()
    assert abs(math.log2(decoded / scale)) <= 0.5 + 1e-6


@given(st.floats(0, 65504, width=16))
def test_float16_scales_are_stored_exactly(scale: float) -> None:
    assert decode_scale(encode_scale(torch.tensor([scale]), "float16")).item() == scale


def test_float16_scale_saturates_and_underflows() -> None:
    stored = encode_scale(torch.tensor([1e9, 65519.0, 70000.0, math.inf, 2.0**-24, 2.0**-26, 1e-38, 0.0]), "float16")
    assert stored.dtype == torch.float16
    assert stored.tolist() == [65504.0] * 4 + [2.0**-24, 0.0, 0.0, 0.0]


def test_encode_scale_leaves_its_argument_alone() -> None:
    scale = torch.tensor([1e9, 3.0])
    encode_scale(scale, "float16")
    encode_scale(scale, "e8m0")
    assert scale.tolist() == [1e9, 3.0]


@pytest.mark.parametrize("name", NAMES)
def test_an_underflown_float16_scale_yields_zeros(name: str) -> None:
    scheme = QuantScheme(name, scale_dtype="float16")
    weight = torch.tensor([[1e-30, -2e-30, 1e-45, 0.0]])
    scale = _absmax(weight, scheme)
    assert scale.tolist() == [[0.0]]
    restored = dequantize(quantize(weight, scale, scheme), scale, scheme)
    assert torch.equal(restored, torch.zeros(1, 4))


def test_a_saturated_float16_scale_clips_to_the_largest_level() -> None:
    scheme = QuantScheme("pot4")
    weight = torch.tensor([[1e9, -1e9, 65504.0]])
    scale = _absmax(weight, scheme)
    assert dequantize(quantize(weight, scale, scheme), scale, scheme).tolist() == [[65504.0, -65504.0, 65504.0]]


@pytest.mark.parametrize("scale_dtype", ["float16", "e8m0"])
@pytest.mark.parametrize("name", [name for name in NAMES if PRESETS[name].grid.has_zero])
def test_a_zero_group_stays_zero_and_leaves_its_neighbours_alone(name: str, scale_dtype: str) -> None:
    scheme = QuantScheme(name, group_size=4, scale_dtype=scale_dtype, signed_scale=False)
    weight = _weight(2, 12)
    weight[:, 4:8] = 0
    scale = _absmax(weight, scheme)
    restored = dequantize(quantize(weight, scale, scheme), scale, scheme)
    assert not restored[:, 4:8].any()
    assert restored[:, :4].any()
    assert restored[:, 8:].any()


def test_denormal_weights_are_kept_by_e8m0_scales() -> None:
    weight = torch.tensor([[2.0**-127, -(2.0**-128), 2.0**-129, 0.0]])
    scheme = QuantScheme("mxpot")
    scale = _absmax(weight, scheme)
    assert scale.tolist() == [[0]]
    assert torch.equal(dequantize(quantize(weight, scale, scheme), scale, scheme), weight)


# ---- groups --------------------------------------------------------------------------------------------------------


@given(st.integers(1, 5), st.integers(1, 40), st.sampled_from(GROUP_SIZES))
def test_split_and_join_are_inverse(rows: int, columns: int, group_size: Any) -> None:
    scheme = QuantScheme("pot4", group_size=group_size)
    matrix = torch.arange(rows * columns).view(rows, columns)
    parts = split_groups(matrix, scheme)
    assert torch.equal(join_groups(parts, rows), matrix)
    assert (parts[0].shape[0], sum(part.shape[1] for part in parts)) == scheme.scale_shape(rows, columns)


@pytest.mark.parametrize("group_size", GROUP_SIZES)
@pytest.mark.parametrize("columns", [1, 63, 64, 65, 130])
def test_groups_equal_quantizing_every_group_alone(group_size: Any, columns: int) -> None:
    scheme = QuantScheme("pot4", group_size=group_size)
    weight = _weight(3, columns)
    scale = _absmax(weight, scheme)
    codes = quantize(weight, scale, scheme)
    assert (codes.shape, codes.dtype) == (weight.shape, torch.uint8)
    for row in range(3):
        for column in range(columns):
            group = column // scheme.group(columns)
            one = scale[0 if group_size == "tensor" else row, group].view(1, 1)
            assert codes[row, column] == quantize(weight[row, column].view(1, 1), one, scheme).item()


@pytest.mark.parametrize("group_size", [1, 7, 64, "row", "tensor"])
@pytest.mark.parametrize("name", NAMES)
def test_dequantize_is_exact(name: str, group_size: Any) -> None:
    scheme = QuantScheme(name, group_size=group_size)
    codes = torch.randint(0, 2**scheme.grid.bits, (5, 23), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    shape, generator = scheme.scale_shape(5, 23), torch.Generator().manual_seed(2)
    scale = encode_scale(torch.rand(shape, generator=generator) * 3, scheme.scale_dtype)
    per_code = decode_scale(scale).double().repeat_interleave(scheme.group(23), dim=1)[:, :23]
    exact = torch.tensor(scheme.grid.levels, dtype=torch.float64)[codes.int()] / scheme.grid.reference * per_code
    restored = dequantize(codes, scale, scheme)
    assert restored.dtype == torch.float32
    assert torch.equal(restored.double(), exact)


@pytest.mark.parametrize("name", NAMES)
def test_level_table_is_exact_and_has_no_minus_zero(name: str) -> None:
    grid = PRESETS[name].grid
    table = level_table(grid, CPU)
    assert [Fraction(value) for value in table.tolist()] == [Fraction(level, grid.reference) for level in grid.levels]
    assert not (torch.signbit(table) & (table == 0)).any()


@pytest.mark.parametrize(("bits", "zero", "stride"), [(7, False, 1), (6, False, 2), (5, True, 4), (4, True, 10)])
def test_the_widest_grids_pot_allows_can_be_quantized(bits: int, zero: bool, stride: int) -> None:
    scheme = QuantScheme(grid=pot(bits, zero=zero, stride=stride))
    weight = torch.tensor([[1.0, -(0.5**stride), 0.25**stride]])
    scale = torch.ones(1, 1, dtype=torch.float16)
    assert torch.equal(dequantize(quantize(weight, scale, scheme), scale, scheme), weight)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_quantize_takes_any_float_dtype(dtype: torch.dtype) -> None:
    weight = _weight(2, 64).to(dtype)
    scale = _absmax(weight.float(), PRESETS["pot4"])
    assert torch.equal(quantize(weight, scale, PRESETS["pot4"]), quantize(weight.float(), scale, PRESETS["pot4"]))


def test_quantize_leaves_its_arguments_alone() -> None:
    weight = _weight(2, 70)
    scale = _absmax(weight, PRESETS["pot4"])
    before = weight.clone(), scale.clone()
    quantize(weight, scale, PRESETS["pot4"])
    assert torch.equal(weight, before[0])
    assert torch.equal(scale, before[1])


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
def test_quantizing_a_dequantized_weight_gives_the_same_codes(name: str, data: st.DataObject) -> None:
    scheme = PRESETS[name]
    minus_zero = {2 ** (scheme.grid.bits - 1)} if scheme.grid.has_zero and scheme.grid.magnitudes else set()
    valid = sorted(set(range(2**scheme.grid.bits)) - scheme.grid.unused_codes - minus_zero)
    codes = torch.tensor([data.draw(st.lists(st.sampled_from(valid), min_size=1, max_size=9))], dtype=torch.uint8)
    values = st.integers(8, 254) if scheme.scale_dtype == "e8m0" else st.floats(2.0**-24, 65504, width=16)
    shape, dtype = storage(tuple(codes.shape), scheme)["scale"]
    scale = torch.full(shape, data.draw(values), dtype=dtype)
    assert torch.equal(quantize(dequantize(codes, scale, scheme), scale, scheme), codes)


# ---- row scales ----------------------------------------------------------------------------------------------------


def _row_scaled(name: str, group_size: Any = 32) -> QuantScheme:
    return QuantScheme(name, group_size=group_size, scale_dtype="e8m0", signed_scale=False, row_scale=True)


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
def test_dequantize_with_row_scales_is_exact_in_float32(name: str, data: st.DataObject) -> None:
    scheme = _row_scaled(name, data.draw(st.sampled_from([1, 3, "row"])))
    rows, columns = data.draw(st.tuples(st.integers(1, 4), st.integers(1, 9)))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    codes = torch.randint(0, 2**scheme.grid.bits, (rows, columns), generator=generator).to(torch.uint8)
    scale = torch.randint(100, 200, scheme.scale_shape(rows, columns), generator=generator).to(torch.uint8)
    # every float16 from zero over subnormals to the largest
    row_scale = torch.randint(0, 0x7C00, (rows, 1), generator=generator).to(torch.int16).view(torch.float16)
    group = torch.arange(columns) // scheme.group(columns)
    levels = torch.tensor(scheme.grid.levels, dtype=torch.float64)[codes.long()] / scheme.grid.reference
    exact = row_scale.double() * torch.ldexp(levels, scale[:, group].int() - 127)
    restored = dequantize(codes, scale, scheme, row_scale)
    assert restored.dtype == torch.float32
    assert torch.equal(restored.double(), exact)


@pytest.mark.parametrize("name", NAMES)
def test_a_row_scale_moves_the_levels_and_a_zero_one_makes_a_zero_row(name: str) -> None:
    scheme, weight = _row_scaled(name), _weight(4, 70)
    scale = torch.full((4, 3), 127, dtype=torch.uint8)
    row_scale = torch.tensor([[0.03], [0.0], [0.11], [2.0]], dtype=torch.float16)
    codes = quantize(weight, scale, scheme, row_scale)
    for row, factor in enumerate(row_scale.flatten().tolist()):
        if factor:
            alone = quantize(weight[row : row + 1] / factor, scale[:1], scheme)
            assert torch.equal(codes[row : row + 1], alone)
    restored = dequantize(codes, scale, scheme, row_scale)
    assert torch.equal(restored, dequantize(codes, scale, scheme) * row_scale.float())
    assert not restored[1].any()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_an_entry_that_is_not_finite_is_seen(value: float) -> None:
    tensor = torch.arange(12.0).view(3, 4)
    assert functional.all_finite(tensor)
    tensor[2, 1] = value
    assert not functional.all_finite(tensor)
