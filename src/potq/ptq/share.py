"""The calibration text of a run, of which every process has some of the windows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from potq.data.ranks import ALONE, Ranks
from potq.errors import DataError
from potq.ptq.blocks import merge


@dataclass(frozen=True)
class Share:
    """What one process has of the text.

    Attributes:
        batches: its own token batches ``(windows, length)``.
        steps: how many batches all processes have together; a refinement takes a step with each.
        own: of these steps, the ones that this process has windows of: the number of its own batch, and the part of the
            step's windows that are in it.
    """

    batches: Sequence[Tensor]
    steps: int
    own: Mapping[int, tuple[int, float]]
    ranks: Ranks = field(default=ALONE)

    @classmethod
    def whole(cls, batches: Sequence[Tensor], count: int) -> Share:
        """All of it: ``count`` batches, which need not be at hand."""
        return cls(batches, count, {number: (number, 1.0) for number in range(count)})

    @classmethod
    def of(cls, batches: Sequence[Tensor], ranks: Ranks, *, refined: bool) -> Share:
        """This process's part of token batches ``(windows, length)``: the windows are dealt out one by one.

        Args:
            refined: the steps are to hold the same windows whatever the number of processes.

        Raises:
            DataError: fewer windows than processes.
        """
        if ranks.size == 1:
            merged = merge(batches)
            return cls.whole(merged, len(merged))
        windows = sum(map(len, batches))
        if windows < ranks.size:
            raise DataError(
                f"{ranks.size} processes share {windows} windows of calibration text, and each needs one; give more, "
                "or start fewer processes"
            )
        merged = merge(batches, 1 if refined else ranks.size)
        parts: list[Tensor] = []
        own: dict[int, tuple[int, float]] = {}
        seen = 0
        for step, batch in enumerate(merged):
            numbers = torch.arange(seen, seen + len(batch), device=batch.device)
            mine = batch[numbers % ranks.size == ranks.rank]
            seen += len(batch)
            if len(mine):
                own[step] = len(parts), len(mine) / len(batch)
                parts.append(mine)
        return cls(parts, len(merged), own, ranks)
