"""HQQ (half-quadratic quantization), data-free: its own optimizer with default settings, scales and zero-points in float16.

``axis=1`` groups 64 inputs of one output, as everyone else does and its fast kernels want; ``axis=0``, its default, groups
64 outputs of one input. Bits count 3-bit codes as 3 bits; HQQ's own packing spends 3.2 on them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor

from benchmarks.peers.packages import optional
from benchmarks.peers.ptq.peer import GROUP, Peer, grouped_bits, linears, model_bits, replace_each, require_whole_groups

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def require() -> Any:
    """HQQ's module of quantizers."""
    return optional("hqq.core.quantize", "hqq")


def quantize(weight: Tensor, bits: int, axis: int) -> Tensor:
    """``weight`` (out, in), quantized and dequantized.

    Raises:
        UnavailableError: HQQ is not installed.
        ValueError: the rows are not whole groups.
    """
    require_whole_groups(weight)
    quantizer = require().Quantizer
    codes, meta = quantizer.quantize(weight, nbits=bits, group_size=GROUP, axis=axis, bitpack=False, device="cpu")
    scale, zero = meta["scale"].half().float(), meta["zero"].half().float()  # as HQQLinear stores them
    restored: Tensor = ((codes.float() - zero) * scale).view(weight.shape)
    return restored


def apply(model: PreTrainedModel, batches: Sequence[Tensor], *, bits: int, axis: int) -> float:
    replace_each(model, lambda name, weight: quantize(weight, bits, axis))
    return model_bits(linears(model).values(), bits, zero_bits=16)


PEERS = [
    Peer(
        name=f"HQQ {bits}-bit g{GROUP}{' axis 0' if axis == 0 else ''}",
        bits=grouped_bits(bits, zero_bits=16),
        needs_calibration=False,
        apply=partial(apply, bits=bits, axis=axis),
        require=require,
        note="groups along the outputs" if axis == 0 else "",
    )
    for axis in (1, 0)
    for bits in (4, 3, 2)
]
