"""Choosing scales: never worse than absmax, local to each group, independent of blocks, and strict about its input.

The exact search, which is what grids of up to 4 bits get here, has tests of its own in ``test_best_scale.py``.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from potq import native
from potq.errors import ConfigError, ModelError
from potq.numerics import scale_search
from potq.numerics.functional import decode_scale, dequantize, quantize, split_groups
from potq.numerics.grid import Grid, pot, table, uniform
from potq.numerics.scale_search import choose_scale, scale_multipliers
from potq.numerics.scheme import PRESETS, QuantScheme

NAMES = sorted(PRESETS)
TOLERANCE = 1e-5  # the search sums in float32


def _weight(rows: int = 6, columns: int = 150, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def _importance(columns: int = 150) -> Tensor:
    return torch.rand(columns, generator=torch.Generator().manual_seed(9)) ** 4 + 1e-3


def _errors(weight: Tensor, scale: Tensor, scheme: QuantScheme, importance: Tensor | None = None) -> Tensor:
    """(Weighted) squared error of every group, in float64."""
    difference = (dequantize(quantize(weight, scale, scheme), scale, scheme).double() - weight.double()).square()
    if importance is not None:
        difference = difference * importance.double()
    return torch.cat([part.sum(-1) for part in split_groups(difference, scheme)], dim=1)


def _top(scheme: QuantScheme) -> int:
    """The level that absmax scales put the largest weight on."""
    return max(map(abs, scheme.grid.levels)) if scheme.signed_scale else max(scheme.grid.levels)


@pytest.mark.parametrize("group_size", [16, 64, "row", "tensor"])
@pytest.mark.parametrize("name", NAMES)
def test_searching_is_no_worse_than_absmax_in_any_group(name: str, group_size: Any) -> None:
    scheme, weight = QuantScheme(name, group_size=group_size), _weight()
    absmax = _errors(weight, choose_scale(weight, scheme, "absmax"), scheme)
    searched = _errors(weight, choose_scale(weight, scheme, "mse"), scheme)
    assert (searched <= absmax * (1 + TOLERANCE)).all()


@pytest.mark.parametrize("group_size", [64, "row"])
@pytest.mark.parametrize("name", NAMES)
def test_by_magnitude_large_weights_count_more(name: str, group_size: Any) -> None:
    scheme, weight = QuantScheme(name, group_size=group_size), _weight()
    squares = [part.square() for part in split_groups(weight, scheme)]
    means = [each.mean(-1, keepdim=True) for each in squares]
    outliers = [(each - 9 * mean).clamp(min=0) for each, mean in zip(squares, means, strict=True)]
    importance = torch.cat([(mean + more).flatten(1) for mean, more in zip(means, outliers, strict=True)], dim=1)
    found, plain = choose_scale(weight, scheme, "magnitude"), choose_scale(weight, scheme)
    assert (_errors(weight, found, scheme, importance) <= _errors(weight, plain, scheme, importance) * (1 + TOLERANCE)).all()


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("int8",)])
def test_searching_pays(name: str) -> None:
    scheme, weight = PRESETS[name], _weight(16, 256)
    absmax = _errors(weight, choose_scale(weight, scheme, "absmax"), scheme).sum()
    assert _errors(weight, choose_scale(weight, scheme, "mse"), scheme).sum() < 0.995 * absmax


@pytest.mark.parametrize("name", NAMES)
def test_the_kept_scale_is_the_best_of_its_candidates(name: str) -> None:
    scheme, weight = PRESETS[name], _weight()
    absmax = decode_scale(choose_scale(weight, scheme, "absmax")).double()
    best = _errors(weight, choose_scale(weight, scheme, "mse", 5), scheme)
    largest = torch.cat([part.abs().amax(-1) for part in split_groups(weight, scheme)], dim=1)
    base = largest * (scheme.grid.reference / _top(scheme))
    for multiplier in scale_multipliers(scheme, 5):
        for sign in (1, -1) if scheme.signed_scale else (1,):
            stored = scale_search.encode_scale(base * torch.tensor(sign * multiplier), scheme.scale_dtype)
            assert (best <= _errors(weight, stored, scheme) * (1 + TOLERANCE)).all(), sign * multiplier
    assert absmax.shape == best.shape


@pytest.mark.parametrize("name", NAMES)
def test_absmax_maps_the_largest_weight_to_the_largest_level(name: str) -> None:
    scheme, weight = QuantScheme(name, scale_dtype="float16"), _weight()
    scale = decode_scale(choose_scale(weight, scheme, "absmax"))
    largest = torch.cat([part.abs().amax(-1) for part in split_groups(weight, scheme)], dim=1)
    torch.testing.assert_close(scale.abs() * _top(scheme) / scheme.grid.reference, largest, rtol=1e-3, atol=0)


def test_signed_absmax_puts_the_largest_weight_on_the_longer_side() -> None:
    scheme, weight = PRESETS["apot3s"], torch.tensor([[-5.0, 1.0, 2.0, 3.0], [5.0, 1.0, -2.0, -3.0]])  # levels -96..127
    scale = choose_scale(weight, scheme, "absmax")
    assert scale[0] == -scale[1] < 0


@pytest.mark.parametrize("name", NAMES)
def test_one_candidate_is_absmax(name: str) -> None:
    weight = _weight()
    assert torch.equal(choose_scale(weight, PRESETS[name], "mse", 1), choose_scale(weight, PRESETS[name], "absmax"))


@pytest.mark.parametrize("candidates", [1, 2, 3, 16, 100])
@pytest.mark.parametrize("name", NAMES)
def test_multipliers_start_with_absmax_and_are_distinct_and_positive(name: str, candidates: int) -> None:
    multipliers = scale_multipliers(PRESETS[name], candidates)
    assert multipliers[0] == 1.0
    assert len(multipliers) == (min(candidates, 5) if PRESETS[name].scale_dtype == "e8m0" else candidates)
    assert len(set(multipliers)) == len(multipliers)
    assert min(multipliers) > 0


def test_more_candidates_find_no_worse_scales_on_the_whole() -> None:
    weight = _weight(16, 256)
    few, many = (
        _errors(weight, choose_scale(weight, PRESETS["pot3"], "mse", candidates), PRESETS["pot3"]).sum()
        for candidates in (4, 64)
    )
    assert many < few


@pytest.mark.parametrize("constant", [1.0, 4.0])
@pytest.mark.parametrize("group_size", [16, "row", "tensor"])
@pytest.mark.parametrize("name", NAMES)
def test_constant_importance_equals_mse(name: str, group_size: Any, constant: float) -> None:
    scheme, weight = QuantScheme(name, group_size=group_size), _weight()
    weighted = choose_scale(weight, scheme, "weighted", importance=torch.full((150,), constant))
    assert torch.equal(weighted, choose_scale(weight, scheme, "mse"))


@pytest.mark.parametrize("group_size", [16, 64, "row", "tensor"])
@pytest.mark.parametrize("name", NAMES)
def test_weighted_is_no_worse_than_mse_at_the_weighted_error(name: str, group_size: Any) -> None:
    scheme, weight, importance = QuantScheme(name, group_size=group_size), _weight(), _importance()
    weighted = _errors(weight, choose_scale(weight, scheme, "weighted", importance=importance), scheme, importance)
    plain = _errors(weight, choose_scale(weight, scheme, "mse"), scheme, importance)
    assert (weighted <= plain * (1 + TOLERANCE)).all()


def test_weighted_saves_the_important_input() -> None:
    importance = torch.full((64,), 1e-6)
    importance[5] = 1.0
    scheme, weight = PRESETS["pot2"], _weight(8, 64)
    weighted = choose_scale(weight, scheme, "weighted", importance=importance)
    plain = choose_scale(weight, scheme, "mse")
    column = [(dequantize(quantize(weight, s, scheme), s, scheme) - weight)[:, 5].square().sum() for s in (weighted, plain)]
    assert column[0] < 0.5 * column[1]


@pytest.mark.parametrize("method", ["absmax", "mse", "magnitude", "weighted"])
@pytest.mark.parametrize("name", NAMES)
def test_a_ragged_tail_equals_the_tail_alone(name: str, method: Any) -> None:
    scheme, weight = QuantScheme(name, group_size=64), _weight()
    importance = _importance() if method == "weighted" else None
    whole = choose_scale(weight, scheme, method, importance=importance)
    tail = choose_scale(weight[:, 128:], scheme, method, importance=None if importance is None else importance[128:])
    assert torch.equal(whole[:, 2:], tail)


@pytest.mark.parametrize("method", ["absmax", "mse", "magnitude"])
@pytest.mark.parametrize("group_size", [1, 64, 1000, "row", "tensor"])
@pytest.mark.parametrize("name", ["pot4", "mxpot", "int3"])
def test_shape_and_dtype_of_the_scales(name: str, group_size: Any, method: Any) -> None:
    scheme = QuantScheme(name, group_size=group_size)
    scale = choose_scale(_weight(), scheme, method)
    assert scale.shape == scheme.scale_shape(6, 150)
    assert scale.dtype == (torch.uint8 if scheme.scale_dtype == "e8m0" else torch.float16)


@pytest.mark.parametrize("group_size", [7, 64, "row", "tensor"])
@pytest.mark.parametrize("name", NAMES)
def test_scales_do_not_depend_on_the_block_size(name: str, group_size: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    scheme, weight, importance = QuantScheme(name, group_size=group_size), _weight(9), _importance()
    found = []
    for block in (1, 300, 1 << 20):
        monkeypatch.setattr(scale_search, "_BLOCK", block)
        monkeypatch.setattr(scale_search, "_NATIVE_BLOCK", block)
        found.append(choose_scale(weight, scheme, "mse"))
        found.append(choose_scale(weight, scheme, "weighted", importance=importance))
        found.append(choose_scale(weight, scheme, "mse", 5))
    assert all(torch.equal(found[i], found[i % 3]) for i in range(9))


# ---- the library and torch ------------------------------------------------------------------------------------------

compiled = pytest.mark.skipif(native.missing() is not None, reason=native.missing() or "")


@st.composite
def _grids(draw: st.DrawFn) -> Grid:
    """Of every encoding and width: the integers, PoT grids, and any magnitudes or levels."""
    bits = draw(st.integers(2, 8))
    kind = draw(st.sampled_from(["integers", "midrise", "pot", "magnitudes", "table"]))
    if kind == "integers":
        return uniform(bits)
    if kind == "midrise":
        return uniform(bits, midrise=True)
    if kind == "pot":
        return pot(min(bits, 7), zero=draw(st.booleans()))
    highest = draw(st.sampled_from([300, 8191]))
    if kind == "magnitudes":
        found = draw(st.lists(st.integers(1, highest), min_size=2 ** (bits - 1), max_size=2 ** (bits - 1)))
        return Grid(bits=bits, magnitudes=tuple(sorted([found[0] - 1, *found[1:]])))
    span = st.integers(1, highest)
    positive = draw(st.sets(span, min_size=2 ** (bits - 1), max_size=2 ** (bits - 1)))
    negative = draw(st.sets(span, min_size=2 ** (bits - 1), max_size=2 ** (bits - 1)))
    return table(tuple(sorted([*positive, *(-level for level in negative)])))


@st.composite
def _schemes(draw: st.DrawFn) -> QuantScheme:
    grid = draw(_grids())
    scale_dtype = draw(st.sampled_from(["float16", "e8m0"]))
    powers = grid.encoding == "sign-magnitude" and grid.is_power_of_two
    return QuantScheme(
        grid=grid,
        group_size=draw(st.sampled_from([1, 16, 32, 63, 64, 65, 100, "row", "tensor"])),
        scale_dtype=scale_dtype,
        signed_scale=scale_dtype == "float16" and not grid.is_symmetric and draw(st.booleans()),
        rounding=draw(st.sampled_from(["nearest", "log"] if powers else ["nearest"])),
    )


def _any_weight(seed: int, rows: int, columns: int) -> Tensor:
    """Rows that are normal, of few values (ties), of any magnitude, or zero."""
    random = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=random)
    kind = torch.randint(5, (rows, 1), generator=random)
    magnitude = torch.exp2(torch.randint(-149, 127, (rows, 1), generator=random).double()).float()
    weight = torch.where(kind == 1, (weight * 4).round() / 4, weight)
    weight = torch.where(kind == 2, weight.clamp(-1, 1) * magnitude, weight)
    return torch.where(kind == 3, 0.0, weight)


@compiled
@given(_schemes(), st.integers(0, 1 << 20), st.integers(2, 20), st.booleans(), st.sampled_from([1, 3]))
def test_the_library_finds_the_scales_that_torch_finds(
    scheme: QuantScheme, seed: int, candidates: int, weighted: bool, threads: int
) -> None:
    weight = _any_weight(seed, 5, 150)
    importance = _any_weight(seed + 1, 5, 150).abs().clamp(max=1e30) if weighted else None
    method: Any = "weighted" if weighted else "mse"
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = choose_scale(weight, scheme, method, candidates, importance)
    finally:
        torch.set_num_threads(before)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "serves", lambda device: False)
        assert torch.equal(choose_scale(weight, scheme, method, candidates, importance), found)


@compiled
@pytest.mark.parametrize("name", ["int8", "pot5", "pot7"])
def test_wide_grids_are_searched_by_the_library(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scale_search, "_best_candidate_torch", None)
    assert choose_scale(_weight(), PRESETS[name]).shape == (6, 3)


@pytest.mark.parametrize("name", [name for name in NAMES if PRESETS[name].grid.bits > 4])
def test_torch_finds_the_best_of_the_candidates_too(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "serves", lambda device: False)
    test_the_kept_scale_is_the_best_of_its_candidates(name)


@pytest.mark.parametrize("size", [1, 5, 64, 65, 1000])
def test_sums_are_those_of_float64(size: int) -> None:
    errors = _weight(3, size).square()
    found = scale_search._sum(errors, None)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, errors.double().sum(1, keepdim=True), rtol=3e-7, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_scaling_a_weight_by_a_power_of_two_scales_its_scales(name: str) -> None:
    """Nothing in the search may under- or overflow while the stored format does not."""
    scheme, weight = PRESETS[name], _weight()
    reference = decode_scale(choose_scale(weight, scheme))
    for exponent in (-50, 50) if scheme.scale_dtype == "e8m0" else (-11, 11):
        factor = 2.0**exponent
        assert torch.equal(decode_scale(choose_scale(weight * factor, scheme)), reference * factor), exponent


def test_a_zero_group_gets_a_zero_scale_and_a_tiny_one_no_nan() -> None:
    weight = torch.zeros(1, 192)
    weight[0, 64:128] = 1e-12
    weight[0, 128:] = 1.0
    for method in ("absmax", "mse", "magnitude"):
        scale = choose_scale(weight, PRESETS["pot4"], method)  # type: ignore[arg-type]
        assert scale[0, :2].tolist() == [0.0, 0.0]
        assert scale[0, 2] > 0


def test_a_candidate_that_underflows_is_charged_the_whole_group() -> None:
    """Absmax is float16's least scale here; the candidates below one half of it are zero and would lose the group."""
    weight = torch.tensor([[1.0, 0.6, -0.6, 0.5] * 16]) * 2.0**-24
    assert choose_scale(weight, PRESETS["pot2"], "absmax").item() == 2.0**-24
    for candidates in (None, 16):
        assert choose_scale(weight, PRESETS["pot2"], "mse", candidates).item() > 0
        assert choose_scale(weight, PRESETS["pot2"], "weighted", candidates, torch.ones(64)).item() > 0


