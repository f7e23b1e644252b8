"""GPTQ by GPTQModel: its solver for one linear, driven through the decoder layers as Optimum drives it.

Stage by stage (linears that read the same input are one stage): the calibration text runs through the layer with every
earlier stage quantized already, the solver of each linear collects its Hessian, and the weights are replaced; then the text
runs on to the next layer. GPTQModel's defaults (damping, activation-aware order of the groups), groups of 64, integer
zero-points; the scales are rounded to float16 afterwards. ``mse`` makes its search of clipped ranges minimise the squared
error, which is off by default.

The version tested, 7.7.0, asks for torch >= 2.14.1 but runs with 2.13 when it is installed without its dependencies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from benchmarks.peers.packages import optional
from benchmarks.peers.ptq.peer import (
    GROUP,
    Peer,
    grouped_bits,
    half_scales,
    linears,
    model_bits,
    replace,
    require_whole_groups,
)
from potq.nn.properties import evaluation_mode

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PIP = (
    "datasets torchao pillow protobuf threadpoolctl device-smi pypcre logbar"
    " && pip install --no-deps gptqmodel==7.7.0 tokenicer defuser"
)


@dataclass(frozen=True)
class Call:
    """What a decoder layer is called with for one batch."""

    x: Tensor
    others: tuple[Any, ...]
    named: dict[str, Any]

    def through(self, layer: nn.Module) -> Call:
        """The next layer's call."""
        out = layer(self.x, *self.others, **self.named)
        return Call(out[0] if isinstance(out, tuple) else out, self.others, self.named)


class _Stop(Exception):  # noqa: N818  # no error: the rest of a forward pass is not needed
    pass


def require() -> Any:
    """GPTQModel's solver and config."""
    return optional("gptqmodel.quantization.gptq", PIP)


@torch.no_grad()
def apply(model: PreTrainedModel, batches: Sequence[Tensor], *, bits: int, mse: float) -> float:
    require()
    for module in linears(model).values():
        require_whole_groups(module.weight)
    chosen = set(linears(model).values())
    with evaluation_mode(model):
        layers = _decoder_layers(model)
        calls = _first_calls(model, layers[0], batches)
        for layer in layers:
            modules = [module for module in layer.modules() if module in chosen]
            for stage in _stages(layer, modules, calls[0]):
                _quantize_stage(layer, stage, calls, bits, mse)
            calls = [call.through(layer) for call in calls]
    return model_bits(chosen, bits, zero_bits=bits)


def _quantize_stage(layer: nn.Module, stage: list[nn.Linear], calls: list[Call], bits: int, mse: float) -> None:
    library = require()
    config = optional("gptqmodel", PIP).QuantizeConfig
    solvers = []
    for module in stage:
        solver = library.GPTQ(module, config(bits=bits, group_size=GROUP, sym=False, desc_act=False, mse=mse))
        solver.quantizer.configure(perchannel=True)
        solvers.append(solver)

    def collect(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        for solver in solvers:
            solver.add_batch(args[0], output)
        raise _Stop

    with _hooked([stage[0]], collect):
        for call in calls:
            _run(partial(call.through, layer))
    for module, solver in zip(stage, solvers, strict=True):
        weight, scale, *_ = solver.quantize()
        replace(module, half_scales(weight, scale, bits))
        solver.free()


def _stages(layer: nn.Module, modules: list[nn.Linear], call: Call) -> list[list[nn.Linear]]:
    """The layer's linears in the order of their calls, those with one input together."""
    stages: list[list[nn.Linear]] = []
    inputs: list[Tensor] = []

    def note(module: nn.Linear, args: tuple[Tensor, ...], output: Tensor) -> None:
        if inputs and args[0] is inputs[-1]:
            stages[-1].append(module)
        else:
            stages.append([module])
            inputs.append(args[0])

    with _hooked(modules, note):
        call.through(layer)
    return stages


def _decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    count = model.config.num_hidden_layers
    return next(module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) == count)


def _first_calls(model: PreTrainedModel, first: nn.Module, batches: Sequence[Tensor]) -> list[Call]:
    calls: list[Call] = []

    def keep(module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        calls.append(Call(args[0], args[1:], named))
        raise _Stop

    handle = first.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        for batch in batches:
            _run(partial(model, batch, use_cache=False))
    finally:
        handle.remove()
    return calls


def _run(forward: Callable[[], object]) -> None:
    try:
        forward()
    except _Stop:
        return


@contextmanager
def _hooked(modules: Sequence[nn.Module], hook: Callable[..., None]) -> Iterator[None]:
    handles = [module.register_forward_hook(hook) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


PEERS = [
    Peer(
        name=f"GPTQModel {bits}-bit g{GROUP}{' mse' if mse else ''}",
        bits=grouped_bits(bits, zero_bits=bits),
        needs_calibration=True,
        apply=partial(apply, bits=bits, mse=mse),
        require=require,
        note="searches clipped ranges (mse=2)" if mse else "GPTQModel's default: ranges from minimum and maximum",
    )
    for mse in (0.0, 2.0)
    for bits in (4, 3, 2)
]
