"""Half-precision products in float32: the same numbers, rounded once; on any processor, since slowness is feigned."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from potq.nn import precision
from potq.nn.precision import fast_products, is_slow
from potq.nn.properties import evaluation_mode

HALVES = (torch.bfloat16, torch.float16)


@pytest.fixture(autouse=True)
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "is_slow", lambda dtype: dtype in HALVES)


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def rounded_from(found: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    """``found`` is float32's result, rounded."""
    assert found.dtype == dtype
    # sums of other lengths are added up in another order: at most one rounding apart
    torch.testing.assert_close(found.float(), expected, rtol=2 * torch.finfo(dtype).eps, atol=1e-3)


PRODUCTS: dict[str, Any] = {
    "mm": (lambda a, b, c: a @ b, (40, 24), (24, 30), (30,)),
    "linear": (F.linear, (2, 20, 24), (30, 24), (30,)),
    "addmm": (lambda a, b, c: torch.addmm(c, a, b, beta=0.5, alpha=2.0), (40, 24), (24, 30), (40, 30)),
    "bmm": (lambda a, b, c: a @ b, (3, 5, 24), (3, 24, 7), (1,)),
    "baddbmm": (lambda a, b, c: torch.baddbmm(c, a, b, alpha=2.0), (3, 5, 24), (3, 24, 7), (3, 5, 7)),
    "conv1d": (lambda a, b, c: F.conv1d(a, b, c, padding=1), (2, 6, 20), (4, 6, 3), (4,)),
    "conv2d": (F.conv2d, (1, 6, 9, 9), (4, 6, 3, 3), (4,)),
}


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("name", PRODUCTS)
def test_products_and_their_gradients_are_float32s_rounded(name: str, dtype: torch.dtype) -> None:
    product, *shapes = PRODUCTS[name]
    inputs = [normal(*shape, dtype=dtype, seed=i).requires_grad_() for i, shape in enumerate(shapes)]
    wide = [each.detach().float().requires_grad_() for each in inputs]
    with fast_products([dtype]):
        found = product(*inputs)
        toward = normal(*found.shape, dtype=dtype, seed=9)
        gradients = torch.autograd.grad(found, inputs, toward, allow_unused=True)
    expected = product(*wide)
    rounded_from(found, expected, dtype)
    for one, other in zip(gradients, torch.autograd.grad(expected, wide, toward.float(), allow_unused=True), strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one.float(), other, rtol=0.02, atol=0.1)


@given(rows=st.integers(17, 40), inner=st.integers(1, 40), columns=st.integers(1, 70), step=st.integers(1, 400))
def test_some_columns_at_a_time_are_all_columns(rows: int, inner: int, columns: int, step: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(precision, "_CONVERTED", step)
        a, b = normal(rows, inner, dtype=torch.bfloat16), normal(inner, columns, dtype=torch.bfloat16, seed=1)
        with fast_products([torch.bfloat16]):
            found = a @ b
    rounded_from(found, a.float() @ b.float(), torch.bfloat16)


def test_no_more_than_a_part_of_a_weight_is_float32_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "_CONVERTED", 1 << 10)
    seen: list[int] = []
    own = torch.Tensor.float
    monkeypatch.setattr(torch.Tensor, "float", lambda self: seen.append(self.numel()) or own(self))
    layer = nn.Linear(64, 512, dtype=torch.bfloat16)
    with fast_products([torch.bfloat16]), torch.no_grad():
        layer(normal(20, 64, dtype=torch.bfloat16))
    assert max(seen) <= max(20 * 64, 1 << 10)


def test_a_few_rows_keep_torchs_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "_product", None)
    layer = nn.Linear(64, 32, dtype=torch.bfloat16, bias=False)
    x = normal(2, 64, dtype=torch.bfloat16)
    with fast_products([torch.bfloat16]), torch.no_grad():
        assert torch.equal(layer(x), x @ layer.weight.t())
        with pytest.raises(TypeError):
            x @ layer.weight.t().contiguous()  # torch's way is slow however few the rows are


def test_other_dtypes_and_fast_processors_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "_product", None)
    x = normal(40, 24)
    with fast_products([torch.bfloat16]):
        assert torch.equal(x @ x.t(), x @ x.t())
    monkeypatch.setattr(precision, "is_slow", lambda dtype: False)
    half = x.bfloat16()
    with fast_products([torch.bfloat16]):
        half @ half.t()


def test_a_model_on_another_device_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "_HERE", ("meta",))  # as if the CPU were another
    monkeypatch.setattr(precision, "_product", None)
    x = normal(40, 24, dtype=torch.bfloat16)
    with evaluation_mode(nn.Linear(2, 2, dtype=torch.bfloat16)):
        x @ x.t()
    with evaluation_mode(nn.Linear(2, 2, dtype=torch.bfloat16, device="meta")), pytest.raises(TypeError):
        x @ x.t()


class Other(Tensor):
    """A tensor that computes in its own way, as one that is spread over processes does."""

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return torch.tensor(1.5)


def test_tensors_of_other_kinds_compute_in_their_own_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "_product", None)
    x = normal(40, 24, dtype=torch.bfloat16)
    with fast_products([torch.bfloat16]):
        assert float(x.as_subclass(Other) @ x.t()) == 1.5


def test_the_library_runs_models_so(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = nn.Linear(64, 32, dtype=torch.bfloat16, bias=False)
    called: list[int] = []
    own = precision._product
    monkeypatch.setattr(precision, "_product", lambda *args: called.append(1) or own(*args))
    with evaluation_mode(layer), torch.no_grad():
        layer(normal(20, 64, dtype=torch.bfloat16))
    assert called


def test_float32_is_never_slow_and_flags_decide_for_halves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert not is_slow(torch.float32)
    for supported in (True, False):
        for name in precision._SUPPORT.values():
            assert isinstance(getattr(torch.ops.mkldnn, name)(), bool)  # torch's own name for it
            with monkeypatch.context() as patch:
                patch.setattr(torch.ops.mkldnn, name, lambda supported=supported: supported)
                assert [is_slow(dtype) for dtype in HALVES if precision._SUPPORT[dtype] == name] == [not supported]
