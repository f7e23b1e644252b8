"""A training loop without a Trainer, in one process or in several that share the batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoModelForCausalLM

from potq.config import PoTConfig
from potq.qat import QATSettings, prepare, refresh_scales
from potq.qat.preparation import scale_state

PROCESSES = 2
WAYS = ("ddp", "fsdp")
SCALES = ("searched", "learned")
STEPS = 5


def batches() -> Tensor:
    """Token ids ``(steps, batch, length)``."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(260, (STEPS, 4, 24), generator=generator)


def train(folder: Path, scales: Any, way: str | None) -> dict[str, Tensor]:
    """Some steps of gradient descent; parameters and scales afterwards, whole."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    prepare(model, PoTConfig("pot4", group_size=32), QATSettings(scales=scales))
    wrapped = _wrap(model, way)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    rank, count = (dist.get_rank(), PROCESSES) if way else (0, 1)
    wrapped.train()
    for step, batch in enumerate(batches()):
        if step % 2 == 0:
            refresh_scales(model)
        ids = batch.chunk(count)[rank]
        wrapped(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    wrapped.eval()
    with torch.no_grad():
        logits = wrapped(input_ids=batches()[0]).logits
    parameters = {name: _whole(parameter) for name, parameter in model.named_parameters()}
    return parameters | {name: tensor.float() for name, tensor in scale_state(model).items()} | {"logits": logits}


def work(rank: int, folder: Path, output: Path) -> None:
    """What every process does."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{output}/meeting", rank=rank, world_size=PROCESSES)
    for way in WAYS:
        for scales in SCALES:
            found = train(folder, scales, way)
            if rank == 0:
                torch.save(found, output / f"{way}-{scales}.pt")
    dist.barrier()  # the one that saves is slower; the others' threads would end while it still has connections to them
    dist.destroy_process_group()


def _wrap(model: Any, way: str | None) -> nn.Module:
    if way == "ddp":
        return DistributedDataParallel(model)
    if way == "fsdp":
        for layer in model.model.layers:
            fully_shard(layer)
        fully_shard(model)
    wrapped: nn.Module = model
    return wrapped


def _whole(parameter: nn.Parameter) -> Tensor:
    tensor = parameter.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.clone()
