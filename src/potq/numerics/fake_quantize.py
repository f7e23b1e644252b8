"""Rounding to a grid with gradients: ``fake_quantize``, shared by the refinement of PTQ and by QAT.

The forward pass is exact: with ``x = w / s - z`` for a weight ``w`` whose group has scale ``s`` and shift ``z`` (0 but for
formats with zero points) and ``q(x)`` the level nearest to it, ``v = s (q(x) + z)``. The backward one passes the gradient of
``v`` straight through the rounding to ``w`` where ``x`` is within the grid, and nothing where it was clipped (2601.02298 eq.
6); ``s`` gets what LSQ gives it (1902.08153 eq. 3): ``q(x) - x`` within the grid, ``q(x)`` beyond. We count a weight as
within up to half a step beyond the last level: rounding moves it no further than any other, and without a gradient the
largest weight of every group would never move.

On the CPU the compiled loops of ``csrc/fit/straight_through.cpp`` do it in one pass over memory each way; elsewhere, and
without the library, torch does. It is an op, ``potq::fake_quantize``, so that ``torch.compile`` need not look inside. The
gradient of a scale is a sum, whose order differs between the two.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from potq import native
from potq.numerics.functional import codebook, decode_scale, group_index, spread, sum_groups
from potq.numerics.scheme import QuantScheme
from potq.numerics.trellis import best_path

_COMPILED = (torch.float32, torch.bfloat16)  # dtypes of values and their gradients that the library knows


def fake_quantize(
    weight: Tensor,
    scale: Tensor,
    scheme: QuantScheme,
    row_scale: Tensor | None = None,
    *,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """``dequantize(quantize(weight))``, bit for bit, with the gradients described above.

    Args:
        weight: ``(out, in)``, any float dtype.
        scale: stored scales (float16, uint8) of shape ``scheme.scale_shape(out, in)``, or what they are worth (float32,
            row scales included), which then have a gradient.
        row_scale: float16 ``(out, 1)``, where the scheme has it and ``scale`` is stored.
        dtype: of the result; the weight's by default.
    """
    value = scale if scale.dtype == torch.float32 else decode_scale(scale, row_scale)
    levels, boundaries = codebook(scheme, weight.device)
    group = scheme.group(weight.shape[1])
    if scheme.trellis:
        return round_path(weight, value, levels, group, dtype or weight.dtype)
    result: Tensor = round_op(weight, value, None, levels, boundaries, group, dtype or weight.dtype)
    return result


def round_values(
    weight: Tensor,
    scale: Tensor,
    shift: Tensor | None,
    levels: Tensor,
    boundaries: Tensor,
    group: int,
    dtype: torch.dtype,
) -> Tensor:
    """The nearest values that a grid has, ``(rows, columns)`` in ``dtype``.

    Args:
        weight: ``(rows, columns)``, any float dtype.
        scale, shift: float32 ``(rows, groups)``, or one row that all rows share.
        levels: float32 ``(n,)``, ascending, in units of the scale.
        boundaries: float32 ``(n - 1,)``; at a boundary the level above it is taken.
        group: columns that share a scale.
    """
    latent = weight.detach().float().contiguous()
    if not (native.serves(weight.device) and dtype in _COMPILED):
        return nearest(latent, scale, shift, levels, boundaries, group)[1].to(dtype)
    values = torch.empty_like(latent, dtype=dtype)
    native.library().potq_round(
        ctypes.byref(_described(latent, scale, shift, levels, boundaries, group)),
        latent.data_ptr(),
        values.data_ptr(),
        dtype == torch.bfloat16,
        torch.get_num_threads(),
    )
    return values


# known to torch.compile and to gradients; its first call takes seconds of imports
round_op = torch.library.custom_op("potq::fake_quantize", round_values, mutates_args=())


@round_op.register_fake
def _(
    weight: Tensor,
    scale: Tensor,
    shift: Tensor | None,
    levels: Tensor,
    boundaries: Tensor,
    group: int,
    dtype: torch.dtype,
) -> Tensor:
    return weight.new_empty(weight.shape, dtype=dtype)


@torch.library.custom_op("potq::fake_quantize_backward", mutates_args=())
def round_backward(
    gradient: Tensor,
    weight: Tensor,
    scale: Tensor,
    shift: Tensor | None,
    levels: Tensor,
    boundaries: Tensor,
    group: int,
) -> tuple[Tensor, Tensor]:
    """Gradients of ``weight`` (its dtype and shape) and ``scale`` (float32), from that of the values."""
    latent, gradient = weight.detach().float().contiguous(), gradient.contiguous()
    edges = torch.stack([_edge(levels, 0), _edge(levels, -1)])
    if not (native.serves(weight.device) and gradient.dtype in _COMPILED):
        to_latent, to_scale = _gradients(gradient.float(), latent, scale, shift, levels, boundaries, group, edges)
    else:
        to_latent, to_scale = torch.empty_like(latent), scale.new_empty(len(latent), scale.shape[1])
        native.library().potq_round_backward(
            ctypes.byref(_described(latent, scale, shift, levels, boundaries, group)),
            latent.data_ptr(),
            edges.data_ptr(),
            gradient.data_ptr(),
            gradient.dtype == torch.bfloat16,
            to_latent.data_ptr(),
            to_scale.data_ptr(),
            torch.get_num_threads(),
        )
    return to_latent.to(weight.dtype), to_scale if len(scale) == len(latent) else to_scale.sum(0, keepdim=True)


@round_backward.register_fake
def _(
    gradient: Tensor,
    weight: Tensor,
    scale: Tensor,
    shift: Tensor | None,
    levels: Tensor,
    boundaries: Tensor,
    group: int,
) -> tuple[Tensor, Tensor]:
    return weight.new_empty(weight.shape), scale.new_empty(scale.shape)


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    weight, scale, shift, levels, boundaries, group, _ = inputs
    ctx.save_for_backward(weight, scale, shift, levels, boundaries)
    ctx.group = group


def _backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, Tensor | None, None, None, None, None, None]:
    to_weight, to_scale = round_backward(upstream, *ctx.saved_tensors, ctx.group)
    return to_weight, to_scale if ctx.needs_input_grad[1] else None, None, None, None, None, None


round_op.register_autograd(_backward, setup_context=_save_for_backward)


def round_path(latent: Tensor, scale: Tensor, levels: Tensor, group: int, dtype: torch.dtype) -> Tensor:
    """The values on the nearest path through a trellis, with the gradients of a grid; arguments of :func:`round_op`.

    The path is searched anew at every call. Gradients are those of the weights at their levels: the search itself has none.
    """
    each = spread(scale, group, latent.shape[1])
    x = latent / torch.where(each != 0, each, torch.inf)
    with torch.no_grad():
        level = levels[best_path(latent.float(), each, levels)[0].int()]
        inside = (x >= _edge(levels, 0)) & (x <= _edge(levels, -1))
    return (each * (level + (x - x.detach()) * inside)).to(dtype)


def nearest(
    latent: Tensor, scale: Tensor, shift: Tensor | None, levels: Tensor, boundaries: Tensor, group: int
) -> tuple[Tensor, Tensor]:
    """What ``latent`` (float32) rounds to, in torch: in units of the scale, and in full; arguments of :func:`round_op`."""
    columns = latent.shape[1]
    each = spread(scale, group, columns)
    x = latent / torch.where(each != 0, each, torch.inf)
    if shift is not None:
        x = x - spread(shift, group, columns)
    level = levels[torch.bucketize(x.contiguous(), boundaries, right=True, out_int32=True)]
    if shift is not None:
        level = level + spread(shift, group, columns)
    return level, each * level


def _gradients(
    gradient: Tensor,
    latent: Tensor,
    scale: Tensor,
    shift: Tensor | None,
    levels: Tensor,
    boundaries: Tensor,
    group: int,
    edges: Tensor,
) -> tuple[Tensor, Tensor]:
    columns = latent.shape[1]
    each = spread(scale, group, columns)
    x, level = latent / torch.where(each != 0, each, torch.inf), nearest(latent, scale, shift, levels, boundaries, group)[0]
    centre = x if shift is None else x - spread(shift, group, columns)
    inside = (centre >= edges[0]) & (centre <= edges[1])
    # d value / d scale = level - x where the weight follows the scale, level where it is clipped; a zero scale has none
    slope = gradient * (level - x * inside) * (each != 0)
    return gradient * inside, sum_groups(slope, group)


def _edge(levels: Tensor, end: int) -> Tensor:
    """Half a step beyond the first or last level."""
    inner = levels[1] if end == 0 else levels[-2]
    return levels[end] + (levels[end] - inner) / 2


def _described(
    latent: Tensor, scale: Tensor, shift: Tensor | None, levels: Tensor, boundaries: Tensor, group: int
) -> native.Columns:
    rows, columns = latent.shape
    # one scale for the whole tensor counts as one for every row
    each = scale.detach().expand(rows, -1).contiguous()
    shift = None if shift is None else shift.expand_as(each).contiguous()
    return native.Columns.of(levels, boundaries, each, shift, group_index(columns, group, latent.device))
