"""Other ways to dequantize than potq's, as fast as they are known to go: what ``gpu/kernels.py`` and ``gpu/instructions.py``
compare with. All have the outline of potq's kernels (:mod:`potq.kernels.triton.dequantize`): a thread decodes octets.

* ``add``: PoT, index added to the exponent of the scale (PoTPTQ): one addition a pair, zeros by a multiplication of bits.
* ``magic``: uniform codes ``q = level + 2**(bits - 1)`` ORed into the mantissa of a power of two: 1024 + q in float16,
  128 + q in bfloat16 (the "magic number" of lop3 kernels). A fused multiply-add takes magic number and zero point away,
  exactly, a multiplication scales.
* ``fused``: the same without the magic number: a subnormal float, ``q`` times the least one. Multiplied by a lifted scale,
  minus the zero point's weight: one fused multiply-add, rounded once. The lifted scale must be finite: 4-bit scales below
  1/32 in float16. No published kernel that we know does it.
* ``none``: nothing decoded, loads and stores alone.

Behind a magic number, fields stay where they are if they fit the mantissa there: the multiply-add moves them for nothing.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from potq.errors import ConfigError
from potq.kernels.triton.codes import LOW_HALVES, halves, load_fields, load_scale, multiply_pairs, paired, twice
from potq.kernels.triton.launch import Launch, packed_arithmetic
from potq.kernels.triton.layout import Words, arrange, octets_of, words_of
from potq.kernels.triton.weight import MANTISSA, TYPES, GpuWeight
from potq.kernels.weight import PackedWeight
from potq.numerics.packing import pack, unpack
from potq.numerics.tensor import QuantizedWeight

FORMS = ("add", "magic", "fused", "none")
BLOCK, PARTS = 128, 4


@triton.jit
def _fma_pairs(a, b, c, DTYPE: tl.constexpr, PACKED: tl.constexpr):
    """``a * b + c`` of pairs, rounded once. Without ``PACKED`` exact only if float32 holds the sum, which it does here."""
    if PACKED:
        asm: tl.constexpr = "fma.rn.f16x2 $0, $1, $2, $3;" if tl.float16 == DTYPE else "fma.rn.bf16x2 $0, $1, $2, $3;"
        return tl.inline_asm_elementwise(asm, "=r,r,r,r", [a, b, c], tl.int32, is_pure=True, pack=1)
    a0, a1 = halves(a, DTYPE)
    b0, b1 = halves(b, DTYPE)
    c0, c1 = halves(c, DTYPE)
    even = a0.to(tl.float32) * b0.to(tl.float32) + c0.to(tl.float32)
    return paired(even.to(DTYPE), (a1.to(tl.float32) * b1.to(tl.float32) + c1.to(tl.float32)).to(DTYPE))


@triton.jit
def _constant(value, DTYPE: tl.constexpr):
    """Pairs of one number, float32 of any shape."""
    return twice(value.to(DTYPE))


@triton.jit
def _add(index, top, scale, BITS: tl.constexpr, STRIDE: tl.constexpr, ZERO: tl.constexpr, M: tl.constexpr):
    """Pairs of PoT weights, from the scale's bits, whose weights must be normal numbers."""
    least = (scale & 0xFFFF) - (STRIDE * (2 ** (BITS - 1) - 1) << M)
    if ZERO:
        nonzero = ((index + (2 ** (BITS - 1) - 1) * LOW_HALVES) >> (BITS - 1)) & LOW_HALVES
        return (index * (STRIDE << M) + nonzero * least) | (top << 15)
    return (index * (STRIDE << M) + least * LOW_HALVES) | (top << 15)


