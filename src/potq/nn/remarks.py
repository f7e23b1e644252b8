"""What is allowed and hardly meant: group sizes that do not fit the rows, schemes that no kernel is fast with."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import nn

from potq.errors import listed
from potq.kernels import reference
from potq.kernels.registry import choose
from potq.nn.packed_model import packed_modules
from potq.nn.plan import WeightPlan


def remarks(targets: Iterable[WeightPlan], dtype: torch.dtype) -> list[str]:
    """A line for every oddity of the ``targets``, with the modules that have it; products are a CPU's in ``dtype``."""
    found: dict[str, list[str]] = defaultdict(list)
    for target in targets:
        for line in (_group_remark(target), _kernel_remark(target, dtype)):
            if line is not None:
                found[line].append(target.name)
    return [f"{line}: {listed(names, 1)}" for line, names in found.items()]


def packed_targets(model: nn.Module) -> list[WeightPlan]:
    """The weights of a packed model, as they were planned."""
    return [
        WeightPlan(
            name,
            "embedding" if isinstance(module, nn.Embedding) else "linear",
            module.quantized.shape,
            module.scheme,
            experts=getattr(module, "experts", 0),
        )
        for name, module in packed_modules(model).items()
        if module.tied_to is None
    ]


def _group_remark(target: WeightPlan) -> str | None:
    size, columns = target.scheme.group_size, target.shape[1]
    if not isinstance(size, int):
        return None
    if size > columns:
        return f"groups of {size} are longer than rows of {columns}, which have one scale each"
    return f"groups of {size} leave a short last one of {columns % size} in rows of {columns}" if columns % size else None


def _kernel_remark(target: WeightPlan, dtype: torch.dtype) -> str | None:
    chosen = choose(target.scheme, target.shape, torch.device("cpu"), dtype)
    if chosen.backend != reference.NAME or not chosen.rejected:
        return None
    backend, reason = next(iter(chosen.rejected.items()))  # the others are for other devices
    return f"no kernel computes with {target.scheme.name} ({backend}: {reason}), so the slow torch reference does"
