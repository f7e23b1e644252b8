"""Losses: what they mean, against dense float64 versions that keep everything; and that they stay finite."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, log_softmax
from torch.utils._python_dispatch import TorchDispatchMode

from potq.errors import DataError, ModelError
from potq.nn import losses
from potq.nn.losses import TopK, divergence, divergences, hidden_loss, next_token_loss, output_loss, sparse_divergence

TEMPERATURES = st.sampled_from([0.5, 1.0, 2.0, 5.0])
SIZES = st.integers(0, 10_000), st.integers(1, 9), st.integers(2, 30)


@pytest.fixture(autouse=True)
def few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several chunks, the last one shorter."""
    monkeypatch.setattr(losses, "_LOGIT_ROWS", 4)


def normal(*shape: int, seed: int = 0, spread: float = 1.0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * spread


def pair(seed: int, rows: int, vocabulary: int, spread: float = 3.0) -> tuple[Tensor, Tensor]:
    """A student's logits, which learn, and a teacher's."""
    student, teacher = normal(2, rows, vocabulary, seed=seed, spread=spread)
    return student.requires_grad_(), teacher


def gradient(loss: Tensor, leaf: Tensor) -> Tensor:
    (found,) = torch.autograd.grad(loss, leaf)
    return found


def naive_divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    p, q = ((logits.double() / temperature).softmax(-1) for logits in (teacher, student))
    return (p * (p / q).log()).sum(-1).mean() * temperature**2


def naive_sparse(student: Tensor, teacher: Tensor, k: int, temperature: float) -> Tensor:
    """Probabilities of the teacher's ``k`` likeliest tokens and of the others together."""
    top = torch.zeros_like(teacher, dtype=torch.bool).scatter(-1, teacher.topk(k).indices, value=True)
    p, q = ((logits.double() / temperature).softmax(-1) for logits in (teacher, student))
    found = torch.where(top, p * (p / q).log(), 0.0).sum(-1)
    if k < teacher.shape[-1]:
        p, q = ((probabilities * ~top).sum(-1) for probabilities in (p, q))
        found = found + p * (p / q).log()
    return found.mean() * temperature**2


def kept_everything(logits: Tensor, teacher: Tensor) -> Tensor:
    """What post-training quantization was tuned with."""
    parts = [
        kl_div(log_softmax(a.float(), -1), log_softmax(b.float(), -1), reduction="sum", log_target=True)
        for a, b in zip(logits.split(4), teacher.split(4), strict=True)
    ]
    return torch.stack(parts).sum() / len(logits)


# ---- the teacher's predictions


@pytest.mark.parametrize("rows", [4, 256, 1])
def test_divergence_is_kullback_leiblers(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "_LOGIT_ROWS", rows)
    logits, teacher = normal(2, 2, 5, 11)
    assert float(divergence(logits, teacher)) == pytest.approx(float(naive_divergence(logits, teacher, 1.0)), rel=1e-5)
    assert float(divergence(teacher, teacher)) == 0.0


def test_divergences_are_its_parts() -> None:
    logits, teacher = normal(2, 11, 30)
    found = divergences(logits, teacher)
    assert found.shape == (11,)
    assert float(found.mean()) == pytest.approx(float(divergence(logits, teacher)), rel=1e-5)
    assert float(found[3]) == pytest.approx(float(naive_divergence(logits[3:4], teacher[3:4], 1.0)), rel=1e-4)
    with pytest.raises(DataError, match="are compared with"):
        divergences(logits[1:], teacher)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_divergence_is_bit_for_bit_what_it_was(dtype: torch.dtype) -> None:
    student, teacher = (logits.detach().to(dtype).requires_grad_() for logits in pair(0, 11, 300))
    found, expected = divergence(student, teacher), kept_everything(student, teacher.detach())
    assert torch.equal(found, expected)
    assert torch.equal(gradient(found, student), gradient(expected, student))
    with torch.no_grad():
        assert torch.equal(divergence(student, teacher), expected)


@given(*SIZES, TEMPERATURES)
def test_divergence_and_its_gradient(seed: int, rows: int, vocabulary: int, temperature: float) -> None:
    student, teacher = pair(seed, rows, vocabulary)
    found, expected = divergence(student, teacher, temperature), naive_divergence(student, teacher, temperature)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gradient(3 * found, student), gradient(3 * expected, student), rtol=1e-4, atol=1e-5)


@given(*SIZES, TEMPERATURES, st.data())
def test_sparse_divergence_and_its_gradient(
    seed: int, rows: int, vocabulary: int, temperature: float, data: st.DataObject
) -> None:
    student, teacher = pair(seed, rows, vocabulary)
    k = data.draw(st.integers(1, vocabulary))
    found = sparse_divergence(student, TopK.of(teacher, k, temperature), temperature)
    expected = naive_sparse(student, teacher, k, temperature)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gradient(3 * found, student), gradient(3 * expected, student), rtol=1e-4, atol=1e-5)


