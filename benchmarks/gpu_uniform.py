"""Uniform 2- and 4-bit dequantization as fast as it is known to go: the baseline of ``gpu_kernels.py``.

Codes are offset binary, ``q = level + 2**(bits - 1)``, in plain fields: pair ``i`` of a word stands at bit ``bits * i`` of
both halves. ORed into the mantissa of a power of two, 1024 in float16 and 128 in bfloat16, ``q`` makes the float 1024 + q
(the "magic number" of lop3 kernels): one subtraction takes magic number and zero point away, exactly, and one multiplication
scales. There is no conversion, and the compiler does two weights at a time.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from potq.kernels.triton.dequantize import TYPES
from potq.kernels.triton.launch import Launch
from potq.packing import unpack
from potq.scheme import QuantScheme

_MAGIC = {torch.float16: (0x6400, 1024), torch.bfloat16: (0x4300, 128)}


@triton.jit
def _uniform_kernel(
    word_ptr, scale_ptr, out_ptr, words, groups,
    BITS: tl.constexpr, GROUP: tl.constexpr, DTYPE: tl.constexpr, MAGIC: tl.constexpr, VALUE: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """``scale`` is in ``DTYPE`` and already divided by the reference level."""
    columns: tl.constexpr = 32 // BITS
    row = tl.program_id(0).to(tl.int64)
    word = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = word < words
    packed = tl.load(word_ptr + row * words + word, mask=inside, other=0)
    scale = tl.load(scale_ptr + row * groups + word * columns // GROUP, mask=inside, other=0.0)
    column = tl.arange(0, columns)[None, :]
    field = (packed[:, None] >> (column % 2 * 16 + column // 2 * BITS)) & (2**BITS - 1)
    shifted = (field | MAGIC).to(tl.int16).to(DTYPE, bitcast=True)
    level = shifted - tl.full([1, 1], VALUE + 2 ** (BITS - 1), tl.float32).to(DTYPE)
    tl.store(
        out_ptr + row * words * columns + word[:, None] * columns + column, level * scale[:, None], mask=inside[:, None]
    )


def arrange(packed: Tensor, bits: int, columns: int) -> Tensor:
    """Words, int32 ``(rows, columns * bits / 32)``, of two's complement codes of 2 or 4 bits in the canonical layout."""
    fields = (unpack(packed, bits, columns).int() ^ (1 << (bits - 1))).unflatten(1, (-1, 32 // bits))
    column = torch.arange(32 // bits, dtype=torch.int32, device=packed.device)
    words: Tensor = fields << (column % 2 * 16 + column // 2 * bits)
    return words.sum(-1, dtype=torch.int32)


def launch(packed: Tensor, scale: Tensor, scheme: QuantScheme, out: Tensor) -> Launch:
    """Dequantize a two's complement weight of 2 or 4 bits to ``out`` ``(rows, columns)``, float16 or bfloat16."""
    bits, (rows, columns) = scheme.grid.bits, out.shape
    words = arrange(packed, bits, columns)
    magic, value = _MAGIC[out.dtype]
    constants = {"BITS": bits, "GROUP": scheme.group(columns), "DTYPE": TYPES[out.dtype], "MAGIC": magic, "VALUE": value}
    scales = (scale.float() / scheme.grid.reference).to(out.dtype)
    arguments = words, scales, out, words.shape[1], scale.shape[1]
    return Launch(_uniform_kernel, (rows, triton.cdiv(words.shape[1], 256)), arguments, constants | {"BLOCK": 256})
