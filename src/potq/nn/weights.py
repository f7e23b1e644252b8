"""Where the weights of a model in full precision are, and each of them as a matrix.

Linears, GPT-2's ``Conv1D`` and embeddings are discovered; convolutions in plain modules only. Those of Hugging Face models
are few, small and sensitive, and stay.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor, nn

from potq.errors import ModelError
from potq.nn.convolution import is_convolution, kernel_shape
from potq.nn.experts import Stack, stack_in, stacks
from potq.nn.plain import is_plain


def quantizable_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Linears, ``Conv1D`` and embeddings by name; of a plain module convolutions, too."""
    plain = is_plain(model)
    return {
        name: module
        for name, module in model.named_modules()
        if _is_quantizable(module) or (plain and is_convolution(module))
    }


def quantizable_weights(model: nn.Module) -> list[str]:
    """Names of all that may be quantized, in module order: :func:`quantizable_modules`, and stacks of experts' matrices."""
    modules, found = quantizable_modules(model), stacks(model)
    of_module: dict[str, list[str]] = {}
    for name in found:
        of_module.setdefault(name.rpartition(".")[0], []).append(name)
    names = (name for name, _ in model.named_modules())
    return [each for name in names for each in ([name] if name in modules else of_module.get(name, []))]


class Place(NamedTuple):
    """Where a weight in full precision is.

    Attributes:
        parameter: in its module.
        matrix: what a tensor that is stored there is as a matrix.
        stored: the inverse, in the parameter's dtype.
    """

    parameter: nn.Parameter
    matrix: Callable[[Tensor], Tensor]
    stored: Callable[[Tensor], Tensor]

    @classmethod
    def of(cls, model: nn.Module, name: str) -> Place:
        """Of the weight that a plan of ``model`` calls ``name``."""
        parent, _, key = name.rpartition(".")
        holder = model.get_submodule(parent)
        if key in holder._parameters:
            stack = stack_in(holder, key)
            dtype = stack.parameter.dtype
            return cls(stack.parameter, stack.as_matrix, lambda matrix: stack.as_stored(matrix).to(dtype).contiguous())
        module = model.get_submodule(name)
        parameter: Any = weight_of(module)
        return cls(parameter, partial(as_matrix, module), lambda matrix: as_weight(module, matrix).to(parameter.dtype))


def matrix_of(model: nn.Module, name: str) -> Tensor:
    """The weight in full precision that a plan of ``model`` calls ``name``, as a matrix."""
    place = Place.of(model, name)
    return place.matrix(place.parameter.detach())


def find_stack(model: nn.Module, name: str) -> Stack:
    """The stack of experts' matrices that ``model`` calls ``name``."""
    parent, _, key = name.rpartition(".")
    return stack_in(model.get_submodule(parent), key)


def linear_weight(module: nn.Module) -> Tensor:
    """The weight of a linear, ``Conv1D``, embedding or convolution as ``(out, in)``."""
    return as_matrix(module, weight_of(module))


def as_matrix(module: nn.Module, weight: Tensor) -> Tensor:
    """``weight``, which belongs to ``module``, as ``(out, in)``: GPT-2's ``Conv1D`` stores it transposed."""
    if is_convolution(module):
        return weight.flatten(1)
    return weight.t() if _is_conv1d(module) else weight


def as_weight(module: nn.Module, matrix: Tensor) -> Tensor:
    """The inverse of :func:`as_matrix`: ``matrix`` ``(out, in)`` as ``module`` stores its weight."""
    if is_convolution(module):
        return matrix.reshape(kernel_shape(module))
    return matrix.t() if _is_conv1d(module) else matrix


def weight_of(module: nn.Module) -> Tensor:
    """The weight of a linear, ``Conv1D``, embedding or convolution as the module stores it."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor):
        raise ModelError(f"{type(module).__name__} has no weight tensor")
    return weight


def _is_quantizable(module: nn.Module) -> bool:
    return isinstance(module, (nn.Linear, nn.Embedding)) or _is_conv1d(module)


def _is_conv1d(module: nn.Module) -> bool:
    return any(c.__name__ == "Conv1D" and c.__module__ == "transformers.pytorch_utils" for c in type(module).__mro__)
