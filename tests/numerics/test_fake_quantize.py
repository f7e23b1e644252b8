"""Fake quantization: exact in the forward pass, straight through in the backward one, the same compiled and in torch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from potq import native
from potq.numerics.fake_quantize import fake_quantize, round_op
from potq.numerics.functional import codebook, decode_scale, dequantize, quantize
from potq.numerics.scheme import PRESETS, QuantScheme
from potq.ptq.algorithms.rtn import rtn

NAMES = sorted(PRESETS)
SCHEMES = {
    **{name: QuantScheme(name, group_size=32) for name in ("pot2", "pot3", "int3", "nf4", "apot4", "mxfp4", "int8", "pot7")},
    "row": QuantScheme("pot3", group_size="row"),
    "tensor": QuantScheme("pot3", group_size="tensor"),
    "log": QuantScheme("pot4", group_size=32, rounding="log"),
    "row_scale": QuantScheme("pot4", group_size=32, scale_dtype="e8m0", row_scale=True),
    "signed": QuantScheme("pot3s", group_size=32),
}
COMPILED = pytest.mark.skipif(native.missing() is not None, reason=native.missing() or "")


def _weight(rows: int = 4, columns: int = 71, seed: int = 0) -> Tensor:
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 0.02
    weight[1, :32] = 0.0
    return weight


def _gradients(weight: Tensor, scale: Tensor, scheme: QuantScheme, slope: Tensor) -> tuple[Tensor, Tensor | None]:
    leaf = weight.clone().requires_grad_()
    scale = scale.clone()
    if scale.dtype == torch.float32:
        scale.requires_grad_()
    fake_quantize(leaf, scale, scheme).backward(slope)
    assert leaf.grad is not None
    return leaf.grad, scale.grad


@pytest.mark.parametrize("group_size", [16, "row", "tensor"])
@pytest.mark.parametrize("name", NAMES)
def test_it_is_dequantize_of_quantize_bit_for_bit(name: str, group_size: Any) -> None:
    scheme = QuantScheme(name, group_size=group_size)
    weight = _weight(4, 37)
    scale = rtn(weight, scheme).scale
    assert torch.equal(fake_quantize(weight, scale, scheme), dequantize(quantize(weight, scale, scheme), scale, scheme))


@pytest.mark.parametrize("group_size", [16, "row"])
@pytest.mark.parametrize("name", ["pot2t", "apot3t"])
def test_a_path_has_the_gradients_of_a_grid(name: str, group_size: Any) -> None:
    scheme, weight, slope = QuantScheme(name, group_size=group_size), _weight(4, 37) * 1.5, _weight(4, 37, seed=1)
    scale = rtn(_weight(4, 37), scheme).scale
    value = fake_quantize(weight, scale, scheme)
    assert torch.equal(value, dequantize(quantize(weight, scale, scheme), scale, scheme))
    to_weight, to_scale = _gradients(weight, decode_scale(scale), scheme, slope)
    size = scheme.group(37)
    each = decode_scale(scale).repeat_interleave(size, 1)[:, :37]
    levels = codebook(scheme, weight.device)[0]
    inside = (weight / each).abs() <= levels[-1] + (levels[-1] - levels[-2]) / 2
    torch.testing.assert_close(to_weight, torch.where((each != 0) & inside, slope, 0.0))  # a scale times its inverse
    terms = torch.where(each != 0, (value - weight * inside) * slope / each, 0.0)
    assert to_scale is not None
    torch.testing.assert_close(
        to_scale, torch.stack([part.sum(1) for part in terms.split(size, 1)], 1), rtol=1e-4, atol=1e-6
    )


@given(name=st.sampled_from(sorted(SCHEMES)), seed=st.integers(0, 1000), halves=st.booleans())
def test_it_is_so_for_ties_too(name: str, seed: int, halves: bool) -> None:
    """Weights that are themselves on a grid, or between two of its levels."""
    scheme = SCHEMES[name]
    found = rtn(_weight(seed=seed), scheme)
    weight = found.dequantize()
    if halves:
        weight = (weight + weight.roll(1, 1)) / 2
    expected = dequantize(quantize(weight, found.scale, scheme, found.row_scale), found.scale, scheme, found.row_scale)
    assert torch.equal(fake_quantize(weight, found.scale, scheme, found.row_scale), expected)


@pytest.mark.parametrize("name", ["pot4", "apot4", "int8"])
def test_bfloat16_weights_are_rounded_in_float32(name: str) -> None:
    scheme, weight = QuantScheme(name, group_size=32), _weight().to(torch.bfloat16)
    scale = rtn(weight, scheme).scale
    exact = dequantize(quantize(weight, scale, scheme), scale, scheme)
    assert torch.equal(fake_quantize(weight, scale, scheme), exact.to(torch.bfloat16))
    assert torch.equal(fake_quantize(weight, scale, scheme, dtype=torch.float32), exact)
    assert _gradients(weight, scale, scheme, torch.ones_like(weight))[0].dtype == torch.bfloat16


def test_gradients_pass_within_half_a_step_of_the_grid() -> None:
    """pot4's last levels are 0.5 and 1, in units of the scale."""
    weight = torch.tensor([[1.0, 1.25, 1.2501, -1.25, -1.2501, 0.3, 0.0]])
    slope = torch.arange(1.0, 8.0)[None]
    scale = torch.tensor([[1.0]], dtype=torch.float16)
    assert _gradients(weight, scale, PRESETS["pot4"], slope)[0].tolist() == [[1.0, 2.0, 0.0, 4.0, 0.0, 6.0, 7.0]]


