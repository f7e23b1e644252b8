"""NF4 by bitsandbytes, data-free, as QLoRA stores it: blocks of 64, whose scales are 8-bit codes in blocks of 256.

The 16 levels are the same for every model and are not counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from benchmarks.peers.packages import optional
from benchmarks.peers.ptq.peer import GROUP, Peer, linears, replace_each

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SCALES_PER_BLOCK = 256


def require() -> Any:
    """bitsandbytes' functions."""
    return optional("bitsandbytes.functional", "bitsandbytes")


def quantize(weight: Tensor) -> Tensor:
    """``weight`` (out, in), quantized and dequantized.

    Raises:
        UnavailableError: bitsandbytes is not installed.
    """
    library = require()
    codes, state = library.quantize_4bit(weight, blocksize=GROUP, quant_type="nf4", compress_statistics=True)
    restored: Tensor = library.dequantize_4bit(codes, state)
    return restored


def apply(model: PreTrainedModel, batches: Sequence[Tensor]) -> float:
    replace_each(model, lambda name, weight: quantize(weight))
    sizes = [module.weight.numel() for module in linears(model).values()]
    return sum(map(_stored_bits, sizes)) / sum(sizes)


def _stored_bits(size: int) -> int:
    """Codes, scales, and the scales' own scales and mean in float32."""
    scales = -(-size // GROUP)
    return 4 * size + 8 * scales + 32 * (-(-scales // SCALES_PER_BLOCK) + 1)


PEERS = [
    Peer(
        name=f"bitsandbytes NF4 g{GROUP}",
        bits=4 + 8 / GROUP + 32 / (GROUP * SCALES_PER_BLOCK),
        needs_calibration=False,
        apply=apply,
        require=require,
        note="scales quantized to 8 bits (double quantization)",
    )
]
