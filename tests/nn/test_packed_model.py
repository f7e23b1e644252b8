"""A packed model's class: it refuses to train as a whole, and is otherwise the float model's."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

import potq
from potq.errors import ModelError


def quantized(folder: Path) -> Any:
    model = potq.load(folder)
    potq.quantize(model, potq.PoTConfig("pot4"))
    return model


def converted(folder: Path) -> Any:
    model = potq.load(folder)
    potq.qat.prepare(model, potq.PoTConfig("pot4"))
    potq.qat.convert(model)
    return model


MADE = {"quantized": quantized, "streamed": lambda folder: potq.load(folder, potq.PoTConfig("pot4")), "converted": converted}


@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
def test_it_does_not_train_as_a_whole(make: Any, tiny_folder: Path, tmp_path: Path) -> None:
    made = make(tiny_folder)
    potq.save(made, tmp_path / "packed")
    for model in (made, potq.load(tmp_path / "packed"), copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        with pytest.raises(ModelError, match="LlamaForCausalLM with packed weights does not train; train an adapter"):
            model.requires_grad_()
        assert model.requires_grad_(False) is model
        assert not any(parameter.requires_grad for parameter in model.parameters())
        floats = model.dequantize()
        assert type(floats) is LlamaForCausalLM
        assert all(parameter.requires_grad for parameter in floats.requires_grad_(True).parameters())


def test_its_class_goes_by_the_name_of_the_models(packed_model: Any, tokens: Tensor) -> None:
    kind = type(packed_model)
    assert (kind.__name__, kind.__module__) == (LlamaForCausalLM.__name__, LlamaForCausalLM.__module__)
    assert isinstance(packed_model, LlamaForCausalLM)
    for clone in (copy.deepcopy(packed_model), pickle.loads(pickle.dumps(packed_model))):
        assert type(clone) is kind
        assert torch.equal(clone(tokens).logits, packed_model(tokens).logits)
