"""Divergence from full precision: the numbers of a straightforward computation, and what it refuses."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import potq
from evaluate_helpers import Fixed
from potq.data.tokens import tokenize
from potq.errors import DataError, ModelError
from potq.evaluate.divergence import kl_divergence
from potq.nn import losses


@pytest.fixture(autouse=True)
def few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several chunks of logits, the last one shorter."""
    monkeypatch.setattr(losses, "_LOGIT_ROWS", 4)


@pytest.fixture
def text() -> Tensor:
    return torch.randint(260, (107,), generator=torch.Generator().manual_seed(7))


def by_hand(model: Any, reference: Any, tokens: Tensor, window: int) -> tuple[Tensor, float]:
    """Divergences ``(windows, window - 1)`` and the part of equal likeliest tokens, in float64."""
    windows = tokens[: len(tokens) // window * window].view(-1, window)
    with torch.no_grad():
        own, full = (each(windows).logits[:, :-1].double().log_softmax(-1) for each in (model, reference))
    return (full.exp() * (full - own)).sum(-1), float((own.argmax(-1) == full.argmax(-1)).double().mean())


@pytest.mark.parametrize("window", [2, 10, 53, 107])
def test_it_equals_the_one_by_hand(packed_model: Any, tiny_model: Any, text: Tensor, window: int) -> None:
    expected, agreement = by_hand(packed_model, tiny_model, text, window)
    found = kl_divergence(packed_model, tiny_model, text, window=window)
    assert found.mean == pytest.approx(float(expected.mean()), rel=1e-4, abs=1e-6)
    assert found.window_divergence == pytest.approx(expected.sum(1).tolist(), rel=1e-4, abs=1e-5)
    high = expected.flatten().sort().values[math.ceil(0.99 * expected.numel()) - 1]
    assert found.percentile_99 == pytest.approx(float(high), rel=1e-4, abs=1e-6)
    assert found.top1_agreement == agreement
    assert (found.window, found.windows, found.predicted_tokens) == (window, len(expected), expected.numel())
    assert found.mean > 0


def test_a_model_does_not_diverge_from_itself(tiny_model: Any, text: Tensor) -> None:
    found = kl_divergence(tiny_model, tiny_model, text, window=20)
    assert (found.mean, found.percentile_99, found.top1_agreement) == (0.0, 0.0, 1.0)


def test_a_known_divergence() -> None:
    """Sure of one of two against undecided: log 2, and half of the time the likeliest token is the same."""
    sure = torch.tensor([[50.0, -50.0], [-50.0, 50.0]])
    found = kl_divergence(Fixed(torch.zeros(2, 2)), Fixed(sure), torch.arange(40) % 2, window=20)  # type: ignore[arg-type]
    assert found.mean == pytest.approx(math.log(2))
    assert found.top1_agreement == pytest.approx(0.5, abs=0.03)
    back = kl_divergence(Fixed(sure), Fixed(torch.zeros(2, 2)), torch.arange(40) % 2, window=20)  # type: ignore[arg-type]
    assert back.mean > 40


def test_tokens_that_both_rule_out() -> None:
    logits = torch.tensor([[0.0, 1.0, -torch.inf]] * 3)
    found = kl_divergence(Fixed(logits), Fixed(logits + 1), torch.arange(3), window=3)  # type: ignore[arg-type]
    assert found.mean == pytest.approx(0, abs=1e-6)


def test_the_protocol_windows_and_progress(packed_model: Any, tiny_model: Any, text: Tensor) -> None:
    calls: list[tuple[Any, ...]] = []
    every = kl_divergence(packed_model, tiny_model, text, window=20, progress=lambda *call: calls.append(call))
    assert [call[:2] for call in calls] == [(i, 5) for i in range(1, 6)]
    assert calls[-1][2] == f"{every.mean:.4f}"
    first = kl_divergence(packed_model, tiny_model, text, window=20, max_windows=2)
    assert first.window_divergence == every.window_divergence[:2]
    assert first.to_dict()["protocol"] == first.protocol
    assert "2 non-overlapping windows of 20 tokens, 38 tokens predicted" in first.protocol


def test_what_is_refused(packed_model: Any, tiny_model: Any, text: Tensor) -> None:
    with pytest.raises(DataError, match="the text has 107 tokens, less than one window of 108"):
        kl_divergence(packed_model, tiny_model, text, window=108)
    with pytest.raises(DataError, match="exceed the model's limit of 128"):
        kl_divergence(packed_model, tiny_model, text.repeat(9), window=129)
    with pytest.raises(DataError, match="token"):
        kl_divergence(packed_model, tiny_model, text + 260, window=20)
    tiny_model.config.vocab_size = 300
    with pytest.raises(ModelError, match="the reference has a vocabulary of 300 tokens, the model of 260"):
        kl_divergence(packed_model, tiny_model, text, window=20)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_output_that_is_not_finite(value: float) -> None:
    broken, whole = Fixed(torch.full((4, 4), value)), Fixed(torch.zeros(4, 4))
    for pair in ((broken, whole), (whole, broken)):
        with pytest.raises(ModelError, match="NaN or infinite; try dtype float32"):
            kl_divergence(*pair, torch.arange(4), window=4)  # type: ignore[arg-type]


def test_of_two_folders(packed_folder: Any, tiny_folder: Any) -> None:
    tokens = tokenize(potq.load_tokenizer(tiny_folder), "The cat sat on the mat. " * 20)
    found = kl_divergence(potq.load(packed_folder), potq.load(tiny_folder), tokens, window=32)
    assert 0 < found.mean < found.percentile_99
