"""Two processes that share the batch end with the weights of one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import multiprocessing

import potq
import qat_distributed
import qat_sharded
from potq.qat.recipe import TrainRecipe
from qat_helpers import finish, logged

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="needs gloo"),
]


@pytest.fixture(scope="module")
def results(_tiny_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of what two processes made, in every way of sharing."""
    folder = tmp_path_factory.mktemp("distributed")
    multiprocessing.spawn(qat_distributed.work, (_tiny_source, folder), nprocs=qat_distributed.PROCESSES)
    return folder


@pytest.mark.parametrize("scales", qat_distributed.SCALES)
@pytest.mark.parametrize("way", qat_distributed.WAYS)
def test_loops_of_ones_own(way: str, scales: str, results: Path, tiny_folder: Path) -> None:
    expected = qat_distributed.train(tiny_folder, scales, None)
    found = torch.load(results / f"{way}-{scales}.pt")
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")
    before = qat_distributed.AutoModelForCausalLM.from_pretrained(tiny_folder)
    name = "model.layers.1.mlp.up_proj.weight"
    assert (expected[name] - before.state_dict()[name]).abs().max() > 1e-3


def torchrun(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", *map(str, words)]
    path = os.pathsep.join([str(Path(qat_sharded.__file__).parent), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": path}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
    return result


@pytest.fixture
def pair(make: Callable[..., TrainRecipe], text: Path) -> tuple[TrainRecipe, TrainRecipe]:
    """The same for one process and for two. Twelve sequences are whole batches for both; the five of evaluation are not."""
    changes: dict[str, Any] = {
        "qat": {"scales": "searched", "search_every": 3},
        "data": {"tokens": 192, "evaluation": str(text), "evaluation_windows": 5},
        "loss": {"top_k": 16, "next_token": 1.0},
    }
    return make("one", **changes, optimization={"batch": 4}), make("two", **changes)


def compare(one: TrainRecipe, two: TrainRecipe) -> None:
    for a, b in zip(logged(one)[:-1], logged(two)[:-1], strict=True):
        assert b == pytest.approx(a, rel=1e-3, abs=1e-6)
    tensors = load_file(two.output / "model.safetensors")
    for name, tensor in load_file(one.output / "model.safetensors").items():
        differs = ~torch.isclose(tensor.float(), tensors.pop(name).float(), rtol=2e-3, atol=1e-5)
        assert differs.float().mean() < 0.05, name  # where Adam divides noise by noise
    assert not tensors


def test_torchrun(pair: tuple[TrainRecipe, TrainRecipe], tmp_path: Path) -> None:
    one, two = pair
    finish(one)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(two.model_dump(mode="json")))
    result = torchrun("-m", "potq", "train", "-c", tmp_path / "recipe.yaml", "--json")
    assert json.loads(result.stdout)["output"] == str(two.output)  # of the first process, once
    assert result.stderr.count("quantized: 15 weights") == 1
    compare(one, two)


def test_a_sharded_run_that_is_killed(pair: tuple[TrainRecipe, TrainRecipe], tmp_path: Path) -> None:
    one, two = pair
    finish(one)
    (tmp_path / "recipe.json").write_text(two.model_dump_json())
    torchrun(qat_sharded.__file__, tmp_path / "recipe.json", "3", "5", "0")
    compare(one, two)
    report = potq.load(two.output).quant_report
    assert len(report.modules) == 15
