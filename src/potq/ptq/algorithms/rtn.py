"""Round to nearest: choose every group's scale, round every weight to the nearest level. No calibration needed."""

from __future__ import annotations

from torch import Tensor

from potq.numerics.row_scale import choose_row_scale
from potq.numerics.scale_search import choose_scale
from potq.numerics.scheme import QuantScheme, ScaleMethod
from potq.numerics.tensor import QuantizedWeight


def rtn(
    weight: Tensor,
    scheme: QuantScheme,
    importance: Tensor | None = None,
    *,
    method: ScaleMethod = "mse",
    candidates: int | None = None,
) -> QuantizedWeight:
    """Quantize ``weight`` ``(out, in)``; arguments and errors as in :func:`potq.numerics.scale_search.choose_scale`."""
    scale, row_scale = choose_scales(weight, scheme, importance, method=method, candidates=candidates)
    return QuantizedWeight.from_scale(weight, scale, scheme, row_scale)


def choose_scales(
    weight: Tensor,
    scheme: QuantScheme,
    importance: Tensor | None = None,
    *,
    method: ScaleMethod = "mse",
    candidates: int | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The stored scales that :func:`rtn` rounds under, and row scales where the scheme has them.

    A scheme with row scales tries some more under each (:mod:`potq.numerics.row_scale`).
    """
    if scheme.row_scale:
        return choose_row_scale(weight, scheme, importance, method=method, candidates=candidates)
    return choose_scale(weight, scheme, method, candidates, importance), None
