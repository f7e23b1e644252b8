"""Convolutions as matrices: packed ones compute what float ones do with the dequantized kernel."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import potq
from potq.errors import ModelError
from potq.nn import convolution
from potq.nn.convolution import convolve, patches, rows
from potq.nn.packed import PackedModule, PoTConv1d, PoTConv2d
from potq.nn.weights import as_matrix, as_weight

SETTINGS: list[tuple[type[nn.Module], dict[str, Any]]] = [
    (nn.Conv1d, {"kernel_size": 3}),
    (nn.Conv1d, {"kernel_size": 4, "stride": 2, "padding": 3, "dilation": 2}),
    (nn.Conv1d, {"kernel_size": 5, "padding": "same", "padding_mode": "circular"}),
    (nn.Conv2d, {"kernel_size": 3, "padding": 1}),
    (nn.Conv2d, {"kernel_size": (2, 3), "stride": (1, 2), "padding": (2, 1), "dilation": (2, 1)}),
    (nn.Conv2d, {"kernel_size": (4, 1), "padding": "same"}),
    (nn.Conv2d, {"kernel_size": 3, "padding": 2, "padding_mode": "reflect", "bias": False}),
]


def _input(kind: type[nn.Module]) -> torch.Tensor:
    size = (2, 4, 11) if kind is nn.Conv1d else (2, 4, 9, 11)
    return torch.randn(size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize(("kind", "options"), SETTINGS)
def test_a_packed_convolution_computes_with_its_dequantized_kernel(kind: Any, options: dict[str, Any], groups: int) -> None:
    float_model = nn.Sequential(kind(4, 8, groups=groups, **options))
    model = copy.deepcopy(float_model)
    report = potq.quantize(model, potq.PoTConfig("pot4", group_size=8))
    packed, conv = model[0], float_model[0]
    assert isinstance(packed, PoTConv1d if kind is nn.Conv1d else PoTConv2d)
    assert report.modules[0].kind == "convolution"
    assert report.modules[0].shape == (8, conv.weight[0].numel())
    conv.weight.data = packed.quantized.dequantize().view(conv.weight.shape)
    assert torch.equal(model(_input(kind)), float_model(_input(kind)))


@pytest.mark.parametrize(("kind", "options"), SETTINGS)
def test_patches_are_what_the_matrix_is_multiplied_with(kind: Any, options: dict[str, Any]) -> None:
    conv, input = kind(4, 8, **options), _input(kind)
    matrix = as_matrix(conv, conv.weight)
    found = patches(conv, input) @ matrix.t()
    expected = convolve(conv, input, matrix).movedim(1, -1).flatten(0, -2)
    torch.testing.assert_close(found, expected)
    assert torch.equal(torch.cat(list(rows(conv, input[0]))), patches(conv, input[:1]))


def test_rows_come_in_parts_that_fit_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    conv, input = nn.Conv2d(4, 8, 3, padding=1), _input(nn.Conv2d).repeat(3, 1, 1, 1)
    monkeypatch.setattr(convolution, "_PATCHES", 4 * input[0].numel() * 9)
    parts = list(rows(conv, input))
    assert [len(part) for part in parts] == [4 * 9 * 11, 2 * 9 * 11]
    assert torch.equal(torch.cat(parts), patches(conv, input))
    assert [len(part) for part in rows(conv, input[:0])] == [0]
    assert [part.shape for part in rows(nn.Linear(11, 2), input)] == [(6 * 4 * 9, 11)]


@pytest.mark.parametrize("module", [nn.Conv1d(4, 8, 3), nn.Conv2d(4, 8, (2, 3), groups=2), nn.Linear(3, 5)])
def test_matrix_and_weight_are_inverse(module: Any) -> None:
    assert torch.equal(as_weight(module, as_matrix(module, module.weight)), module.weight)


def test_the_weight_has_the_shape_of_a_kernel_and_is_read_only() -> None:
    model = nn.Sequential(nn.Conv2d(4, 8, 3))
    potq.quantize(model, potq.PoTConfig("pot4"))
    packed: Any = model[0]
    assert packed.weight.shape == (8, 4, 3, 3)
    with pytest.raises(ModelError, match="the weight of 0 is read-only"):
        packed.weight.mul_(2)


def test_a_forward_of_its_own_reads_the_packed_kernel() -> None:
    class Standardized(nn.Conv2d):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            mean = self.weight.mean((1, 2, 3), keepdim=True)
            return nn.functional.conv2d(input, self.weight - mean, self.bias)

    model = nn.Sequential(Standardized(4, 8, 3))
    potq.quantize(model, potq.PoTConfig("pot4"))
    packed: Any = model[0]
    kernel = packed.quantized.dequantize().view(8, 4, 3, 3)
    expected = nn.functional.conv2d(_input(nn.Conv2d), kernel - kernel.mean((1, 2, 3), keepdim=True), packed.bias)
    assert isinstance(packed, PackedModule)
    assert torch.equal(model(_input(nn.Conv2d)), expected)


def test_gradients_pass_a_packed_convolution() -> None:
    model = nn.Sequential(nn.Conv1d(4, 8, 3))
    potq.quantize(model, potq.PoTConfig("pot4"))
    input = _input(nn.Conv1d).requires_grad_(True)
    model(input).sum().backward()
    assert input.grad is not None


def test_what_computes_a_convolution_is_said() -> None:
    model = nn.Sequential(nn.Conv1d(4, 8, 3))
    potq.quantize(model, potq.PoTConfig("pot4"))
    found = potq.kernels.explain(model[0])
    assert (found.backend, found.activations) == ("reference", "float")
    assert found.rejected["cpu"] == "a convolution is computed with its dequantized kernel"
