"""A weight that is learned: exact in the forward pass, straight through in the backward one, packable at any time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from potq.numerics.scheme import QuantScheme
from potq.ptq.algorithms.gptq import gptq
from potq.ptq.algorithms.hessian import Hessian
from potq.ptq.algorithms.learned import LearnedWeight
from potq.ptq.algorithms.paths import compensated_paths
from potq.ptq.algorithms.rounding import Rounded, SchemeRounding, round_to_nearest
from potq.ptq.algorithms.rtn import rtn

SCHEMES = {
    **{name: QuantScheme(name, group_size=32) for name in ("pot2", "pot3", "int3", "nf4", "apot4", "mxfp4", "int8")},
    "row": QuantScheme("pot3", group_size="row"),
    "tensor": QuantScheme("pot3", group_size="tensor"),
    "signed": QuantScheme("pot3s", group_size=32),
    "row_scale": QuantScheme("pot4", group_size=32, scale_dtype="e8m0", row_scale=True),
}


def _weight(rows: int = 4, columns: int = 71) -> Tensor:
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0)) * 0.02
    weight[1, :32] = 0.0
    return weight


def _start(name: str) -> tuple[Rounded, SchemeRounding]:
    """Nearest values with the weight itself as the latent one."""
    quantized = rtn(_weight(), SCHEMES[name])
    rounding = SchemeRounding(SCHEMES[name], quantized.row_scale)
    return round_to_nearest(_weight(), rounding.decode(quantized.scale), None, rounding), rounding


@pytest.mark.parametrize("name", sorted(SCHEMES))
def test_it_starts_exactly_where_it_was_told_to(name: str) -> None:
    rounded, rounding = _start(name)
    learned = LearnedWeight(rounded, rounding)
    assert torch.equal(learned(), rounded.values)
    assert torch.equal(learned.rounded().values, rounded.values)
    assert torch.equal(learned.rounded().scale, rounded.scale)
    assert torch.equal(learned.latent, _weight())
    assert learned.log_scale.requires_grad == (rounding.scheme.scale_dtype == "float16")


def test_a_path_starts_exactly_whatever_its_latent_weights_are_nearest_to() -> None:
    """GPTQ's latent weights are nearer to other paths than to those that feedback chose."""
    generator, scheme = torch.Generator().manual_seed(0), QuantScheme("pot2t", group_size=32)
    inputs = torch.randn(200, 71, generator=generator) @ torch.randn(71, 71, generator=generator)
    rounding = SchemeRounding(scheme)
    rounded = compensated_paths(_weight(), Hessian(inputs.t() @ inputs / 200), rounding)
    nearest = round_to_nearest(rounded.latent, rounded.scale, None, rounding).values
    assert not torch.equal(nearest, rounded.values)
    learned = LearnedWeight(rounded, rounding)
    assert torch.equal(learned(), rounded.values)
    assert torch.equal(rounding.pack(learned.rounded()).dequantize(), rounded.values)
    learned().square().sum().backward()
    assert learned.latent.grad is not None
    assert learned.log_scale.grad is not None


def test_a_latent_weight_that_rounds_elsewhere_gives_way_to_the_values() -> None:
    rounding = SchemeRounding(SCHEMES["pot3"])
    x = torch.randn(300, 71, generator=torch.Generator().manual_seed(1))
    found = gptq(_weight(), Hessian(x.t() @ x), rounding)
    moved = Rounded(found.values, found.scale, None, found.latent + 0.01)
    learned = LearnedWeight(moved, rounding)
    assert torch.equal(learned(), found.values)
    same = learned.latent == moved.latent
    assert same.any()
    assert torch.equal(learned.latent[~same], found.values[~same])


@pytest.mark.parametrize("name", ["pot3", "nf4", "row", "mxfp4"])
def test_gradients_pass_within_the_grid_and_stop_beyond_it(name: str) -> None:
    rounded, rounding = _start(name)
    learned = LearnedWeight(rounded, rounding)
    with torch.no_grad():
        learned.latent[0, :4] = torch.tensor([1.0, -1.0, 0.0, 1e-3])
    slope = torch.randn(4, 71, generator=torch.Generator().manual_seed(2))
    (learned() * slope).sum().backward()
    assert learned.latent.grad is not None
    assert learned.latent.grad[0, :4].tolist() == [0.0, 0.0, slope[0, 2], slope[0, 3]]
    passed = learned.latent.grad != 0
    assert torch.equal(learned.latent.grad[passed], slope[passed])
    assert passed.float().mean() > 0.8


@pytest.mark.parametrize("name", ["pot3", "nf4", "row", "tensor"])
def test_a_scales_gradient_where_it_is_smooth(name: str) -> None:
    """Clipped weights are level times scale: there the difference quotient tells the truth."""
    rounded, rounding = _start(name)
    learned = LearnedWeight(rounded, rounding)
    with torch.no_grad():
        learned.latent.copy_(torch.where(_weight() > 0, 1.0, -1.0))
    slope = torch.randn(4, 71, generator=torch.Generator().manual_seed(2)).double()
    (learned() * slope).sum().backward()
    assert learned.log_scale.grad is not None
    step = 2.0**-8
    for at in torch.cartesian_prod(*map(torch.arange, learned.log_scale.shape)).tolist():
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                learned.log_scale[tuple(at)] = sign * step
                ends.append((learned() * slope).sum())
                learned.log_scale[tuple(at)] = 0.0
        expected = float(ends[0] - ends[1]) / (2 * step)
        assert float(learned.log_scale.grad[tuple(at)]) == pytest.approx(expected, rel=1e-2, abs=1e-4)  # bfloat16 slopes


def test_a_scales_gradient_is_lsqs() -> None:
    """Equation 3 of 1902.08153: level minus weight over scale within the grid."""
    rounded, rounding = _start("pot3")
    learned = LearnedWeight(rounded, rounding)
    learned().sum().backward()
    each = rounded.scale.repeat_interleave(32, 1)[:, :71].clamp(min=1e-9)
    inside = learned.latent.grad == 1
    slope = torch.where(inside, (rounded.values - _weight()) / each, rounded.values / each)
    expected = torch.stack([part.sum(1) for part in slope.split(32, dim=1)], dim=1) * rounded.scale
    torch.testing.assert_close(learned.log_scale.grad, expected, rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("name", sorted(SCHEMES))
def test_what_was_learned_can_be_packed(name: str) -> None:
    rounded, rounding = _start(name)
    learned = LearnedWeight(rounded, rounding)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        learned.latent += torch.randn(4, 71, generator=generator) * 0.01
        learned.log_scale += torch.randn(learned.log_scale.shape, generator=generator) * 0.1 * rounding.fine
    found = learned.rounded()
    packed = rounding.pack(found)
    packed.validate("weight")
    assert torch.equal(packed.dequantize(), found.values)
    assert torch.equal(rounding.decode(packed.scale), found.scale)
    assert not torch.equal(found.values, rounded.values)
    torch.testing.assert_close(learned(), found.values, rtol=0, atol=0.02)


def test_codes_can_be_left_alone() -> None:
    rounded, rounding = _start("pot3")
    learned = LearnedWeight(rounded, rounding, codes=False)
    assert not learned.latent.requires_grad
    learned().sum().backward()
    assert learned.latent.grad is None
    assert learned.log_scale.grad is not None


def test_the_step_is_the_mean_distance_of_levels() -> None:
    rounded, rounding = _start("pot3")
    values = rounded.scale.mean() * rounding.levels
    assert LearnedWeight(rounded, rounding).step == pytest.approx(float(values.diff().mean()))
