"""Packed stacks in place: lazy matrices, products by the kernels, copies, casts, and what is refused."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import potq
from moe_helpers import CASES, DEEP, moe, tokens
from potq.errors import ModelError
from potq.kernels import set_activations
from potq.nn.experts import Stack, stacks
from potq.nn.lazy import LazyTensor
from potq.nn.packed import PoTLinear
from potq.nn.packed_model import packed_modules
from potq.nn.stacked import PoTStack, holder_name, pack_stack, stack_name, unpack_stack, unstacked
from potq.nn.weights import matrix_of
from potq.numerics.scheme import PRESETS, QuantScheme
from potq.ptq.algorithms.rtn import rtn

LAYOUTS = ["mixtral", "gpt_oss", "llama4"]  # plain; transposed with biases; transposed, all experts in one product


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(tokens()).logits
    return found


def packed(family: str, preset: str = "pot4", **changes: Any) -> Any:
    model = moe(family, **changes)
    potq.quantize(model, potq.PoTConfig(preset, group_size=16))
    return model


def experts_of(model: Any) -> Any:
    layer = model.model.layers[1]
    return (layer.mlp if hasattr(layer, "mlp") else layer.feed_forward).experts


# ---- round trips


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_comes_back_bit_for_bit(preset: str, dtype: torch.dtype) -> None:
    """Each expert as if it were packed alone."""
    for family in ("mixtral", "gpt_oss"):
        model = moe(family, num_hidden_layers=1).to(dtype)
        for name, stack in stacks(model).items():
            weight, (experts, rows, columns) = matrix_of(model, name).clone(), stack.shape
            held = pack_stack(stack, rtn(weight, PRESETS[preset], method="absmax"), name)
            alone = [rtn(part, PRESETS[preset], method="absmax").dequantize() for part in weight.split(rows)]
            expected = torch.stack(alone).to(dtype)
            made = getattr(stack.module, stack.key)
            assert made.shape == (experts, columns, rows) if stack.transposed else (experts, rows, columns)
            assert made.dtype == dtype
            assert torch.equal(made.mT if stack.transposed else made, expected)
            assert torch.equal(held.quantized.dequantize().unflatten(0, (experts, -1)), torch.stack(alone))
            assert torch.equal(made[1], made[:][1])


def test_one_scale_for_all_experts() -> None:
    model = moe("mixtral", num_hidden_layers=1)
    scheme = QuantScheme("int8", group_size="tensor")
    name, stack = next(iter(stacks(model).items()))
    weight = matrix_of(model, name).clone()
    pack_stack(stack, rtn(weight, scheme), name)
    assert torch.equal(getattr(stack.module, stack.key).flatten(0, 1), rtn(weight, scheme).dequantize())
    logits(model)


@pytest.mark.parametrize("family", CASES)
def test_products_are_those_of_the_dequantized_model(family: str) -> None:
    """transformers' own experts, whose weights are what is packed."""
    model = packed(family)
    assert any(isinstance(module, PoTStack) for module in packed_modules(model).values())
    set_activations(model, "float")
    found = logits(model)
    rounded = model.dequantize()
    assert not any("Stacked" in type(module).__name__ or isinstance(module, PoTStack) for module in rounded.modules())
    assert rounded.state_dict().keys() == moe(family).state_dict().keys()
    for implementation in ("eager", "grouped_mm"):
        rounded.config._experts_implementation = implementation
        expected = logits(rounded)
        assert torch.allclose(found, expected, rtol=0, atol=2e-6 * float(expected.abs().max()))


def test_dequantizing_restores_every_parameter() -> None:
    for family in LAYOUTS:
        model, before = packed(family), moe(family)
        expected = {name: matrix.quantized.dequantize() for name, matrix in packed_modules(model).items()}
        model.dequantize()
        for name, weight in expected.items():
            assert torch.equal(matrix_of(model, name), weight)
        assert dict(model.named_parameters()).keys() == dict(before.named_parameters()).keys()


# ---- what computes


