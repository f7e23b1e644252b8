"""What each target can hold: the smallest exact type of a scheme, and the nearest scheme that has one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from potq.errors import ExportError
from potq.export.blocks import BlockType, obstacle
from potq.export.compressed_types import COMPRESSED_TYPES
from potq.export.gguf.types import GGML_TYPES
from potq.export.onnx.types import NBITS_TYPES
from potq.numerics.scheme import PRESETS, QuantScheme

_COLUMNS = 4096  # of a row, where a scheme is judged without a model: blocks of every size divide it
_WIDE = 8.0  # bits per weight


@dataclass(frozen=True)
class ExportTarget:
    """A file format, by the word of ``--to``, and its block types, the smallest first."""

    name: str
    types: tuple[BlockType, ...]

    def form(self, scheme: QuantScheme, columns: int = _COLUMNS) -> BlockType | None:
        """The smallest type that holds ``scheme`` exactly in rows of ``columns`` weights, if any does."""
        exact = [kind for kind in self.types if obstacle(scheme, kind, columns) is None]
        return min(exact, key=lambda kind: kind.bits(columns), default=None)


GGUF = ExportTarget("gguf", tuple(kind.block for kind in GGML_TYPES.values()))
COMPRESSED_TENSORS = ExportTarget("compressed-tensors", COMPRESSED_TYPES)
ONNX = ExportTarget("onnx", NBITS_TYPES)
TARGETS = {target.name: target for target in (GGUF, COMPRESSED_TENSORS, ONNX)}
"""By name."""


def is_wide(scheme: QuantScheme, kind: BlockType) -> bool:
    """Whether ``kind`` takes 8 bits or more for a level of fewer, which ``--allow-8bit`` allows."""
    return kind.bits_per_weight >= _WIDE and scheme.code_bits < _WIDE


def nearest(scheme: QuantScheme, target: ExportTarget) -> str:
    """The preset most like ``scheme`` that ``target`` holds exactly in less than 8 bits: in bits, then terms, then size."""

    def distance(name: str) -> tuple[float, ...]:
        other = PRESETS[name]
        kind = target.form(other)
        assert kind is not None
        terms = abs(other.grid.terms - scheme.grid.terms)
        return abs(other.code_bits - scheme.code_bits), terms, kind.bits_per_weight

    held = [name for name, other in PRESETS.items() if (kind := target.form(other)) and kind.bits_per_weight < _WIDE]
    return min(held, key=distance)


def check_schemes(schemes: Iterable[QuantScheme], target: ExportTarget, *, allow_8bit: bool) -> None:
    """Refuse what ``target`` cannot hold exactly, or only in 8 bits and more where that is not allowed.

    Raises:
        ExportError: names the scheme, and the nearest that would do.
    """
    for scheme in dict.fromkeys(schemes):
        kind = target.form(scheme)
        if kind is None:
            raise ExportError(
                f"{target.name} has no type that holds {scheme.name} exactly; the nearest scheme that it holds is "
                f"{nearest(scheme, target)}"
            )
        if is_wide(scheme, kind) and not allow_8bit:
            raise ExportError(
                f"{target.name} holds {scheme.name} exactly only as {kind.name}, {kind.bits_per_weight:g} bits per weight: "
                f"pass --allow-8bit (allow_8bit=True) for that, or quantize to {nearest(scheme, target)}, the nearest "
                "scheme with a smaller exact form"
            )
