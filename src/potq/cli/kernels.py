"""``--activations``, and the line that says which kernels ran."""

from __future__ import annotations

from enum import StrEnum


class Activations(StrEnum):
    """The inputs of packed products: rounded to int8 (fast), or not (exact).

    The words of ``potq.kernels.Activations``, whose import would make ``--help`` wait for torch.
    """

    int8 = "int8"
    float = "float"


def kernel_lines(kernels: dict[str, int]) -> list[str]:
    """For people: one line per kernel."""
    return [f"{count} modules on {kernel}" for kernel, count in kernels.items()]
