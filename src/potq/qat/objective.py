"""What a training step minimizes, as a recipe weighs it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from potq.nn.losses import TopK, divergence, hidden_loss, next_token_loss, sparse_divergence
from potq.qat.device import in_precision
from potq.qat.recipe import LossRecipe, Precision
from potq.qat.teacher import TeacherCache


class Objective:
    """The loss of a model on a batch: ``input_ids`` ``(batch, length)`` and the ``index`` of each sequence in the text.

    Args:
        teacher: in full precision, on the model's device; needed where the recipe's loss runs it.
        cache: its likeliest predictions, where the recipe keeps those.
        dtype: what the teacher's products are computed in, by autocast; the student's are the trainer's affair.
    """

    def __init__(
        self,
        loss: LossRecipe,
        teacher: nn.Module | None = None,
        cache: TeacherCache | None = None,
        dtype: Precision = "float32",
    ) -> None:
        self.loss, self.teacher, self.cache, self.dtype = loss, teacher, cache, dtype

    def __call__(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        loss, ids = self.loss, batch["input_ids"]
        output = _run(model, ids, hidden=loss.hidden > 0)
        expected = self._ask_teacher(ids)
        total: Tensor = output.logits.new_zeros((), dtype=torch.float32)
        if loss.next_token:
            total = total + loss.next_token * next_token_loss(output.logits, ids)
        if loss.distillation:
            total = total + loss.distillation * self._divergence(output.logits, expected, batch["index"])
        if loss.hidden:
            total = total + loss.hidden * hidden_loss(output.hidden_states[1:], expected.hidden_states[1:])
        return total

    @torch.no_grad()
    def _ask_teacher(self, ids: Tensor) -> Any:
        if self.teacher is None or not self.loss.runs_teacher:
            return None
        with in_precision(self.dtype, ids.device):
            return _run(self.teacher, ids, hidden=self.loss.hidden > 0)

    def _divergence(self, logits: Tensor, expected: Any, index: Tensor) -> Tensor:
        temperature = self.loss.temperature
        if self.cache is None:
            return divergence(logits, expected.logits, temperature)
        top: TopK = self.cache.rows(index.cpu())
        return sparse_divergence(logits, top, temperature)


def _run(model: nn.Module, ids: Tensor, *, hidden: bool) -> Any:
    return model(input_ids=ids, use_cache=False, output_hidden_states=hidden)
