"""Every example runs on the tiny model and prints the lines that docs/examples.md shows.

The figures there are SmolLM2's; ``tests/docs`` compares them in ``make check-deep``.
"""

from __future__ import annotations

import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import gguf
import pytest
from peft import LoraConfig, get_peft_model
from safetensors import safe_open

import potq
from code_blocks import read_blocks
from potq.errors import PotqError

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "examples.md"
SHOWN = {block.text.split()[1]: block.output for block in read_blocks(DOCUMENT) if block.output is not None}
NAMES = ("quantize", "calibrate_and_compare", "train", "fine_tune_lora", "engine", "export")

Lines = dict[str, str]
Run = Callable[..., Lines]


def by_label(lines: list[str]) -> Lines:
    """``LABEL: RESULT`` lines."""
    return {label: result.strip() for label, _, result in (line.partition(":") for line in lines)}


@pytest.fixture
def run(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], one_thread: None) -> Run:
    """Runs an example on the tiny model, in a folder of its own; the labels it prints must be the document's."""
    monkeypatch.chdir(tiny_folder.parent)

    def example(name: str, *words: str) -> Lines:
        script = ROOT / "examples" / f"{name}.py"
        monkeypatch.setattr(sys, "argv", [str(script), str(tiny_folder), *words])
        runpy.run_path(str(script), run_name="__main__")
        printed = by_label(capsys.readouterr().out.splitlines())
        assert list(printed) == list(by_label(SHOWN[f"examples/{name}.py"] or []))
        return printed

    return example


def perplexity(line: str) -> float:
    found = re.search(r"perplexity (\d+\.\d+)$", line)
    assert found is not None, line
    return float(found[1])


def test_quantize(run: Run) -> None:
    printed = run("quantize", "--output", "out")
    assert printed["quantized"].startswith("4.993 bits per weight: 15 modules quantized at 4.908, 0 skipped")
    assert printed["the same logits after loading"] == "True"
    assert potq.load("out").config.quantization_config is not None


@pytest.mark.parametrize("calibration", ["self", "text.txt"])
def test_calibrate_and_compare(run: Run, calibration: str) -> None:
    Path("text.txt").write_text("The cat sat on the mat, then the other cat. " * 60)
    printed = run("calibrate_and_compare", "--calibration", calibration)
    assert all(perplexity(line) > 1 for line in printed.values())
    for preset in ("apot4", "pot3"):
        assert printed[f"{preset}, fast"] != printed[f"{preset}, balanced"]


def test_train(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    printed = run("train", "--output", "out")
    assert len({perplexity(line) for line in printed.values()}) == 3  # training moved something
    assert potq.load("out").quant_report.modules[0].algorithm == "qat/searched"


def test_fine_tune_lora(run: Run) -> None:
    printed = run("fine_tune_lora", "--output", "out")
    before, after = (float(printed[f"loss on the text {when}"]) for when in ("before", "after 12 steps"))
    assert after < 0.9 * before
    assert printed["the same logits after loading"] == "True"
    with safe_open("out/adapter/adapter_model.safetensors", "pt") as stored:
        assert all("lora_" in name for name in stored.keys())  # noqa: SIM118  # no mapping


def test_merging_an_adapter_is_refused(packed_folder: Path) -> None:
    config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    with pytest.raises(PotqError, match="read-only"):
        get_peft_model(potq.load(packed_folder), config).merge_and_unload()


def test_engine(run: Run) -> None:
    printed = run("engine", "--output", "out")
    assert printed["streamed"].startswith("The capital of France is")
    assert printed["the same seed gives the same text"] == "True"
    assert printed["logits"].endswith(" x 260")


def test_export(run: Run) -> None:
    printed = run("export", "--output", "out.gguf")
    assert printed["a weight of the file equals potq's"] == "True"
    kinds = {tensor.tensor_type.name for tensor in gguf.GGUFReader("out.gguf").tensors}
    assert kinds == {"MXFP4", "Q8_0", "F32"}


def test_the_documents_know_every_example() -> None:
    assert set(SHOWN) == {f"examples/{name}.py" for name in NAMES}
    table = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
    for script in sorted((ROOT / "examples").glob("*.py")):
        assert f"[{script.name}]({script.name})" in table
