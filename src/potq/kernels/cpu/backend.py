"""Products and look-ups by the compiled kernels, for modules and for the registered ops.

The canonical codes are repacked into the kernels' tiles (``csrc/kernels/layout.h``) at the first product
(:mod:`potq.kernels.prepared` keeps them), a trellis decoded. The kernels know no row scales: these multiply the kernels'
outputs here.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from potq import native as lib
from potq.kernels.prepared import Prepared, Ready
from potq.kernels.weight import Product, check_input

if TYPE_CHECKING:
    from potq.config import Activations
    from potq.kernels.weight import PackedWeight
    from potq.numerics.scheme import QuantScheme

NAME = "cpu"
_DTYPES = {torch.float32: 0, torch.bfloat16: 1}
_ARITHMETIC = {"int8": 0, "float": 1}
_pack = lib.PRODUCT.pack
_CPU = torch.device("cpu")


def supports(scheme: QuantScheme, shape: tuple[int, int], device: torch.device, dtype: torch.dtype) -> str | None:
    """Why this backend cannot compute with such a weight, or None if it can."""
    if device.type != "cpu":
        return f"it computes on the CPU, the weight is on {device}"
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"it computes in float32, bfloat16 and float16, not {str(dtype).removeprefix('torch.')}"
    reason = lib.missing()
    if reason is None:
        reason = _grid_reason(scheme)
    if reason is None:
        text = lib.library().potq_unsupported(format_of(scheme, shape))
        reason = text.decode() if text else None
    return reason


def _grid_reason(scheme: QuantScheme) -> str | None:
    grid = scheme.grid
    if not grid.fits_int8:
        return f"levels of {min(grid.levels)}..{max(grid.levels)} exceed int8"
    if grid.bits == 8 and grid.encoding != "twos-complement":
        return "8-bit codes are handled in two's complement only"
    return None


def format_of(scheme: QuantScheme, shape: tuple[int, int]) -> lib.Format:
    """The library's description of a weight ``(out, in)`` in ``scheme``, whose levels must fit int8."""
    levels = sorted(scheme.grid.levels) if scheme.trellis else scheme.grid.levels
    return lib.Format(
        rows=shape[0],
        columns=shape[1],
        bits=scheme.code_bits,
        group=scheme.group(shape[1]),
        scale_format=0 if scheme.scale_dtype == "float16" else 1,
        scale_rows=scheme.scale_shape(*shape)[0],
        reference_log2=scheme.grid.reference.bit_length() - 1,
        trellis=scheme.trellis,
        levels=(ctypes.c_int8 * 16)(*levels[:16]),
    )


class Kernel:
    """One weight, ready for products."""

    def __init__(self, weight: PackedWeight) -> None:
        weight.check("cpu")
        self.rows, self.columns = weight.shape
        self._format = format_of(weight.scheme, weight.shape)
        library = lib.library()
        self._multiply = library.potq_linear
        self._isa = lib.usable_isas()[lib.isa()]
        self._tiles = torch.empty(library.potq_tiles_bytes(self._format), dtype=torch.uint8, device=_CPU)
        packed, scale = weight.packed.contiguous(), weight.scale.contiguous()
        library.potq_pack_all(
            self._format, packed.data_ptr(), scale.data_ptr(), self._tiles.data_ptr(), torch.get_num_threads()
        )
        self._format_at, self._tiles_at = ctypes.addressof(self._format), self._tiles.data_ptr()

    def __call__(self, input: Tensor, bias: Tensor | None, activations: Activations) -> Tensor:
        """``input (..., columns) -> (..., rows)`` in the dtype of ``input``."""
        if input.dtype not in _DTYPES:  # float16, which float32 holds exactly
            return self(input.float(), None if bias is None else bias.float(), activations).to(input.dtype)
        shape = [*input.shape]
        if shape[-1] != self.columns or not input.is_cpu:
            check_input(input, (self.rows, self.columns), _CPU)
        shape[-1] = self.rows
        x, output = input.contiguous(), input.new_empty(*shape)  # three ints take half a microsecond less than a tuple
        if bias is not None:
            bias = (bias if bias.dtype == input.dtype else bias.to(input.dtype)).contiguous()
        if self._multiply(self.arguments(x, bias, output, activations), 1, torch.get_num_threads()):
            raise MemoryError(f"no memory for the activations of a product with {x.numel() // self.columns} rows")
        return output

    def arguments(self, x: Tensor, bias: Tensor | None, output: Tensor, activations: Activations) -> bytes:
        """A ``potq_product``; contiguous tensors of one dtype."""
        return _pack(
            self._format_at,
            self._tiles_at,
            x.data_ptr(),
            0 if bias is None else bias.data_ptr(),
            output.data_ptr(),
            x.numel() // self.columns,
            _DTYPES[x.dtype],
            _ARITHMETIC[activations],
            self._isa,
        )


