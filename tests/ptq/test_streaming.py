"""Calls of the blocks of a model in parts: as recorded from the whole, with every block read once where that is possible."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from potq.errors import ModelError
from potq.nn.parts import Part, Parts
from potq.ptq.blocks import record_calls
from potq.ptq.streaming import chain_in_parts


class Block(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.linear, self.kind = nn.Linear(8, 8), kind

    def forward(self, hidden: Tensor, extra: Any = None, cache: Any = None) -> Any:
        output = self.linear(hidden)
        if self.kind == "puts out a bias":
            return output, output.mean()
        return (output, None) if self.kind == "a tuple" else output


class Model(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.embedding, self.kind = nn.Embedding(64, 8), kind
        self.blocks = nn.ModuleList(Block(kind) for _ in range(3))

    def forward(self, ids: Tensor, use_cache: bool) -> Tensor:
        hidden, extra = self.embedding(ids), ids.float().mean()
        for index, block in enumerate(self.blocks):
            hidden = hidden / 2 if self.kind == "halved" and index == 2 else hidden
            output = block(hidden, {"ids": ids, "extra": extra, "index": index})
            hidden = output[0] if isinstance(output, tuple) else output
            if self.kind == "looks at states":
                extra = hidden.mean()
            if self.kind == "puts out a bias":
                extra = output[1]
        return hidden


def _in_parts(kind: str) -> tuple[Model, Model, Counter[Part]]:
    whole, read = Model(kind), Counter[Part]()

    def fetch(part: Part) -> nn.Module:
        read[part] += 1
        return copy.deepcopy(whole)

    model = copy.deepcopy(whole)
    model.embedding.to("meta")
    model.blocks.to("meta")
    Parts(model, [("embedding",), *((f"blocks.{index}",) for index in range(3))], fetch)
    return model, whole, read


def _batches() -> list[Tensor]:
    return [torch.arange(12).view(2, 6) + 7 * number for number in range(4)]


@pytest.mark.parametrize("kind", ["a tensor", "a tuple", "looks at states", "puts out a bias"])
def test_calls_are_those_of_the_whole_model(kind: str) -> None:
    model, whole, read = _in_parts(kind)
    chain, remarks = chain_in_parts(model, _batches(), torch.clone)
    expected = record_calls(whole, list(whole.blocks), _batches())
    assert chain.names == ["blocks.0", "blocks.1", "blocks.2"]
    for call, other in zip(chain.calls, expected, strict=True):
        assert torch.equal(call.hidden, other.hidden)
        for (args, kwargs), (others, more) in zip(call.others.values(), other.others.values(), strict=True):
            assert args[0]["index"] == others[0]["index"]
            assert all(torch.equal(args[0][key], others[0][key]) for key in ("ids", "extra"))
            assert kwargs == more == {}
    simple = kind in ("a tensor", "a tuple")
    assert (read["blocks.1",] == 1) == simple
    assert [line.partition(",")[0] for line in remarks] == [] if simple else "depends on what they put out" in remarks[0]
    forward: Callable[..., Any] = model.blocks[0].forward  # on demand, as before
    assert forward(torch.ones(1, 8), None) is not None
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_blocks_that_are_no_chain_are_refused() -> None:
    with pytest.raises(ModelError, match=r"Model does not hand .* \(block 2 of 3\); use effort='fast'"):
        chain_in_parts(_in_parts("halved")[0], _batches(), torch.clone)
