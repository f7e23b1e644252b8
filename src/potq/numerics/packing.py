"""The canonical packed layout: device-independent, row-major, little-endian bit order.

A row of ``n`` codes of ``b`` bits is a sequence of planes, each padded with zero bits to a whole byte and each packed lowest
code first, lowest bit first::

    b = 2, 4, 8   one plane of b bits
    b = 3         a plane of the low 2 bits, then the sign plane (1 bit)
    b = 5, 6, 7   a plane of the low 4 bits, then 1-bit planes for bits 4, 5, ..., the sign last

3 bits so cost 3 bits, and a kernel can load signs apart from magnitudes. (A dense 3-bit stream was rejected: codes would
straddle bytes.)
"""

from __future__ import annotations

import torch
from torch import Tensor

from potq.numerics.scheme import plane_widths


def pack(codes: Tensor, bits: int) -> Tensor:
    """Pack ``(rows, n)`` uint8 codes below ``2**bits`` into ``(rows, packed_row_bytes(n, bits))`` uint8."""
    planes = []
    shift = 0
    for width in plane_widths(bits):
        planes.append(_pack_plane((codes >> shift) & (2**width - 1), width))
        shift += width
    return torch.cat(planes, dim=1)


def unpack(packed: Tensor, bits: int, columns: int) -> Tensor:
    """Inverse of :func:`pack`: ``(rows, columns)`` uint8 codes."""
    return _combine(_planes(packed, bits, columns), bits)[:, :columns]


def padding_is_zero(packed: Tensor, bits: int, columns: int) -> bool:
    """Whether the bits behind each plane's last code are zero, as :func:`pack` writes them."""
    return not any(plane[:, columns:].any() for plane in _planes(packed, bits, columns))


def _planes(packed: Tensor, bits: int, columns: int) -> list[Tensor]:
    """Every plane of ``packed``, unpacked, padding included."""
    widths = plane_widths(bits)
    sizes = [-(-columns * width // 8) for width in widths]
    return [_unpack_plane(part, width) for part, width in zip(packed.split(sizes, dim=1), widths, strict=True)]


def _combine(planes: list[Tensor], bits: int) -> Tensor:
    columns = min(plane.shape[1] for plane in planes)
    codes = planes[0][:, :columns]
    shift = plane_widths(bits)[0]
    for plane in planes[1:]:
        codes = codes | (plane[:, :columns] << shift)
        shift += 1
    return codes


def _pack_plane(values: Tensor, width: int) -> Tensor:
    per_byte = 8 // width
    padding = -values.shape[1] % per_byte
    values = torch.nn.functional.pad(values, (0, padding)).unflatten(1, (-1, per_byte))
    packed = values[..., 0].clone()
    for i in range(1, per_byte):
        packed |= values[..., i] << (i * width)
    return packed


def _unpack_plane(packed: Tensor, width: int) -> Tensor:
    if width == 8:
        return packed
    shifts = range(0, 8, width)
    return torch.stack([(packed >> shift) & (2**width - 1) for shift in shifts], dim=-1).flatten(1)
