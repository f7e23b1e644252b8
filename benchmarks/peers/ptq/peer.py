"""What a contestant of ``ptq/table.py`` is: something that replaces the weights of a model's linears by quantized ones.

Accuracy only: the linears keep float32 tensors that hold the dequantized values (embedding and head are left alone). Bits
are counted the same way for all: the codes at their own width, densely packed, plus every scale, zero-point and minimum at
the width it is stored at, over the number of weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

GROUP = 64  # inputs per scale, of every contestant whose group size can be chosen
SCALE_BITS = 16

Apply = Callable[["PreTrainedModel", Sequence[Tensor]], float]


@dataclass(frozen=True)
class Peer:
    """One contestant.

    Attributes:
        bits: nominal bits per weight, where groups divide the rows.
        needs_calibration: whether ``apply`` reads its batches.
        apply: replaces the weights of a full-precision model in place, given token batches ``(1, length)``, and returns
            the bits per weight; raises :class:`UnavailableError` if its package is missing.
        require: raises the same error without doing anything else.
        note: settings that a reader of the table should know.
    """

    name: str
    bits: float
    needs_calibration: bool
    apply: Apply
    require: Callable[[], object]
    note: str = ""


def linears(model: PreTrainedModel) -> dict[str, nn.Linear]:
    """Every linear by name except the head; of the models in the table these are the linears of the decoder layers."""
    head = model.get_output_embeddings()
    return {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear) and m is not head}


@torch.no_grad()
def replace(module: nn.Linear, weight: Tensor) -> None:
    """Put ``weight`` in place of the module's.

    Raises:
        RuntimeError: it is not finite, or has another shape.
    """
    if weight.shape != module.weight.shape or not weight.isfinite().all():
        raise RuntimeError(f"a weight of shape {tuple(module.weight.shape)} became {tuple(weight.shape)}, or not finite")
    module.weight = nn.Parameter(weight.detach().clone().to(module.weight.dtype), requires_grad=False)


@torch.no_grad()
def replace_each(model: PreTrainedModel, quantize: Callable[[str, Tensor], Tensor]) -> None:
    """Put ``quantize(name, weight)`` in place of every linear's float32 weight."""
    for name, module in linears(model).items():
        replace(module, quantize(name, module.weight.detach().float()))


def grouped_bits(code_bits: float, zero_bits: float = 0) -> float:
    """Bits per weight where every group has a float16 scale and ``zero_bits`` of zero-point."""
    return code_bits + (SCALE_BITS + zero_bits) / GROUP


def model_bits(modules: Iterable[nn.Linear], code_bits: float, zero_bits: float = 0) -> float:
    """The same for these linears: a row's last group may be short, and is stored like a whole one."""
    weights = groups = 0
    for module in modules:
        weights += module.weight.numel()
        groups += module.out_features * -(-module.in_features // GROUP)
    return code_bits + groups * (SCALE_BITS + zero_bits) / weights


def half_scales(weight: Tensor, scale: Tensor, bits: int) -> Tensor:
    """``weight``, which a library quantized with the float ``scale`` (a column per group), with float16 scales.

    The codes stay: what is counted as 16 bits has 16 bits.

    Raises:
        RuntimeError: the weight is not on a grid of ``2**bits`` levels per group: the library did something else.
    """
    groups, scale = weight.float().unflatten(1, (-1, GROUP)), scale.float()[..., None]
    codes = (groups / scale).round()
    lowest, highest = codes.aminmax(dim=2)
    if not torch.allclose(codes * scale, groups, rtol=1e-3, atol=1e-7) or (highest - lowest).max() >= 2**bits:
        raise RuntimeError(f"the weights are not on a {bits}-bit grid")
    rounded: Tensor = (codes * scale.half().float()).flatten(1)
    return rounded


def require_whole_groups(weight: Tensor) -> None:
    """Refuse rows that groups do not divide.

    Raises:
        ValueError: names the shape.
    """
    if weight.shape[1] % GROUP:
        raise ValueError(f"{tuple(weight.shape)}: rows must be a multiple of {GROUP} long")
