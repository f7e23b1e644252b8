"""The GPU layout of codes: octets of columns in 32-bit words, magnitudes below, signs above. Plain torch, on any device.

A code of ``b`` bits is a top bit (the sign of sign-magnitude grids) and ``b - 1`` low bits. Neighbouring columns are a pair:
the even one lives in a word's lower half, the odd one 16 bits higher, so that one shift and one mask move both to where the
two halves of a register (two float16 or bfloat16) want them. Four pairs are an octet, which a thread decodes and which is
16 bytes in 16 bits. An octet has, in each half::

    2 bits   |s3 s2 s1 s0 m3 m2 m1 m0|             two octets a word, the second one 8 bits higher
    3 bits   |m3 m3 m2 m2 m1 m1 m0 m0|             likewise; |s3 s2 s1 s0| in a plane of signs, four octets a word
    4 bits   |s3 s2 s1 s0|m3 m3 m3| .. |m0 m0 m0|  a word
    8 bits   the bytes of the checkpoint: int16, a pair each

Octets of a row are contiguous, padded with zeros to four of them. A scale belongs to whole octets.

Rejected: places from which one rotation brings sign and magnitude to where a float has them. That would save a shift and a
mask of five instructions a pair, but float16 and bfloat16 want different places, and such places tile a word at 2 bits only.
(For ``pot2`` in float16 they are these.)
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from potq.errors import ConfigError
from potq.numerics.packing import unpack

OCTET = 8  # columns that one thread decodes; a row is a multiple of them
_PADDED = 32  # columns to which a row is padded: a word of 3-bit signs
WIDTHS = (2, 3, 4, 8)


class Words(NamedTuple):
    """A weight's codes as a GPU reads them.

    Attributes:
        low: int32 ``(rows, words)``, the top bits too unless the code has 3 bits; 8 bits: int16 ``(rows, columns / 2)``.
        top: int32 ``(rows, padded columns / 32)``, the top bits of 3-bit codes; else ``low`` itself.
    """

    low: Tensor
    top: Tensor


def arrange(packed: Tensor, bits: int, columns: int) -> Words:
    """The words of ``packed`` (uint8 ``(rows, row bytes)``, the layout of :mod:`potq.numerics.packing`), on its device.

    Raises:
        ConfigError: ``bits`` other than 2, 3, 4 and 8, or ``columns`` not a multiple of 8.
    """
    if bits not in WIDTHS or columns % OCTET:
        raise ConfigError(
            f"the GPU layout is for 2, 3, 4 and 8 bits and multiples of {OCTET} columns, found {bits} and {columns}"
        )
    if bits == 8:
        pairs = packed.contiguous().view(torch.int16)
        return Words(pairs, pairs)
    codes = torch.nn.functional.pad(unpack(packed, bits, columns), (0, -columns % _PADDED)).int()
    low, top = octets_of(codes & (2 ** (bits - 1) - 1), bits - 1), octets_of(codes >> (bits - 1), 1)
    if bits == 3:
        return Words(words_of(low, 8), words_of(top, 4))
    words = words_of(low | top << 4 * (bits - 1), 4 * bits)
    return Words(words, words)


def octets_of(fields: Tensor, width: int) -> Tensor:
    """Fields of ``width`` bits, int32 ``(rows, columns)``, to the two halves of octets: ``(rows, columns / 8, 2)``."""
    pair = torch.arange(4, dtype=torch.int32, device=fields.device)[:, None]
    return _merged(fields.unflatten(1, (-1, 4, 2)) << pair * width, (2,))


def words_of(octets: Tensor, width: int) -> Tensor:
    """Halves of ``width`` bits, ``(rows, octets, 2)``, to int32 ``(rows, words)``."""
    octet = torch.arange(16 // width, dtype=torch.int32, device=octets.device)[:, None]
    half = torch.arange(2, dtype=torch.int32, device=octets.device)
    return _merged(octets.unflatten(1, (-1, 16 // width)) << octet * width + half * 16, (2, 3))


def _merged(disjoint: Tensor, dims: tuple[int, ...]) -> Tensor:
    """The OR over ``dims``: a sum, where no bit is set twice."""
    return disjoint.sum(dims, dtype=torch.int32)
