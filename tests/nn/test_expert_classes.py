"""Every class of experts that transformers has: its own loop computes with packed stacks, matrix by matrix."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from potq.nn.experts import stack_in
from potq.nn.stacked import PoTStack, pack_stack
from potq.numerics.scheme import QuantScheme
from potq.ptq.algorithms.rtn import rtn

EXPERTS, HIDDEN, INNER = 4, 32, 24
MODELS = Path(transformers.__file__).parent / "models"


class Config(SimpleNamespace):
    """Small sizes under whatever name a class asks for."""

    _experts_implementation = "eager"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if "act" in name:
            return "silu"
        if "limit" in name or "alpha" in name:
            return 7.0
        if "latent" in name:
            return None
        if "zero_expert" in name:
            return 0
        if "expert" in name and "size" not in name and "dim" not in name:
            return EXPERTS
        return 1e-6 if "eps" in name else INNER if "inter" in name or "ffn" in name else HIDDEN


def classes() -> Iterator[Any]:
    """Of every modelling file that has one."""
    for file in sorted(MODELS.glob("*/modeling_*.py")):
        text = file.read_text(encoding="utf-8")
        found = re.findall(r"@use_experts_implementation.*\nclass (\w+)", text)
        found += re.findall(r"^class ((?:LongcatFlash|Step3p7|Llama4Text)Experts)\b", text, re.MULTILINE)
        for name in found:
            yield pytest.param(file.parent.name, file.stem, name, id=f"{file.parent.name}-{name}")


def routed(module: nn.Module, x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
    if "Llama4" in type(module).__name__:
        found: Tensor = module(x.repeat(EXPERTS, 1))
        return found
    found = module(x, chosen, weights)
    return found


@pytest.mark.parametrize(("folder", "stem", "name"), [*classes()])
@torch.no_grad()
def test_its_loop_computes_with_packed_matrices(folder: str, stem: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kind: Any = getattr(importlib.import_module(f"transformers.models.{folder}.{stem}"), name)
    module = kind(Config())
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        parameter.normal_(0, 0.3, generator=generator)
    keys = [key for key, parameter in module.named_parameters(recurse=False) if parameter.ndim == 3]
    assert len(keys) == 2
    for key in keys:
        stack = stack_in(module, key)
        pack_stack(stack, rtn(stack.as_matrix(stack.parameter), QuantScheme("apot4", group_size=8), method="absmax"), key)
    x = torch.randn(10, HIDDEN, generator=generator)
    chosen = torch.stack([torch.randperm(EXPERTS, generator=generator)[:2] for _ in x])
    weights = torch.rand(10, 2, generator=generator)
    holders: list[Any] = [each for each in module.modules() if isinstance(each, PoTStack)]
    rounded = {key: getattr(module, key) + 0 for key in keys}
    for holder in holders:
        holder.activations = "float"
    with monkeypatch.context() as patch:
        patch.setattr(PoTStack, "_dequantized", lambda self: pytest.fail("the whole stack was made"))
        found = routed(module, x, chosen, weights)
    again = kind(Config())
    state = {key: value for key, value in module.state_dict().items() if "stacked_" not in key}
    again.load_state_dict(state | rounded)
    expected = routed(again, x, chosen, weights)
    assert torch.allclose(found, expected, rtol=1e-5, atol=2e-6 * float(expected.abs().max()))
