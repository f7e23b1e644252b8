"""Refinement by gradient descent: it lowers its loss, the same way every time, and goes on where a killed run stopped."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from potq.config import Effort
from potq.errors import ModelError
from potq.nn.losses import output_loss
from potq.numerics.scheme import PRESETS, QuantScheme
from potq.ptq.algorithms import refine
from potq.ptq.algorithms.learned import LearnedWeight
from potq.ptq.algorithms.refine import Learning, fit
from potq.ptq.algorithms.rounding import SchemeRounding, round_to_nearest
from potq.ptq.algorithms.rtn import rtn
from potq.ptq.share import Share
from potq.resume import WorkFolder

EFFORT = Effort(scope="block", epochs=5, code_rate=0.02, scale_rate=1e-3)
BATCHES = 6


def _linear() -> nn.Linear:
    linear = nn.Linear(48, 16)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        linear.weight.copy_(torch.randn(16, 48, generator=generator) * 0.1)
        linear.bias.copy_(torch.randn(16, generator=generator))
    return linear.requires_grad_(False)


def _problem(scheme: QuantScheme = PRESETS["pot2"], *, codes: bool = True) -> tuple[LearnedWeight, Callable[[int], Tensor]]:
    """A quantized linear that is to put out on every batch what the exact one does."""
    linear = _linear()
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(BATCHES, 32, 48, generator=generator) @ torch.randn(48, 48, generator=generator)
    rounding = SchemeRounding(scheme)
    scale = rounding.decode(rtn(linear.weight, scheme).scale)
    learned = LearnedWeight(round_to_nearest(linear.weight, scale, None, rounding), rounding, codes=codes)
    return learned, lambda index: output_loss(inputs[index] @ learned().t(), inputs[index] @ linear.weight.t())


def _total(loss: Callable[[int], Tensor]) -> float:
    return sum(float(loss(index).detach()) for index in range(BATCHES))


def test_a_forward_of_ones_own_is_kept() -> None:
    """Routers are linears that return more than a product."""

    class Router(nn.Linear):
        def forward(self, input: Tensor, scale: float) -> tuple[Tensor, Tensor]:  # type: ignore[override]  # as routers do
            logits = super().forward(input) * scale
            return logits, logits.softmax(-1)

    scheme, x = PRESETS["pot3"], torch.randn(3, 48)
    router = Router(48, 16)
    rounding = SchemeRounding(scheme)
    learned = LearnedWeight(rounding.unpack(rtn(router.weight.detach(), scheme)), rounding)
    with Learning({router: learned}):
        logits, _ = router(x, scale=2.0)
    assert torch.equal(logits, nn.functional.linear(x, learned(), router.bias) * 2.0)
    assert isinstance(router.weight, nn.Parameter)
    logits.sum().backward()
    assert learned.latent.grad is not None
    assert router.weight.grad is None


@pytest.mark.parametrize("codes", [True, False])
@pytest.mark.parametrize("name", ["pot2", "pot3", "apot4", "mxfp4"])
def test_the_loss_goes_down(name: str, codes: bool) -> None:
    learned, loss = _problem(PRESETS[name], codes=codes)
    before = _total(loss)
    fit([learned], loss, Share.whole([], BATCHES), EFFORT, 0)
    after = _total(loss)
    if name == "mxfp4" and not codes:
        assert after == before  # nothing can be learned
    else:
        assert after < before
    assert torch.equal(learned.latent, _problem(PRESETS[name])[0].latent) == (not codes)


def test_it_depends_on_the_seed_alone() -> None:
    results = []
    for seed in (0, 0, 1):
        learned, loss = _problem()
        torch.manual_seed(len(results))
        state = torch.get_rng_state()
        fit([learned], loss, Share.whole([], BATCHES), EFFORT, seed)
        assert torch.equal(torch.get_rng_state(), state)
        results.append(learned.latent.detach())
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_every_batch_is_seen_once_an_epoch_and_told_of() -> None:
    learned, loss = _problem()
    seen: list[int] = []
    told: list[tuple[int, int]] = []

    def noted(index: int) -> Tensor:
        seen.append(index)
        return loss(index)

    fit([learned], noted, Share.whole([], BATCHES), EFFORT, 0, lambda step, steps, value: told.append((step, steps)))
    assert [sorted(seen[i : i + BATCHES]) for i in range(0, 30, BATCHES)] == [list(range(BATCHES))] * 5
    assert seen[:BATCHES] != seen[BATCHES : 2 * BATCHES]
    assert told == [(step, 30) for step in range(1, 31)]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite(bad: float) -> None:
    learned, loss = _problem()
    with pytest.raises(ModelError, match=r"refinement diverged .*; lower code_rate and scale_rate"):
        fit([learned], lambda index: loss(index) * bad, Share.whole([], BATCHES), EFFORT, 0)


@pytest.mark.parametrize("codes", [True, False])
@pytest.mark.parametrize("stop", [1, 7, 30])
def test_a_killed_run_goes_on_to_the_same_result(
    stop: int, codes: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refine, "_SAVE_SECONDS", -1.0)
    expected, loss = _problem(codes=codes)
    fit([expected], loss, Share.whole([], BATCHES), EFFORT, 0)
    killed, loss = _problem(codes=codes)

    def kill(step: int, steps: int, value: float) -> None:
        if step == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit([killed], loss, Share.whole([], BATCHES), EFFORT, 0, kill, WorkFolder(tmp_path / "work", "a"))
    resumed, loss = _problem(codes=codes)
    steps: list[int] = []
    fit(
        [resumed],
        loss,
        Share.whole([], BATCHES),
        EFFORT,
        0,
        lambda step, *_: steps.append(step),
        WorkFolder(tmp_path / "work", "a"),
    )
    assert steps == list(range(stop, 31))  # the state was saved after the step before
    assert torch.equal(resumed.latent, expected.latent)
    assert torch.equal(resumed.log_scale, expected.log_scale)


def test_no_state_is_saved_within_a_few_minutes(tmp_path: Path) -> None:
    learned, loss = _problem()
    fit([learned], loss, Share.whole([], BATCHES), EFFORT, 0, None, WorkFolder(tmp_path, "a"))
    assert [file.name for file in tmp_path.iterdir()] == ["fingerprint"]


# ---- modules that compute with what is learned


@pytest.mark.parametrize("kind", ["linear", "conv1d"])
def test_modules_compute_with_learned_weights_for_a_while(kind: str) -> None:
    module: nn.Module = _linear()
    if kind == "conv1d":
        linear, module = module, Conv1D(16, 48)
        module.weight, module.bias = nn.Parameter(linear.weight.t().contiguous()), nn.Parameter(linear.bias)
    learned, _ = _problem()
    x = torch.randn(3, 5, 48, generator=torch.Generator().manual_seed(2))
    own, quantized = module(x), nn.functional.linear(x, learned(), module.bias)
    learning = Learning({module: learned})
    with learning:
        assert torch.equal(module(x), quantized)
        with learning.paused():
            assert torch.equal(module(x), own)
        assert torch.equal(module(x), quantized)
        module(x).sum().backward()
    assert learned.latent.grad is not None
    assert torch.equal(module(x), own)
    assert "forward" not in vars(module)


def test_modules_are_themselves_again_after_an_error() -> None:
    module, (learned, _) = _linear(), _problem()
    with pytest.raises(ZeroDivisionError), Learning({module: learned}):
        raise ZeroDivisionError
    assert "forward" not in vars(module)
