"""The GPU layout of codes: 32-bit words of whole weights, magnitudes below, signs above. Plain torch, on any device.

A code of ``b`` bits is a top bit (the sign of sign-magnitude grids) and ``b - 1`` low bits. Neighbouring columns are a pair:
the even one lives in a word's lower half, the odd one 16 bits higher, so that one shift and one mask move both to where the
two halves of a 32-bit store (two float16 or bfloat16) want them. Within a half, pair ``i`` of a word has::

    2 bits   |s7 .. s0|m7 .. m0|           8 pairs, 16 columns a word
    3 bits   |m7 m7|  ..  |m0 m0|          8 pairs; the signs of words 2j and 2j + 1 are word j of a plane of their own:
             |s7 .. s0 of 2j+1|s7 .. s0 of 2j|
    4 bits   |s3 .. s0|m3 m3 m3| .. |m0 m0 m0|   4 pairs, 8 columns a word

Words of a row are contiguous: 128 bits are 4 words, 32 to 64 columns, and each thread stores 16 bytes a word. A row is 32
columns or a multiple of them; a word never spans two scales if groups are multiples of 16.

Rejected: the bits of 32 codes as ``b`` words of one bit plane each, which takes ``b`` shifts and masks a pair, not two.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from potq.errors import ConfigError
from potq.packing import pack, unpack

COLUMNS = 32  # a row is a multiple of them


class Words(NamedTuple):
    """A weight's codes as a GPU reads them.

    Attributes:
        low: int32 ``(rows, columns / columns per word)``; the top bits too, unless the code has 3 bits.
        top: int32 ``(rows, columns / 32)``, the top bits of 3-bit codes; else ``low`` itself.
    """

    low: Tensor
    top: Tensor


def pairs_per_word(bits: int) -> int:
    """Pairs of columns whose low bits share a word."""
    return 4 if bits == 4 else 8


def arrange(packed: Tensor, bits: int, columns: int) -> Words:
    """The words of ``packed`` (uint8 ``(rows, row bytes)``, the layout of :mod:`potq.packing`), on its device.

    Raises:
        ConfigError: ``bits`` outside 2..4, or ``columns`` not a multiple of 32.
    """
    if bits not in (2, 3, 4) or columns % COLUMNS:
        raise ConfigError(
            f"the GPU layout is for 2 to 4 bits and multiples of {COLUMNS} columns, found {bits} and {columns}"
        )
    codes = unpack(packed, bits, columns).int()
    low, top = codes & (2 ** (bits - 1) - 1), codes >> (bits - 1)
    pairs = pairs_per_word(bits)
    words = _gather(low, pairs, bits - 1)
    if bits == 3:
        return Words(words, _gather(top, 16, 1))
    words |= _gather(top, pairs, 1) << (pairs * (bits - 1))
    return Words(words, words)


def restore(words: Words, bits: int) -> Tensor:
    """Inverse of :func:`arrange`: the canonical packed codes."""
    pairs = pairs_per_word(bits)
    low = _scatter(words.low, pairs, bits - 1)
    top = _scatter(words.top, 16, 1) if bits == 3 else _scatter(words.low >> (pairs * (bits - 1)), pairs, 1)
    return pack((low | top << (bits - 1)).to(torch.uint8), bits)


def _gather(fields: Tensor, pairs: int, width: int) -> Tensor:
    """Fields of ``width`` bits, int32 ``(rows, columns)``, to words of ``pairs`` pairs."""
    shifts = _shifts(pairs, width, fields.device)
    words: Tensor = fields.unflatten(1, (-1, 2 * pairs)) << shifts
    return words.sum(-1, dtype=torch.int32)  # disjoint: a sum is an OR


def _scatter(words: Tensor, pairs: int, width: int) -> Tensor:
    """Inverse of :func:`_gather`, whatever stands above the fields."""
    fields: Tensor = (words[..., None] >> _shifts(pairs, width, words.device)) & (2**width - 1)
    return fields.flatten(1)


def _shifts(pairs: int, width: int, device: torch.device) -> Tensor:
    """Where the columns of a word begin, int32 ``(2 * pairs,)``."""
    column = torch.arange(2 * pairs, dtype=torch.int32, device=device)
    return column // 2 * width + column % 2 * 16
