"""Products on CUDA GPUs by Triton kernels, for modules and for the registered ops.

The canonical codes are arranged for the GPU (:mod:`potq.kernels.triton.layout`) at the first product, on the device
(:mod:`potq.kernels.prepared` keeps them), which waits for it once. A trellis is decoded to codes of its grid before. A
captured CUDA graph must so be preceded by one ordinary call, which compiling a kernel needs anyway. Activations are never
rounded. Triton is imported at the first product.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from potq.kernels import reference
from potq.kernels.prepared import Prepared
from potq.kernels.triton.layout import OCTET, WIDTHS

if TYPE_CHECKING:
    from potq.config import Activations
    from potq.kernels.triton.weight import GpuWeight
    from potq.kernels.weight import PackedWeight
    from potq.numerics.scheme import QuantScheme

NAME = "triton"


def supports(scheme: QuantScheme, shape: tuple[int, int], device: torch.device, dtype: torch.dtype) -> str | None:
    """Why this backend cannot compute with such a weight, or None if it can."""
    if device.type != "cuda":
        return f"it computes on CUDA GPUs, the weight is on {device}"
    return _missing() or _hardware_reason(device) or format_reason(scheme, shape, dtype)


@cache
def _missing() -> str | None:
    if torch.version.hip is not None:
        return "its kernels are for NVIDIA GPUs"
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed; pip install 'potq[gpu]'"
    return None if importlib.util.find_spec("triton.knobs") else "the installed triton is too old; pip install 'potq[gpu]'"


def _hardware_reason(device: torch.device) -> str | None:
    major, minor = torch.cuda.get_device_capability(device)
    return None if (major, minor) >= (8, 0) else f"it needs compute capability 8.0, the GPU has {major}.{minor}"


def format_reason(scheme: QuantScheme, shape: tuple[int, int], dtype: torch.dtype) -> str | None:
    """What the kernels do not handle about a weight ``(out, in)`` and inputs of ``dtype``, or None."""
    grid, group = scheme.grid, scheme.group(shape[1])
    if dtype not in (torch.float16, torch.bfloat16):
        return f"it computes in float16 and bfloat16, not {str(dtype).removeprefix('torch.')}"
    if grid.bits not in WIDTHS:
        return f"it handles 2, 3, 4 and 8 bits, not {grid.bits}"
    if not grid.fits_int8:
        return f"levels of {min(grid.levels)}..{max(grid.levels)} exceed int8"
    if group % 16 and group < shape[1]:
        return "the group size is not a multiple of 16"
    if shape[1] % OCTET:
        return f"{shape[1]} columns are not a multiple of {OCTET}"
    return None


def _arrange(weight: PackedWeight) -> GpuWeight:
    from potq.kernels.triton.weight import GpuWeight

    weight.check(weight.packed.device.type)
    return GpuWeight.of(weight)


weights = Prepared(_arrange)


def linear(input: Tensor, weight: PackedWeight, bias: Tensor | None, activations: Activations) -> Tensor:
    """``input W^T + bias``, activations never rounded, sums in float32.

    Raises:
        RuntimeError: tensors that are not those of such a weight.
    """
    from potq.kernels.triton import product

    arranged = weights.of(weight).made
    expected = (arranged.rows, 1) if weight.scheme.row_scale else None
    found = None if weight.row_scale is None else tuple(weight.row_scale.shape)
    if found != expected:
        raise RuntimeError(
            f"a weight in {weight.scheme.name} of {arranged.rows} rows has row scales {expected}, found {found}"
        )
    return product.linear(input, arranged, bias, weight.row_scale)


def embedding(ids: Tensor, weight: PackedWeight, dtype: torch.dtype) -> Tensor:
    """Rows ``ids`` of the weight in ``dtype``: a few rows are torch's work, from the checkpoint's layout."""
    return reference.embedding(ids, weight, dtype)
