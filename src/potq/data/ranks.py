"""The processes that share a calibrated run: who has which part of a text, of a weight's rows, and how parts become a whole.

Every process holds the model and takes the same steps. What they add up is added in the order of their numbers, so that the
same number of processes gives the same bits. A process that is alone is the plain case: nothing here then does anything.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from potq.errors import DistributedError, listed
from potq.resume import WorkFolder

_Item = TypeVar("_Item")


@dataclass(frozen=True)
class Ranks:
    """This process among those of a torch.distributed ``group``; without a group it is alone.

    Each method is called by all processes, in the same order, with tensors of the same dtype; their device is their own.
    """

    group: dist.ProcessGroup | None = None

    @property
    def size(self) -> int:
        return 1 if self.group is None else dist.get_world_size(self.group)

    @property
    def rank(self) -> int:
        """The number of this process, from 0."""
        return 0 if self.group is None else dist.get_rank(self.group)

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes and reports: the only one, or the first."""
        return self.rank == 0

    def share(self, items: Sequence[_Item]) -> Sequence[_Item]:
        """This process's items: dealt out one by one."""
        return items[self.rank :: self.size]

    def rows(self, count: int) -> slice:
        """This process's rows of a matrix of ``count`` rows; all of them where there are fewer than processes."""
        if count < self.size:
            return slice(0, count)
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def whole(self, part: Tensor, count: int) -> Tensor:
        """A matrix of ``count`` rows, of which every process has its :meth:`rows`."""
        if self.size == 1:
            return part
        if count < self.size:
            return self.parts(part)[0]
        return torch.cat(self.parts(part))

    def sum(self, tensor: Tensor) -> Tensor:
        """The processes' tensors, all of one shape, added up in the order of their numbers: the same bits on each."""
        if self.size == 1:
            return tensor
        sent, group, size = self._sent(tensor), self.group, self.size
        flat = torch.nn.functional.pad(sent.reshape(-1), (0, -sent.numel() % size))  # each adds up one piece for all
        received, whole = torch.empty_like(flat), torch.empty_like(flat)
        with self._answered():
            dist.all_to_all_single(received, flat, group=group)
            first, *others = received.chunk(size)
            total = first.clone()
            for other in others:
                total += other
            dist.all_gather(list(whole.chunk(size)), total, group=group)
        return whole[: sent.numel()].view(sent.shape).to(tensor.device)

    def parts(self, tensor: Tensor) -> list[Tensor]:
        """Every process's tensor, in the order of their numbers; they may differ in the length of the first dimension."""
        if self.size == 1:
            return [tensor]
        sent = self._sent(tensor.contiguous())
        lengths = [torch.empty(1, dtype=torch.int64, device=sent.device) for _ in range(self.size)]
        with self._answered():
            dist.all_gather(lengths, torch.tensor([len(sent)], device=sent.device), group=self.group)
        counts = [int(length) for length in lengths]
        padded = sent.new_zeros(max(counts), *sent.shape[1:])
        padded[: len(sent)] = sent
        found = [torch.empty_like(padded) for _ in counts]
        with self._answered():
            dist.all_gather(found, padded, group=self.group)
        return [part[:count].to(tensor.device) for part, count in zip(found, counts, strict=True)]

    def values(self, value: Any) -> list[Any]:
        """Every process's ``value``, which JSON can hold, in the order of their numbers."""
        if self.size == 1:
            return [value]
        sent = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        return [json.loads(bytes(part.tolist())) for part in self.parts(sent)]

    def first(self, make: Callable[[], dict[str, Tensor] | None]) -> dict[str, Tensor] | None:
        """What the first process makes: named tensors, which may come on another device, or None."""
        made = make() if self.leads else None
        if self.size == 1:
            return made
        content = None if made is None else {name: (str(t.dtype), list(t.shape)) for name, t in made.items()}
        content = self.values(content)[0]
        if content is None or self.group is None:
            return None
        source, found = dist.get_global_rank(self.group, 0), {}
        for name, (dtype, shape) in content.items():
            sent = torch.empty(shape, dtype=getattr(torch, dtype.removeprefix("torch.")), device=self._wire)
            if made is not None:
                sent.copy_(made[name])
            with self._answered():
                dist.broadcast(sent, source, group=self.group)
            found[name] = sent
        return found

    def agree(self, facts: Mapping[str, str]) -> None:
        """Make sure that all processes work on the same.

        Args:
            facts: short texts (hashes of what is long) by what they are of.

        Raises:
            DistributedError: they differ; names which, and in which process. All processes raise it.
        """
        first, *others = self.values(dict(facts))
        for rank, found in enumerate(others, start=1):
            if differing := [name for name in first if found.get(name) != first[name]]:
                shown = [f"{name} ({found.get(name)} there, {first[name]} in process 0)" for name in differing]
                raise DistributedError(
                    f"process {rank} of {self.size} disagrees with process 0 in {listed(shown, 3)}; start all of them "
                    "with the same settings, files and versions"
                )

    @property
    def _wire(self) -> torch.device:
        """Where tensors are that the group's backend sends."""
        if dist.get_backend(self.group) == "nccl":
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("cpu")

    def _sent(self, tensor: Tensor) -> Tensor:
        return tensor.detach().to(self._wire)

    @contextmanager
    def _answered(self) -> Iterator[None]:
        """Around what waits for the others.

        Raises:
            DistributedError: one of them has ended, or does not answer in the group's time.
        """
        try:
            yield
        except RuntimeError as error:
            raise DistributedError(
                f"process {self.rank} of {self.size} waited in vain for the others: one of them has stopped, and its own "
                f"message says why, or did not answer in time ({str(error).strip().splitlines()[0]})"
            ) from error


ALONE = Ranks()


class SharedFolder(WorkFolder):
    """A work folder that the first process keeps, and reads for all."""

    def __init__(self, folder: Path, fingerprint: str, ranks: Ranks) -> None:
        self._ranks = ranks
        if ranks.leads:
            super().__init__(folder, fingerprint)

    def load(self, name: str) -> dict[str, Tensor] | None:
        return self._ranks.first(lambda: super(SharedFolder, self).load(name))

    def save(self, name: str, tensors: dict[str, Tensor]) -> None:
        if self._ranks.leads:
            super().save(name, tensors)