def test_candidates_of_equal_errors_keep_the_absmax_scale() -> None:
    """Twice or half the scale of a group that lies on one power of two is as exact."""
    weight = torch.tensor([[1.0, -1.0] * 32])
    scheme = QuantScheme("pot4", scale_dtype="e8m0")
    assert torch.equal(choose_scale(weight, scheme, "mse", 5), choose_scale(weight, scheme, "absmax"))


def test_a_huge_weight_saturates_its_scale() -> None:
    assert choose_scale(torch.full((1, 64), 1e9), PRESETS["pot4"]).item() == 65504.0
    assert choose_scale(torch.full((1, 32), 3e38), PRESETS["mxpot"]).item() <= 254


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("method", ["absmax", "mse", "magnitude", "weighted"])
@pytest.mark.parametrize("position", [(0, 0), (5, 149)])
def test_nan_and_infinity_are_refused(bad: float, method: Any, position: tuple[int, int]) -> None:
    weight = _weight()
    weight[position] = bad
    with pytest.raises(ModelError, match="NaN or infinite"):
        choose_scale(weight, PRESETS["pot4"], method, importance=_importance() if method == "weighted" else None)


@pytest.mark.parametrize("shape", [(0, 8), (8, 0)])
def test_an_empty_weight_is_refused(shape: tuple[int, int]) -> None:
    with pytest.raises(ModelError, match="empty"):
        choose_scale(torch.empty(shape), PRESETS["pot4"])


