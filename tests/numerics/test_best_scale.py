"""The exact scale search: against trying every stored scale, the library against torch, and what it promises besides."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from potq import native
from potq.errors import ConfigError, ModelError
from potq.numerics import scale_search
from potq.numerics.functional import codebook, decode_scale, dequantize, quantize, split_groups
from potq.numerics.scale_search import best_scale, choose_scale, is_exact
from potq.numerics.scheme import PRESETS, GroupSize, QuantScheme, ScaleDtype

CPU = torch.device("cpu")
EXACT = sorted(name for name in PRESETS if PRESETS[name].grid.bits <= 4)
FORMATS: list[ScaleDtype] = ["float16", "e8m0"]
EQUAL = 1e-12  # of what a scale gains over none
NF4 = [-1.0, -0.696, -0.525, -0.395, -0.284, -0.185, -0.091, 0, 0.08, 0.161, 0.246, 0.338, 0.441, 0.563, 0.723, 1.0]
TABLES = {name: codebook(PRESETS[name], CPU)[0] for name in EXACT} | {
    "nf4": torch.tensor(NF4),
    "all positive": torch.tensor([0.3, 1.0, 2.5]),
    "all negative": torch.tensor([-1.5, -0.1]),
    "far from zero": torch.tensor([-2.0, -1.0, 0.25, 3.0]),
    "two levels": torch.tensor([-0.7, 1.3]),
    "0 below all": torch.tensor([0.0, 1.0, 1.1]),
    "of many magnitudes": torch.tensor([-1e9, -1e-20, 1e-30, 7.0]),
}

Search = Callable[..., Tensor]
SEARCHES: dict[str, Search] = {"torch": scale_search._best_scale_torch}
if native.missing() is None:
    SEARCHES["compiled"] = scale_search._best_scale_compiled
both = pytest.mark.parametrize("search", SEARCHES.values(), ids=SEARCHES.keys())
compiled = pytest.mark.skipif(native.missing() is not None, reason=native.missing() or "")


def _normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _uniform(*shape: int, seed: int = 1) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def _scheme(name: str, scale_dtype: ScaleDtype, group_size: GroupSize = 64) -> QuantScheme:
    signed = PRESETS[name].signed_scale and scale_dtype == "float16"
    return QuantScheme(name, group_size=group_size, scale_dtype=scale_dtype, signed_scale=signed)


def _code(stored: Tensor) -> Tensor:
    return stored.view(torch.int16) if stored.dtype == torch.float16 else stored.int()


# ---- against every stored scale ------------------------------------------------------------------------------------


def _gains(weights: Tensor, levels: Tensor, importance: Tensor, scale_dtype: ScaleDtype) -> tuple[Tensor, Tensor]:
    """By how much every stored scale (by code) lowers the squared error of one group ``(size,)``, and the sums' noise.

    ``w**2 - (w - v)**2 = v (2 w - v)`` of the nearest ``v``: small gains are as exact as large ones.
    """
    if scale_dtype == "float16":
        stored = torch.arange(0x7C00, dtype=torch.int16).view(torch.float16)
    else:
        stored = torch.arange(255, dtype=torch.uint8)
    scale, levels = decode_scale(stored).double()[:, None], levels.double()
    midpoints = scale * ((levels[1:] + levels[:-1]) / 2)
    total, magnitude = torch.zeros(2, len(scale), dtype=torch.float64)
    for weight, counts in zip(weights.double(), importance.double(), strict=True):
        nearest = scale[:, 0] * levels[(weight >= midpoints).sum(1)]
        gain = counts * nearest * (2 * weight - nearest)
        total += gain
        magnitude += gain.abs()
    return total, magnitude * 1e-14


def _check(search: Search, weights: Tensor, levels: Tensor, importance: Tensor | None, scale_dtype: ScaleDtype) -> None:
    """``search`` finds the largest gain, of equal ones the largest scale, and none where nothing gains."""
    found = int(_code(search(weights[None], levels, None if importance is None else importance[None], scale_dtype)))
    counts = torch.ones_like(weights) if importance is None else importance
    if not (counts.double() * weights.double().square()).any():
        counts = torch.ones_like(weights)
    gains, noise = _gains(weights, levels, counts, scale_dtype)
    most = float(gains.max())
    at_most = int(gains.argmax())
    if most <= noise[at_most]:  # code 0 is zero, or E8M0's least scale
        assert found == 0 or gains[found].abs() <= 2 * noise[found]
        return
    assert gains[found] >= most * (1 - 2 * EQUAL) - noise[found] - noise[at_most]
    assert not (gains - noise > most * (1 - EQUAL / 2))[found + 1 :].any()


SIMPLE = st.sampled_from([0.0, 1.0, -1.0, 0.5, 0.75, -0.25, 3.0, 1 / 3, 0.7, 1.0 + 2**-23])
ANY = st.floats(width=32, allow_nan=False, allow_infinity=False)
EXPONENTS = st.one_of(st.integers(-30, 20), st.integers(-149, 100))
IMPORTANCE = st.one_of(st.sampled_from([0.0, 1.0, 4.0]), st.floats(0, 2.0**100, width=32))


@st.composite
def _groups(draw: st.DrawFn) -> tuple[Tensor, Tensor | None]:
    """1 to 12 weights (simple ones, bell-shaped ones, any at all), and perhaps their importance."""
    size = draw(st.integers(1, 12))
    kind = draw(st.sampled_from(["simple", "normal", "any"]))
    if kind == "normal":
        weights = _normal(size, seed=draw(st.integers(0, 10**6))) * 2.0 ** draw(EXPONENTS)
    else:
        values = draw(st.lists(SIMPLE if kind == "simple" else ANY, min_size=size, max_size=size))
        weights = torch.tensor(values, dtype=torch.float32) * (2.0 ** draw(EXPONENTS) if kind == "simple" else 1)
    importance = draw(st.none() | st.lists(IMPORTANCE, min_size=size, max_size=size))
    return weights, None if importance is None else torch.tensor(importance, dtype=torch.float32)


@pytest.mark.parametrize("scale_dtype", FORMATS)
@given(group=_groups(), name=st.sampled_from(EXACT))
def test_no_stored_scale_is_better_by_magnitude(
    scale_dtype: ScaleDtype, group: tuple[Tensor, Tensor | None], name: str
) -> None:
    scheme = QuantScheme(name, group_size="row", scale_dtype=scale_dtype, signed_scale=False)
    relative = group[0][None] / group[0].abs().max().clamp(min=2.0**-126)
    squares = relative * relative
    mean = squares.mean(1, keepdim=True)
    importance = mean + (squares - 9 * mean).clamp(min=0)

    def search(weights: Tensor, *_: Any) -> Tensor:
        return choose_scale(weights, scheme, "magnitude")[0]

    _check(search, group[0], codebook(scheme, CPU)[0], importance[0], scale_dtype)


@both
@pytest.mark.parametrize("scale_dtype", FORMATS)
@given(group=_groups(), table=st.sampled_from(sorted(TABLES)))
def test_no_stored_scale_is_better(
    search: Search, scale_dtype: ScaleDtype, group: tuple[Tensor, Tensor | None], table: str
) -> None:
    _check(search, group[0], TABLES[table], group[1], scale_dtype)


@both
@pytest.mark.parametrize("scale_dtype", FORMATS)
@pytest.mark.parametrize("table", TABLES)
def test_no_stored_scale_is_better_for_usual_weights(search: Search, scale_dtype: ScaleDtype, table: str) -> None:
    for seed, importance in enumerate((None, _uniform(12) ** 3)):
        _check(search, _normal(12, seed=seed) * 0.02, TABLES[table], importance, scale_dtype)


@both
@pytest.mark.parametrize("scale_dtype", FORMATS)
@given(levels=st.lists(st.floats(-4, 4, width=32), min_size=2, max_size=20, unique_by=lambda level: level + 0.0))
def test_any_table(search: Search, scale_dtype: ScaleDtype, levels: list[float]) -> None:
    table = torch.tensor(sorted(levels), dtype=torch.float32)
    _check(search, _normal(6, seed=len(levels)), table, None, scale_dtype)


# ---- scales that have a sign


def _check_signed(search: Search, weights: Tensor, levels: Tensor, importance: Tensor | None) -> None:
    """The better one of the best scale and of the best one under the mirrored table, which is then negative."""
    given = None if importance is None else importance[None]
    mirrored = -levels.flip(0)
    scale = search(weights[None], levels, given, "float16", True)
    up, down = (search(weights[None], table, given, "float16") for table in (levels, mirrored))
    assert torch.equal(_code(scale), _code(up)) or torch.equal(_code(scale), _code(-down))
    counts = torch.ones_like(weights) if importance is None else importance
    if not (counts.double() * weights.double().square()).any():
        counts = torch.ones_like(weights)
    gains = {}
    for sign, table, found in ((1, levels, up), (-1, mirrored, down)):
        each, noise = _gains(weights, table, counts, "float16")
        gains[sign] = float(each[int(_code(found))]), float(noise[int(_code(found))])
    (above, slack), (below, more) = gains[1], gains[-1]
    if _code(scale) < 0:
        assert below * (1 - EQUAL / 2) >= above - slack - more
    else:
        assert above >= below * (1 - 2 * EQUAL) - slack - more


@both
@given(group=_groups(), table=st.sampled_from(sorted(TABLES)))
def test_no_stored_scale_of_either_sign_is_better(search: Search, group: tuple[Tensor, Tensor | None], table: str) -> None:
    _check_signed(search, group[0], TABLES[table], group[1])


@both
def test_a_mirrored_group_gets_the_mirrored_scale(search: Search) -> None:
    block, levels = _normal(50, 64), TABLES["pot3s"]
    scale = search(block, levels, None, "float16", True)
    assert 10 < int((scale < 0).sum()) < 40
    assert torch.equal(search(-block, levels, None, "float16", True), -scale)


@both
def test_a_symmetric_table_needs_no_sign(search: Search) -> None:
    assert bool((search(_normal(50, 64), TABLES["pot4"], None, "float16", True) > 0).all())


# ---- the two implementations, threads, blocks ----------------------------------------------------------------------


@compiled
@pytest.mark.parametrize("size", [1, 7, 16, 64, 515, 1500])
@pytest.mark.parametrize("scale_dtype", FORMATS)
@pytest.mark.parametrize("table", TABLES)
def test_the_library_equals_torch(table: str, scale_dtype: ScaleDtype, size: int) -> None:
    block = _normal(max(3, 2000 // size), size) * 0.02
    for importance in (None, _uniform(*block.shape) ** 4):
        found = [_code(search(block, TABLES[table], importance, scale_dtype)) for search in SEARCHES.values()]
        assert torch.equal(*found)


@compiled
@pytest.mark.parametrize("scale_dtype", FORMATS)
def test_the_number_of_threads_does_not_matter(scale_dtype: ScaleDtype) -> None:
    block, before = _normal(1500, 64), torch.get_num_threads()
    found = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        found.append(best_scale(block, TABLES["apot4"], None, scale_dtype))
    torch.set_num_threads(before)
    assert all(torch.equal(other, found[0]) for other in found)


@pytest.mark.parametrize("group_size", [7, 64, "row", "tensor"])
@pytest.mark.parametrize("name", EXACT)
def test_the_library_and_its_absence_choose_the_same(name: str, group_size: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    scheme, weight, importance = QuantScheme(name, group_size=group_size), _normal(9, 150), _uniform(9, 150)
    with_library = choose_scale(weight, scheme), choose_scale(weight, scheme, "weighted", importance=importance)
    monkeypatch.setattr(native, "missing", lambda: "it is not there")
    assert torch.equal(choose_scale(weight, scheme), with_library[0])
    assert torch.equal(choose_scale(weight, scheme, "weighted", importance=importance), with_library[1])


def test_without_the_library_a_huge_group_tries_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "missing", lambda: "it is not there")
    monkeypatch.setattr(scale_search, "_REFERENCE_GROUP", 100)
    scheme = QuantScheme("pot4", group_size="row")
    assert torch.equal(choose_scale(_normal(3, 101), scheme), choose_scale(_normal(3, 101), scheme, candidates=16))
    assert not torch.equal(choose_scale(_normal(3, 100), scheme), choose_scale(_normal(3, 100), scheme, candidates=16))


# ---- choose_scale --------------------------------------------------------------------------------------------------


def _errors(weight: Tensor, scale: Tensor, scheme: QuantScheme, importance: Tensor | None = None) -> Tensor:
    difference = (dequantize(quantize(weight, scale, scheme), scale, scheme).double() - weight.double()).square()
    if importance is not None:
        difference = difference * importance.double()
    return torch.cat([part.sum(-1) for part in split_groups(difference, scheme)], dim=1)


@pytest.mark.parametrize("scale_dtype", FORMATS)
@pytest.mark.parametrize("group_size", [32, 64, "row", "tensor"])
@pytest.mark.parametrize("name", EXACT)
def test_no_group_is_worse_than_with_candidates(name: str, group_size: Any, scale_dtype: ScaleDtype) -> None:
    scheme, weight = _scheme(name, scale_dtype, group_size), _normal(8, 150)
    for importance in (None, _uniform(150) ** 4, _uniform(8, 150) ** 4):
        method: Any = "mse" if importance is None else "weighted"
        exact = _errors(weight, choose_scale(weight, scheme, method, None, importance), scheme, importance)
        tried = _errors(weight, choose_scale(weight, scheme, method, 64, importance), scheme, importance)
        assert (exact <= tried * (1 + 1e-12)).all()


@pytest.mark.parametrize("name", EXACT)
def test_float16_scales_gain_over_sixteen_candidates(name: str) -> None:
    scheme, weight = QuantScheme(name, scale_dtype="float16"), _normal(16, 256)
    exact, tried = (_errors(weight, choose_scale(weight, scheme, "mse", n), scheme).sum() for n in (None, 16))
    assert exact < 0.998 * tried


@pytest.mark.parametrize("scheme", [PRESETS["int8"], PRESETS["pot5"], QuantScheme("pot4", rounding="log")], ids=str)
def test_wide_grids_and_log_rounding_try_candidates(scheme: QuantScheme) -> None:
    assert not is_exact(scheme, None)
    assert torch.equal(choose_scale(_normal(4, 128), scheme), choose_scale(_normal(4, 128), scheme, candidates=16))


def test_exact_is_the_default_of_narrow_grids_only() -> None:
    assert all(is_exact(PRESETS[name], None) and not is_exact(PRESETS[name], 16) for name in EXACT)


@pytest.mark.parametrize("scale_dtype", FORMATS)
@pytest.mark.parametrize("name", EXACT)
def test_importance_by_weight_is_importance_by_row(name: str, scale_dtype: ScaleDtype) -> None:
    scheme, weight, importance = _scheme(name, scale_dtype), _normal(4, 150), _uniform(4, 150) ** 4
    whole = choose_scale(weight, scheme, "weighted", importance=importance)
    rows = [choose_scale(weight[i : i + 1], scheme, "weighted", importance=importance[i]) for i in range(4)]
    assert torch.equal(whole, torch.cat(rows))


# ---- what is zero, equal, or beyond the format ---------------------------------------------------------------------


@both
@pytest.mark.parametrize("scale_dtype", FORMATS)
def test_zero_groups_and_groups_without_importance(search: Search, scale_dtype: ScaleDtype) -> None:
    levels, weights = TABLES["pot4"], _normal(1, 20)
    assert _code(search(torch.zeros(1, 20), levels, None, scale_dtype)).item() == 0
    assert _code(search(torch.zeros(1, 20), levels, torch.ones(1, 20), scale_dtype)).item() == 0
    assert torch.equal(search(weights, levels, torch.zeros(1, 20), scale_dtype), search(weights, levels, None, scale_dtype))
    only_zeros_count = (weights * (torch.arange(20) > 9)), (torch.arange(20) <= 9).float()[None]
    assert torch.equal(
        search(only_zeros_count[0], levels, only_zeros_count[1], scale_dtype),
        search(only_zeros_count[0], levels, None, scale_dtype),
    )


@both
@pytest.mark.parametrize("scale_dtype", FORMATS)
def test_weights_without_importance_do_not_count(search: Search, scale_dtype: ScaleDtype) -> None:
    weights, levels = _normal(30, 40), TABLES["int4"]
    importance = _uniform(30, 40)
    importance[:, 25:] = 0
    weights[:, 25:] *= 100
    expected = search(weights[:, :25], levels, importance[:, :25], scale_dtype)
    assert torch.equal(search(weights, levels, importance, scale_dtype), expected)


@both
def test_groups_too_small_or_large_for_float16(search: Search) -> None:
    groups = torch.tensor([[1e-30], [2.0**-26], [2.0**-24], [65504.0], [1e9], [3e38]])
    found = search(groups, TABLES["two levels"], None, "float16").squeeze()
    assert found[:2].tolist() == [0.0, 0.0]
    assert found[2].item() == 2.0**-24
    assert found[4:].tolist() == [65504.0, 65504.0]


@both
def test_of_equal_scales_the_largest_is_taken(search: Search) -> None:
    """A group on powers of two is as exact an octave on, until its least weight leaves the grid."""
    group = torch.tensor([[1.0, -0.5, 0.0, 0.25]])
    assert decode_scale(search(group, TABLES["pot4"], None, "e8m0")).item() == 16.0
    assert search(group, TABLES["pot4"], None, "float16").item() == 16.0
    assert search(group, TABLES["int4"], None, "float16").item() == 2.0


@both
@pytest.mark.parametrize("name", EXACT)
def test_a_weight_on_the_grid_is_kept(search: Search, name: str) -> None:
    scheme, weight = QuantScheme(name, group_size=64, scale_dtype="float16"), _normal(8, 64)
    scale = choose_scale(weight, scheme)
    on_grid = dequantize(quantize(weight, scale, scheme), scale, scheme)
    again = search(on_grid, codebook(scheme, CPU)[0], None, "float16", scheme.signed_scale)[:, None]
    assert torch.equal(dequantize(quantize(on_grid, again, scheme), again, scheme), on_grid)


@pytest.mark.parametrize("scale_dtype", FORMATS)
@pytest.mark.parametrize("name", EXACT)
def test_scales_do_not_depend_on_the_order_of_weights(name: str, scale_dtype: ScaleDtype) -> None:
    block, order = _normal(50, 64), torch.randperm(64, generator=torch.Generator().manual_seed(0))
    found = [best_scale(x, TABLES[name], None, scale_dtype) for x in (block, block[:, order], block[:, order.flip(0)])]
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


# ---- arguments -----------------------------------------------------------------------------------------------------


def test_importance_by_input_is_importance_of_every_group() -> None:
    block, importance = _normal(7, 33), _uniform(33)
    found = best_scale(block, TABLES["int3"], importance, "float16")
    assert torch.equal(found, best_scale(block, TABLES["int3"], importance.repeat(7, 1), "float16"))
    assert (found.shape, found.dtype) == ((7,), torch.float16)
    assert best_scale(block, TABLES["int3"], None, "e8m0").dtype == torch.uint8


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_any_float_dtype_and_layout(dtype: torch.dtype) -> None:
    block = _normal(33, 20).to(dtype)
    expected = best_scale(block.float(), TABLES["pot3"], None, "float16")
    assert torch.equal(best_scale(block, TABLES["pot3"].double(), None, "float16"), expected)
    strided = block.T.contiguous().T.requires_grad_()
    assert torch.equal(best_scale(strided, TABLES["pot3"], None, "float16"), expected)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_infinity_are_refused(bad: float) -> None:
    block = _normal(4, 20)
    block[3, 19] = bad
    with pytest.raises(ModelError, match="NaN or infinite"):
        best_scale(block, TABLES["pot4"], None, "float16")


@pytest.mark.parametrize("levels", [[1.0], [], [0.0, 0.0, 1.0], [1.0, -1.0], [0.0, float("inf")], [*range(257)]])
def test_levels_that_are_no_table_are_refused(levels: list[float]) -> None:
    with pytest.raises(ConfigError, match="2 to 256 ascending"):
        best_scale(_normal(4, 20), torch.tensor(levels), None, "float16")


@pytest.mark.parametrize("bad", [-1.0, float("nan"), float("inf")])
def test_importance_that_is_no_weight_is_refused(bad: float) -> None:
    importance = torch.ones(20)
    importance[7] = bad
    with pytest.raises(ConfigError, match="negative, NaN or infinite"):
        best_scale(_normal(4, 20), TABLES["pot4"], importance, "float16")
    with pytest.raises(ConfigError, match="negative, NaN or infinite"):
        choose_scale(_normal(4, 20), PRESETS["pot4"], "weighted", importance=importance)


@pytest.mark.parametrize("shape", [(4,), (19,), (1, 20), (4, 21), (20, 4)])
def test_importance_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="importance has shape"):
        best_scale(_normal(4, 20), TABLES["pot4"], torch.ones(shape), "float16")
