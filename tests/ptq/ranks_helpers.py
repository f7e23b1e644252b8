"""What two processes do that share a calibrated run; each leaves what it found in a file."""

from __future__ import annotations

import copy
import datetime
import os
import signal
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from transformers import LlamaForCausalLM

import potq
from moe_helpers import moe, tokens
from plain_helpers import net_inputs, trained_net
from potq.config import Effort
from potq.data.calibration_text import load_calibration
from potq.data.ranks import Ranks
from potq.errors import DistributedError, PotqError

PROCESSES = 2
EFFORTS = {
    "balanced": Effort(compensate=True, rounds=1),
    "weighed": Effort(compensate=True, weigh_tokens=True),
    "block": Effort(compensate=True, scope="block", epochs=2),
    "model": Effort(compensate=True, scope="model", epochs=2),
}


def windows(shift: int = 0) -> list[Tensor]:
    """Seven of them, one shorter."""
    generator = torch.Generator().manual_seed(3)
    start, step = (torch.randint(low, 250, (7, 1), generator=generator) for low in (0, 1))
    tokens = (start + step * torch.arange(40) + shift) % 250
    return [*tokens[:6].split(2), tokens[6:, :9]]


def quantized(source: Path, effort: str, group: Any = None, scheme: str = "pot3", **options: Any) -> dict[str, Any]:
    """Everything that a run leaves: tensors, what was done, the errors on the text."""
    model = LlamaForCausalLM.from_pretrained(source).eval()
    config = potq.PoTConfig(scheme, group_size=32, effort=EFFORTS.get(effort, Effort()))
    report = potq.quantize(model, config, options.pop("text", windows()), group=group, **options)
    entries = {entry.name: (entry.algorithm, entry.snr_db, entry.output_snr_db) for entry in report.modules}
    return {"tensors": dict(model.state_dict()), "entries": entries}


def module(group: Any = None, calibration: Any = None) -> dict[str, Any]:
    """A plain module on five inputs."""
    net = copy.deepcopy(trained_net())
    config = potq.PoTConfig("pot3", group_size=16, effort=EFFORTS["balanced"])
    report = potq.quantize(net, config, net_inputs(5, 1) if calibration is None else calibration, group=group)
    entries = {entry.name: (entry.algorithm, entry.snr_db, entry.output_snr_db) for entry in report.modules}
    return {"tensors": dict(net.state_dict()), "entries": entries}


def experts(group: Any = None) -> dict[str, Any]:
    """Twelve experts and six tokens: some are reached in one process only, some in none."""
    model = moe("qwen3_moe", num_hidden_layers=1, num_experts=12)
    config = potq.PoTConfig("pot4", group_size=16, embedding=None, effort=EFFORTS["block"])
    report = potq.quantize(model, config, [tokens(2, 3)], group=group)
    entries = {entry.name: (entry.algorithm, entry.snr_db) for entry in report.modules}
    return {"tensors": dict(model.state_dict()), "entries": entries}


def work(rank: int, source: Path, folder: Path) -> None:
    """One of the two."""
    torch.set_num_threads(1)
    torch.cpu._is_avx512_bf16_supported = lambda: False
    meeting = f"file://{folder}/meeting"
    wait = datetime.timedelta(seconds=60)
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=PROCESSES, timeout=wait)
    group = dist.group.WORLD
    found: dict[str, Any] = {effort: quantized(source, effort, group) for effort in EFFORTS}
    found["row scales"] = quantized(source, "balanced", group, "pot3:scale_dtype=e8m0:row_scale=true")
    found["again"] = quantized(source, "balanced", group)
    found["resumed"] = _killed(source, "model", group, folder / "work")
    found["module"], found["experts"] = module(group), experts(group)
    found["written"] = _written(source, group)
    found["errors"] = {name: _refused(source, group, **wrong) for name, wrong in _mistakes(rank).items()}
    torch.save(found, folder / f"{rank}.pt")
    dist.barrier()  # the one that ends first would take its connections with it
    dist.destroy_process_group()


def exchange(rank: int, folder: Path) -> None:
    """The same two, exchanging small things, until the second is killed."""
    wait = datetime.timedelta(seconds=60)
    meeting = f"file://{folder}/meeting"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=PROCESSES, timeout=wait)
    ranks = Ranks(dist.group.WORLD)
    matrix = torch.arange(10.0).view(5, 2).half()
    found: dict[str, Any] = {
        "sum": ranks.sum(noise(rank)),
        "whole": ranks.whole(matrix[ranks.rows(5)], 5),
        "few": ranks.whole(matrix[:1][ranks.rows(1)], 1),
        "parts": ranks.parts(torch.full((rank, 2), rank)),
        "values": ranks.values({"rank": rank, "list": [0.1 * rank]}),
        "first": ranks.first(lambda: {"a": matrix, "b": torch.tensor(7)}),
        "none": ranks.first(lambda: None),
        "share": list(ranks.share("abcde")),
        "error": "",
    }
    try:
        ranks.agree({"one": "x", "two": f"y{rank}"})
    except DistributedError as error:
        found["error"] = str(error)
    torch.save(found, folder / f"{rank}.pt")
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        ranks.sum(noise(0))
    except DistributedError as error:
        (folder / "lost").write_text(str(error))
    os._exit(0)  # without the other, threads of gloo may abort a Python that ends


def noise(rank: int) -> Tensor:
    """What process ``rank`` adds."""
    return torch.randn(7, 3, generator=torch.Generator().manual_seed(rank))


def _mistakes(rank: int) -> dict[str, dict[str, Any]]:
    return {
        "text": {"text": windows(rank)},
        "seed": {"seed": rank},
        "few": {"text": windows()[-1:]},
        "effort": {"effort": "fast"},
    }


def _refused(source: Path, group: Any, **options: Any) -> str:
    try:
        quantized(source, options.pop("effort", "balanced"), group, **options)
    except PotqError as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


class KillError(Exception):
    pass


def _killed(source: Path, effort: str, group: Any, work_folder: Path) -> dict[str, Any]:
    """A run that ends in its second block, and its continuation; only the first process has the folder."""
    mine = work_folder if dist.get_rank() == 0 else work_folder.with_name("not there")

    def kill(done: int, total: int, name: str) -> None:
        if name.startswith("model.layers.1."):
            raise KillError

    with suppress(KillError):
        quantized(source, effort, group, work_folder=mine, progress=kill)
    began: list[str] = []
    found = quantized(source, effort, group, work_folder=mine, progress=lambda done, total, name: began.append(name))
    return {**found, "began": began, "there": mine.exists()}


def _written(source: Path, group: Any) -> Tensor:
    model = LlamaForCausalLM.from_pretrained(source).eval()
    return torch.cat(load_calibration("self", model, window=12, windows=5, batch=2, group=group))


def of_other_number(source: Path, work_folder: Path) -> list[str]:
    """What one process says of the work of two."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        quantized(source, "model", work_folder=work_folder)
    return [str(warning.message) for warning in told]
