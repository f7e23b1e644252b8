"""A layer is quantized some rows at a time, which changes nothing but the memory it takes."""

from __future__ import annotations

import pytest
import torch

from potq.config import EFFORTS
from potq.numerics.scheme import PRESETS, QuantScheme
from potq.ptq import layer
from potq.ptq.algorithms.hessian import Hessian
from potq.ptq.algorithms.rounding import SchemeRounding
from potq.ptq.layer import panels, quantize_layer

SCHEMES = {
    "float16": PRESETS["pot3"],
    "row_scale": QuantScheme("pot4", group_size=32, scale_dtype="e8m0", row_scale=True),
    "row": QuantScheme("pot3", group_size="row"),
}


def _hessian(columns: int = 192) -> Hessian:
    generator = torch.Generator().manual_seed(1)
    mix = torch.randn(columns, columns, generator=generator) / columns**0.5 + torch.eye(columns) / 2
    x = torch.randn(600, columns, generator=generator) @ mix
    return Hessian(x.t() @ x / 600)


def _weight(rows: int = 40, columns: int = 192) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0)) * 0.02


@pytest.mark.parametrize("effort", ["gptq", "balanced"])
@pytest.mark.parametrize("name", sorted(SCHEMES))
def test_rows_do_not_depend_on_each_other(name: str, effort: str, monkeypatch: pytest.MonkeyPatch) -> None:
    weight, hessian, found = _weight(), _hessian(), []
    rounding = SchemeRounding.of(weight, SCHEMES[name], hessian.moments)
    for limit in (1 << 22, 7 * 192):
        monkeypatch.setattr(layer, "WEIGHTS", limit)
        rounded, _, label = quantize_layer(weight, hessian, rounding, EFFORTS[effort])
        assert label == EFFORTS[effort].steps
        assert torch.equal(rounding.pack(rounded).dequantize(), rounded.values)
        found.append(rounded)
    assert (found[0].values == found[1].values).float().mean() > 0.97  # sums in another order may turn a tie
    torch.testing.assert_close(found[0].scale, found[1].scale, rtol=0.1, atol=0)


def test_panels_are_all_rows_and_bounded_by_weights_and_by_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = _weight(40, 192)
    for weights, systems, expected in ((10 * 192, 1 << 24, 10), (1 << 22, 9 * 6, 6), (1, 1, 1), (1 << 22, 1 << 24, 40)):
        monkeypatch.setattr(layer, "WEIGHTS", weights)
        monkeypatch.setattr(layer, "_SYSTEMS", systems)
        found = panels(weight, SchemeRounding(PRESETS["pot3"]))  # three groups
        assert [row for rows in found for row in range(40)[rows]] == list(range(40))
        assert max(rows.stop - rows.start for rows in found) == expected


def test_a_weight_is_quantized_in_its_own_dtype() -> None:
    """What computes takes some rows in float32; a float32 copy of the whole would be a quarter of a gigabyte."""
    weight, hessian = _weight().bfloat16(), _hessian()
    rounding = SchemeRounding.of(weight, PRESETS["pot4"], hessian.moments)
    found = [quantize_layer(each, hessian, rounding, EFFORTS["balanced"])[0].values for each in (weight, weight.float())]
    assert torch.equal(*found)


def test_inputs_that_are_all_zero() -> None:
    hessian = Hessian(torch.zeros(192, 192))
    label = quantize_layer(_weight(), hessian, SchemeRounding(PRESETS["pot4"]), EFFORTS["balanced"])[2]
    assert label == "rtn/mse (its inputs are zero)"