@triton.jit
def _field(low_ptr, top_ptr, row, octet, octets, mask, BITS: tl.constexpr, ROOM: tl.constexpr):
    """Pairs of uniform codes, and how many bits above the lowest they stand: where they are in ``ROOM`` bits, else at 0."""
    pair = tl.arange(0, 4)
    if BITS == 3:  # 2-bit fields with their top bits elsewhere
        index, top = load_fields(low_ptr, top_ptr, row, octet, octets, mask, BITS)
        return index | (top << 2), tl.zeros_like(pair)
    words = tl.cdiv(octets, 4) * BITS
    low = tl.load(low_ptr + row * words + octet * BITS // 4, mask=mask, other=0) >> (octet * (BITS * 4) % 16)
    place = tl.where(pair * BITS + BITS <= ROOM, pair * BITS, 0)
    return (low >> (pair * BITS - place)) & (((1 << BITS) - 1) * LOW_HALVES << place), place


@triton.jit
def _uniform(
    field, place, scale,
    MAGIC: tl.constexpr, BITS: tl.constexpr, DTYPE: tl.constexpr, M: tl.constexpr, PACKED: tl.constexpr,
):  # fmt: skip
    """Pairs of uniform weights. ``scale`` is worth ``2**(BITS - 1)`` levels, which are also the zero point."""
    down = 1.0 / (1 << place).to(tl.float32)[None, :]
    unit: tl.constexpr = 2.0 ** (1 - BITS)
    if MAGIC:
        magic = field | (((25 << 10) if M == 10 else (134 << 7)) * LOW_HALVES)
        offset = -(2.0**M * down + 2.0 ** (BITS - 1))
        level = _fma_pairs(magic, _constant(down, DTYPE), _constant(offset, DTYPE), DTYPE, PACKED)
        return multiply_pairs(level, _constant(scale * unit, DTYPE), DTYPE, PACKED)
    lifted = _constant(scale * (unit * 2.0 ** (24 if M == 10 else 120)) * (1.0 if M == 10 else 2.0**13), DTYPE)
    return _fma_pairs(field, lifted, _constant(-scale, DTYPE), DTYPE, PACKED)


@triton.jit
def _nothing(low_ptr, top_ptr, row, octet, octets, mask, BITS: tl.constexpr):
    """The words of an octet as they are, four times each."""
    in_row: tl.constexpr = 2 if BITS == 3 else BITS  # words for four octets
    value = tl.load(low_ptr + row * tl.cdiv(octets, 4) * in_row + octet * in_row // 4, mask=mask, other=0)
    if BITS == 3:
        value ^= tl.load(top_ptr + row * tl.cdiv(octets, 4) + octet // 4, mask=mask, other=0)
    return value + tl.zeros([1, 4], tl.int32)


@triton.jit
def form_kernel(
    low_ptr, top_ptr, scale_ptr, out_ptr, octets, scale_stride,
    FORM: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr, STRIDE: tl.constexpr, ZERO: tl.constexpr,
    DTYPE: tl.constexpr, M: tl.constexpr, PACKED: tl.constexpr, BLOCK: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """``out`` is the matrix as pairs."""
    row = tl.program_id(0).to(tl.int64)
    for part in tl.static_range(PARTS):
        octet = ((tl.program_id(1) * PARTS + part) * BLOCK + tl.arange(0, BLOCK))[:, None]
        inside = octet < octets
        scale = load_scale(scale_ptr, row * scale_stride + octet * 8 // GROUP, inside, False)
        if FORM == "none":
            pairs = _nothing(low_ptr, top_ptr, row, octet, octets, inside, BITS) ^ _constant(scale, DTYPE)
        elif FORM == "add":
            index, top = load_fields(low_ptr, top_ptr, row, octet, octets, inside, BITS)
            pairs = _add(index, top, _constant(scale, DTYPE), BITS, STRIDE, ZERO, M)
        else:
            field, place = _field(low_ptr, top_ptr, row, octet, octets, inside, BITS, M if FORM == "magic" else 0)
            pairs = _uniform(field, place, scale, FORM == "magic", BITS, DTYPE, M, PACKED)
        tl.store(out_ptr + row * octets * 4 + octet * 4 + tl.arange(0, 4), pairs, mask=inside)


def uniform_words(weight: QuantizedWeight) -> Words:
    """Two's complement codes of 2, 3 or 4 bits as ``q``, each octet's fields side by side (3 bits: as potq's own layout)."""
    bits, columns = weight.scheme.grid.bits, weight.shape[1]
    codes = unpack(weight.packed, bits, columns) ^ (1 << (bits - 1))
    if bits == 3:
        return arrange(pack(codes, bits), bits, columns)
    padded = torch.nn.functional.pad(codes, (0, -columns % 32)).int()
    words = words_of(octets_of(padded, bits), 4 * bits)
    return Words(words, words)


def launch(form: str, weight: QuantizedWeight, out: Tensor) -> Launch:
    """The call that dequantizes ``weight`` (float16 scales) to ``out`` ``(rows, columns)``, float16 or bfloat16.

    Raises:
        ConfigError: a form that is not for such a grid.
    """
    arranged = GpuWeight.of(PackedWeight.of(weight))
    fits = {"add": "powers", "magic": "integer", "fused": "integer", "none": arranged.form.kind}
    if fits.get(form) != arranged.form.kind:
        raise ConfigError(f"no form {form!r} of {weight.scheme.name}; there are {', '.join(FORMS)}")
    words = uniform_words(weight) if arranged.form.kind == "integer" else arranged.words
    octets = weight.shape[1] // 8
    constants = {"FORM": form, "BITS": weight.scheme.grid.bits, "GROUP": arranged.group, "STRIDE": arranged.form.stride}
    constants |= {"ZERO": arranged.form.has_zero, "DTYPE": TYPES[out.dtype], "M": MANTISSA[out.dtype]}
    constants |= {"PACKED": packed_arithmetic(), "BLOCK": BLOCK, "PARTS": PARTS}
    arguments = *words, arranged.scale, out.view(torch.int32), octets, arranged.scale_stride
    return Launch(form_kernel, (weight.shape[0], triton.cdiv(octets, BLOCK * PARTS)), arguments, constants)
