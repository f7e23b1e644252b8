"""llama.cpp's types, by ggml's own quantize functions.

A weight is cut into blocks (of 32 or 256) of consecutive values. Where a block of 256 does not divide the rows (576 = 2.25
blocks) it runs on into the next row. llama.cpp would store such a weight in another type, of more bits; here every
weight gets the type that the row says. Neighbours in the next row are as good as neighbours in the same one, so the squared
error neither gains nor loses, and the bits are the type's own. Only ``out * in`` must be a multiple of the block.

``importance`` is what llama.cpp calls an importance matrix: the mean square of every input.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from benchmarks.peers.ggml_library import ggml
from benchmarks.peers.packages import UnavailableError
from benchmarks.peers.ptq.peer import Peer, linears, replace_each
from potq.ptq.calibration import input_mean_squares

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TYPES = {  # bits per block, block
    "q4_0": (144, 32),
    "q4_1": (160, 32),
    "iq4_nl": (144, 32),
    "mxfp4": (136, 32),
    "q2_K": (672, 256),
    "q3_K": (880, 256),
    "q4_K": (1152, 256),
    "iq2_xxs": (528, 256),
    "iq2_xs": (592, 256),
    "iq2_s": (656, 256),
    "iq3_xxs": (784, 256),
    "iq3_s": (880, 256),
    "iq4_xs": (1088, 256),
}
IMPORTANCE = ("iq2_xxs", "iq2_xs")  # without it ggml aborts the process
IGNORES_IMPORTANCE = ("mxfp4",)


def bits(kind: str) -> float:
    """Stored bits per weight, scales and minimums included."""
    size, block = TYPES[kind]
    return size / block


def quantize(weight: Tensor, kind: str, importance: Tensor | None = None) -> Tensor:
    """``weight`` (out, in) as ``kind`` stores it, dequantized to float32.

    Args:
        kind: ggml's name of the type, one of ``TYPES``.
        importance: mean square of every input ``(in,)``.

    Raises:
        UnavailableError: no ggml, or one that lacks the type or a function.
        ValueError: the weight is not a whole number of blocks, or the type needs ``importance``.
    """
    block = TYPES[kind][1]
    if weight.numel() % block:
        raise ValueError(f"{tuple(weight.shape)} is not a whole number of blocks of {block}")
    if importance is None and kind in IMPORTANCE:
        raise ValueError(f"{kind} needs an importance matrix")
    # whole rows that are whole blocks too: what ggml calls a row, because it takes one importance vector for all of them
    span = math.lcm(weight.shape[1], block)
    values = weight.detach().float().contiguous().flatten()
    whole = values.numel() // span * span
    parts = [values[:whole].view(-1, span), values[whole:].view(1, -1)]
    tiled = _tiled(importance, weight.shape[1], span) if importance is not None else None
    return torch.cat([_quantize_rows(part, kind, tiled) for part in parts if part.numel()]).view(weight.shape)


def _tiled(importance: Tensor, columns: int, span: int) -> Tensor:
    if importance.shape != (columns,):
        raise ValueError(f"importance has shape {tuple(importance.shape)}, the weight has {columns} columns")
    mean = float(importance.float().mean())
    return importance.float().clamp(min=1e-6 * mean).repeat(span // columns)  # a block of zeros has no best scale


def _quantize_rows(rows: Tensor, kind: str, importance: Tensor | None) -> Tensor:
    """The same for ``(n, whole blocks)``, flat; a last row that is shorter reads the importance's beginning."""
    library = ggml()
    if kind not in library.types:
        raise UnavailableError(f"this ggml has no {kind}")
    number, (count, length) = library.types[kind], rows.shape
    size = library.ggml_row_size(number, length)
    if size * 8 != bits(kind) * length:
        raise RuntimeError(f"{kind}: ggml stores {size * 8 / length} bits per weight, not {bits(kind)}")
    rows, data = rows.contiguous(), bytearray(size * count)
    target = (ctypes.c_char * len(data)).from_buffer(data)
    guide = importance[:length].contiguous() if importance is not None else None  # alive until the call returns
    address = guide.data_ptr() if guide is not None else None
    library.ggml_quantize_chunk(number, rows.data_ptr(), ctypes.addressof(target), 0, count, length, address)
    try:
        values = library.dequantize(kind, bytes(data), rows.numel())
    except StopIteration:
        raise UnavailableError(f"this ggml exports no dequantize_row_{kind}") from None
    return torch.frombuffer(values, dtype=torch.float32).clone()


def apply(model: PreTrainedModel, batches: Sequence[Tensor], *, kind: str, weighted: bool) -> float:
    """Quantize every linear; ``weighted`` takes the importance from ``batches``, before anything is quantized."""
    importance = input_mean_squares(model, list(linears(model)), batches) if weighted else {}
    replace_each(model, lambda name, weight: quantize(weight, kind, importance.get(name)))
    return bits(kind)


def _peers() -> list[Peer]:
    return [
        Peer(
            name=f"llama.cpp {kind.upper()}{' imatrix' if weighted else ''}",
            bits=bits(kind),
            needs_calibration=weighted,
            apply=partial(apply, kind=kind, weighted=weighted),
            require=ggml,
            note="blocks of 256 run on into the next row" if TYPES[kind][1] == 256 else "",
        )
        for kind in TYPES
        for weighted in (False, True)
        if not (weighted and kind in IGNORES_IMPORTANCE) and (weighted or kind not in IMPORTANCE)
    ]


PEERS = _peers()
