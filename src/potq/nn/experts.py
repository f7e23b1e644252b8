"""Stacks of experts' matrices: one parameter of three dimensions holds a matrix for each expert of a layer.

Rows are independent of each other in everything that quantizing does. So a stack of ``E`` matrices ``(out, in)`` is a matrix
``(E * out, in)`` there. Some architectures store each matrix as ``(in, out)``. Which do is not guessed:

* transformers' experts say it themselves (``is_transposed`` of ``use_experts_implementation``);
* of a ``gate_up_proj`` and a ``down_proj`` only one way fits, since the first puts out twice what the second takes in;
* ``ParallelExperts`` name their input and output sizes;
* DBRX has three matrices of one shape for an expert, in parameters of two dimensions: two go in, and one comes back.

Any other parameter of three dimensions is no stack, and is left and listed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor, nn

from potq.nn.plain import is_plain

PREFIX = "stacked_"
"""Of the name of a stack's module (:mod:`potq.nn.stacked`). transformers renames what begins with the parameter's name."""


_FLAT = ("w1", "v1", "w2")  # of DBRX; the last one comes back


class Stack(NamedTuple):
    """A stack of experts' matrices in full precision.

    Attributes:
        module: what holds it.
        key: the parameter's name there.
        transposed: whether each matrix is stored as ``(in, out)``.
        flat: the number of experts, if their matrices lie one below the other in two dimensions; else 0.
    """

    module: nn.Module
    key: str
    transposed: bool
    flat: int = 0

    @property
    def parameter(self) -> nn.Parameter:
        found = self.module._parameters[self.key]
        assert found is not None  # it was found there
        return found

    @property
    def shape(self) -> tuple[int, int, int]:
        """Experts, outputs, inputs."""
        experts, first, second = self.in_three(self.parameter).shape
        return (experts, second, first) if self.transposed else (experts, first, second)

    def as_matrix(self, stored: Tensor) -> Tensor:
        """``stored``, as the architecture has it, as ``(experts * out, in)``."""
        stack = self.in_three(stored)
        return (stack.mT if self.transposed else stack).flatten(0, 1)

    def as_stored(self, matrix: Tensor) -> Tensor:
        """The inverse of :meth:`as_matrix`; a view."""
        stack = as_stack(matrix, self.shape[0], transposed=self.transposed)
        return stack.flatten(0, 1) if self.flat else stack

    def in_three(self, stored: Tensor) -> Tensor:
        """``stored`` with one matrix for each expert; a view."""
        stack: Tensor = stored.unflatten(0, (self.flat, -1)) if self.flat else stored
        return stack


def as_stack(matrix: Tensor, experts: int, *, transposed: bool) -> Tensor:
    """``matrix`` ``(experts * out, in)`` as matrices that are as the architecture has them; a view."""
    stack: Tensor = matrix.unflatten(0, (experts, -1))
    return stack.transpose(1, 2) if transposed else stack


def stacks(model: nn.Module) -> dict[str, Stack]:
    """Every stack of a model of transformers by its parameter's name, in module order; of a plain module none."""
    if is_plain(model):
        return {}
    return {
        f"{name}.{key}".lstrip("."): stack
        for name, module in model.named_modules()
        for key, stack in _stacks_of(module).items()
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
        parent = name.rpartition(".")[0].rpartition(".")[0]
        yield parent, stack.shape[0]
        if parent.endswith(".experts"):
            yield parent.removesuffix(".experts"), stack.shape[0]
    for name, module in model.named_modules():
        if isinstance(module, (nn.ModuleList, nn.ModuleDict)) and name.endswith(".experts"):
            yield name.rpartition(".")[0], len(module)


def stack_in(module: nn.Module, key: str) -> Stack:
    """The stack ``key`` of ``module``, which has it."""
    return _stacks_of(module)[key]


def _stacks_of(module: nn.Module) -> dict[str, Stack]:
    """Parameters of ``module`` that are stacks."""
    if sizes := _flat_sizes(module):
        shape = sizes[0] * sizes[1], sizes[2]
        keys = [key for key in _FLAT if (each := module._parameters.get(key)) is not None and each.shape == shape]
        return {key: Stack(module, key, key == _FLAT[-1], sizes[0]) for key in keys}
    return {key: Stack(module, key, transposed) for key, transposed in _transposed(module).items()}


def _flat_sizes(module: nn.Module) -> tuple[int, int, int] | None:
    """Experts, inner and outer width of DBRX's experts."""
    sizes = tuple(getattr(module, name, None) for name in ("moe_num_experts", "ffn_hidden_size", "hidden_size"))
    return sizes if type(module).__name__.endswith("DbrxExpertGLU") and all(sizes) else None  # type: ignore[return-value]


def _transposed(module: nn.Module) -> dict[str, bool]:
    """Parameters of three dimensions that are stacks, and whether they are transposed."""
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
