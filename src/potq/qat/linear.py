"""A linear product with a weight that is rounded to its grid on the way.

``y = x Q(w)^T + b``. As two autograd operations, rounding and product, the rounded weight would be kept for the backward
pass: a second copy of every weight. Here it is made again, which costs some nanoseconds a weight where a training step costs
thousands. Products are in the dtype of autocast, if that is on, and the rounded weight is written in that dtype at once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from potq.config import Activations
from potq.kernels.activations import round_activations
from potq.numerics.fake_quantize import round_backward, round_op, round_path
from potq.numerics.functional import codebook
from potq.numerics.scheme import QuantScheme


def quantized_linear(
    input: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, scheme: QuantScheme, activations: Activations
) -> Tensor:
    """``input (..., in) Q(weight)^T + bias``, with gradients for all four.

    Args:
        weight: latent, ``(out, in)``, any float dtype and strides.
        scale: what the scales are worth, float32 ``scheme.scale_shape(out, in)``.
        activations: ``"int8"`` rounds ``input`` as the kernels do at inference, gradients straight through.
    """
    kind = input.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else input.dtype
    if activations == "int8":
        input = round_activations(input, scheme.group(input.shape[-1]))
    levels, boundaries = codebook(scheme, weight.device)
    group = scheme.group(weight.shape[1])
    if scheme.trellis:  # searching the path again would cost more than the copy that autograd keeps
        bias = None if bias is None else bias.to(dtype)
        return linear(input.to(dtype), round_path(weight, scale, levels, group, dtype), bias)
    result: Tensor = _Product.apply(  # type: ignore[no-untyped-call]  # torch's stub
        input.to(dtype), weight, scale, None if bias is None else bias.to(dtype), levels, boundaries, group
    )
    return result


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight: Tensor,
        scale: Tensor,
        bias: Tensor | None,
        levels: Tensor,
        boundaries: Tensor,
        group: int,
    ) -> Tensor:
        ctx.save_for_backward(input, weight, scale, levels, boundaries)
        ctx.group = group
        with torch.autocast(input.device.type, enabled=False):
            return linear(input, round_op(weight, scale, None, levels, boundaries, group, input.dtype), bias)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        input, weight, scale, levels, boundaries = ctx.saved_tensors
        (gradient,) = upstream
        rows = gradient.flatten(0, -2)
        to_input = to_weight = to_scale = None
        if ctx.needs_input_grad[0]:
            to_input = gradient @ round_op(weight, scale, None, levels, boundaries, ctx.group, gradient.dtype)
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            to_values = rows.t() @ input.flatten(0, -2)
            to_weight, to_scale = round_backward(to_values, weight, scale, None, levels, boundaries, ctx.group)
        to_bias = rows.sum(0) if ctx.needs_input_grad[3] else None
        return to_input, to_weight, to_scale if ctx.needs_input_grad[2] else None, to_bias, None, None, None
