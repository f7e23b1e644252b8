"""What a student is trained on: the next token, a teacher's predictions, a teacher's hidden states.

A vocabulary may have 256k entries, so logits become float32 some hundred rows at a time, and the gradient of these rows is
found along with their loss: nothing in float32 outlives them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import cross_entropy, kl_div, log_softmax, pad

from potq.errors import DataError, ModelError

IGNORED = -100  # the label of a token that is not to be predicted, as transformers has it

_LOGIT_ROWS = 256
_FLOOR = -1e30  # stands for -inf: a probability of 0, but differences between two of them are no NaN


@dataclass(frozen=True)
class TopK:
    """The ``k`` likeliest next tokens of each of a text's tokens, as a teacher has them at some temperature.

    Attributes:
        index: int32 ``(tokens, k)``: which ones, the likeliest first.
        log_prob: float16 or float32 ``(tokens, k)``: natural logarithms of their probabilities.
        tail: the same of all other tokens together, ``(tokens,)``. It is kept because float16 changes the sum of the others
            by some 1e-4, which is more than a teacher that is sure leaves.
    """

    index: Tensor
    log_prob: Tensor
    tail: Tensor

    @classmethod
    def of(cls, logits: Tensor, k: int, temperature: float = 1.0) -> TopK:
        """The ``k`` largest of ``logits`` ``(..., vocabulary)``, in float32. NaN in a row makes all its ``log_prob`` NaN."""
        indices, log_probs = [], []
        for rows in logits.detach().reshape(-1, logits.shape[-1]).split(_LOGIT_ROWS):
            scaled = _floored(rows).float() / temperature
            index = scaled.topk(k).indices
            indices.append(index.int())
            log_probs.append(log_softmax(_bucketed(scaled, index), -1))
        log_prob = torch.cat(log_probs)
        return cls(torch.cat(indices), log_prob[:, :-1], log_prob[:, -1])


def next_token_loss(logits: Tensor, ids: Tensor) -> Tensor:
    """Mean cross entropy (nats a token) of predicting ``ids``, int64 ``(batch, length)``.

    ``logits`` ``(batch, length, vocabulary)`` of a token predict the next one. Ids of -100 (labels of a prompt or padding)
    are not to be predicted; if none is left, the loss is 0.
    """
    # shifting the labels leaves the logits as they are; shifting those would copy them
    labels = pad(ids[:, 1:], (0, 1), value=IGNORED).reshape(-1).to(logits.device)
    return _sum(_cross_entropy, logits, (labels != IGNORED).sum().clamp(min=1), labels)


def divergence(logits: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Mean Kullback-Leibler divergence (nats a token) of ``logits`` from the ``teacher``'s, both ``(..., vocabulary)``.

    At a ``temperature`` T both are divided by T, and the loss is multiplied by T^2, so that gradients keep their size
    (Hinton et al., arXiv 1503.02531, section 2). The teacher gets no gradient.

    Raises:
        DataError: the teacher's tokens are not as many.
    """
    size = logits.shape[-1]
    teacher = teacher.detach().reshape(-1, size)
    return _sum(partial(_dense, temperature=temperature), logits, logits.numel() // size, teacher) * temperature**2


@torch.no_grad()
def divergences(logits: Tensor, teacher: Tensor) -> Tensor:
    """:func:`divergence` token by token: float32 ``(tokens,)`` of logits ``(tokens, vocabulary)``, without gradients.

    Raises:
        DataError: the teacher's tokens are not as many.
    """
    if logits.shape != teacher.shape:
        raise DataError(
            f"logits {tuple(logits.shape)} are compared with {tuple(teacher.shape)}; give those of the same text"
        )
    pairs = zip(logits.split(_LOGIT_ROWS), teacher.split(_LOGIT_ROWS), strict=True)
    logs = ([log_softmax(_floored(each).float(), -1) for each in pair] for pair in pairs)
    return torch.cat([kl_div(own, full, reduction="none", log_target=True).sum(-1) for own, full in logs])


def sparse_divergence(logits: Tensor, top: TopK, temperature: float = 1.0) -> Tensor:
    """:func:`divergence` of ``logits`` ``(..., vocabulary)`` from what is known of the teacher: its likeliest tokens.

    All other tokens count as one. Putting tokens together hides differences between them, so this is a lower bound of the
    full divergence, and equal to it with the whole vocabulary in ``top``.

    Args:
        top: one row for each of the logits', at this ``temperature``; may be on another device.

    Raises:
        DataError: ``top`` has not as many tokens.
    """
    teacher = (top.index, top.log_prob, top.tail)
    return _sum(partial(_sparse, temperature=temperature), logits, len(top.index), *teacher) * temperature**2


def output_loss(output: Tensor, target: Tensor) -> Tensor:
    """Mean over tokens of the squared error of a block's output, relative to the token's own energy.

    A few tokens of every text have activations a thousand times larger (2402.17762); absolute errors would hear no others.
    """
    error = (output.float() - target).square().sum(-1)
    return (error / target.square().sum(-1).clamp(min=1e-6)).mean()


def hidden_loss(student_hidden: Sequence[Tensor], teacher_hidden: Sequence[Tensor]) -> Tensor:
    """Mean over layers of :func:`output_loss`; each tensor is ``(batch, length, width)``, of one layer.

    Raises:
        ModelError: student and teacher differ in the number of layers or in their shapes, or there are none.
    """
    found, expected = ([tuple(hidden.shape) for hidden in side] for side in (student_hidden, teacher_hidden))
    if found != expected or not found:
        raise ModelError(
            f"the student's hidden states {found} and the teacher's {expected} cannot be compared; "
            "use a teacher of the same sizes, or its predictions only"
        )
    pairs = zip(student_hidden, teacher_hidden, strict=True)
    return torch.stack([output_loss(student, teacher.float()) for student, teacher in pairs]).mean()


# ---- sums over some rows: logits (rows, vocabulary) and what belongs to them


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return cross_entropy(logits.float(), labels, ignore_index=IGNORED, reduction="sum")


def _dense(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    return _kullback_leibler(_scaled(logits, temperature), _scaled(_floored(teacher), temperature))


def _sparse(logits: Tensor, index: Tensor, log_prob: Tensor, tail: Tensor, temperature: float) -> Tensor:
    known = torch.cat([log_prob, tail[:, None]], -1).to(logits.device, torch.float32)
    buckets = _bucketed(_scaled(logits, temperature), index.to(logits.device, torch.long))
    return _kullback_leibler(buckets, _floored(known))


def _kullback_leibler(logits: Tensor, teacher: Tensor) -> Tensor:
    return kl_div(log_softmax(logits, -1), log_softmax(teacher, -1), reduction="sum", log_target=True)


def _scaled(logits: Tensor, temperature: float) -> Tensor:
    return logits.float() if temperature == 1.0 else logits.float() / temperature


def _floored(logits: Tensor) -> Tensor:
    return logits.clamp(min=max(_FLOOR, torch.finfo(logits.dtype).min))


def _bucketed(logits: Tensor, index: Tensor) -> Tensor:
    """``logits`` of the tokens ``index`` ``(rows, k)`` and of all others taken together: ``(rows, k + 1)``.

    1 - (the sum of the k) would lose the digits of a small rest, and its gradient.
    """
    rest = logits.scatter(-1, index, _FLOOR).logsumexp(-1, keepdim=True)
    return torch.cat([logits.gather(-1, index), rest], -1)


def _sum(part: Callable[..., Tensor], logits: Tensor, count: int | Tensor, *others: Tensor) -> Tensor:
    """What ``part`` makes of all rows of ``logits`` and ``others``, by ``count``."""
    logits = logits.reshape(-1, logits.shape[-1])
    if any(len(other) != len(logits) for other in others):
        raise DataError(f"logits of {len(logits)} tokens are compared with {len(others[0])}; give those of the same batch")
    learns = torch.is_grad_enabled() and logits.requires_grad
    found: Tensor = _Sum.apply(logits, part, count, learns, others)  # type: ignore[no-untyped-call]
    return found


class _Sum(torch.autograd.Function):
    """``count`` divides within, not after: so gradients are rounded as if autograd had kept everything."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, part: Callable[..., Tensor], count: int | Tensor, learns: bool, others: tuple[Tensor, ...]
    ) -> Tensor:
        gradient = torch.empty_like(logits) if learns else None
        parts: list[Tensor] = []
        for start in range(0, len(logits), _LOGIT_ROWS):
            rows = slice(start, start + _LOGIT_ROWS)
            leaf = _floored(logits[rows].detach()).requires_grad_(learns)
            with torch.set_grad_enabled(learns):
                parts.append(part(leaf, *(other[rows] for other in others)))
            if gradient is not None:
                (gradient[rows],) = torch.autograd.grad(parts[-1], leaf, torch.ones_like(parts[-1]) / count)
                parts[-1] = parts[-1].detach()
        ctx.save_for_backward(gradient)
        return torch.stack(parts).sum() / count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * upstream, None, None, None, None
