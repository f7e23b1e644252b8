"""Plain modules to calibrate, trained a little, and inputs for them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn


class Block(nn.Module):
    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.act = nn.ReLU(inplace=True)

    def forward(self, hidden: Tensor, scale: Tensor | None = None) -> Tensor:
        result: Tensor = hidden + self.down(self.act(self.up(self.norm(hidden))))
        return result if scale is None else result * scale


class Net(nn.Module):
    """A stem, blocks in a list, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(20, 32)
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.head = nn.Linear(32, 10)

    def forward(self, input: Tensor, scale: Tensor | None = None) -> Tensor:
        hidden = self.stem(input)
        for block in self.blocks:
            hidden = block(hidden, scale=scale)
        result: Tensor = self.head(hidden)
        return result


class Images(nn.Module):
    """Convolutions of every kind, a linear; no list of alike modules."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(inplace=True))
        self.groups = nn.Conv2d(16, 16, 3, groups=4)
        self.deep = nn.Conv2d(16, 8, 3, stride=2, dilation=2)
        self.lines = nn.Conv1d(8, 12, 3, padding="same")
        self.head = nn.Linear(12, 5)

    def forward(self, image: Tensor) -> Tensor:
        flat = self.deep(self.groups(self.first(image)).relu()).flatten(2)
        result: Tensor = self.head(self.lines(flat).mean(-1))
        return result


def net_inputs(count: int, seed: int, batch: int = 32) -> list[Tensor]:
    """Of few directions, as real ones are."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(20, 20, generator=torch.Generator().manual_seed(9))
    spread = torch.logspace(0, -2, 20)
    return [(torch.randn(batch, 20, generator=generator) * spread) @ mix for _ in range(count)]


def _trained(make: Callable[[], nn.Module], inputs: list[Tensor], teach: Callable[[Tensor], Tensor]) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = make()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for input in inputs:
        loss = (model(input) - teach(input)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


@cache
def trained_net() -> Net:
    """Copy it: it is the tests' common one."""
    target = torch.randn(20, 10, generator=torch.Generator().manual_seed(5))
    trained: Net = _trained(Net, net_inputs(150, 1, 64), lambda input: torch.sin(input @ target / 3))
    return trained


def image_inputs(count: int, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(8, 3, 14, 14, generator=generator).cumsum(-1).cumsum(-2) / 10 for _ in range(count)]


@cache
def trained_images() -> Images:
    """Copy it: it is the tests' common one."""
    trained: Images = _trained(Images, image_inputs(60, 1), lambda image: image.mean((-1, -2)).repeat(1, 2)[:, :5])
    return trained
