"""Row scales: never worse than E8M0 alone, found where a weight has one, and at home in every part of the library."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

import potq
from potq.cli.app import app
from potq.errors import ConfigError, ModelError
from potq.nn.packed_model import packed_modules
from potq.numerics import row_scale
from potq.numerics.functional import dequantize, quantize, split_groups
from potq.numerics.row_scale import choose_row_scale
from potq.numerics.scale_search import choose_scale
from potq.numerics.scheme import PRESETS, QuantScheme

NAMES = sorted(PRESETS)
TOLERANCE = 1e-5  # the search sums in float32


def _weight(rows: int = 6, columns: int = 150, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 0.05


def _importance(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(9)) ** 4 + 1e-3


def _scheme(name: str = "pot4", group_size: Any = 32, *, row_scale: bool = True) -> QuantScheme:
    return QuantScheme(name, group_size=group_size, scale_dtype="e8m0", signed_scale=False, row_scale=row_scale)


def _errors(weight: Tensor, scheme: QuantScheme, scale: Tensor, row: Tensor | None, importance: Tensor | None) -> Tensor:
    """(Weighted) squared error of every row, in float64."""
    restored = dequantize(quantize(weight, scale, scheme, row), scale, scheme, row)
    error = (restored.double() - weight.double()).square()
    return (error if importance is None else error * importance.double()).sum(1)


@pytest.mark.parametrize("group_size", [1, 7, 32, 1000, "row"])
@pytest.mark.parametrize("name", NAMES)
def test_shapes_and_dtypes(name: str, group_size: Any) -> None:
    scheme = _scheme(name, group_size)
    scale, row = choose_row_scale(_weight(3, 71).bfloat16(), scheme, method="absmax")
    assert (scale.shape, scale.dtype) == (scheme.scale_shape(3, 71), torch.uint8)
    assert (row.shape, row.dtype) == ((3, 1), torch.float16)
    assert (row > 0).all()


@pytest.mark.parametrize("importance", [None, (150,), (6, 150)], ids=["mse", "by input", "by weight"])
@pytest.mark.parametrize("group_size", [16, 64, "row"])
@pytest.mark.parametrize("name", NAMES)
def test_no_row_is_worse_than_with_e8m0_alone(name: str, group_size: Any, importance: Any) -> None:
    scheme, plain, weight = _scheme(name, group_size), _scheme(name, group_size, row_scale=False), _weight()
    weights = None if importance is None else _importance(*importance)
    alone = choose_scale(weight, plain, "mse" if weights is None else "weighted", importance=weights)
    found = _errors(weight, scheme, *choose_row_scale(weight, scheme, weights), weights)
    assert (found <= _errors(weight, plain, alone, None, weights) * (1 + TOLERANCE)).all()


@pytest.mark.parametrize("group_size", [64, "row"])
@pytest.mark.parametrize("name", NAMES)
def test_no_row_is_worse_by_magnitude(name: str, group_size: Any) -> None:
    scheme, plain, weight = _scheme(name, group_size), _scheme(name, group_size, row_scale=False), _weight()
    squares = [part.square() for part in split_groups(weight, plain)]
    means = [each.mean(-1, keepdim=True) for each in squares]
    outliers = [(each - 9 * mean).clamp(min=0) for each, mean in zip(squares, means, strict=True)]
    importance = torch.cat([(mean + more).flatten(1) for mean, more in zip(means, outliers, strict=True)], dim=1)
    alone = _errors(weight, plain, choose_scale(weight, plain, "magnitude"), None, importance)
    found = _errors(weight, scheme, *choose_row_scale(weight, scheme, method="magnitude"), importance)
    assert (found <= alone * (1 + TOLERANCE)).all()


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("pot2", "pot2z")])  # they clip; octaves do
def test_it_pays(name: str) -> None:
    scheme, plain, weight = _scheme(name), _scheme(name, row_scale=False), _weight(32, 256)
    alone = _errors(weight, plain, choose_scale(weight, plain), None, None).sum()
    assert _errors(weight, scheme, *choose_row_scale(weight, scheme), None).sum() < 0.98 * alone


@pytest.mark.parametrize("name", ["pot4", "pot3", "apot4", "int4", "mxfp4"])
def test_a_row_scale_that_a_weight_has_is_found(name: str) -> None:
    scheme = _scheme(name)
    generator = torch.Generator().manual_seed(3)
    codes = torch.randint(0, 2**scheme.grid.bits, (8, 160), generator=generator).to(torch.uint8)
    scale = torch.randint(118, 128, scheme.scale_shape(8, 160), generator=generator).to(torch.uint8)
    planted = torch.linspace(0.011, 0.43, 8)[:, None].to(torch.float16)
    weight = dequantize(codes, scale, scheme, planted)
    found, row = choose_row_scale(weight, scheme)
    assert torch.equal(dequantize(quantize(weight, found, scheme, row), found, scheme, row), weight)


@pytest.mark.parametrize("exponent", [-110, -20, 9, 100])
def test_a_power_of_two_moves_into_the_scales(exponent: int) -> None:
    scheme, weight = _scheme(), _weight()
    scale, row = choose_row_scale(weight, scheme)
    scaled = torch.ldexp(weight, torch.tensor(exponent))
    found, found_row = choose_row_scale(scaled, scheme)
    assert found_row.isfinite().all()
    assert ((found_row >= 2.0**-14) & (found_row <= 2.0**15)).all()  # normal numbers keep their 11 bits
    expected = torch.ldexp(dequantize(quantize(weight, scale, scheme, row), scale, scheme, row), torch.tensor(exponent))
    assert torch.equal(dequantize(quantize(scaled, found, scheme, found_row), found, scheme, found_row), expected)


def test_group_exponents_stay_near_one() -> None:
    for size in (1e-4, 1.0, 1e4):
        scale, _ = choose_row_scale(_weight() * size, _scheme())
        assert ((scale >= 120) & (scale <= 130)).all()


@pytest.mark.parametrize("name", NAMES)
def test_zero_rows_get_zero_row_scales(name: str) -> None:
    scheme, weight = _scheme(name), _weight()
    weight[[1, 4]] = 0.0
    scale, row = choose_row_scale(weight, scheme)
    assert (row.flatten() == 0).tolist() == [False, True, False, False, True, False]
    restored = dequantize(quantize(weight, scale, scheme, row), scale, scheme, row)
    assert not restored[[1, 4]].any()
    assert restored[[0, 2, 3, 5]].any(dim=1).all()


@pytest.mark.parametrize("name", ["pot4", "apot4", "int2_midrise"])
@pytest.mark.parametrize("value", [2.0**-149, 1e-40, 2.0**-126, 1e38, 1.6e38, 3.4e38])
def test_extreme_weights(value: float, name: str) -> None:
    weight = torch.tensor([[value, -value / 2, 0.0, value]])
    scale, row = choose_row_scale(weight, _scheme(name))
    restored = dequantize(quantize(weight, scale, _scheme(name), row), scale, _scheme(name), row)
    assert restored.isfinite().all()
    if name == "pot4" and 1e-38 < value < 2e38:  # beyond, an E8M0 scale alone would pass float32 too
        assert ((restored - weight).abs() <= weight.abs() / 4).all()


@pytest.mark.parametrize("block", [1, 200, 1 << 20])
@pytest.mark.parametrize("importance", [None, (150,), (6, 150)], ids=["mse", "by input", "by weight"])
def test_blocks_of_rows_change_nothing(block: int, importance: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = None if importance is None else _importance(*importance)
    scale, row = choose_row_scale(_weight(), _scheme(), weights)
    monkeypatch.setattr(row_scale, "_BLOCK", block)
    again, again_row = choose_row_scale(_weight(), _scheme(), weights)
    assert torch.equal(again, scale)
    assert torch.equal(again_row, row)


def test_it_leaves_its_arguments_alone() -> None:
    weight, importance = _weight(), _importance(150)
    before = weight.clone(), importance.clone()
    choose_row_scale(weight, _scheme(), importance)
    assert torch.equal(weight, before[0])
    assert torch.equal(importance, before[1])


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_weights_that_are_not_finite_are_refused(value: float) -> None:
    weight = _weight()
    weight[2, 3] = value
    with pytest.raises(ModelError, match="NaN or infinite"):
        choose_row_scale(weight, _scheme())


@pytest.mark.parametrize("shape", [(0, 4), (3, 0)])
def test_an_empty_weight_is_refused(shape: tuple[int, int]) -> None:
    with pytest.raises(ModelError, match="empty"):
        choose_row_scale(torch.empty(shape), _scheme())


def test_method_and_importance_must_fit() -> None:
    with pytest.raises(ConfigError, match="calibration"):
        choose_row_scale(_weight(), _scheme(), method="weighted")
    with pytest.raises(ConfigError, match="calibration"):
        choose_row_scale(_weight(), _scheme(), _importance(150), method="mse")


# ---- the whole way -------------------------------------------------------------------------------------------------


CONFIG = potq.PoTConfig(
    "pot4", group_size=32, scale_dtype="e8m0", row_scale=True, embedding=_scheme("apot4"), targets={"v_proj": "pot3"}
)


def test_quantize_save_and_load(tiny_model: Any, tokens: Tensor, tmp_path: Path) -> None:
    report = potq.quantize(tiny_model, CONFIG)
    assert {entry.scheme for entry in report.modules} == {"pot4-g32-e8m0-row", "apot4-g32-e8m0-row", "pot3-g64"}
    assert all(8 * m.bytes_after == pytest.approx(m.bits_per_weight * m.shape[0] * m.shape[1]) for m in report.modules)
    potq.save(tiny_model, tmp_path / "out")
    loaded = potq.load(tmp_path / "out")
    assert torch.equal(loaded(tokens).logits, tiny_model(tokens).logits)
    assert loaded.lm_head.tied_to is loaded.get_input_embeddings()
    assert loaded.lm_head.quantized.row_scale is loaded.get_input_embeddings().weight_row_scale
    before, after = tiny_model.state_dict(), loaded.state_dict()
    assert sum(key.endswith("weight_row_scale") for key in before) == 13
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) and before[key].dtype == after[key].dtype for key in before)


def test_on_the_fly_equals_in_place(tiny_model: Any, tiny_folder: Path) -> None:
    report = potq.quantize(tiny_model, CONFIG)
    streamed = potq.load(tiny_folder, CONFIG)
    assert {entry.name: entry for entry in streamed.quant_report.modules} == {entry.name: entry for entry in report.modules}
    for name, module in packed_modules(streamed).items():
        expected = tiny_model.get_submodule(name).quantized.tensors()
        assert module.quantized.tensors().keys() == expected.keys()
        assert all(torch.equal(tensor, expected[part]) for part, tensor in module.quantized.tensors().items()), name


def test_the_command_line(tiny_folder: Path, tmp_path: Path) -> None:
    settings = ["quantization.scale_dtype=e8m0", "quantization.row_scale=true", "quantization.group_size=32"]
    words = ["quantize", str(tiny_folder), str(tmp_path / "out"), "--scheme", "pot4", *settings]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.exception
    shown = CliRunner().invoke(app, ["inspect", str(tmp_path / "out"), "--json"])
    assert shown.exit_code == 0, shown.exception
    assert {module["scheme"] for module in json.loads(shown.stdout)["modules"]} == {"pot4-g32-e8m0-row", "int8-g64"}
    refused = CliRunner().invoke(app, [*words[:5], "quantization.row_scale=true", "--force"])
    assert isinstance(refused.exception, ConfigError)
    assert "scale_dtype='e8m0'" in str(refused.exception)
