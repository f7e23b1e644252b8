"""A weight on the GPU: its words, its scales, and the constants that its kernels are compiled for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from potq.kernels.triton.form import Form, form_of
from potq.kernels.triton.layout import Words, arrange, pairs_per_word
from potq.scheme import QuantScheme


@dataclass(frozen=True, eq=False)
class GpuWeight:
    """One packed weight ``(rows, columns)`` as the kernels take it; all tensors on one device.

    Attributes:
        words: the codes.
        scale: as stored, contiguous.
        table: float32 ``(2**bits,)``, ``level / reference`` of every code.
    """

    words: Words
    scale: Tensor
    table: Tensor
    rows: int
    columns: int
    scheme: QuantScheme

    @classmethod
    def of(cls, packed: Tensor, scale: Tensor, scheme: QuantScheme, columns: int) -> GpuWeight:
        """Arrange the tensors of a checkpoint (see :class:`potq.tensor.QuantizedWeight`), on their device.

        Raises:
            ConfigError: a width or a number of columns that the layout does not have.
        """
        grid = scheme.grid
        levels = torch.tensor([level / grid.reference for level in grid.levels], dtype=torch.float32, device=packed.device)
        words = arrange(packed, grid.bits, columns)
        return cls(words, scale.contiguous(), levels, len(packed), columns, scheme)

    @property
    def form(self) -> Form:
        return form_of(self.scheme.grid)

    @property
    def pairs(self) -> int:
        """Pairs of columns in a word."""
        return pairs_per_word(self.scheme.grid.bits)

    @property
    def group(self) -> int:
        """Columns that share a scale."""
        return self.scheme.group(self.columns)

    @property
    def scale_stride(self) -> int:
        """Scales from one row to the next; 0 where all rows share one."""
        return self.scale.shape[1] if len(self.scale) > 1 else 0

    def constants(self, row_scale: Tensor | None) -> dict[str, Any]:
        """What every kernel is compiled for."""
        return {
            "BITS": self.scheme.grid.bits,
            "PAIRS": self.pairs,
            "GROUP": self.group,
            "E8M0": self.scheme.scale_dtype == "e8m0",
            "ROW_SCALE": row_scale is not None,
        }
