"""What an export wrote: the :class:`ExportReport`, as a table and as JSON."""

from __future__ import annotations

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
        """Stored bits per weight of the tensors that potq had quantized, scales included."""
        quantized = [tensor for tensor in self.tensors if tensor.scheme is not None]
        return 8 * sum(tensor.nbytes for tensor in quantized) / sum(tensor.weights for tensor in quantized)

    @property
    def notes(self) -> list[str]:
        """One line for each quantized weight that had to be stored as floats."""
        return [f"{tensor.module} as {tensor.type}: {tensor.note}" for tensor in self.tensors if tensor.note]

    def to_dict(self) -> dict[str, Any]:
        """What ``--json`` prints: everything, and the bits per weight."""
        return {**self.model_dump(mode="json"), "bits_per_weight": self.bits_per_weight}

    def summary(self) -> str:
        """One line: what it takes."""
        count = sum(tensor.scheme is not None for tensor in self.tensors)
        return f"{count} quantized weights at {self.bits_per_weight:.3f} bits per weight; {self.nbytes / 1e6:.1f} MB"

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
            bits = 8 * sum(tensor.nbytes for tensor in group) / weights
            table.add_row(scheme or "(not quantized)", kind, str(len(group)), f"{weights:,}", f"{bits:.4g}")
        return table
