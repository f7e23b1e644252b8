"""torchao's weight-only integers (``IntxWeightOnlyConfig``), data-free, with float16 scales.

Two ways to choose them: from the minimum and maximum of a group, with an integer zero-point, or symmetric with torchao's
half-quadratic search for the scale ("HQQ scale only"). Its int4 route with HQQ's zero-points wants a CUDA layout; it is the
algorithm of hqq.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from benchmarks.peers.packages import optional
from benchmarks.peers.ptq.peer import (
    GROUP,
    Peer,
    grouped_bits,
    half_scales,
    linears,
    model_bits,
    replace_each,
    require_whole_groups,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def require() -> Any:
    """torchao's module of configs."""
    return optional("torchao.quantization", "torchao")


def quantize(weight: Tensor, bits: int, *, search: bool) -> Tensor:
    """``weight`` (out, in), quantized and dequantized; ``search`` for the scale, or minimum and maximum.

    Raises:
        UnavailableError: torchao is not installed.
        ValueError: the rows are not whole groups.
    """
    require_whole_groups(weight)
    torchao = require()
    algorithms = optional("torchao.quantization.quantize_.workflows", "torchao").IntxChooseQParamsAlgorithm
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    linear.weight = nn.Parameter(weight.clone(), requires_grad=False)
    config = torchao.IntxWeightOnlyConfig(
        weight_dtype=getattr(torch, f"int{bits}"),
        granularity=torchao.PerGroup(GROUP),
        mapping_type=torchao.MappingType.SYMMETRIC if search else torchao.MappingType.ASYMMETRIC,
        intx_choose_qparams_algorithm=algorithms.HQQ_SCALE_ONLY if search else algorithms.AFFINE,
    )
    torchao.quantize_(linear, config)
    stored: Any = linear.weight
    return half_scales(stored.dequantize(), stored.scale, bits)


def apply(model: PreTrainedModel, batches: Sequence[Tensor], *, bits: int, search: bool) -> float:
    replace_each(model, lambda name, weight: quantize(weight, bits, search=search))
    return model_bits(linears(model).values(), bits, zero_bits=0 if search else bits)


PEERS = [
    Peer(
        name=f"torchao int{bits} g{GROUP}{' HQQ scale' if search else ''}",
        bits=grouped_bits(bits, zero_bits=0 if search else bits),
        needs_calibration=False,
        apply=partial(apply, bits=bits, search=search),
        require=require,
        note="symmetric, half-quadratic search for the scale" if search else "asymmetric, minimum and maximum",
    )
    for search in (False, True)
    for bits in (4, 3, 2)
]
