"""Perplexity by the GPTQ protocol: the numbers of a straightforward computation, and input it refuses."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import potq
from evaluate_helpers import Fixed
from potq.errors import DataError, ModelError
from potq.evaluate.perplexity import perplexity


@pytest.fixture
def text_tokens() -> torch.Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randint(260, (107,), generator=generator)


def by_hand(model: Any, tokens: torch.Tensor, window: int) -> tuple[float, list[float]]:
    """Perplexity, token by token, in float64."""
    nll = []
    for start in range(0, len(tokens) - window + 1, window):
        ids = tokens[start : start + window]
        logits = model(ids[None]).logits[0].detach().double()
        nll.append(sum(-float(logits[i].log_softmax(-1)[ids[i + 1]]) for i in range(window - 1)))
    return math.exp(sum(nll) / (len(nll) * (window - 1))), nll


@pytest.mark.parametrize(("window", "length"), [(2, 13), (10, 107), (53, 107), (107, 107)])
def test_perplexity_equals_the_one_by_hand(tiny_model: Any, text_tokens: torch.Tensor, window: int, length: int) -> None:
    text_tokens = text_tokens[:length]
    expected, nll = by_hand(tiny_model, text_tokens, window)
    result = perplexity(tiny_model, text_tokens, window=window)
    assert result.perplexity == pytest.approx(expected, rel=1e-5)
    assert result.window_nll == pytest.approx(nll, rel=1e-5)
    assert (result.window, result.windows) == (window, length // window)
    assert result.predicted_tokens == (length // window) * (window - 1)
    assert result.seconds >= 0


def test_more_rows_than_one_block_of_logits(packed_model: Any) -> None:
    packed_model.config.max_position_embeddings = 400
    ids = torch.arange(400) % 260
    expected, _ = by_hand(packed_model, ids, 400)
    assert perplexity(packed_model, ids, window=400).perplexity == pytest.approx(expected, rel=1e-5)


def test_uniform_predictions_have_the_perplexity_of_the_vocabulary() -> None:
    result = perplexity(Fixed(torch.zeros(17, 17)), torch.arange(17), window=8)  # type: ignore[arg-type]
    assert result.perplexity == pytest.approx(17)


def test_the_protocol_in_words(tiny_model: Any, text_tokens: torch.Tensor) -> None:
    result = perplexity(tiny_model, text_tokens, window=20, max_windows=3)
    assert result.protocol == ("GPTQ protocol: 3 non-overlapping windows of 20 tokens (stride 20), 57 tokens predicted")
    fields = result.to_dict()
    assert fields["protocol"] == result.protocol
    assert fields["perplexity"] == result.perplexity
    assert fields["window_nll"] == result.window_nll


def test_max_windows_takes_the_first(tiny_model: Any, text_tokens: torch.Tensor) -> None:
    every = perplexity(tiny_model, text_tokens, window=20)
    first = perplexity(tiny_model, text_tokens, window=20, max_windows=2)
    assert first.window_nll == every.window_nll[:2]
    assert perplexity(tiny_model, text_tokens, window=20, max_windows=99).windows == 5


def test_progress_is_called_after_each_window(tiny_model: Any, text_tokens: torch.Tensor) -> None:
    calls: list[tuple[Any, ...]] = []
    result = perplexity(tiny_model, text_tokens, window=20, progress=lambda *call: calls.append(call))
    assert [call[:2] for call in calls] == [(i, 5) for i in range(1, 6)]
    assert calls[-1][2] == f"{result.perplexity:.2f}"


def test_the_default_window_is_the_models_limit(tiny_model: Any) -> None:
    assert perplexity(tiny_model, torch.arange(300) % 260).window == 128
    generous = Fixed(torch.zeros(4, 4), limit=1 << 20)
    assert perplexity(generous, torch.zeros(5000, dtype=torch.long)).window == 2048  # type: ignore[arg-type]
    boundless = Fixed(torch.zeros(4, 4), limit=None)
    assert perplexity(boundless, torch.zeros(2048, dtype=torch.long)).windows == 1  # type: ignore[arg-type]


# ---- what is refused


def test_a_window_beyond_the_limit(tiny_model: Any, text_tokens: torch.Tensor) -> None:
    with pytest.raises(DataError, match="windows of 129 tokens exceed the model's limit of 128; use a window of 128"):
        perplexity(tiny_model, text_tokens, window=129)


@pytest.mark.parametrize("window", [1, 0, -5])
def test_a_window_that_predicts_nothing(tiny_model: Any, text_tokens: torch.Tensor, window: int) -> None:
    with pytest.raises(DataError, match=f"invalid window {window}; use at least 2 tokens"):
        perplexity(tiny_model, text_tokens, window=window)


@pytest.mark.parametrize("length", [0, 1, 127])
def test_a_text_shorter_than_a_window(tiny_model: Any, length: int) -> None:
    with pytest.raises(DataError, match=f"the text has {length} tokens, less than one window of 128; give more text"):
        perplexity(tiny_model, torch.zeros(length, dtype=torch.long))


@pytest.mark.parametrize("windows", [0, -1])
def test_no_window_at_all(tiny_model: Any, text_tokens: torch.Tensor, windows: int) -> None:
    with pytest.raises(DataError, match="window"):
        perplexity(tiny_model, text_tokens, window=20, max_windows=windows)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_output_that_is_not_finite(value: float) -> None:
    with pytest.raises(ModelError, match="the model's output is NaN or infinite; try dtype float32"):
        perplexity(Fixed(torch.full((4, 4), value)), torch.arange(4), window=4)  # type: ignore[arg-type]


def test_a_model_too_bad_for_a_number() -> None:
    logits = torch.eye(4) * 5000  # sure of the wrong token: exp(5000) is no float
    with pytest.raises(potq.PotqError):
        perplexity(Fixed(logits), torch.arange(4), window=4)  # type: ignore[arg-type]
