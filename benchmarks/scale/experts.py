"""The speed of experts in a packed stack against packed linears of the same weights."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import silu
from transformers import MixtralConfig, MixtralForCausalLM

import potq
from benchmarks.common.goals import Row
from benchmarks.scale.goals import EXPERTS as PART

WIDTH, INNER, COUNT, CHOSEN, SCHEME, CALLS = 1024, 3584, 8, 2, "pot4", 30
CASES = {"decode, one token": 1, "prompt of 64 tokens": 64}


class _Linears(nn.Module):
    """Experts as linears, each by itself: what a stack is compared with."""

    def __init__(self, stacks: Any) -> None:
        super().__init__()
        self.up = nn.ModuleList(_linear(matrix) for matrix in stacks.gate_up_proj)
        self.down = nn.ModuleList(_linear(matrix) for matrix in stacks.down_proj)

    def forward(self, input: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        result = torch.zeros_like(input)
        for expert in chosen.unique().tolist():
            rows, places = torch.where(chosen == expert)
            gate, up = self.up[expert](input[rows]).chunk(2, -1)
            result.index_add_(0, rows, self.down[expert](silu(gate) * up) * weights[rows, places, None])
        return result


def _linear(matrix: Tensor) -> nn.Linear:
    linear = nn.Linear(matrix.shape[1], matrix.shape[0], bias=False)
    linear.weight = nn.Parameter(matrix.detach().clone(), requires_grad=False)
    return linear


@torch.inference_mode()
def rounds(count: int) -> list[Row]:
    """Interleaved, both on the same tokens and the same experts.

    Raises:
        SystemExit: the two do not compute the same, or experts are not packed.
    """
    torch.manual_seed(0)
    shape = {"hidden_size": WIDTH, "intermediate_size": INNER, "num_local_experts": COUNT, "num_experts_per_tok": CHOSEN}
    config = MixtralConfig(**shape, num_hidden_layers=1, num_attention_heads=8, num_key_value_heads=8, vocab_size=256)
    model = MixtralForCausalLM(config).eval().requires_grad_(False)
    linears = _Linears(model.model.layers[0].mlp.experts)
    report = potq.quantize(model, potq.PoTConfig(SCHEME))
    stacks: Any = model.model.layers[0].mlp.experts
    potq.quantize(linears, potq.PoTConfig(SCHEME))
    if not any("experts" in module.name for module in report.modules):
        raise SystemExit("experts stay in full precision; there is nothing to compare")
    rows: list[Row] = []
    for case, tokens in CASES.items():
        input = torch.randn(tokens, WIDTH)
        chosen = torch.stack([torch.randperm(COUNT)[:CHOSEN] for _ in range(tokens)])
        weights = torch.full((tokens, CHOSEN), 1 / CHOSEN)
        one, other = (each(input, chosen, weights) for each in (stacks, linears))
        if float((one - other).abs().max() / other.abs().max()) > 1e-4:
            raise SystemExit(f"{case}: the stack and the linears do not compute the same")
        for number in range(count):
            pairs = (("stack", stacks), ("linears", linears))
            times = {name: _seconds(partial(each, input, chosen, weights)) for name, each in pairs}
            speed = times["linears"] / times["stack"]
            rows.append({"part": PART, "case": case, "round": number, **times, "speed": speed})
    return rows


def _seconds(work: Callable[[], object]) -> float:
    """The median of several calls."""
    found = []
    for _ in range(CALLS):
        began = time.perf_counter()
        work()
        found.append(time.perf_counter() - began)
    return statistics.median(found)
