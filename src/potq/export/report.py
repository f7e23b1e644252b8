"""What an export wrote: the :class:`ExportReport`, as a table and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from rich.table import Table


class ExportedTensor(BaseModel):
    """One tensor of the file: its name there and in the model, its type there, how many weights, and a remark."""

    model_config = ConfigDict(extra="forbid")

    name: str
    module: str
    type: str
    scheme: str | None
    weights: int
    nbytes: int
    note: str = ""

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.nbytes / self.weights


class ExportReport(BaseModel):
    """Result of an export: the output, its size, its tensors."""

    model_config = ConfigDict(extra="forbid")

    path: str
    nbytes: int
    tensors: list[ExportedTensor]

    @property
    def bits_per_weight(self) -> float:
        """Stored bits per weight of all tensors, those that were never quantized too."""
        return _bits(self.tensors)

    @property
    def quantized_bits_per_weight(self) -> float:
        """Stored bits per weight of the tensors that potq had quantized, scales included."""
        return _bits([tensor for tensor in self.tensors if tensor.scheme is not None])

    @property
    def notes(self) -> list[str]:
        """One line for each quantized weight that had to be stored as floats."""
        return [f"{tensor.module} as {tensor.type}: {tensor.note}" for tensor in self.tensors if tensor.note]

    def to_dict(self) -> dict[str, Any]:
        """What ``--json`` prints: everything, and the bits per weight of all and of what potq had quantized."""
        bits = {"bits_per_weight": self.bits_per_weight, "quantized_bits_per_weight": self.quantized_bits_per_weight}
        return {**self.model_dump(mode="json"), **bits}

    def summary(self) -> str:
        """One line: what it takes."""
        count = sum(tensor.scheme is not None for tensor in self.tensors)
        part = f"{count} quantized at {self.quantized_bits_per_weight:.3f}"
        return f"{self.bits_per_weight:.3f} bits per weight, {part}; {self.nbytes / 1e6:.1f} MB"

    def table(self) -> Table:
        """Schemes and the types that hold them."""
        from rich import box
        from rich.table import Table

        table = Table(title=self.summary(), title_justify="left", box=box.SIMPLE)
        for heading in ("scheme", "type", "tensors", "weights", "bits"):
            table.add_column(heading, justify="left" if heading in ("scheme", "type") else "right", overflow="fold")
        groups: dict[tuple[str | None, str], list[ExportedTensor]] = {}
        for tensor in self.tensors:
            groups.setdefault((tensor.scheme, tensor.type), []).append(tensor)
        for (scheme, kind), group in groups.items():
            weights = sum(tensor.weights for tensor in group)
            table.add_row(scheme or "(not quantized)", kind, str(len(group)), f"{weights:,}", f"{_bits(group):.4g}")
        return table


def _bits(tensors: Sequence[ExportedTensor]) -> float:
    return 8 * sum(tensor.nbytes for tensor in tensors) / sum(tensor.weights for tensor in tensors)
