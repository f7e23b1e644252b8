"""Packed weights in a work folder come back as they were, and are missed by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from potq.errors import ModelError
from potq.nn.plan import WeightPlan
from potq.numerics.scheme import QuantScheme
from potq.ptq.algorithms.rtn import rtn
from potq.ptq.kept import block_part, in_folder, in_memory, weight_tensors
from potq.resume import WorkFolder


@pytest.mark.parametrize("preset", ["pot4", "apot3s", "pot4:group_size=32:scale_dtype=e8m0:row_scale=true"])
def test_a_weight_is_read_when_it_is_asked_for(preset: str, tmp_path: Path) -> None:
    scheme = QuantScheme(preset)
    weight = rtn(torch.randn(6, 64, generator=torch.Generator().manual_seed(0)), scheme)
    target = WeightPlan("model.layers.3.up_proj", "linear", (6, 64), scheme)
    folder = WorkFolder(tmp_path / "work", "a")
    folder.save(block_part(3), weight_tensors("up_proj", weight))
    read = in_folder(folder, "block-0003", "up_proj", target)
    found = read()
    assert found is not read()
    assert torch.equal(found.dequantize(), weight.dequantize())
    assert (found.shape, found.scheme) == (weight.shape, weight.scheme)
    assert in_memory(weight)() is weight
    (tmp_path / "work" / "block-0003.safetensors").unlink()
    with pytest.raises(ModelError, match=r"block-0003 is no longer in the work folder .*work; quantize again"):
        read()
