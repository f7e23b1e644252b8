"""Plain modules: what transformers does not know."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.models.tiny import IMAGE, LENGTH, VOCABULARY, WIDTH, Inputs, noise, token_ids

_Made = tuple[Callable[[], nn.Module], Callable[[int], Inputs]]


def _seeded(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    def made() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return make().eval().requires_grad_(False)

    return made


class Residual(nn.Module):
    """A block of a residual network: what comes in, and what two linears make of it."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, input: Tensor) -> Tensor:
        result: Tensor = input + self.down(self.up(self.norm(input)).relu())
        return result


class TiedWords(nn.Module):
    """A language model without a config: its head is its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.blocks = nn.Embedding(VOCABULARY, WIDTH), nn.Sequential(Residual(), Residual())
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.head.weight = self.words.weight

    def forward(self, input: Tensor) -> Tensor:
        result: Tensor = self.head(self.blocks(self.words(input)))
        return result


class Recurrent(nn.Module):
    """torch's LSTM between two linears."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.lstm, self.last = (
            nn.Linear(WIDTH, WIDTH),
            nn.LSTM(WIDTH, WIDTH, batch_first=True),
            nn.Linear(WIDTH, 8),
        )

    def forward(self, input: Tensor) -> Tensor:
        result: Tensor = self.last(self.lstm(self.first(input))[0])
        return result


def _perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, 8))


def _images() -> nn.Module:
    layers: list[nn.Module] = [
        nn.Conv2d(3, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, groups=2),
        nn.ReLU(),
    ]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, 8))


def _series() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(4, 32, 5, padding=2), nn.ReLU(), nn.Conv1d(32, 32, 3, dilation=2), nn.ReLU(), nn.Conv1d(32, 4, 1)
    )


def _transformer() -> nn.Module:
    layer = nn.TransformerEncoderLayer(WIDTH, 4, 2 * WIDTH, batch_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


def _input(*shape: int) -> Callable[[int], dict[str, Any]]:
    return lambda seed: {"input": noise(seed, *shape)}


PLAIN: Mapping[str, _Made] = {
    "multi-layer perceptron": (_seeded(_perceptron), _input(WIDTH)),
    "residual blocks": (_seeded(lambda: nn.Sequential(Residual(), Residual(), Residual())), _input(WIDTH)),
    "tied embedding and head": (_seeded(TiedWords), lambda seed: {"input": token_ids(seed)}),
    "Conv2d": (_seeded(_images), _input(3, IMAGE, IMAGE)),
    "Conv1d": (_seeded(_series), _input(4, LENGTH)),
    "LSTM": (_seeded(Recurrent), _input(LENGTH, WIDTH)),
    "nn.TransformerEncoder": (_seeded(_transformer), lambda seed: {"src": noise(seed, LENGTH, WIDTH)}),
}
"""What makes each, always the same, and inputs by their seed."""
