"""``--activations``."""

from __future__ import annotations

from enum import StrEnum


class Activations(StrEnum):
    """The inputs of packed products: rounded to int8 (fast), or not (exact).

    The words of ``potq.config.Activations``; typer wants an enumeration.
    """

    int8 = "int8"
    float = "float"
