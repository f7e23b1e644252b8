"""What commands say on stderr before they quantize."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from potq.cli import console

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel

    from potq.config import PoTConfig
    from potq.nn.plan import WeightPlan


def note_remarks(targets: Iterable[WeightPlan], dtype: torch.dtype) -> None:
    """Say on stderr what is allowed and hardly meant."""
    from potq.nn.remarks import remarks

    for line in remarks(targets, dtype):
        console.note(line)


def announce(
    model: PreTrainedModel, config: PoTConfig, batches: list[Tensor], what: str = "quantizing", *, count: int = 1
) -> None:
    """Say on stderr what calibrated work will take, shared by ``count`` processes."""
    from potq.ptq.estimate import estimate

    several = f", shared by {count} processes" if count > 1 else ""
    console.note(f"{what}: {estimate(model, config, batches, processes=count)}{several}")
