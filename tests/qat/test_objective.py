"""The loss as a recipe weighs it, against the losses themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from potq.config import PoTConfig
from potq.errors import ModelError
from potq.nn.losses import divergence, hidden_loss, next_token_loss
from potq.qat import prepare
from potq.qat.objective import Objective
from potq.qat.recipe import LossRecipe
from potq.qat.teacher import TeacherCache


@pytest.fixture
def student(tiny_model: Any) -> Any:
    prepare(tiny_model, PoTConfig("pot3", group_size=32))
    return tiny_model


@pytest.fixture
def teacher(_tiny_source: Path) -> Any:
    from potq.checkpoint.loading import load

    return load(_tiny_source).eval().requires_grad_(False)


@pytest.fixture
def batch(tokens: Tensor) -> dict[str, Tensor]:
    return {"input_ids": tokens, "index": torch.tensor([1, 0])}


def gradient(model: Any, loss: Tensor) -> Tensor:
    model.zero_grad()
    loss.backward()
    found: Tensor = model.model.layers[0].mlp.up_proj.weight.grad
    return found.clone()


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("weights", [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (0.5, 2.0, 3.0)])
def test_every_weight_does_what_it_says(
    weights: tuple[float, float, float], temperature: float, student: Any, teacher: Any, batch: dict[str, Tensor]
) -> None:
    names = ("next_token", "distillation", "hidden")
    loss = LossRecipe(**dict(zip(names, weights, strict=True)), temperature=temperature)
    found = Objective(loss, teacher if loss.runs_teacher else None)(student, batch)
    ids = batch["input_ids"]
    output, expected = (model(ids, output_hidden_states=True) for model in (student, teacher))
    parts = (
        next_token_loss(output.logits, ids),
        divergence(output.logits, expected.logits, temperature),
        hidden_loss(output.hidden_states[1:], expected.hidden_states[1:]),
    )
    total = sum(weight * part for weight, part in zip(weights, parts, strict=True))
    assert torch.equal(found, total)
    assert found.dtype == torch.float32
    torch.testing.assert_close(gradient(student, found), gradient(student, total))


def test_all_of_the_vocabulary_on_disk_is_the_divergence_itself(
    student: Any, teacher: Any, batch: dict[str, Tensor], tmp_path: Path
) -> None:
    sequences = batch["input_ids"].flip(0)  # the batch takes them by their index
    cache = TeacherCache.write(teacher, sequences, tmp_path / "cache", top_k=260, temperature=2.0, batch=1)
    kept = Objective(LossRecipe(top_k=260, temperature=2.0), None, cache)(student, batch)
    online = Objective(LossRecipe(temperature=2.0), teacher)(student, batch)
    torch.testing.assert_close(kept, online, rtol=5e-3, atol=0)
    torch.testing.assert_close(gradient(student, kept), gradient(student, online), rtol=0.01, atol=1e-4)
    few = TeacherCache.write(teacher, sequences, tmp_path / "few", top_k=4, temperature=2.0, batch=1)
    assert Objective(LossRecipe(top_k=4, temperature=2.0), None, few)(student, batch) < online


def test_a_teacher_gets_no_gradient_and_does_not_run_in_vain(
    student: Any, teacher: Any, batch: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher.requires_grad_(True)
    Objective(LossRecipe(hidden=1.0), teacher)(student, batch).backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    monkeypatch.setattr(teacher, "forward", None)
    Objective(LossRecipe(next_token=1.0, distillation=0.0), teacher)(student, batch)


def test_hidden_states_of_another_shape_are_refused(student: Any, teacher: Any, batch: dict[str, Tensor]) -> None:
    del teacher.model.layers[1]
    with pytest.raises(ModelError, match="cannot be compared"):
        Objective(LossRecipe(hidden=1.0), teacher)(student, batch)
