"""explain() and set_activations(): what people are told, and what they can choose."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from potq import native
from potq.errors import ConfigError
from potq.kernels import Explanation, explain, set_activations
from potq.nn.packed import pack_module
from potq.numerics.scheme import PRESETS, QuantScheme
from potq.ptq.algorithms.rtn import rtn

NO_GPU = {"triton": "it computes on CUDA GPUs, the weight is on cpu"}
compiled_library = pytest.mark.skipif(native.missing() is not None, reason=native.missing() or "")


def _rand(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def _linear(scheme: QuantScheme = PRESETS["pot4"]) -> Any:
    return pack_module(nn.Linear(70, 11), rtn(_rand(11, 70), scheme, method="absmax")).requires_grad_(False)


def _embedding() -> Any:
    return pack_module(nn.Embedding(13, 70), rtn(_rand(13, 70), PRESETS["int8"], method="absmax"))


# ---- explain -------------------------------------------------------------------------------------------------------


@compiled_library
def test_a_linear_on_the_kernels() -> None:
    found = explain(_linear())
    assert found == Explanation("cpu", native.isa(), "int8", {})
    assert str(found) == f"cpu ({native.isa()}), int8 activations"


@compiled_library
def test_an_embedding_rounds_nothing() -> None:
    assert explain(_embedding()) == Explanation("cpu", native.isa(), "float", {})


@compiled_library
def test_a_tied_head() -> None:
    head = pack_module(nn.Linear(70, 13, bias=False), _embedding())
    assert explain(head) == Explanation("cpu", native.isa(), "int8", {})


@compiled_library
def test_the_reference_and_why_not_the_kernels() -> None:
    found = explain(_linear(QuantScheme("pot4", group_size=7)))
    assert (found.backend, found.detail, found.activations) == ("reference", "", "float")
    assert found.rejected == {"cpu": "the group size is not a multiple of 16", **NO_GPU}
    assert str(found) == (
        "reference, float activations; not cpu: the group size is not a multiple of 16; "
        "not triton: it computes on CUDA GPUs, the weight is on cpu"
    )


@compiled_library
def test_it_follows_the_module() -> None:
    linear = _linear()
    set_activations(linear, "float")
    assert explain(linear).activations == "float"
    assert explain(linear.bfloat16()).backend == "cpu"
    assert "float64" in explain(linear.double()).rejected["cpu"]
    assert "meta" in explain(linear.to("meta")).rejected["cpu"]


@pytest.mark.usefixtures("reference_backend")
def test_the_reference_alone() -> None:
    assert explain(_linear()) == Explanation("reference", "", "float", NO_GPU)


@pytest.mark.parametrize(
    "module", [nn.Linear(3, 2), nn.ReLU(), nn.Sequential(nn.Linear(3, 2))], ids=lambda m: type(m).__name__
)
def test_a_module_that_is_not_packed_is_refused_by_name(module: nn.Module) -> None:
    with pytest.raises(ConfigError, match=f"{type(module).__name__} is not a packed module"):
        explain(module)


# ---- set_activations -----------------------------------------------------------------------------------------------


@compiled_library
def test_activations_are_set_in_every_packed_module_of_a_model() -> None:
    model = nn.Sequential(_embedding(), nn.Sequential(_linear(), nn.ReLU()))
    linear, x = model[1][0], _rand(3, 70)
    rounded = linear(x)
    exact = nn.functional.linear(x, linear.quantized.dequantize(), linear.bias)
    set_activations(model, "float")
    assert {module.activations for module in (model[0], linear)} == {"float"}
    assert not torch.equal(linear(x), rounded)
    torch.testing.assert_close(linear(x), exact, rtol=1e-5, atol=1e-5)
    set_activations(model, "int8")
    assert torch.equal(linear(x), rounded)


@pytest.mark.parametrize("word", ["int4", "", "INT8", None])
def test_another_word_is_refused(word: Any) -> None:
    linear = _linear()
    with pytest.raises(ConfigError, match="choose int8 or float"):
        set_activations(linear, word)
    assert linear.activations == "int8"


def test_a_model_without_packed_modules_is_refused() -> None:
    with pytest.raises(ConfigError, match="Sequential has no packed modules"):
        set_activations(nn.Sequential(nn.Linear(3, 2)), "float")