@pytest.mark.parametrize(
    ("name", "scale", "inside", "outside"),
    [("iq4nl", 64.0, [125.0, -138.5], [125.1, -138.6]), ("int4", 1.0, [0.9375, -1.0625], [0.94, -1.07])],
)
def test_asymmetric_grids_have_edges_of_their_own(
    name: str, scale: float, inside: list[float], outside: list[float]
) -> None:
    weight = torch.tensor([inside + outside])
    found, _ = _gradients(weight, torch.tensor([[scale]], dtype=torch.float16), PRESETS[name], torch.ones(1, 4))
    assert found.tolist() == [[1.0, 1.0, 0.0, 0.0]]


@pytest.mark.parametrize("name", sorted(SCHEMES))
def test_a_scales_gradient_is_lsqs(name: str) -> None:
    """Equation 3 of 1902.08153: level minus weight over scale within the grid, the level beyond it."""
    scheme, weight, slope = SCHEMES[name], _weight() * 1.5, _weight(seed=1)
    found = rtn(_weight(), scheme)
    scale = decode_scale(found.scale, found.row_scale)
    to_weight, to_scale = _gradients(weight, scale, scheme, slope)
    assert to_scale is not None
    each = scale.repeat_interleave(scheme.group(71), 1)[:, :71].expand_as(weight)
    value = fake_quantize(weight, scale, scheme)
    terms = torch.where(to_weight == slope, value - weight, value) * slope / each
    terms = torch.where(each != 0, terms, 0.0).double()
    expected = torch.stack([part.sum(1) for part in terms.split(scheme.group(71), 1)], 1)
    expected = expected.sum(0, keepdim=True) if scheme.group_size == "tensor" else expected
    torch.testing.assert_close(to_scale.double(), expected, rtol=1e-4, atol=1e-5)


def test_a_stored_scale_has_no_gradient_and_a_zero_one_gives_zeros() -> None:
    scheme = PRESETS["pot2"]
    weight = _weight()
    scale = torch.zeros(4, 2, dtype=torch.float16)
    assert not fake_quantize(weight, scale, scheme).any()
    passed, _ = _gradients(weight, scale, scheme, torch.ones_like(weight))
    assert passed.all()
    assert not _gradients(weight, scale.float(), scheme, torch.ones_like(weight))[1].any()  # type: ignore[union-attr]


def test_gradients_of_two_uses_add_up() -> None:
    """As a tied weight needs."""
    weight, scheme = _weight().requires_grad_(), PRESETS["pot4"]
    scale = rtn(weight.detach(), scheme).scale
    (fake_quantize(weight, scale, scheme) + fake_quantize(weight, scale, scheme)).sum().backward()
    assert weight.grad is not None
    assert torch.equal(weight.grad, torch.full_like(weight, 2.0))


@COMPILED
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("name", sorted(SCHEMES))
def test_compiled_and_torch_agree(name: str, shifted: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    scheme = SCHEMES[name]
    stored = rtn(_weight(), scheme)
    start = decode_scale(stored.scale, stored.row_scale)
    shift = torch.randn(start.shape, generator=torch.Generator().manual_seed(4)) if shifted else None
    slope = torch.randn(4, 71, generator=torch.Generator().manual_seed(2)).to(dtype)
    found = []
    for compiled in (True, False):
        if not compiled:
            monkeypatch.setattr(native, "missing", lambda: "not installed")
        latent, scale = _weight().mul_(2).requires_grad_(), start.clone().requires_grad_()
        values = round_op(latent, scale, shift, *codebook(scheme, torch.device("cpu")), scheme.group(71), dtype)
        values.backward(slope)
        found.append((values.detach(), latent.grad, scale.grad))
    assert torch.equal(found[0][0], found[1][0])
    assert found[0][0].dtype == dtype
    assert torch.equal(found[0][1], found[1][1])
    torch.testing.assert_close(found[0][2], found[1][2], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["pot4", "tensor", "row_scale", "int8"])
def test_opcheck(name: str) -> None:
    scheme = SCHEMES.get(name, PRESETS.get(name)) or PRESETS["pot4"]
    stored = rtn(_weight(), scheme)
    scale = decode_scale(stored.scale, stored.row_scale).requires_grad_()
    levels = codebook(scheme, torch.device("cpu"))
    for dtype in (torch.float32, torch.bfloat16):
        arguments = (_weight().requires_grad_(), scale, None, *levels, scheme.group(71), dtype)
        torch.library.opcheck(round_op, arguments)


def test_torch_compile_need_not_look_inside() -> None:
    scheme, weight = PRESETS["pot4"], _weight()
    scale = rtn(weight, scheme).scale

    @torch.compile(fullgraph=True, backend="aot_eager")
    def loss(w: Tensor) -> Tensor:
        return fake_quantize(w, scale, scheme).square().sum()

    found, expected = weight.clone().requires_grad_(), weight.clone().requires_grad_()
    loss(found).backward()
    fake_quantize(expected, scale, scheme).square().sum().backward()
    assert torch.equal(found.grad, expected.grad)  # type: ignore[arg-type]
