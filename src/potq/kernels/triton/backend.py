"""Products on CUDA GPUs by Triton kernels, for modules and for the registered ops.

The canonical codes are arranged for the GPU (:mod:`potq.kernels.triton.layout`) at the first product, on the device, and
kept as long as the packed tensor lives; writing into it makes them anew. A captured CUDA graph must so be preceded by one
ordinary call, which compiling a kernel needs anyway. Activations are never rounded. Triton is imported at the first product.
"""

from __future__ import annotations

import importlib.util
import weakref
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from potq.kernels import reference
from potq.kernels.triton.layout import COLUMNS
from potq.tensor import storage

if TYPE_CHECKING:
    from potq.kernels.registry import Activations
    from potq.kernels.triton.weight import GpuWeight
    from potq.scheme import QuantScheme

NAME = "triton"


def supports(scheme: QuantScheme, shape: tuple[int, int], device: torch.device, dtype: torch.dtype) -> str | None:
    """Why this backend cannot compute with such a weight, or None if it can."""
    if device.type != "cuda":
        return f"it computes on CUDA GPUs, the weight is on {device}"
    return _missing() or _hardware_reason(device) or format_reason(scheme, shape, dtype)


@cache
def _missing() -> str | None:
    return None if importlib.util.find_spec("triton") else "triton is not installed; pip install 'potq[gpu]'"


def _hardware_reason(device: torch.device) -> str | None:
    major, minor = torch.cuda.get_device_capability(device)
    return None if (major, minor) >= (8, 0) else f"it needs compute capability 8.0, the GPU has {major}.{minor}"


def format_reason(scheme: QuantScheme, shape: tuple[int, int], dtype: torch.dtype) -> str | None:
    """What the kernels do not handle about a weight ``(out, in)`` and inputs of ``dtype``, or None."""
    grid, group = scheme.grid, scheme.group(shape[1])
    if dtype not in (torch.float16, torch.bfloat16):
        return f"it computes in float16 and bfloat16, not {str(dtype).removeprefix('torch.')}"
    if grid.bits > 4:
        return f"it handles 2 to 4 bits, not {grid.bits}"
    if not grid.fits_int8:
        return f"levels of {min(grid.levels)}..{max(grid.levels)} exceed int8"
    if group % 16:
        return "the group size is not a multiple of 16"
    if shape[1] % COLUMNS:
        return f"{shape[1]} columns are not a multiple of {COLUMNS}"
    return None


class _Arranged:
    """A weight in the GPU's layout, and what it was made from."""

    def __init__(self, packed: Tensor, scale: Tensor, scheme: QuantScheme, columns: int) -> None:
        from potq.kernels.triton.weight import GpuWeight

        _check_storage(packed, scale, scheme, columns)
        self.weight = GpuWeight.of(packed, scale, scheme, columns)
        self._sources = weakref.ref(packed), weakref.ref(scale)
        self._state = _state(packed), _state(scale)

    def current(self, packed: Tensor, scale: Tensor, scheme: QuantScheme, columns: int) -> bool:
        """Whether it still is that of these tensors."""
        same = self._sources[0]() is packed and self._sources[1]() is scale
        same = same and self._state == (_state(packed), _state(scale)) and self.weight.columns == columns
        return same and (self.weight.scheme is scheme or self.weight.scheme == scheme)


def _state(tensor: Tensor) -> tuple[int, int]:
    """Changes when the tensor is written to or given other memory. Inference tensors do not count writes."""
    return tensor.data_ptr(), -1 if tensor.is_inference() else tensor._version


def _check_storage(packed: Tensor, scale: Tensor, scheme: QuantScheme, columns: int) -> None:
    """Raise RuntimeError if the kernels would read past the tensors."""
    stored = storage((len(packed), columns), scheme)
    found = (tuple(packed.shape), packed.dtype), (tuple(scale.shape), scale.dtype)
    if found != (stored["packed"], stored["scale"]) or packed.device != scale.device:
        raise RuntimeError(
            f"a weight of shape {(len(packed), columns)} in {scheme.name} has codes and scales "
            f"{(stored['packed'], stored['scale'])} on one device, found {found} on {packed.device} and {scale.device}"
        )


_arranged: dict[int, _Arranged] = {}  # by the id of the packed tensor; an entry goes when its tensor does


def weight_of(packed: Tensor, scale: Tensor, scheme: QuantScheme, columns: int) -> GpuWeight:
    """This weight in the GPU's layout, arranged at first use."""
    key = id(packed)
    found = _arranged.get(key)
    if found is None or not found.current(packed, scale, scheme, columns):
        found = _arranged[key] = _Arranged(packed, scale, scheme, columns)
        weakref.finalize(packed, _forget, key, weakref.ref(found))
    return found.weight


def _forget(key: int, arranged: weakref.ref[_Arranged]) -> None:
    if _arranged.get(key) is arranged():
        _arranged.pop(key, None)


def linear(
    input: Tensor,
    packed: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    scheme: QuantScheme,
    activations: Activations,
    row_scale: Tensor | None = None,
) -> Tensor:
    """``input W^T + bias``, activations never rounded, sums in float32.

    Raises:
        RuntimeError: tensors that are not those of such a weight.
    """
    from potq.kernels.triton import product

    weight = weight_of(packed, scale, scheme, input.shape[-1])
    expected = (weight.rows, 1) if scheme.row_scale else None
    found = None if row_scale is None else tuple(row_scale.shape)
    if found != expected:
        raise RuntimeError(f"a weight in {scheme.name} of {weight.rows} rows has row scales {expected}, found {found}")
    return product.linear(input, weight, bias, row_scale)


def embedding(
    ids: Tensor,
    packed: Tensor,
    scale: Tensor,
    scheme: QuantScheme,
    columns: int,
    dtype: torch.dtype,
    row_scale: Tensor | None = None,
) -> Tensor:
    """Rows ``ids`` of the weight in ``dtype``: a few rows are torch's work, from the checkpoint's layout."""
    return reference.embedding(ids, packed, scale, scheme, columns, dtype, row_scale)
