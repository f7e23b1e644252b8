"""Calibration computes where the model is. There need be no GPU to see that: another device is torch's default here, so that
a tensor which is made without saying where does not fit the model's."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import potq
from plain_helpers import net_inputs
from potq.config import Effort
from potq.ptq.allocation import allocate
from ranks_helpers import EFFORTS, module, windows

SOURCE = Path(potq.__file__).parent


@pytest.fixture
def elsewhere() -> Iterator[None]:
    torch.set_default_device("meta")
    yield
    torch.set_default_device(None)


TEXT = windows()


def _run(model: Any, config: potq.PoTConfig) -> dict[str, Tensor]:
    potq.quantize(model, config, TEXT)
    return dict(model.state_dict())


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    ("effort", "scheme"),
    [
        ("balanced", "pot3:scale_dtype=e8m0:row_scale=true"),
        ("balanced", "int3"),
        ("unordered", "pot3"),
        ("weighed", "pot3"),
        ("block", "pot3"),
        ("model", "pot3"),
    ],
)
def test_everything_is_made_where_the_model_is(
    effort: str, scheme: str, tiny_folder: Path, request: pytest.FixtureRequest
) -> None:
    chosen = EFFORTS.get(effort, Effort(compensate=True, rounds=1, ordered=False))
    config = potq.PoTConfig(scheme, group_size=32, effort=chosen)
    expected = _run(potq.load(tiny_folder), config)
    model = potq.load(tiny_folder)
    request.getfixturevalue("elsewhere")
    assert {tensor.device.type for tensor in model.state_dict().values()} == {"cpu"}
    found = _run(model, config)
    assert found.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())


@pytest.mark.usefixtures("one_thread")
def test_a_plain_module_too(request: pytest.FixtureRequest) -> None:
    inputs = net_inputs(5, 1)
    expected = module(calibration=inputs)
    request.getfixturevalue("elsewhere")
    found = module(calibration=inputs)
    assert all(torch.equal(tensor, expected["tensors"][name]) for name, tensor in found["tensors"].items())
    assert found["entries"] == expected["entries"]


@pytest.mark.usefixtures("one_thread")
def test_the_choice_of_schemes_too(tiny_folder: Path, request: pytest.FixtureRequest) -> None:
    model = potq.load(tiny_folder)
    options: Any = (potq.PoTConfig("pot4"), ["pot3", "pot4"], TEXT)
    expected = allocate(model, *options, budget=4.0)
    request.getfixturevalue("elsewhere")
    assert allocate(model, *options, budget=4.0) == expected


def _names_the_cpu(node: ast.AST) -> bool:
    moved = isinstance(node, ast.Attribute) and node.attr in ("cpu", "cuda")
    return moved or (
        isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.split(":")[0] in ("cpu", "cuda")
    )


@pytest.mark.parametrize("file", sorted((SOURCE / "ptq").rglob("*.py")), ids=lambda file: file.stem)
def test_no_file_names_a_device(file: Path) -> None:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    assert not [ast.unparse(node) for node in ast.walk(tree) if _names_the_cpu(node)]
