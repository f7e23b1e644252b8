"""Refinement of codes and scales together by gradient descent, on a block's output or on the whole model's predictions.

What is learned is one :class:`~potq.ptq.algorithms.learned.LearnedWeight` a layer, which stands in for the layer's own
weight while :class:`Learning` is on; the model itself is never changed, and is the teacher. Matching the output of a block
(BRECQ, 2102.05426; EfficientQAT's Block-AP, 2407.11062) needs memory for one block; matching the predictions sees how errors
add up and cancel, and needs it for the model.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from potq.config import Effort
from potq.errors import ModelError
from potq.nn.weights import as_weight
from potq.ptq.algorithms.learned import LearnedWeight
from potq.ptq.share import Share
from potq.resume import WorkFolder

_BETAS = (0.9, 0.95)
_WARM_UP = 0.1  # of the steps
_LAST_RATE = 0.02  # of the first
_SAVE_SECONDS = 300.0
_STATE = "refinement"

Loss = Callable[[int], Tensor]
"""The mean loss of one of this process's batches, by its number."""


def fit(
    weights: Sequence[LearnedWeight],
    loss: Loss,
    share: Share,
    effort: Effort,
    seed: int,
    progress: Callable[[int, int, float], None] | None = None,
    folder: WorkFolder | None = None,
) -> None:
    """Learn ``weights``, one step a batch, in an order that depends on ``seed`` alone; nothing if none of them can learn.

    With a ``folder`` the state is saved every few minutes, and a run that was killed goes on from it, to the same result.
    Processes take every step together: each computes the gradients of its windows, and their sum is everybody's.

    Raises:
        ModelError: the loss is NaN or infinite.
    """
    groups = _groups(weights, effort)
    if not groups:
        return
    optimizer = torch.optim.Adam(groups, betas=_BETAS, fused=True)
    order = _order(share.steps, effort.epochs, seed)
    learned = [parameter for group in groups for parameter in group["params"]]
    rates = [group["lr"] for group in optimizer.param_groups]
    done = _restore(folder, weights, optimizer)
    saved = time.monotonic()
    for step in range(done, len(order)):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * _schedule(step, len(order))
        optimizer.zero_grad()
        found = _differentiate(loss, order[step], share, learned)
        optimizer.step()
        if not math.isfinite(found):
            raise _diverged()
        if progress is not None:
            progress(step + 1, len(order), found)
        if folder is not None and time.monotonic() - saved > _SAVE_SECONDS:
            _save(folder, weights, optimizer, step + 1)
            saved = time.monotonic()
    if not all(bool(parameter.isfinite().all()) for parameter in learned):
        raise _diverged()


def _differentiate(loss: Loss, step: int, share: Share, learned: Sequence[nn.Parameter]) -> float:
    """The loss of a step's whole batch; the parameters get its gradients."""
    found = 0.0
    if step in share.own:
        index, part = share.own[step]
        with torch.enable_grad():
            value = loss(index) * part
            value.backward()
        found = float(value.detach())
    if share.ranks.size > 1:
        for parameter in learned:
            own = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parameter.grad = share.ranks.sum(own)
    return math.fsum(share.ranks.values(found))


def _diverged() -> ModelError:
    return ModelError("refinement diverged (its loss is NaN); lower code_rate and scale_rate, or use 'balanced'")


class Learning:
    """While it is entered, the modules (linears, or ``Conv1D``) compute with what is learned instead of their weights."""

    def __init__(self, weights: dict[nn.Module, LearnedWeight]) -> None:
        self._weights, self._on = weights, False
        self._own: dict[nn.Module, Any] = {}

    def __enter__(self) -> None:
        self._on = True
        for module, weight in self._weights.items():
            self._own[module] = vars(module).get("forward")
            module.forward = self._forward(module, weight)

    def __exit__(self, *exception: object) -> None:
        for module, own in self._own.items():
            del module.forward
            if own is not None:  # somebody else had put one there
                module.forward = own

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The modules' own weights, for a teacher's pass."""
        self._on = False
        try:
            yield
        finally:
            self._on = True

    def _forward(self, module: Any, weight: LearnedWeight) -> Callable[..., Any]:
        own = module.forward

        def forward(input: Tensor, *args: Any, **options: Any) -> Any:
            if not self._on:
                return own(input, *args, **options)
            device = input.device.type
            mixed = torch.is_autocast_enabled(device)
            learned = weight(torch.get_autocast_dtype(device) if mixed else input.dtype)
            module.__dict__["weight"] = as_weight(module, learned)  # stands before the parameter of that name
            try:
                return own(input, *args, **options)
            finally:
                del module.__dict__["weight"]

        return forward


def _groups(weights: Sequence[LearnedWeight], effort: Effort) -> list[dict[str, Any]]:
    """Adam moves every weight by about its rate, so that a layer's output moves by the root of its inputs times that.

    Rates over that root suit models of any width: 0.015 steps were best with 128 inputs, 0.005 with 576 to 1536.
    """
    groups: list[dict[str, Any]] = []
    for weight in weights:
        if weight.latent.requires_grad:
            rate = effort.code_rate * weight.step / math.sqrt(weight.latent.shape[1])
            groups.append({"params": [weight.latent], "lr": rate})
        if weight.log_scale.requires_grad:
            groups.append({"params": [weight.log_scale], "lr": effort.scale_rate})
    return groups


def _schedule(step: int, steps: int) -> float:
    """A linear rise, then a cosine fall. Without the rise Adam's first steps, all of full length, undo what came before."""
    rise = min(1.0, (step + 1) / (_WARM_UP * steps + 1))
    return rise * max(_LAST_RATE, 0.5 * (1 + math.cos(math.pi * step / steps)))


def _order(batches: int, epochs: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return [
        index
        for _ in range(epochs)
        for index in torch.randperm(batches, generator=generator, device=generator.device).tolist()
    ]


def _save(folder: WorkFolder, weights: Sequence[LearnedWeight], optimizer: torch.optim.Adam, step: int) -> None:
    tensors = {"step": torch.tensor(step)}
    for index, weight in enumerate(weights):
        for name, parameter in weight.named_parameters():
            tensors[f"{index}.{name}"] = parameter
            tensors |= {f"{index}.{name}.{key}": value for key, value in optimizer.state.get(parameter, {}).items()}
    folder.save(_STATE, tensors)


def _restore(folder: WorkFolder | None, weights: Sequence[LearnedWeight], optimizer: torch.optim.Adam) -> int:
    """Put back what :func:`_save` saved, if anything; the number of steps that were done."""
    tensors = folder.load(_STATE) if folder is not None else None
    if tensors is None:
        return 0
    for index, weight in enumerate(weights):
        for name, parameter in weight.named_parameters():
            parameter.data.copy_(tensors[f"{index}.{name}"])
            keys = {key: f"{index}.{name}.{key}" for key in ("step", "exp_avg", "exp_avg_sq")}
            if all(key in tensors for key in keys.values()):
                optimizer.state[parameter] = {own: tensors[key].to(parameter.device) for own, key in keys.items()}
    return int(tensors["step"])
