"""The processes that torchrun starts for one command: how many, which of them this is, and their meeting."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

from potq.errors import ConfigError, DistributedError

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

TIMEOUT = 30.0  # minutes: the first process estimates and writes while the others wait


def count() -> int:
    """How many processes run this command together."""
    return int(os.environ["WORLD_SIZE"]) if {"RANK", "WORLD_SIZE"} <= os.environ.keys() else 1


def number() -> int:
    """This process's number, from 0; the first one writes and reports."""
    return int(os.environ["RANK"]) if count() > 1 else 0


def own_device(device: str | None) -> str | None:
    """``device`` for this process: each of those on a machine has a GPU of its own.

    Raises:
        ConfigError: one GPU for all, or fewer GPUs than processes.
    """
    if count() == 1 or device is None or not device.startswith("cuda"):
        return device
    import torch

    place, there = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if device != "cuda":
        raise ConfigError(f"device {device} is one for all {count()} processes; write cuda, and each takes one of its own")
    if place >= there:
        raise ConfigError(
            f"process {place} of this machine has no GPU: there are {there}; start no more processes than GPUs"
        )
    return f"cuda:{place}"


@contextmanager
def meeting(device: str | None, timeout: float | None) -> Iterator[ProcessGroup | None]:
    """The group of all processes, until the end; None for a process alone.

    Args:
        device: this process's own, by :func:`own_device`.
        timeout: minutes that a process waits for the others.

    Raises:
        DistributedError: the others do not come.
    """
    if count() == 1:
        yield None
        return
    import torch
    import torch.distributed as dist

    # The defaults of its functions are the group that there is when transformers imports it. So the group would outlive the
    # meeting, and its threads abort a Python that ends.
    import torch.distributed.nn.functional

    on_gpu = device is not None and device.startswith("cuda")
    if on_gpu:
        torch.cuda.set_device(device)
        os.environ.setdefault("TORCH_NCCL_BLOCKING_WAIT", "1")  # a timeout is an exception, and no abort
    try:
        dist.init_process_group("nccl" if on_gpu else "gloo", timeout=timedelta(minutes=timeout or TIMEOUT))
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise DistributedError(
            f"process {number()} of {count()} does not reach the others ({reason}); torchrun starts all of them, and sets "
            "MASTER_ADDR, MASTER_PORT, RANK and WORLD_SIZE"
        ) from error
    yield dist.group.WORLD
    dist.destroy_process_group()  # not after an error: it could wait for the process that stopped
