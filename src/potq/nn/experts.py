"""Stacks of experts' matrices: one parameter of three dimensions holds a matrix for each expert of a layer.

Rows are independent of each other in everything that quantizing does. So a stack of ``E`` matrices ``(out, in)`` is a matrix
``(E * out, in)`` there. Some architectures store each matrix as ``(in, out)``. Which do is not guessed:

* transformers' experts say it themselves (``is_transposed`` of ``use_experts_implementation``);
* of a ``gate_up_proj`` and a ``down_proj`` only one way fits, since the first puts out twice what the second takes in;
* ``ParallelExperts`` name their input and output sizes.

Any other parameter of three dimensions is no stack, and is left and listed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor, nn

from potq.nn.plain import is_plain

PREFIX = "stacked_"
"""Of the name of a stack's module (:mod:`potq.nn.stacked`). transformers renames what begins with the parameter's name."""


class Stack(NamedTuple):
    """A stack of experts' matrices in full precision.

    Attributes:
        module: what holds it.
        key: the parameter's name there.
        transposed: whether each matrix is stored as ``(in, out)``.
    """

    module: nn.Module
    key: str
    transposed: bool

    @property
    def parameter(self) -> nn.Parameter:
        found = self.module._parameters[self.key]
        assert found is not None  # it was found there
        return found

    @property
    def shape(self) -> tuple[int, int, int]:
        """Experts, outputs, inputs."""
        experts, first, second = self.parameter.shape
        return (experts, second, first) if self.transposed else (experts, first, second)

    def as_matrix(self, stored: Tensor) -> Tensor:
        """``stored``, as the architecture has it, as ``(experts * out, in)``."""
        return (stored.mT if self.transposed else stored).flatten(0, 1)


def as_stack(matrix: Tensor, experts: int, *, transposed: bool) -> Tensor:
    """``matrix`` ``(experts * out, in)`` as the architecture has it; a view."""
    stack: Tensor = matrix.unflatten(0, (experts, -1))
    return stack.transpose(1, 2) if transposed else stack


def stacks(model: nn.Module) -> dict[str, Stack]:
    """Every stack of a model of transformers by its parameter's name, in module order; of a plain module none."""
    if is_plain(model):
        return {}
    return {
        f"{name}.{key}".lstrip("."): Stack(module, key, transposed)
        for name, module in model.named_modules()
        for key, transposed in _stacks_of(module).items()
    }


def routers(model: nn.Module) -> list[str]:
    """Linears that choose among the experts beside them: they put out a number for each."""
    if is_plain(model):
        return []
    found: dict[str, None] = {}
    for parent, count in _places_of_experts(model):
        for name, module in model.get_submodule(parent).named_modules():
            if isinstance(module, nn.Linear) and module.out_features == count and "experts" not in name.split("."):
                found[f"{parent}.{name}"] = None
    return list(found)


def _places_of_experts(model: nn.Module) -> Iterator[tuple[str, int]]:
    """Modules in which there are experts, with their number: stacks, or lists that are called so."""
    for name, stack in stacks(model).items():
        yield name.rpartition(".")[0].rpartition(".")[0], stack.shape[0]
    for name, module in model.named_modules():
        if isinstance(module, (nn.ModuleList, nn.ModuleDict)) and name.endswith(".experts"):
            yield name.rpartition(".")[0], len(module)


def stack_in(module: nn.Module, key: str) -> Stack:
    """The stack ``key`` of ``module``, which has it."""
    return Stack(module, key, _stacks_of(module)[key])


def _stacks_of(module: nn.Module) -> dict[str, bool]:
    """Parameters of ``module`` that are stacks, and whether they are transposed."""
    found = {key: tuple(each.shape) for key, each in module._parameters.items() if each is not None and each.ndim == 3}
    others = [child for name, child in module._modules.items() if name.startswith(PREFIX)]
    if others:  # stacks of the same module that are modules already
        return dict.fromkeys(found, bool(getattr(others[0], "transposed", False)))
    declared = getattr(module, "is_transposed", None)
    if isinstance(declared, bool) and hasattr(module, "has_bias"):
        return dict.fromkeys(found, declared)
    if found.keys() == {"gate_up_proj", "down_proj"}:
        (_, first, second), (_, third, fourth) = found["gate_up_proj"], found["down_proj"]
        fits = {False: (first, second) == (2 * fourth, third), True: (first, second) == (fourth, 2 * third)}
        return {key: transposed for transposed, fit in fits.items() if fit for key in found}
    if type(module).__name__.endswith("ParallelExperts") and found.keys() == {"weight"}:
        sizes = tuple(getattr(module, size, None) for size in ("num_experts", "output_size", "input_size"))
        return {"weight": False} if found["weight"] == sizes else {}
    return {}