def _row_factors(weight: PackedWeight) -> Tensor:
    """Float32 ``(rows, 1)``. Raises RuntimeError if the row scales are not those of such a weight."""
    row_scale, scheme, rows = weight.row_scale, weight.scheme, len(weight.packed)
    if not scheme.row_scale or row_scale is None:
        raise RuntimeError(f"a weight in {scheme.name} has {'a' if scheme.row_scale else 'no'} row scale")
    if row_scale.shape != (rows, 1) or row_scale.dtype != torch.float16 or row_scale.device.type != "cpu":
        found = f"{row_scale.dtype} {tuple(row_scale.shape)} on {row_scale.device}"
        raise RuntimeError(f"the row scale of {rows} rows is torch.float16 {(rows, 1)} on the CPU, found {found}")
    return row_scale.float()


def _product(weight: PackedWeight) -> Product:
    """A bound method: calling an object takes longer."""
    return Kernel(weight).__call__


kernels = Prepared(_product)


def ready(weight: PackedWeight) -> Ready[Product] | None:
    """The product with a weight for a module to come back to; None where row scales make it more than the kernel's."""
    return kernels.of(weight) if weight.row_scale is None and not weight.scheme.row_scale else None


def linear(input: Tensor, weight: PackedWeight, bias: Tensor | None, activations: Activations) -> Tensor:
    """``input W^T + bias``."""
    product = kernels.of(weight).made
    if weight.row_scale is None and not weight.scheme.row_scale:
        return product(input, bias, activations)
    factors = _row_factors(weight)
    output = product(input.float(), None, activations).mul_(factors[:, 0])  # in float32: halves are rounded once, at the end
    return (output if bias is None else output.add_(bias)).to(input.dtype)


def embedding(ids: Tensor, weight: PackedWeight, dtype: torch.dtype) -> Tensor:
    """Rows ``ids`` of the weight, dequantized exactly, in ``dtype``: ``(*ids.shape, columns)``.

    Raises:
        IndexError: an id outside the table.
    """
    if weight.row_scale is None and not weight.scheme.row_scale:
        return _look_up(ids, weight, dtype if dtype in _DTYPES else torch.float32).to(dtype)
    factors = _row_factors(weight)
    return _look_up(ids, weight, torch.float32).mul_(torch.nn.functional.embedding(ids, factors)).to(dtype)


def _look_up(ids: Tensor, weight: PackedWeight, dtype: torch.dtype) -> Tensor:
    """Rows ``ids`` without row scales, in float32 or bfloat16."""
    indices = ids.long().contiguous()
    weight.check("cpu")
    packed, scale = weight.packed.contiguous(), weight.scale.contiguous()
    output = torch.empty((*ids.shape, weight.columns), dtype=dtype, device=_CPU)
    bad = lib.library().potq_lookup_all(
        format_of(weight.scheme, weight.shape),
        packed.data_ptr(),
        scale.data_ptr(),
        indices.data_ptr(),
        indices.numel(),
        len(packed),
        output.data_ptr(),
        _DTYPES[dtype],
        torch.get_num_threads(),
    )
    if bad >= 0:
        raise IndexError(f"index {indices.flatten()[bad].item()} is outside the table's {len(packed)} rows")
    return output