def test_importance_and_method_must_agree() -> None:
    with pytest.raises(ConfigError, match="calibration"):
        choose_scale(_weight(), PRESETS["pot4"], "weighted")
    for method in ("absmax", "mse", "magnitude"):
        with pytest.raises(ConfigError, match="calibration"):
            choose_scale(_weight(), PRESETS["pot4"], method, importance=_importance())  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(149,), (151,), (6,), (150, 6), (1, 150), ()])
def test_importance_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"expected \(150,\) or \(6, 150\)"):
        choose_scale(_weight(), PRESETS["pot4"], "weighted", importance=torch.ones(shape))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_any_float_dtype(dtype: torch.dtype) -> None:
    weight = _weight().to(dtype)
    assert torch.equal(choose_scale(weight, PRESETS["pot4"]), choose_scale(weight.float(), PRESETS["pot4"]))


def test_strided_weights_give_the_scales_of_contiguous_ones() -> None:
    weight = _weight(150, 6).T
    assert torch.equal(choose_scale(weight, PRESETS["pot4"]), choose_scale(weight.contiguous(), PRESETS["pot4"]))


def test_weight_and_importance_are_left_alone_under_grad_and_inference_mode() -> None:
    weight, importance = _weight().requires_grad_(), _importance()
    expected = choose_scale(weight, PRESETS["pot3"], "weighted", importance=importance)
    assert not expected.requires_grad
    assert torch.equal(weight.detach(), _weight())
    assert torch.equal(importance, _importance())
    with torch.inference_mode():
        again = choose_scale(weight, PRESETS["pot3"], "weighted", importance=importance)
        fresh = choose_scale(_weight(), PRESETS["pot3"], "weighted", importance=_importance())
    assert torch.equal(again, expected)
    assert torch.equal(fresh, expected)


def test_log_rounding_searches_under_log_rounding() -> None:
    scheme, weight = QuantScheme("pot4", rounding="log"), _weight()
    nearest = choose_scale(weight, PRESETS["pot4"])
    found = _errors(weight, choose_scale(weight, scheme), scheme)
    assert found.sum() < _errors(weight, nearest, scheme).sum()


def test_the_search_reaches_the_designs_signal_to_noise_ratio() -> None:
    """DESIGN's table, groups of 64: the best scale of a Gaussian group; within 0.2 dB of it for the stored one."""
    weight = _weight(64, 1024)
    for scheme, least in [(PRESETS["pot4"], 14.8), (PRESETS["pot3"], 13.4), (PRESETS["apot4"], 21.2),
                          (QuantScheme(grid=pot(3, zero=False)), 13.8)]:  # fmt: skip
        error = _errors(weight, choose_scale(weight, scheme), scheme).sum()
        ratio = 10 * torch.log10(weight.double().square().sum() / error).item()
        assert ratio > least, (scheme.name, ratio)
