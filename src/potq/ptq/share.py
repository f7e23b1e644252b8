"""The calibration text of a run, of which every process has some of the windows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from potq.config import PoTConfig
from potq.data.ranks import ALONE, Ranks
from potq.errors import ConfigError, DataError
from potq.ptq.blocks import merge
from potq.ptq.feed import Feed
from potq.resume import content_hash
from potq.version import __version__

_COMPARED = 256  # entries of each weight that processes compare


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

        """
        if ranks.size == 1:
            merged = merge(batches)
            return cls.whole(merged, len(merged))
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


def check_shared(
    ranks: Ranks, model: nn.Module, config: PoTConfig, source: Sequence[Tensor] | Feed, settings: Sequence[str]
) -> None:
    """Make sure that processes have something to share, and the same.

    Args:
        config: with the effort that was chosen.
        settings: whatever else decides the result.

    Raises:
        ConfigError: an effort that is not calibrated; a callable as calibration.
        DataError: fewer windows or inputs than processes.
        DistributedError: they have not the same.
    """
    if config.effort is None or not config.effort.calibrated:
        effort = config.effort.name if config.effort is not None else "fast"
        raise ConfigError(
            f"{ranks.size} processes share the calibration of blocks, and effort={effort!r} has none; quantize in one "
            "process, or use 'balanced'"
        )
    if isinstance(source, Feed) and source.inputs is None:
        raise ConfigError(f"{ranks.size} processes share inputs, and not what a callable runs; give a list of inputs")
    count = len(source.inputs or ()) if isinstance(source, Feed) else sum(map(len, source))
    if count < ranks.size:
        raise DataError(
            f"{ranks.size} processes share {count} windows or inputs of calibration, and each needs one; give more, or "
            "start fewer processes"
        )
    tensors = source.tensors() if isinstance(source, Feed) else source
    state = model.state_dict()
    starts = {name: tensor.reshape(-1)[:_COMPARED] for name, tensor in state.items() if not tensor.is_meta}
    shapes = [f"{name} {tensor.dtype} {tuple(tensor.shape)}" for name, tensor in state.items()]
    ranks.agree(
        {
            "potq's version": __version__,
            "torch's version": torch.__version__,
            "the config": content_hash([], [config.model_dump_json(), *settings]),
            "the model": content_hash(starts.items(), [type(model).__qualname__, *shapes]),
            "the calibration": content_hash(enumerate(tensors), []),
        }
    )
