"""``potq train`` end to end, on a tiny model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import potq
from cli_helpers import invoke, refused, succeed
from potq.errors import CheckpointError, ConfigError, DataError
from potq.nn.packed_model import packed_modules
from potq.nn.report import QuantReport
from potq.qat import run as module
from potq.qat.objective import Objective

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def recipe(tiny_folder: Path, out: Path, text: Path, tmp_path: Path) -> Path:
    """Four steps, two checkpoints, evaluated."""
    fields: dict[str, Any] = {
        "model": str(tiny_folder),
        "output": str(out),
        "quantization": {"preset": "pot3", "group_size": 32},
        "data": {"text": str(text), "length": 16, "evaluation": str(text), "evaluation_windows": 3},
        "loss": {"next_token": 1.0},
        "optimization": {"steps": 4, "batch": 2, "save_every": 2, "learning_rate": 1e-3},
    }
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(fields))
    return file


def test_train_writes_a_checkpoint_and_a_table(recipe: Path, out: Path) -> None:
    result = invoke("train", "-c", recipe)
    assert result.exit_code == 0, result.exception
    assert "15 modules quantized at" in result.stdout
    assert "pot3-g32" in result.stdout
    assert " before, " in result.stdout
    assert f"wrote {out} in" in result.stdout
    assert f"the log is {out}.training/log.jsonl" in result.stdout
    notes = result.stderr
    assert "sequences of 16 tokens, 3 to evaluate on" in notes
    assert "quantized: 15 weights; skipped: 0" in notes
    assert "memory: at least 0.0 GB on cpu, activations on top" in notes
    assert "resuming" not in notes
    assert len(packed_modules(potq.load(out))) == 16


def test_overrides(recipe: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    words = ["quantization.preset=pot4", f"output={other}", "quantization.ignore=[q_proj]", "optimization.steps=1"]
    result = invoke("train", "-c", recipe, *words)
    assert result.exit_code == 0, result.exception
    assert "quantized: 13 weights; skipped: 2\n  skipped model.layers.0.self_attn.q_proj: ignored by config" in result.stderr
    assert potq.load(other).config.quantization_config == potq.PoTConfig("pot4", group_size=32, ignore=["q_proj"])


def test_without_a_file(tiny_folder: Path, out: Path, text: Path) -> None:
    words = [f"model={tiny_folder}", f"output={out}", f"data.text={text}", "data.length=8", "optimization.steps=1"]
    assert "perplexity" not in succeed("train", *words)
    assert potq.load(out).config.quantization_config.scheme.name == "apot4-g64"


def test_json_is_all_that_stdout_holds(recipe: Path, out: Path) -> None:
    result = invoke("train", "-c", recipe, "--json")
    assert result.exit_code == 0, result.exception
    report = json.loads(result.stdout)
    log = report.pop("log")
    assert [line["step"] for line in log if "eval_perplexity" in line] == [0, 2, 4]
    assert report.pop("output") == str(out)
    assert report.pop("seconds") > 0
    perplexities = [line["eval_perplexity"] for line in log if "eval_perplexity" in line]
    assert report.pop("perplexity_before") == perplexities[0]
    assert report.pop("perplexity") == min(perplexities[1:])
    bits = report.pop("bits_per_weight"), report.pop("quantized_bits_per_weight")
    read = potq.load(out).quant_report
    assert QuantReport.model_validate(report) == read
    assert bits == (read.bits_per_weight, read.quantized_bits_per_weight)


def test_what_is_reported_is_a_checkpoints(recipe: Path) -> None:
    """Not the start's, even if training only did harm."""
    harm = ["loss.next_token=0", "optimization.learning_rate=1.0", "optimization.clip=100"]
    report = json.loads(succeed("train", "-c", recipe, "--json", *harm))
    assert report["perplexity"] > report["perplexity_before"]


def test_the_control(recipe: Path, out: Path) -> None:
    shown = succeed("train", "-c", recipe, "quantization={preset: none}")
    assert "modules quantized" not in shown
    assert "after (step" in shown
    assert not packed_modules(potq.load(out))
    report = json.loads(succeed("train", "-c", recipe, "--json", "quantization={preset: none}", "force=true"))
    assert "modules" not in report


def test_a_second_time_it_needs_force(recipe: Path, out: Path) -> None:
    succeed("train", "-c", recipe)
    before = (out / "model.safetensors").read_bytes()
    assert f"{out} exists; choose another output folder, or pass --force" in refused(CheckpointError, "train", "-c", recipe)
    succeed("train", "-c", recipe, "--force", "seed=1")
    assert (out / "model.safetensors").read_bytes() != before


def test_what_it_is_made_from_is_not_replaced(recipe: Path, tiny_folder: Path, out: Path) -> None:
    succeed("train", "-c", recipe)
    for words in ([f"model={out}"], [f"start={out}", "quantization={}"], [f"teacher={out}"]):
        assert "which the new model is made from" in refused(CheckpointError, "train", "-c", recipe, "--force", *words)


def test_the_same_command_goes_on(recipe: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(module, "convert", lambda model: 1 / 0)
        assert isinstance(invoke("train", "-c", recipe).exception, ZeroDivisionError)
    assert not out.exists()
    message = refused(ConfigError, "train", "-c", recipe, "seed=1")
    assert message.startswith(f"{out}.training holds an unfinished run with other settings (seed); go on with those")
    result = invoke("train", "-c", recipe)
    assert result.exit_code == 0, result.exception
    assert "resuming at step 4" in result.stderr
    assert out.exists()
    assert {path.name for path in Path(f"{out}.training").iterdir()} == {"log.jsonl", "recipe.json"}


@pytest.mark.parametrize(
    ("words", "kind", "message"),
    [
        (["optimization.step=3"], ConfigError, "step: unknown key"),
        (["nothing"], ConfigError, "'nothing' is not an override; write key=value"),
        (["data.text=missing.txt"], DataError, "cannot read the text missing.txt"),
        (["data.length=500"], DataError, "500 tokens exceed the model's limit of 128"),
        (["optimization.batch=1000"], DataError, "less than one batch of 1000; give more text"),
        (["quantization.preset=pot1000"], ConfigError, "pot1000"),
    ],
)
def test_errors(words: list[str], kind: Any, message: str, recipe: Path) -> None:
    assert message in refused(kind, "train", "-c", recipe, *words)


def test_nothing_at_all_is_asked_for(tmp_path: Path) -> None:
    message = refused(ConfigError, "train")
    assert "model: Field required" in message
    assert "cannot read the recipe" in refused(ConfigError, "train", "-c", tmp_path / "missing.yaml")


def test_errors_are_one_line_on_stderr(recipe: Path) -> None:
    command = [sys.executable, "-m", "potq", "train", "-c", str(recipe), "data.length=500", "--json"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr.strip() == "error: windows of 500 tokens exceed the model's limit of 128; use a window of 128"


def test_divergence_is_an_error_too(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Objective.__call__
    monkeypatch.setattr(Objective, "__call__", lambda *arguments: original(*arguments) * float("inf"))
    message = refused(potq.errors.ModelError, "train", "-c", recipe)
    assert message.startswith("the loss is inf at step 1, sequences [")
