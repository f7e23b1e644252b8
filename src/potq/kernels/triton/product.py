"""Fused products: which kernel and which blocks, by shape.

Nothing is tuned at run time: a first call compiles two kernels and no more. One row of activations is bound by reading the
weight, so many small programs read it; several rows go to the tensor cores, in blocks of 16 to 64 of them; from 257 on the
weight is dequantized, rounded to their type, and the product is torch's. Columns are split until there are some four
programs a multiprocessor.
"""

from __future__ import annotations

from functools import lru_cache
from math import gcd
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from potq.kernels.triton.dequantize import dequantize
from potq.kernels.triton.finish import finish_kernel
from potq.kernels.triton.gemm import gemm_kernel
from potq.kernels.triton.gemv import gemv_kernel
from potq.kernels.triton.launch import Launch, packed_arithmetic
from potq.kernels.triton.layout import OCTET
from potq.kernels.triton.weight import MANTISSA, TYPES, GpuWeight

_MOST_ROWS = 256  # of activations; more of them repay dequantizing the weight for cuBLAS
_MULTIPROCESSORS = 132  # of an H100: what is assumed where there is no GPU to ask


class GemvBlocks(NamedTuple):
    """What a program of :mod:`~potq.kernels.triton.gemv` takes: rows of the weight, and octets at once."""

    rows: int = 4
    octets: int = 128
    warps: int = 4
    programs: int = 4  # a multiprocessor, that columns are split for


class GemmBlocks(NamedTuple):
    """What a program of :mod:`~potq.kernels.triton.gemm` takes: rows of activations at most, rows of the weight, columns."""

    tokens: int = 64
    rows: int = 64
    columns: int = 64
    warps: int = 4
    stages: int = 3
    programs: int = 4


GEMV, GEMM = GemvBlocks(), GemmBlocks()


@lru_cache(maxsize=64)
def _multiprocessors(device: torch.device) -> int:
    return _MULTIPROCESSORS if device.type != "cuda" else torch.cuda.get_device_properties(device).multi_processor_count


def _splits(programs: int, steps: int, wanted: int) -> tuple[int, int]:
    """Into how many parts ``steps`` are split, and the steps of each, if every part has ``programs`` of those wanted."""
    each = triton.cdiv(steps, max(1, min(16, steps, wanted // programs)))
    return triton.cdiv(steps, each), each


def gemv(x: Tensor, weight: GpuWeight, blocks: GemvBlocks = GEMV) -> tuple[Launch, Tensor]:
    """The call that multiplies one row of activations, and the parts' sums ``(parts, rows)`` that it writes."""
    octets, block_n = weight.columns // OCTET, blocks.rows
    block = min(blocks.octets, triton.next_power_of_2(octets))
    programs = triton.cdiv(weight.rows, block_n)
    wanted = blocks.programs * _multiprocessors(x.device)
    splits, steps = _splits(programs, triton.cdiv(octets, block), wanted)
    partial = torch.empty(splits, weight.rows, dtype=torch.float32, device=x.device)
    sources = x.view(torch.int32), *weight.words, weight.scale, weight.table, partial
    constants = weight.constants(10) | {"KIND": weight.form.kind, "DTYPE": TYPES[x.dtype]}
    constants |= {"BLOCK_N": block_n, "BLOCK": block}
    arguments = *sources, weight.rows, octets, weight.scale_stride, steps * block
    return Launch(gemv_kernel, (programs, splits), arguments, constants, {"num_warps": blocks.warps}), partial


def gemm(x: Tensor, weight: GpuWeight, blocks: GemmBlocks = GEMM) -> tuple[Launch, Tensor]:
    """The same for several rows of activations: ``(parts, count, rows)``."""
    count, mantissa = len(x), MANTISSA[x.dtype]
    block_m, block_n = min(blocks.tokens, max(16, triton.next_power_of_2(count))), blocks.rows
    whole = weight.group >= weight.columns  # one scale a row: its blocks need not divide it
    block_k = blocks.columns if whole else gcd(blocks.columns, weight.group)
    steps = triton.cdiv(weight.columns, block_k)
    tiles = triton.cdiv(weight.rows, block_n), triton.cdiv(count, block_m)
    splits, each = _splits(tiles[0] * tiles[1], steps, blocks.programs * _multiprocessors(x.device))
    partial = torch.empty(splits, count, weight.rows, dtype=torch.float32, device=x.device)
    sources = x, *weight.words, weight.scale, weight.table, partial
    sizes = count, weight.rows, weight.columns // OCTET, weight.scale_stride, steps, each
    constants = weight.constants(mantissa) | {"KIND": weight.form.kind, "DTYPE": TYPES[x.dtype], "MANTISSA": mantissa}
    constants |= {"PACKED": packed_arithmetic(), "BLOCK_M": block_m, "BLOCK_N": block_n, "BLOCK_K": block_k}
    options = {"num_warps": blocks.warps, "num_stages": blocks.stages}
    return Launch(gemm_kernel, (tiles[0], splits, tiles[1]), (*sources, *sizes), constants, options), partial


def launches(x: Tensor, weight: GpuWeight, bias: Tensor | None, row_scale: Tensor | None, out: Tensor) -> list[Launch]:
    """The calls that write ``x W^T + bias`` to ``out``: ``x`` is ``(count, columns)``, contiguous, float16 or bfloat16."""
    product, partial = gemv(x, weight) if len(x) == 1 else gemm(x, weight)
    constants = {"SPLITS": len(partial), "ROW_SCALE": row_scale is not None, "BIAS": bias is not None, "BLOCK": 1024}
    parts = partial, partial if row_scale is None else row_scale, partial if bias is None else bias
    finish = Launch(finish_kernel, (triton.cdiv(out.numel(), 1024),), (*parts, out, out.numel(), weight.rows), constants)
    return [product, finish]


def linear(x: Tensor, weight: GpuWeight, bias: Tensor | None, row_scale: Tensor | None = None) -> Tensor:
    """``x (..., columns) W^T + bias -> (..., rows)`` in the dtype of ``x``, float16 or bfloat16; sums in float32."""
    flat = x.reshape(-1, weight.columns)
    if len(flat) > _MOST_ROWS:
        return torch.nn.functional.linear(x, dequantize(weight, x.dtype, row_scale), bias)
    flat = flat.contiguous()
    if flat.data_ptr() % 4:  # a view that starts at an odd place; kernels read pairs
        flat = flat.clone()
    out = torch.empty(len(flat), weight.rows, dtype=x.dtype, device=x.device)
    if out.numel():
        bias = None if bias is None else bias.contiguous()
        for launch in launches(flat, weight, bias, row_scale, out):
            launch.run()
    return out.view(*x.shape[:-1], weight.rows)
