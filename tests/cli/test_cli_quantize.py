"""``potq quantize`` end to end, on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

import potq
from potq.cli.app import app
from potq.errors import CheckpointError, ConfigError, DataError, PotqError
from potq.report import QuantReport


def quantize(*words: str | Path) -> Result:
    return CliRunner().invoke(app, ["quantize", *map(str, words)])


def refused(kind: type[PotqError], *words: str | Path) -> str:
    """The message of the error, which must be of class ``kind``."""
    result = quantize(*words)
    assert isinstance(result.exception, kind), result.exception
    assert result.stdout == ""
    return str(result.exception)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def test_quantize_writes_a_checkpoint_and_a_table(tiny_folder: Path, out: Path, tokens: torch.Tensor) -> None:
    result = quantize(tiny_folder, out)
    assert result.exit_code == 0, result.exception
    assert "15 modules quantized at" in result.stdout
    assert "model.layers.*.mlp.up_proj" in result.stdout
    assert f"wrote {out} in" in result.stdout
    assert "apot4-g64" in result.stdout
    model = potq.load(out)
    assert model.config.quantization_config == potq.PoTConfig("apot4")
    assert torch.equal(model(tokens).logits, potq.load(tiny_folder, potq.PoTConfig("apot4"))(tokens).logits)
    assert potq.load_tokenizer(out)("the cat")["input_ids"] == potq.load_tokenizer(tiny_folder)("the cat")["input_ids"]


def test_json_is_all_that_stdout_holds(tiny_folder: Path, out: Path) -> None:
    result = quantize(tiny_folder, out, "--scheme", "pot4", "--json")
    assert result.exit_code == 0, result.exception
    report = json.loads(result.stdout)
    assert report.pop("output") == str(out)
    assert report.pop("seconds") > 0
    read = QuantReport.model_validate(report)
    assert read == potq.load(out).quant_report
    assert [(m.name, m.kind, m.scheme, m.shape) for m in read.modules if m.kind == "embedding"] == [
        ("model.embed_tokens", "embedding", "int8-g64", (260, 64))
    ]
    linears = [module for module in read.modules if module.kind == "linear"]
    assert len(linears) == 14
    assert {module.scheme for module in linears} == {"pot4-g64"}
    assert all(module.snr_db is not None and 5 < module.snr_db < 40 for module in linears)
    assert read.skipped == []


def test_every_option(tiny_folder: Path, out: Path) -> None:
    options = ["--group-size", "32", "--embedding", "none", "--ignore", "q_proj", "--ignore", "k_proj"]
    options += ["--scale-method", "absmax", "--dtype", "bfloat16", "--max-shard-size", "20KB", "--every-module"]
    result = quantize(tiny_folder, out, "--scheme", "pot3", *options)
    assert result.exit_code == 0, result.exception
    assert "model.layers.1.mlp.up_proj" in result.stdout
    assert "model.layers.*" not in result.stdout
    assert "ignored by config" in result.stdout
    config = potq.PoTConfig("pot3", group_size=32, embedding=None, ignore=["q_proj", "k_proj"], scale_method="absmax")
    model = potq.load(out)
    assert model.config.quantization_config == config
    assert model.dtype == torch.bfloat16
    assert len(list(out.glob("*.safetensors"))) > 1


@pytest.mark.parametrize("size", ["row", "tensor"])
def test_group_size_in_words(tiny_folder: Path, out: Path, size: str) -> None:
    assert quantize(tiny_folder, out, "--scheme", "int4", "--group-size", size).exit_code == 0
    assert potq.load(out).config.quantization_config.scheme == potq.QuantScheme("int4", group_size=size)


def test_a_recipe_with_overrides(tiny_folder: Path, out: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("the cat sat on the mat, then the other cat. " * 40)
    (tmp_path / "recipe.yaml").write_text(
        f"""
        model: {tiny_folder}
        output: nowhere
        quantization: {{preset: pot4, group_size: 16, scale_method: weighted}}
        calibration: {{text: {tmp_path / "text.txt"}, window: 32, windows: 2}}
        """
    )
    result = quantize("-c", tmp_path / "recipe.yaml", f"output={out}", "quantization.group_size=32", "--json")
    assert result.exit_code == 0, result.exception
    report = json.loads(result.stdout)
    assert {m["scheme"] for m in report["modules"] if m["kind"] == "linear"} == {"pot4-g32"}
    assert {m["algorithm"] for m in report["modules"] if m["kind"] == "linear"} == {"rtn/weighted-16"}
    assert all(module["output_snr_db"] is not None for module in report["modules"])
    again = quantize("-c", tmp_path / "recipe.yaml", tiny_folder, out, "--scheme", "pot3", "--force")
    assert again.exit_code == 0, again.exception
    assert potq.load(out).config.quantization_config.scheme == potq.QuantScheme("pot3", group_size=16)


def test_a_recipe_without_preset_is_apot4_too(tiny_folder: Path, out: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(f"{{model: {tiny_folder}, output: {out}}}")
    assert quantize("-c", tmp_path / "recipe.yaml").exit_code == 0
    assert potq.load(out).config.quantization_config == potq.PoTConfig("apot4")


def test_a_recipe_without_preset_with_an_override(tiny_folder: Path, out: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(f"{{model: {tiny_folder}, output: {out}}}")
    result = quantize("-c", tmp_path / "recipe.yaml", "quantization.group_size=32")
    assert result.exit_code == 0, result.exception
    assert potq.load(out).config.quantization_config == potq.PoTConfig("apot4", group_size=32)


def test_calibration_adds_output_errors(tiny_folder: Path, out: Path) -> None:
    result = quantize(tiny_folder, out, "--calibration", "pydoc", "calibration.window=64", "calibration.windows=2", "--json")
    assert result.exit_code == 0, result.exception
    assert all(module["output_snr_db"] is not None for module in json.loads(result.stdout)["modules"])


# ---- what is refused, before any work is done


def test_an_existing_output(tiny_folder: Path, packed_folder: Path) -> None:
    assert "exists; choose another output folder, or pass --force" in refused(CheckpointError, tiny_folder, packed_folder)
    assert quantize(tiny_folder, packed_folder, "--force", "--scheme", "pot3").exit_code == 0
    assert potq.load(packed_folder).config.quantization_config == potq.PoTConfig("pot3")


def test_an_output_that_is_no_model(tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "a.tex").write_text("work")
    assert "it is not replaced, even by force" in refused(CheckpointError, tiny_folder, tmp_path / "thesis", "--force")
    assert (tmp_path / "thesis" / "a.tex").exists()


def test_force_over_the_model_itself_is_whole(tiny_folder: Path, tokens: torch.Tensor) -> None:
    expected = potq.load(tiny_folder, potq.PoTConfig("apot4"))(tokens).logits
    assert quantize(tiny_folder, tiny_folder, "--force").exit_code == 0
    assert torch.equal(potq.load(tiny_folder)(tokens).logits, expected)


def test_a_model_that_is_not_there(out: Path, tmp_path: Path) -> None:
    assert "nowhere' does not exist; give a model folder" in refused(CheckpointError, tmp_path / "nowhere", out)
    assert not out.exists()


def test_a_packed_model(packed_folder: Path, out: Path) -> None:
    assert "is quantized already" in refused(CheckpointError, packed_folder, out)


def test_an_unknown_preset(tiny_folder: Path, out: Path) -> None:
    message = refused(ConfigError, tiny_folder, out, "--scheme", "pot9")
    assert message.startswith("unknown preset 'pot9'; the presets are ")
    assert "apot4" in message


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["colour=red"], "colour: unknown key (found 'red')"),
        (["quantization.colour=red"], "colour: unknown key (found 'red')"),
        (["third"], "expected MODEL and OUTPUT, found"),
        (["--group-size", "many"], "group_size"),
        (["--scale-method", "best"], "scale_method"),
        (["--scale-method", "weighted"], "pass calibration"),
        (["--ignore", "experts"], "pattern 'experts' matches no module"),
        (["--ignore", "*.q_proj"], "is not a regular expression"),
    ],
)
def test_wrong_settings(tiny_folder: Path, out: Path, words: list[str], message: str) -> None:
    assert message in refused(ConfigError, tiny_folder, out, *words)
    assert not out.exists()


def test_no_model_and_no_output() -> None:
    message = refused(ConfigError)
    assert "model: Field required" in message
    assert "output: Field required" in message


def test_weights_that_are_nan(tiny_model: Any, tiny_folder: Path, out: Path) -> None:
    with torch.no_grad():
        tiny_model.model.layers[1].mlp.up_proj.weight[0, 0] = torch.nan
    tiny_model.save_pretrained(tiny_folder)
    assert "layers.1.mlp.up_proj.weight has 1 NaN" in refused(PotqError, tiny_folder, out)
    assert not out.exists()


def test_calibration_text_that_is_too_short(tiny_folder: Path, out: Path, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("the cat")
    message = refused(DataError, tiny_folder, out, "--calibration", tmp_path / "short.txt")
    assert "short.txt has" in message
    assert "less than one calibration window of 512" in message
