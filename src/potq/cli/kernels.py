"""``--activations``, and the line that says which kernels ran."""

from __future__ import annotations

from collections import Counter
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


class Activations(StrEnum):
    """The inputs of packed products: rounded to int8 (fast), or not (exact).

    The words of ``potq.kernels.Activations``, whose import would make ``--help`` wait for torch.
    """

    int8 = "int8"
    float = "float"


def use_kernels(model: nn.Module, activations: Activations) -> dict[str, int]:
    """Set how packed products treat activations; returns what computes them, and in how many modules each."""
    from potq.kernels import explain, set_activations
    from potq.nn.plan import packed_modules

    packed = packed_modules(model)
    if packed:
        set_activations(model, activations.value)
    return dict(Counter(str(explain(module)) for module in packed.values()))


def kernel_lines(kernels: dict[str, int]) -> list[str]:
    """For people: one line per kernel."""
    return [f"{count} modules on {kernel}" for kernel, count in kernels.items()]