@pytest.mark.parametrize("family", LAYOUTS)
def test_each_expert_is_computed_by_its_kernel_on_its_tokens_alone(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No stack is dequantized, whatever implementation the config names; kernels keep what they made of a matrix."""
    model = packed(family)
    rows: list[int] = []
    forward = PoTLinear.forward

    def counted(self: PoTLinear, input: Tensor) -> Tensor:
        if self._name.endswith("]"):
            rows.append(input.numel() // input.shape[-1])
        return forward(self, input)

    def never(self: PoTStack) -> Tensor:
        raise AssertionError("the whole stack was made")

    monkeypatch.setattr(PoTLinear, "forward", counted)
    monkeypatch.setattr(PoTStack, "_dequantized", never)
    for implementation in ("eager", "grouped_mm", "batched_mm"):
        model.config._experts_implementation = implementation
        rows.clear()
        logits(model)
        per_token = 4 if family == "llama4" else 2  # of Llama 4 every expert gets every token, most of them as zeros
        assert sum(rows) == 2 * 2 * per_token * tokens().numel()  # layers, stacks
    first = experts_of(model).gate_up_proj[1]
    assert experts_of(model).gate_up_proj[torch.tensor(1)] is first
    assert first._linear._kept, "the prepared weight"


def test_rounding_of_activations_reaches_the_experts() -> None:
    model = packed("mixtral")
    rounded = logits(model)
    assert "int8 activations" in str(potq.kernels.explain(experts_of(model).stacked_down_proj))
    set_activations(model, "float")
    assert not torch.equal(logits(model), rounded)
    set_activations(model, "int8")
    assert torch.equal(logits(model), rounded)


def test_gradients_pass_through_experts() -> None:
    """Those of the exact product."""
    model = packed("gpt_oss")
    experts = experts_of(model)
    set_activations(model, "float")
    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(0), requires_grad=True)
    (x @ experts.gate_up_proj[2]).square().sum().backward()
    weight = experts.gate_up_proj[2] + 0
    with torch.no_grad():
        expected = 2 * (x @ weight) @ weight.T
    assert torch.allclose(x.grad, expected, rtol=1e-4, atol=1e-6)


def test_other_uses_of_a_matrix_make_it() -> None:
    model = packed("mixtral")
    stack = experts_of(model).gate_up_proj
    whole = stack + 0
    x = torch.randn(3, 32)
    assert isinstance(stack, LazyTensor)
    assert isinstance(stack[0], LazyTensor)
    assert torch.equal(stack[1:3] + 0, whole[1:3])
    assert torch.equal(stack[torch.tensor([2, 0])] + 0, whole[[2, 0]])
    assert torch.equal(torch.einsum("oi,bi->bo", stack[0], x), torch.einsum("oi,bi->bo", whole[0], x))
    bias = torch.randn(96)
    set_activations(model, "float")
    matrix = experts_of(model).gate_up_proj[0]
    assert torch.equal(x @ matrix.T, nn.functional.linear(x, matrix))
    assert torch.equal(x.matmul(matrix.mT), x @ matrix.t())
    product = nn.functional.linear(x, matrix, bias)
    assert torch.allclose(product, nn.functional.linear(x, whole[0], bias), atol=1e-6)
    with pytest.raises(IndexError):
        stack[4]


@DEEP
def test_a_compiled_model_computes_the_same() -> None:
    model = packed("mixtral", num_hidden_layers=1)
    set_activations(model, "float")
    compiled = torch.compile(model, backend="eager")
    assert torch.allclose(logits(compiled), logits(model), atol=1e-6)


def test_a_model_generates() -> None:
    model = packed("qwen3_moe")
    written = model.generate(tokens(1, 5), max_new_tokens=4, min_new_tokens=4, do_sample=False)
    assert written.shape == (1, 9)


# ---- as any module


def test_copies_casts_and_pickles() -> None:
    model = packed("mixtral")
    before = logits(model)
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(logits(again), before)
        again.model.layers[0].mlp.experts.stacked_down_proj.weight_packed.zero_()
        assert torch.equal(logits(model), before), "its own buffers"
        assert not torch.equal(logits(again), before), "a write is noticed"
    half = copy.deepcopy(model).half()
    stack = half.model.layers[0].mlp.experts.stacked_down_proj
    assert stack.weight.dtype == torch.float16
    assert stack.weight_scale.dtype == torch.float16
    assert torch.equal(
        stack.quantized.dequantize(), model.model.layers[0].mlp.experts.stacked_down_proj.quantized.dequantize()
    )
    assert torch.isfinite(logits(half)).all()
    assert half.float().model.layers[0].mlp.experts.down_proj.dtype == torch.float32


def test_writing_and_training_are_refused() -> None:
    model = packed("mixtral")
    experts = experts_of(model)
    name = r"model\.layers\.1\.mlp\.experts\.gate_up_proj"
    with pytest.raises(ModelError, match=rf"the weight of {name}\[0\] is read-only"):
        experts.gate_up_proj[0].zero_()
    with pytest.raises(ModelError, match=rf"the weight of {name} is read-only"):
        experts.gate_up_proj.mul_(2)
    with pytest.raises(ModelError, match="gate_up_proj is read-only"):
        experts.gate_up_proj = nn.Parameter(torch.zeros(4, 96, 32))
    with pytest.raises(ModelError, match=rf"{name} is read-only"):
        model.load_state_dict({"model.layers.1.mlp.experts.gate_up_proj": torch.zeros(4, 96, 32)}, strict=False)
    with pytest.raises(ModelError, match=f"the weight of {name} does not train"):
        experts.stacked_gate_up_proj.requires_grad_(True)


def test_one_of_two_stacks_may_stay() -> None:
    model = moe("mixtral")
    report = potq.quantize(model, potq.PoTConfig("pot4", ignore=["down_proj"]))
    experts = experts_of(model)
    assert [entry.name.rpartition(".")[2] for entry in report.modules if entry.kind == "experts"] == ["gate_up_proj"] * 2
    assert isinstance(experts.down_proj, nn.Parameter)
    assert isinstance(experts.gate_up_proj, LazyTensor)
    logits(model)
    unpack_stack(experts, "gate_up_proj", torch.float32)
    assert type(experts).__name__ == "MixtralExperts"


# ---- a linear for each expert


@pytest.mark.parametrize("family", LAYOUTS)
def test_unstacked_experts_compute_the_same_and_come_back(family: str) -> None:
    model = moe(family)
    before, kinds = logits(model), {name: type(module) for name, module in model.named_modules()}
    names = [name for name, _ in model.named_parameters()]
    found = stacks(model)
    model.config._experts_implementation = "eager"
    expected = logits(model)
    with unstacked(found):
        assert torch.equal(logits(model), expected)
        name, stack = next(iter(found.items()))
        linear: Any = model.get_submodule(f"{holder_name(name)}.2")
        assert linear.weight.untyped_storage()._cdata == before_storage(stack)
        linear.weight.data = torch.zeros_like(linear.weight)
        assert not torch.equal(logits(model), expected)
        assert (getattr(stack.module, stack.key)[2] == 0).all()
    assert {name: type(module) for name, module in model.named_modules()} == kinds
    assert [name for name, _ in model.named_parameters()] == names
    assert torch.equal(logits(model), expected)
    assert torch.allclose(before, expected, atol=1e-6)


def before_storage(stack: Stack) -> int:
    """Where the parameter's memory is, which the linears share."""
    (linear,) = [module for name, module in stack.module.named_modules() if name == f"stacked_{stack.key}.0"]
    weight: Any = linear.weight
    return int(weight.untyped_storage()._cdata)


def test_an_error_leaves_the_experts_whole() -> None:
    model = moe("mixtral")
    before = logits(model)
    with pytest.raises(RuntimeError, match="stop"), unstacked(stacks(model)):
        raise RuntimeError("stop")
    assert torch.equal(logits(model), before)


def test_names_of_holders() -> None:
    assert holder_name("a.experts.down_proj") == "a.experts.stacked_down_proj"
    assert stack_name(holder_name("a.experts.down_proj")) == "a.experts.down_proj"
    assert stack_name(holder_name("weight")) == "weight"
