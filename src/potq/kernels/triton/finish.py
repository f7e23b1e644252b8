"""The end of a product: the parts' sums, added in order in float32, times the row scale, plus the bias, rounded once."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def finish_kernel(
    partial_ptr, row_scale_ptr, bias_ptr, out_ptr, size, rows,
    SPLITS: tl.constexpr, ROW_SCALE: tl.constexpr, BIAS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """``partial`` is float32 ``(SPLITS, size)``, ``out`` has ``size`` elements, ``rows`` of them a row of activations."""
    element = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = element < size
    total = tl.zeros([BLOCK], tl.float32)
    for split in range(SPLITS):
        total += tl.load(partial_ptr + split * size + element, mask=inside, other=0.0)
    if ROW_SCALE:
        total *= tl.load(row_scale_ptr + element % rows, mask=inside, other=0.0).to(tl.float32)
    if BIAS:
        total += tl.load(bias_ptr + element % rows, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + element, total.to(out_ptr.dtype.element_ty), mask=inside)
