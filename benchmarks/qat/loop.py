"""What the benchmarks of quantization-aware training share: a plain loop, windows of a text, losses of packed models.

The loop is one that a user of ``potq.qat`` may write: AdamW on the next token's loss, a linear rise of the rate, a cosine
fall. A model in training may be prepared between any two steps: its parameters stay the optimizer's, the schedule goes on.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from potq.config import PoTConfig
from potq.kernels import set_activations
from potq.nn.properties import evaluation_mode
from potq.qat.preparation import convert, prepare, refresh_scales
from potq.qat.settings import QATSettings

_TOLD = 100  # steps from one line of progress to the next
_EVALUATED = 64  # windows at a time

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Training:
    """How a model is trained, in full precision or not; ``length`` tokens are predicted in each of ``batch`` windows."""

    steps: int
    batch: int
    length: int
    rate: float
    least_rate: float
    warmup: int = 0
    scale_rate: float = 1e-3
    decay: float = 0.1
    beta2: float = 0.99
    clip: float = 1.0

    def factor(self, step: int) -> float:
        """What a group's rate is multiplied with at ``step``, counted from 0."""
        if step < self.warmup:
            return (step + 1) / (self.warmup + 1)
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        least = self.least_rate / self.rate
        return least + (1 - least) * (1 + math.cos(math.pi * done)) / 2


@dataclass
class Run:
    """A model in training on random windows of ``tokens`` (1-D); ``seed`` decides which."""

    model: Any
    tokens: Tensor
    training: Training
    seed: int
    step: int = 0
    settings: QATSettings | None = None
    prepared: int = 0
    optimizer: torch.optim.AdamW = field(init=False)

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(self.seed)
        last = len(self.tokens) - self.training.length
        self._starts = torch.randint(last, (self.training.steps, self.training.batch), generator=generator)
        parameters = list(self.model.parameters())
        decayed = [parameter for parameter in parameters if parameter.ndim > 1]
        rest = [parameter for parameter in parameters if parameter.ndim <= 1]
        groups: list[dict[str, Any]] = [
            {"params": decayed, "weight_decay": self.training.decay, "peak": self.training.rate},
            {"params": rest, "weight_decay": 0.0, "peak": self.training.rate},
        ]
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, self.training.beta2), fused=True)

    def quantize(self, config: PoTConfig, settings: QATSettings) -> None:
        """Train with rounded weights from here on."""
        known = {id(parameter) for parameter in self.model.parameters()}
        prepare(self.model, config, settings)
        scales = [parameter for parameter in self.model.parameters() if id(parameter) not in known]
        if scales:
            self.optimizer.add_param_group({"params": scales, "weight_decay": 0.0, "peak": self.training.scale_rate})
        self.settings, self.prepared = settings, self.step

    def until(self, step: int, tell: Tell = print) -> None:
        """Train up to ``step`` steps in all."""
        self.model.train()
        while self.step < step:
            if self.settings is not None and self.settings.searches_before(*self._since_prepared()):
                refresh_scales(self.model)
            loss = self._advance()
            self.step += 1
            if self.step % _TOLD == 0:
                tell(f"step {self.step} of {self.training.steps}: {float(loss):.3f}")

    def save(self, file: Path) -> None:
        """Keep the state, before :meth:`quantize`."""
        state = {"step": self.step, "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        partial = file.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(file)

    def load(self, file: Path) -> None:
        state = torch.load(file, map_location=self.model.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]

    def _since_prepared(self) -> tuple[int, int]:
        """Steps done with rounded weights, and to be done in all."""
        return self.step - self.prepared, self.training.steps - self.prepared

    def _advance(self) -> Tensor:
        windows = self.tokens[self._starts[self.step][:, None] + torch.arange(self.training.length + 1)]
        loss = window_losses(self.model, windows).mean()
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * self.training.factor(self.step)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.training.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()


def window_losses(model: Any, windows: Tensor) -> Tensor:
    """The loss of each token but the first of ``windows (n, length)``, in nats: 1-D."""
    windows = windows.to(model.device)
    logits = model(input_ids=windows[:, :-1], use_cache=False).logits
    return cross_entropy(logits.flatten(0, 1).float(), windows[:, 1:].flatten(), reduction="none")


@torch.no_grad()
def mean_loss(model: Any, tokens: Tensor, length: int, windows: int | None = None) -> float:
    """Nats a token, over non-overlapping windows that predict ``length`` tokens each, the first ``windows`` or all."""
    count = (len(tokens) - 1) // length
    starts = torch.arange(count if windows is None else min(windows, count)) * length
    rows = tokens[starts[:, None] + torch.arange(length + 1)]
    with evaluation_mode(model):
        losses = [window_losses(model, some).double().sum() for some in rows.split(_EVALUATED)]
    return float(torch.stack(losses).sum()) / (len(rows) * length)


def pack(model: Any) -> float:
    """Convert a model in quantized training, with exact activations from now on; its bits per quantized weight."""
    report = convert(model)
    set_activations(model, "float")
    return report.quantized_bits_per_weight
