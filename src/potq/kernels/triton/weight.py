"""A weight on the GPU: its words, its scales, and the constants that its kernels are compiled for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from potq.kernels.triton.form import Form, form_of
from potq.kernels.triton.layout import Words, arrange
from potq.kernels.weight import PackedWeight
from potq.numerics.functional import decode_scale
from potq.numerics.scheme import QuantScheme
from potq.numerics.trellis import expanded

TYPES = {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}
MANTISSA = {torch.float16: 10, torch.bfloat16: 7}


@dataclass(frozen=True, eq=False)
class GpuWeight:
    """One packed weight ``(rows, columns)`` as the kernels take it; all tensors on one device.

    Attributes:
        words: the codes.
        scale: as stored, contiguous.
        table: float32 ``(2**bits,)``, ``level / reference`` of every code.
        largest: the largest stored scale; NaN if one is.
    """

    words: Words
    scale: Tensor
    table: Tensor
    rows: int
    columns: int
    scheme: QuantScheme
    largest: float

    @classmethod
    def of(cls, weight: PackedWeight) -> GpuWeight:
        """Arrange the tensors of a checkpoint, on their device; waits for it.

        Raises:
            ConfigError: a width or a number of columns that the layout does not have.
        """
        packed, scale, scheme, columns, _ = weight
        grid = scheme.grid
        levels = torch.tensor([level / grid.reference for level in grid.levels], dtype=torch.float32, device=packed.device)
        if scheme.trellis:
            packed = expanded(packed, grid, columns)
        words, largest = arrange(packed, grid.bits, columns), float(decode_scale(scale, None).max())
        return cls(words, scale.contiguous(), levels, len(packed), columns, scheme, largest)

    @property
    def form(self) -> Form:
        return form_of(self.scheme.grid)

    @property
    def group(self) -> int:
        """Columns that share a scale."""
        return self.scheme.group(self.columns)

    @property
    def scale_stride(self) -> int:
        """Scales from one row to the next; 0 where all rows share one."""
        return self.scale.shape[1] if len(self.scale) > 1 else 0

    def lifts(self, dtype: torch.dtype) -> bool:
        """Whether weights are powers of two times lifted scales that ``dtype`` holds. (One below its range makes zeros.)"""
        lift = self.form.lift(MANTISSA[dtype])
        return self.form.kind == "powers" and self.largest * lift <= torch.finfo(dtype).max

    def constants(self, mantissa: int) -> dict[str, Any]:
        """What every kernel is compiled for that makes floats with so many bits of mantissa."""
        form = self.form
        return {
            "BITS": self.scheme.grid.bits,
            "GROUP": self.group,
            "E8M0": self.scheme.scale_dtype == "e8m0",
            "STRIDE": form.stride,
            "BASE": form.base(mantissa),
            "LIFT": form.lift(mantissa),
        }
