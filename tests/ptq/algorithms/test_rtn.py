"""Round to nearest is the scale search followed by rounding, nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from potq.errors import ConfigError, ModelError
from potq.numerics.functional import quantize
from potq.numerics.row_scale import choose_row_scale
from potq.numerics.scale_search import choose_scale
from potq.numerics.scheme import PRESETS, QuantScheme
from potq.ptq.algorithms.rtn import rtn


def _weight() -> torch.Tensor:
    return torch.randn(5, 71, generator=torch.Generator().manual_seed(0)) * 0.02


@pytest.mark.parametrize("method", ["absmax", "mse", "weighted"])
@pytest.mark.parametrize("name", sorted(PRESETS))
def test_rounds_under_the_chosen_scale(name: str, method: Any) -> None:
    scheme = QuantScheme(name, group_size=32)
    importance = torch.rand(71, generator=torch.Generator().manual_seed(1)) if method == "weighted" else None
    quantized = rtn(_weight(), scheme, importance, method=method, candidates=6)
    scale = choose_scale(_weight(), scheme, method, 6, importance)
    assert torch.equal(quantized.scale, scale)
    assert torch.equal(quantized.codes(), quantize(_weight(), scale, scheme))
    assert (quantized.shape, quantized.scheme) == ((5, 71), scheme)
    quantized.validate("weight")


@pytest.mark.parametrize("method", ["absmax", "mse", "weighted"])
def test_rounds_under_the_chosen_row_scale(method: Any) -> None:
    scheme = QuantScheme("pot4", group_size=32, scale_dtype="e8m0", row_scale=True)
    importance = torch.rand(71, generator=torch.Generator().manual_seed(1)) if method == "weighted" else None
    quantized = rtn(_weight(), scheme, importance, method=method, candidates=3)
    scale, row_scale = choose_row_scale(_weight(), scheme, importance, method=method, candidates=3)
    assert quantized.row_scale is not None
    assert torch.equal(quantized.scale, scale)
    assert torch.equal(quantized.row_scale, row_scale)
    assert torch.equal(quantized.codes(), quantize(_weight(), scale, scheme, row_scale))
    quantized.validate("weight")


def test_defaults_to_the_exact_search() -> None:
    expected = choose_scale(_weight(), PRESETS["pot3"], "mse")
    assert torch.equal(rtn(_weight(), PRESETS["pot3"]).scale, expected)


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_restores_a_weight_that_lies_on_the_grid(name: str) -> None:
    scheme = QuantScheme(name, scale_dtype="float16")  # E8M0 cannot map a group's largest weight to the largest level
    once = rtn(_weight(), scheme, method="absmax")
    again = rtn(once.dequantize(), scheme, method="absmax")
    if max(scheme.grid.levels) == -min(scheme.grid.levels) and not scheme.signed_scale:
        assert torch.equal(again.dequantize(), once.dequantize())
    else:  # two's complement: a group whose largest weight is -2**(bits-1) would want a larger scale, or one of another sign
        kept = again.scale == once.scale
        assert torch.equal(again.codes()[:, :64][kept[:, 0]], once.codes()[:, :64][kept[:, 0]])


@pytest.mark.parametrize("name", ["pot4", "pot3", "apot4", "int8"])
def test_error_is_at_most_half_the_widest_gap_between_levels(name: str) -> None:
    scheme = QuantScheme(name, group_size="row")
    quantized = rtn(_weight(), scheme, method="absmax")
    levels = torch.tensor(sorted(scheme.grid.levels), dtype=torch.float64) / scheme.grid.reference
    bound = quantized.scale.double() * levels.diff().max() / 2
    # the scale itself was rounded to float16, by at most 2**-11
    assert ((quantized.dequantize() - _weight()).abs() <= bound + 2.0**-10 * _weight().abs().amax()).all()


def test_passes_the_errors_of_the_search_on() -> None:
    with pytest.raises(ModelError, match="NaN"):
        rtn(torch.full((2, 4), torch.nan), PRESETS["pot4"])
    with pytest.raises(ConfigError, match="calibration"):
        rtn(_weight(), PRESETS["pot4"], method="weighted")