@given(*SIZES, TEMPERATURES)
def test_sparse_divergence_is_a_lower_bound_and_reaches_it(
    seed: int, rows: int, vocabulary: int, temperature: float
) -> None:
    student, teacher = pair(seed, rows, vocabulary)
    full = float(divergence(student, teacher, temperature).detach())
    sizes = sorted({1, vocabulary // 3 + 1, vocabulary // 2 + 1, vocabulary})
    tops = [TopK.of(teacher, k, temperature) for k in sizes]
    bounds = [float(sparse_divergence(student, top, temperature).detach()) for top in tops]
    slack = 1e-5 * (1 + full)
    assert all(less <= more + slack for less, more in pairwise(bounds))
    assert bounds[-1] == pytest.approx(full, rel=1e-5, abs=1e-5)
    assert bounds[0] >= -slack


@given(*SIZES, TEMPERATURES, st.data())
def test_equal_logits_have_no_divergence(
    seed: int, rows: int, vocabulary: int, temperature: float, data: st.DataObject
) -> None:
    student, teacher = pair(seed, rows, vocabulary)[0], pair(seed, rows, vocabulary)[0].detach()
    top = TopK.of(teacher, data.draw(st.integers(1, vocabulary)), temperature)
    for loss in (divergence(student, teacher, temperature), sparse_divergence(student, top, temperature)):
        assert float(loss.detach()) == pytest.approx(0.0, abs=1e-5)
        assert gradient(loss, student).abs().max() < 1e-5


@pytest.mark.parametrize("spread", [3.0, 12.0])
def test_float16_is_enough(spread: float) -> None:
    """The rest's own logarithm is: from the rounded others alone it would be off by more than it is."""
    student, teacher = pair(0, 400, 500, spread)
    top = TopK.of(teacher, 50)
    half = TopK(top.index, top.log_prob.half(), top.tail.half())
    assert float(sparse_divergence(teacher, half)) < 1e-6
    found, expected = sparse_divergence(student.detach(), half), sparse_divergence(student.detach(), top)
    assert float(found) == pytest.approx(float(expected), rel=1e-3)


def test_top_k_is_the_largest_and_all_of_one() -> None:
    logits = normal(2, 3, 40).bfloat16()
    top = TopK.of(logits, 7, 2.0)
    expected = log_softmax(logits.flatten(0, 1).float() / 2.0, -1)
    assert (top.index.dtype, top.log_prob.dtype, top.tail.shape) == (torch.int32, torch.float32, (6,))
    torch.testing.assert_close(top.log_prob, expected.topk(7).values)
    torch.testing.assert_close(top.log_prob, expected.gather(-1, top.index.long()))
    torch.testing.assert_close(top.log_prob.exp().sum(-1) + top.tail.exp(), torch.ones(6))


# ---- what is not finite or nearly so


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("k", [1, 3, 8])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_tokens_that_cannot_be(k: int, temperature: float, dtype: torch.dtype) -> None:
    """Some models mask the rows that pad their vocabulary; those of teacher and student, or of the student alone."""
    student, teacher = (logits.detach().to(dtype) for logits in pair(0, 6, 8))
    student[:, 5:], teacher[:3, 5:] = -math.inf, -math.inf
    student.requires_grad_()
    for loss in (
        divergence(student, teacher, temperature),
        sparse_divergence(student, TopK.of(teacher, k, temperature), temperature),
        next_token_loss(student[None], torch.tensor([[0, 1, 2, 5, 6, 7]])),
    ):
        assert loss.isfinite()
        assert gradient(loss, student).isfinite().all()
    both = student.detach()
    assert float(divergence(both, both, temperature)) == 0.0
    assert float(sparse_divergence(both, TopK.of(both, k, temperature), temperature)) == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize("size", [1e4, 1e20, 1e38])
@pytest.mark.parametrize("k", [1, 3, 8])
def test_large_logits(k: int, size: float) -> None:
    """A teacher that is sure leaves the rest nothing at all, and a student that is sure of another token gets it back."""
    student, teacher = pair(0, 6, 8, size)
    with torch.no_grad():
        student.clamp_(-size, size)
        teacher.clamp_(-size, size)
    for loss in (
        divergence(student, teacher),
        sparse_divergence(student, TopK.of(teacher, k)),
        next_token_loss(student[None], torch.arange(6)[None]),
    ):
        assert loss.isfinite()
        assert gradient(loss, student).isfinite().all()


@given(st.floats(0.0, 60.0), st.floats(0.0, 60.0))
def test_a_small_rest_pulls_as_it_should(student_gap: float, teacher_gap: float) -> None:
    """The rest of teacher or student may be far below what is left of 1 in float32."""
    student, teacher = (torch.tensor([[gap, 0.0, -1.0]]) for gap in (student_gap, teacher_gap))
    student.requires_grad_()
    found, expected = sparse_divergence(student, TopK.of(teacher, 1)), naive_sparse(student, teacher, 1, 1.0)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(gradient(found, student), gradient(expected, student), rtol=1e-4, atol=1e-6)


def test_nan_stays_nan() -> None:
    student, teacher = pair(0, 5, 8)
    bad = teacher.clone()
    bad[2, 3] = math.nan
    assert divergence(student, bad).isnan()
    assert divergence(bad, teacher).isnan()
    assert sparse_divergence(student, TopK.of(bad, 2)).isnan()
    assert sparse_divergence(bad, TopK.of(teacher, 2)).isnan()
    assert TopK.of(bad, 2).log_prob.isnan().all(-1).tolist() == [False, False, True, False, False]


# ---- the next token


@given(st.integers(0, 10_000), st.integers(1, 3), st.integers(2, 7), st.integers(2, 20), st.booleans())
def test_next_token_loss_and_its_gradient(seed: int, batch: int, length: int, vocabulary: int, masked: bool) -> None:
    logits = normal(batch, length, vocabulary, seed=seed, spread=3.0).requires_grad_()
    ids = torch.randint(vocabulary, (batch, length), generator=torch.Generator().manual_seed(seed))
    if masked:
        ids[0, : length // 2 + 1] = losses.IGNORED
    labels = ids[:, 1:].flatten()
    if bool((labels == losses.IGNORED).all()):
        assert float(next_token_loss(logits, ids).detach()) == 0.0
        return
    found, expected = next_token_loss(logits, ids), cross_entropy(logits.double()[:, :-1].flatten(0, 1), labels)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient(found, logits), gradient(expected, logits), rtol=1e-4, atol=1e-6)


def test_it_is_what_transformers_computes(tiny_model: Any, tokens: Tensor) -> None:
    output = tiny_model(tokens, labels=tokens)
    assert float(next_token_loss(output.logits, tokens).detach()) == pytest.approx(float(output.loss.detach()), rel=1e-5)


# ---- memory


class Largest(TorchDispatchMode):
    """The largest float32 tensor that any operation puts out, in numbers."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if isinstance(found, Tensor) and found.dtype == torch.float32:
            self.numel = max(self.numel, found.numel())
        return found


@pytest.mark.parametrize("kind", ["dense", "sparse", "token"])
def test_few_rows_are_float32_at_a_time(kind: str) -> None:
    student, teacher = (logits.detach().bfloat16() for logits in pair(0, 40, 50))
    student.requires_grad_()
    with Largest() as largest:
        if kind == "dense":
            loss = divergence(student, teacher, 2.0)
        elif kind == "sparse":
            loss = sparse_divergence(student, TopK.of(teacher, 5, 2.0), 2.0)
        else:
            loss = next_token_loss(student[None], torch.arange(40)[None])
        assert gradient(loss, student).dtype == torch.bfloat16
    assert largest.numel == max(4 * 50, 40 * 6 if kind == "sparse" else 0)  # that is the teacher's own


def test_other_tokens_are_refused() -> None:
    student, teacher = pair(0, 8, 10)
    with pytest.raises(DataError, match="logits of 8 tokens are compared with 7; give those of the same batch"):
        divergence(student, teacher[:7])
    with pytest.raises(DataError, match="8 tokens are compared with 4"):
        sparse_divergence(student, TopK.of(teacher[:4], 2))
    with pytest.raises(DataError, match="8 tokens are compared with 9"):
        next_token_loss(student[None], torch.zeros(1, 9, dtype=torch.long))


# ---- hidden states


def test_every_token_counts_the_same_whatever_its_size() -> None:
    target = normal(2, 3, 8)
    scaled = target * torch.tensor([1.0, 1000.0, 1e-2])[:, None]
    assert output_loss(target * 1.1, target).item() == pytest.approx(0.01, rel=1e-4)
    assert output_loss(scaled * 1.1, scaled).item() == pytest.approx(0.01, rel=1e-4)
    assert output_loss(torch.zeros(1, 1, 4), torch.zeros(1, 1, 4)).item() == 0.0


def test_hidden_loss_is_the_mean_over_layers() -> None:
    teacher = list(normal(3, 2, 4, 8))
    student = [teacher[0] * 1.1, teacher[1] * 1.2, teacher[2].bfloat16().requires_grad_()]
    loss = hidden_loss(student, teacher)
    assert float(loss.detach()) == pytest.approx((0.01 + 0.04) / 3, rel=1e-3)
    assert gradient(loss, student[2]).isfinite().all()
    assert hidden_loss(teacher, teacher) == 0.0


@pytest.mark.parametrize(("student", "teacher"), [([4, 4], [4]), ([4, 4], [4, 8]), ([], [])])
def test_hidden_states_of_other_sizes_are_refused(student: list[int], teacher: list[int]) -> None:
    with pytest.raises(ModelError, match="cannot be compared; use a teacher of the same sizes, or its predictions only"):
        hidden_loss([torch.ones(1, 2, size) for size in student], [torch.ones(1, 2, size) for size in teacher])
