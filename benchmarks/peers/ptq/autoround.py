"""AutoRound: signed gradient descent on roundings and clipped ranges, one decoder layer after the other.

Groups of 64, integer zero-points, float16 scales. ``iters`` 200 is its default; 50 is its own "light" recipe, for
processors without a GPU. Its defaults otherwise, but float32 throughout and no torch.compile.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from benchmarks.peers.packages import optional
from benchmarks.peers.ptq.peer import (
    GROUP,
    Peer,
    grouped_bits,
    half_scales,
    linears,
    model_bits,
    replace,
    require_whole_groups,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BATCH = 8


def require() -> Any:
    """AutoRound."""
    return optional("auto_round", "auto-round")


def apply(model: PreTrainedModel, batches: Sequence[Tensor], *, bits: int, iters: int) -> float:
    library = require()
    modules = linears(model)
    for module in modules.values():
        require_whole_groups(module.weight)
    data: Any = [batch[0] for batch in batches]
    rounder = library.AutoRound(
        model,
        SimpleNamespace(pad_token=None, pad_token_id=None),  # it insists on a tokenizer, and asks it only this
        bits=bits,
        group_size=GROUP,
        sym=False,
        iters=iters,
        seqlen=min(len(tokens) for tokens in data),
        nsamples=len(data),
        batch_size=min(BATCH, len(data)),
        dataset=DataLoader(data, batch_size=min(BATCH, len(data))),
        device_map="cpu",
        amp=False,
        enable_torch_compile=False,
    )
    with torch.enable_grad():
        rounder.quantize()
    for name in modules:
        rounded: Any = model.get_submodule(name)  # AutoRound wraps linears and unwraps them
        replace(rounded, half_scales(rounded.weight, rounded.scale, bits))
    return model_bits(modules.values(), bits, zero_bits=bits)


PEERS = [
    Peer(
        name=f"AutoRound {bits}-bit g{GROUP}{' light' if iters == 50 else ''}",
        bits=grouped_bits(bits, zero_bits=bits),
        needs_calibration=True,
        apply=partial(apply, bits=bits, iters=iters),
        require=require,
        note=f"{iters} steps per decoder layer",
    )
    for iters in (200, 50)
    for bits in (4, 3, 2)
]
