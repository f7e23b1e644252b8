"""Which backend computes: the first that can, other people's before ours."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from potq import native
from potq.kernels import explain, ops, register_backend, registry
from potq.kernels.weight import PackedWeight
from potq.nn.packed import pack_module
from potq.numerics.scheme import PRESETS, QuantScheme
from potq.ptq.algorithms.rtn import rtn

CPU = torch.device("cpu")
compiled_library = pytest.mark.skipif(native.missing() is not None, reason=native.missing() or "")


@dataclass
class _Fake:
    """A backend that yields ``value``, and refuses for ``reason``."""

    NAME: str = "fake"
    value: float = 7.0
    reason: str | None = None
    asked: list[tuple[Any, ...]] = field(default_factory=list)

    def supports(self, scheme: QuantScheme, shape: tuple[int, int], device: torch.device, dtype: torch.dtype) -> str | None:
        self.asked.append((scheme, shape, device, dtype))
        return self.reason

    def linear(self, input: Tensor, weight: PackedWeight, bias: Any, activations: Any) -> Tensor:
        return input.new_full((*input.shape[:-1], weight.shape[0]), self.value)

    def embedding(self, ids: Tensor, weight: PackedWeight, dtype: torch.dtype) -> Tensor:
        return torch.full((*ids.shape, weight.columns), self.value, dtype=dtype)


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    backends = dict(registry.BACKENDS)
    yield
    registry.BACKENDS.clear()
    registry.BACKENDS.update(backends)
    registry.choose.cache_clear()


def _linear() -> Any:
    weight = torch.randn(11, 70, generator=torch.Generator().manual_seed(0))
    return pack_module(nn.Linear(70, 11), rtn(weight, PRESETS["pot4"], method="absmax")).requires_grad_(False)


def _embedding() -> Any:
    weight = torch.randn(13, 70, generator=torch.Generator().manual_seed(0))
    return pack_module(nn.Embedding(13, 70), rtn(weight, PRESETS["int8"], method="absmax"))


def test_cpu_is_asked_before_the_reference() -> None:
    assert list(registry.BACKENDS) == ["cpu", "triton", "reference"]


def test_a_registered_backend_is_asked_first_and_used() -> None:
    fake = _Fake()
    register_backend(fake)
    linear, x = _linear(), torch.ones(2, 70)
    assert list(registry.BACKENDS) == ["fake", "cpu", "triton", "reference"]
    assert torch.equal(linear(x), torch.full((2, 11), 7.0))
    assert torch.equal(_embedding()(torch.tensor([1])), torch.full((1, 70), 7.0))
    assert fake.asked[0] == (PRESETS["pot4"], (11, 70), CPU, torch.float32)
    assert explain(linear).backend == "fake"


@compiled_library
def test_modules_that_ran_use_the_backend_that_takes_the_place_of_theirs() -> None:
    linear, x = _linear(), torch.ones(2, 70)
    assert not torch.equal(linear(x), torch.full((2, 11), 7.0))
    register_backend(_Fake("cpu"))
    assert torch.equal(linear(x), torch.full((2, 11), 7.0))


def test_inputs_are_checked_whatever_computes() -> None:
    register_backend(_Fake())
    linear = _linear()
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"an input of shape \(2, 69\) does not fit a weight of shape \(11, 70\)"):
            linear(torch.ones(2, 69))


def test_the_ops_use_a_registered_backend_too() -> None:
    weight = _linear().quantized
    register_backend(_Fake())
    spec = weight.scheme.model_dump_json()
    found = ops.linear(torch.ones(2, 70), weight.packed, weight.scale, None, spec, "int8")
    assert torch.equal(found, torch.full((2, 11), 7.0))
    assert torch.equal(
        ops.embedding(torch.tensor([1]), weight.packed, weight.scale, spec, 70, torch.float32), torch.full((1, 70), 7.0)
    )


def test_a_backend_that_refuses_is_passed_over_with_its_reason() -> None:
    before = registry.choose(PRESETS["pot4"], (11, 70), CPU, torch.float32)
    register_backend(_Fake(reason="not today"))
    after = registry.choose(PRESETS["pot4"], (11, 70), CPU, torch.float32)
    assert after.backend == before.backend
    assert after.rejected == {"fake": "not today", **before.rejected}


def test_a_backend_replaces_one_of_its_name() -> None:
    register_backend(_Fake(value=1.0))
    linear, x = _linear(), torch.ones(2, 70)
    linear(x)
    register_backend(_Fake(NAME="other", reason="no"))
    register_backend(_Fake(value=2.0))
    assert list(registry.BACKENDS) == ["fake", "other", "cpu", "triton", "reference"]
    assert torch.equal(linear(x), torch.full((2, 11), 2.0))


def test_modules_that_ran_keep_their_choice() -> None:
    linear, x = _linear(), torch.ones(2, 70)
    before = linear(x)
    register_backend(_Fake())
    assert torch.equal(linear(x), before)


def test_a_backend_is_asked_once_per_kind_of_weight() -> None:
    fake = _Fake()
    register_backend(fake)
    for _ in range(3):
        registry.choose(PRESETS["pot4"], (11, 70), CPU, torch.float32)
    registry.choose(PRESETS["pot4"], (11, 70), CPU, torch.bfloat16)
    assert len(fake.asked) == 2


@compiled_library
@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_preset_runs_on_the_cpu_kernels_or_the_reference_says_why_not(name: str) -> None:
    choice = registry.choose(PRESETS[name], (11, 70), CPU, torch.float32)
    if PRESETS[name].grid.fits_int8:
        assert choice == registry.Choice("cpu", {})
    else:
        assert choice.backend == "reference"
        assert "exceed int8" in choice.rejected["cpu"]


@compiled_library
def test_no_warning_while_the_library_is_there() -> None:
    registry._warn_once.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert registry.choose(PRESETS["pot6"], (11, 70), CPU, torch.float32).backend == "reference"
