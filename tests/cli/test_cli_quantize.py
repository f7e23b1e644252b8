"""``potq quantize`` end to end, on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import potq
from cli_helpers import invoke, refused, succeed
from potq import native
from potq.config import EFFORTS, Effort
from potq.data.calibration_text import load_calibration
from potq.errors import CheckpointError, ConfigError, DataError, PotqError
from potq.nn.report import QuantReport
from potq.resume import WorkFolder

FEW = ["calibration.window=64", "calibration.windows=2"]


DEFAULT = potq.PoTConfig("apot4:group_size=32", embedding="apot4:group_size=32")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def test_quantize_writes_a_checkpoint_and_a_table(tiny_folder: Path, out: Path, tokens: torch.Tensor) -> None:
    result = invoke("quantize", tiny_folder, out)
    assert result.exit_code == 0, result.exception
    assert "15 modules quantized at" in result.stdout
    assert "model.layers.*.mlp.up_proj" in result.stdout
    assert f"wrote {out} in" in result.stdout
    assert "apot4-g32" in result.stdout
    model = potq.load(out)
    assert model.config.quantization_config == DEFAULT
    assert torch.equal(model(tokens).logits, potq.load(tiny_folder, DEFAULT)(tokens).logits)
    assert potq.load_tokenizer(out)("the cat")["input_ids"] == potq.load_tokenizer(tiny_folder)("the cat")["input_ids"]


def test_weights_that_were_rounded_before_are_named(packed_folder: Path, tiny_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "packed.gguf"
    succeed("export", packed_folder, file, "--to", "gguf", "--allow-8bit")
    told = invoke("quantize", file, tmp_path / "out").stderr
    assert f"{file}wasquantizedbefore(Q8_0)" in "".join(told.split())  # lines break anywhere in a long path
    assert "before" not in invoke("quantize", tiny_folder, tmp_path / "plain").stderr


def test_tensors_that_the_model_does_not_use_are_named(tiny_folder: Path, out: Path) -> None:
    file = tiny_folder / "model.safetensors"
    save_file(load_file(file) | {"mtp.fc.weight": torch.zeros(4, 4)}, file, metadata={"format": "pt"})
    shown = " ".join(succeed("quantize", tiny_folder, out).split())
    assert "1 tensors of the checkpoint are not used, 0.0 MB: mtp.fc.weight" in shown
    assert "mtp.fc.weight" in succeed("inspect", out)
    found = json.loads(succeed("quantize", tiny_folder, out, "--force", "--json"))
    assert found["unused"] == [{"name": "mtp.fc.weight", "nbytes": 64}]


@pytest.mark.parametrize("more", [[], ["--effort", "gptq", *FEW]])
@pytest.mark.parametrize(
    ("size", "words"), [("33", "groups of 33 leave a short last one of 31"), ("1000", "groups of 1000 are longer than rows")]
)
def test_odd_group_sizes_are_remarked_on(tiny_folder: Path, out: Path, size: str, words: str, more: list[str]) -> None:
    told = " ".join(invoke("quantize", tiny_folder, out, "--group-size", size, *more).stderr.split())
    assert told.count(words) == 1 + (size == "1000")  # rows of 64, and of 160
    assert told.count("the slow torch reference") == (size == "33" and native.missing() is None)


def test_the_report_as_markdown_is_all_that_stdout_holds(tiny_folder: Path, out: Path) -> None:
    shown = succeed("quantize", tiny_folder, out, "--markdown", "--every-module")
    assert shown == potq.load(out).quant_report.to_markdown(every_module=True) + "\n"
    assert "choose one" in refused(ConfigError, "quantize", tiny_folder, out, "--markdown", "--json")


def test_json_is_all_that_stdout_holds(tiny_folder: Path, out: Path) -> None:
    result = invoke("quantize", tiny_folder, out, "--scheme", "pot4", "--json")
    assert result.exit_code == 0, result.exception
    report = json.loads(result.stdout)
    assert report.pop("output") == str(out)
    assert report.pop("seconds") > 0
    bits = report.pop("bits_per_weight"), report.pop("quantized_bits_per_weight")
    read = QuantReport.model_validate(report)
    assert bits == (read.bits_per_weight, read.quantized_bits_per_weight)
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
    result = invoke("quantize", tiny_folder, out, "--scheme", "pot3", *options)
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
    assert invoke("quantize", tiny_folder, out, "--scheme", "int4", "--group-size", size).exit_code == 0
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
    result = invoke("quantize", "-c", tmp_path / "recipe.yaml", f"output={out}", "quantization.group_size=32", "--json")
    assert result.exit_code == 0, result.exception
    report = json.loads(result.stdout)
    assert {m["scheme"] for m in report["modules"] if m["kind"] == "linear"} == {"pot4-g32"}
    assert {m["algorithm"] for m in report["modules"] if m["kind"] == "linear"} == {"rtn/weighted-exact"}
    assert all(module["output_snr_db"] is not None for module in report["modules"])
    again = invoke("quantize", "-c", tmp_path / "recipe.yaml", tiny_folder, out, "--scheme", "pot3", "--force")
    assert again.exit_code == 0, again.exception
    assert potq.load(out).config.quantization_config.scheme == potq.QuantScheme("pot3", group_size=16)


def test_a_recipe_without_preset_is_the_default_too(tiny_folder: Path, out: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(f"{{model: {tiny_folder}, output: {out}}}")
    assert invoke("quantize", "-c", tmp_path / "recipe.yaml").exit_code == 0
    assert potq.load(out).config.quantization_config == DEFAULT


def test_a_recipe_without_preset_with_an_override(tiny_folder: Path, out: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(f"{{model: {tiny_folder}, output: {out}}}")
    result = invoke("quantize", "-c", tmp_path / "recipe.yaml", "quantization.group_size=64")
    assert result.exit_code == 0, result.exception
    assert potq.load(out).config.quantization_config == potq.PoTConfig("apot4", embedding="apot4:group_size=32")


@pytest.mark.parametrize("source", ["pydoc", "self"])
def test_calibration_adds_output_errors(tiny_folder: Path, out: Path, source: str) -> None:
    result = invoke(
        "quantize", tiny_folder, out, "--calibration", source, "calibration.window=64", "calibration.windows=2", "--json"
    )
    assert result.exit_code == 0, result.exception
    assert all(module["output_snr_db"] is not None for module in json.loads(result.stdout)["modules"])
    assert f"calibration: 2 windows of 64 tokens, {source}" in result.stderr


def test_calibration_is_the_librarys(tiny_folder: Path, out: Path) -> None:
    """The recipe's seed and sizes reach the text: the same figures as from Python."""
    options = ["--scale-method", "weighted", "--calibration", "self", "calibration.windows=3", "calibration.seed=5"]
    result = invoke("quantize", tiny_folder, out, *options, "--json")
    assert result.exit_code == 0, result.exception
    model = potq.load(tiny_folder)
    batches = load_calibration("self", model, potq.load_tokenizer(tiny_folder), windows=3, seed=5)
    report = potq.quantize(model, DEFAULT.model_copy(update={"scale_method": "weighted"}), batches)
    assert potq.load(out).quant_report == report


def test_calibration_text_that_has_fewer_windows(tiny_folder: Path, out: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("the cat sat on the mat, then the other cat. " * 40)
    result = invoke("quantize", tiny_folder, out, "--calibration", tmp_path / "text.txt", "calibration.window=100")
    assert result.exit_code == 0, result.exception
    tokens = len(potq.load_tokenizer(out)((tmp_path / "text.txt").read_text())["input_ids"])
    shown = " ".join(result.stderr.split())
    assert f"calibration: {tokens // 100} windows (64 asked for) of 100 tokens, " in shown


# ---- effort, and calibration where it needs some


@pytest.mark.parametrize(
    ("effort", "steps"), [("gptq", "gptq"), ("balanced", "gptq+descent"), ("potptq", "rtn+block-scales")]
)
def test_an_effort_calibrates_on_the_models_own_text(tiny_folder: Path, out: Path, effort: str, steps: str) -> None:
    words = [tiny_folder, out, "--scheme", "pot3", "--effort", effort, "--seed", "5"]
    result = invoke("quantize", *words, *FEW, "--json")
    assert result.exit_code == 0, result.exception
    found = json.loads(result.stdout)
    report = QuantReport.model_validate({key: found[key] for key in QuantReport.model_fields})
    assert {module.algorithm for module in report.modules if module.kind == "linear"} == {steps}
    model = potq.load(tiny_folder)
    batches = load_calibration("self", model, potq.load_tokenizer(tiny_folder), window=64, windows=2, seed=5)
    assert potq.quantize(model, potq.PoTConfig("pot3", effort=effort), batches, seed=5) == report
    assert "calibration: 2 windows of 64 tokens, self" in result.stderr
    assert "quantizing: about" in result.stderr
    assert "GB" in result.stderr
    assert not out.with_name(".out.work").exists()


def test_calibration_without_an_effort_is_balanced(tiny_folder: Path, out: Path) -> None:
    result = invoke("quantize", tiny_folder, out, "--calibration", "self", *FEW)
    assert result.exit_code == 0, result.exception
    assert potq.load(out).config.quantization_config.effort == EFFORTS["balanced"]


def test_fast_with_calibration_only_measures(tiny_folder: Path, out: Path) -> None:
    result = invoke("quantize", tiny_folder, out, "--effort", "fast", "--calibration", "self", *FEW, "--json")
    assert result.exit_code == 0, result.exception
    modules = json.loads(result.stdout)["modules"]
    assert {module["algorithm"] for module in modules if module["kind"] == "linear"} == {"rtn/mse-exact"}
    assert all(module["output_snr_db"] is not None for module in modules)
    assert "quantizing: about" not in result.stderr


def test_an_effort_in_the_recipe(tiny_folder: Path, out: Path, tmp_path: Path) -> None:
    effort = "{compensate: true, damping: 0.05}"
    (tmp_path / "recipe.yaml").write_text(
        f"{{model: {tiny_folder}, output: {out}, quantization: {{effort: {effort}}}, seed: 4}}"
    )
    result = invoke("quantize", "-c", tmp_path / "recipe.yaml", *FEW, "--json")
    assert result.exit_code == 0, result.exception
    assert potq.load(out).config.quantization_config.effort == Effort(compensate=True, damping=0.05)


# ---- a run that is killed


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The next run dies before it keeps its second block; returns what runs try to keep."""
    save, kept = WorkFolder.save, []

    def dies(folder: WorkFolder, name: str, tensors: dict[str, torch.Tensor]) -> None:
        kept.append(name)
        if len(kept) == 2:
            raise KeyboardInterrupt
        save(folder, name, tensors)

    monkeypatch.setattr(WorkFolder, "save", dies)
    return kept


def test_a_killed_run_goes_on(tiny_folder: Path, out: Path, tmp_path: Path, killed: list[str]) -> None:
    words = [tiny_folder, out, "--scheme", "pot3", "--effort", "balanced", *FEW]
    result = invoke("quantize", *words)
    assert result.exit_code == 130
    work = tmp_path / ".out.work"
    shown = " ".join(result.stderr.split())
    assert "1 of 2 blocks are kept in" in shown
    assert "the same command goes on from there" in shown
    assert work.is_dir()
    assert not out.exists()
    again = invoke("quantize", *words)
    assert again.exit_code == 0, again.exception
    assert "resuming: 1 of 2 blocks done" in again.stderr
    assert len(killed) == 3
    assert not work.exists()
    undisturbed = invoke("quantize", tiny_folder, tmp_path / "other", *words[2:])
    assert "resuming" not in undisturbed.stderr
    assert potq.load(out).quant_report == potq.load(tmp_path / "other").quant_report
    assert (out / "model.safetensors").read_bytes() == (tmp_path / "other" / "model.safetensors").read_bytes()


@pytest.mark.filterwarnings("ignore:.*was left by another run")
def test_what_another_run_left_is_not_used(tiny_folder: Path, out: Path, tmp_path: Path, killed: list[str]) -> None:
    words = [tiny_folder, out, "--effort", "gptq", *FEW]
    assert invoke("quantize", *words, "--scheme", "pot3").exit_code == 130
    result = invoke("quantize", *words, "--scheme", "pot4")
    assert result.exit_code == 0, result.exception
    assert "resuming" not in result.stderr
    assert len(killed) == 4
    assert not (tmp_path / ".out.work").exists()


def test_a_work_folder_that_is_something_else(tiny_folder: Path, out: Path, tmp_path: Path) -> None:
    (tmp_path / ".out.work").mkdir()
    (tmp_path / ".out.work" / "thesis.tex").write_text("work")
    assert "holds something else" in refused(ConfigError, "quantize", tiny_folder, out, "--effort", "gptq", *FEW)
    assert invoke("quantize", tiny_folder, out, "--effort", "fast").exit_code == 0
    assert (tmp_path / ".out.work" / "thesis.tex").exists()


def test_a_full_disk(tiny_folder: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(WorkFolder, "save", full)
    message = refused(CheckpointError, "quantize", tiny_folder, out, "--effort", "gptq", *FEW)
    assert "cannot keep unfinished work in" in message
    assert "No space left on device" in message


# ---- a scheme for each linear


def test_a_budget(tiny_folder: Path, out: Path) -> None:
    result = invoke(
        "quantize", tiny_folder, out, "--budget", "3.3", "--effort", "fast", "--calibration", "self", *FEW, "--json"
    )
    assert result.exit_code == 0, result.exception
    found = json.loads(result.stdout)
    model = potq.load(tiny_folder)
    batches = load_calibration("self", model, potq.load_tokenizer(tiny_folder), window=64, windows=2)
    config = potq.PoTConfig("apot4", effort="fast", embedding="apot4:group_size=32")
    expected = potq.allocate(model, config, ["pot2", "pot3", "pot3s", "apot3s", "pot4", "apot4"], batches, budget=3.3)
    assert potq.load(out).config.quantization_config.targets == expected.targets
    linears = [module for module in found["modules"] if module["kind"] == "linear"]
    weights = [module["shape"][0] * module["shape"][1] for module in linears]
    bits = sum(w * module["bits_per_weight"] for w, module in zip(weights, linears, strict=True)) / sum(weights)
    assert bits <= 3.3
    assert found["allocation"]["bits_per_weight"] == pytest.approx(bits)
    assert {m["name"]: m["scheme"] for m in linears} == {
        name: layer["chosen"] for name, layer in found["allocation"]["layers"].items()
    }


def test_candidates_and_a_table(tiny_folder: Path, out: Path) -> None:
    words = ["--scheme", "pot3", "--candidates", "pot3,pot3nz,apot3", "--effort", "gptq", *FEW]
    result = invoke("quantize", tiny_folder, out, *words)
    assert result.exit_code == 0, result.exception
    assert "14 linears at 3.2619 bits per weight, expected loss" in result.stdout
    schemes = {m.scheme for m in potq.load(out).quant_report.modules if m.kind == "linear"}
    assert schemes <= {"pot3-g64", "pot3nz-g64", "apot3-g64"}


def test_budget_and_candidates_in_a_recipe(tiny_folder: Path, out: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(
        f"""
        {{model: {tiny_folder}, output: {out}, budget: 3.6, calibration: {{window: 64, windows: 2}},
        candidates: [pot3, {{preset: pot4, group_size: 32}}, "pot2:scale_dtype=e8m0"], quantization: {{effort: fast}}}}
        """
    )
    result = invoke("quantize", "-c", tmp_path / "recipe.yaml")
    assert result.exit_code == 0, result.exception
    schemes = {m.scheme for m in potq.load(out).quant_report.modules if m.kind == "linear"}
    assert schemes <= {"pot3-g64", "pot4-g32", "pot2-g64-e8m0"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--budget", "3.25"], "a budget needs calibration text: --calibration self"),
        (["--candidates", "pot3"], "choosing among candidates needs calibration text"),
        (["--budget", "nan", "--effort", "gptq"], "budget"),
        (["--budget", "0", "--effort", "gptq"], "budget"),
        (["--effort", "gptq", "--candidates", "pot9"], "unknown preset 'pot9'"),
        (["--effort", "gptq", "--candidates", "pot3,pot3:group_size=64"], "pot3-g64 twice"),
        (["--effort", "gptq", "candidates=[]"], "candidates is empty"),
        (["--effort", "gptq", "candidates=3"], "candidates"),
        (["--effort", "gptq", "--candidates", ","], "no scheme is named"),
        (["--effort", "gptq", "--candidates", "pot3:=3"], "'=3' is not an override"),
        (["--effort", "some"], "unknown effort 'some'; the presets are fast, gptq"),
        (["--seed", "-1"], "seed"),
    ],
)
def test_wrong_efforts_and_candidates(tmp_path: Path, out: Path, words: list[str], message: str) -> None:
    assert message in refused(ConfigError, "quantize", tmp_path / "none", out, *words)


def test_a_budget_that_cannot_be_met(tiny_folder: Path, out: Path) -> None:
    message = refused(ConfigError, "quantize", tiny_folder, out, "--budget", "2", "--calibration", "self", *FEW)
    assert "these candidates take at least 2.2620" in message
    assert not out.exists()
    assert not out.with_name(".out.work").exists()


# ---- what is refused, before any work is done


def test_an_existing_output(tiny_folder: Path, packed_folder: Path) -> None:
    assert "exists; choose another output folder, or pass --force" in refused(
        CheckpointError, "quantize", tiny_folder, packed_folder
    )
    assert invoke("quantize", tiny_folder, packed_folder, "--force", "--scheme", "pot3").exit_code == 0
    assert potq.load(packed_folder).config.quantization_config == potq.PoTConfig("pot3")


def test_an_output_that_is_no_model(tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "a.tex").write_text("work")
    assert "is never replaced, not even by force" in refused(
        CheckpointError, "quantize", tiny_folder, tmp_path / "thesis", "--force"
    )
    assert (tmp_path / "thesis" / "a.tex").exists()


@pytest.mark.parametrize("name", ["o[v1]", "o[/x]"])
def test_brackets_in_names_are_no_markup(tiny_folder: Path, tmp_path: Path, name: str) -> None:
    out = tmp_path / Path(name)
    out.parent.mkdir(exist_ok=True)
    shown = succeed("quantize", tiny_folder, out, "--scheme", "pot4")
    assert f"wrote {out} in" in "".join(shown.splitlines())
    assert "pot4-g64" in succeed("inspect", out)


def test_the_model_itself_is_not_replaced(tiny_folder: Path, tmp_path: Path, tokens: torch.Tensor) -> None:
    expected = potq.load(tiny_folder)(tokens).logits
    (tmp_path / "link").symlink_to(tiny_folder)
    for output in (tiny_folder, tmp_path / "link"):
        message = refused(CheckpointError, "quantize", tiny_folder, output, "--force")
        assert message == f"{output} holds {tiny_folder}, which the new model is made from; choose another output"
    assert torch.equal(potq.load(tiny_folder)(tokens).logits, expected)


def test_a_model_that_is_not_there(out: Path, tmp_path: Path) -> None:
    assert "nowhere' does not exist; give a model folder" in refused(CheckpointError, "quantize", tmp_path / "nowhere", out)
    assert not out.exists()


def test_a_packed_model(packed_folder: Path, out: Path) -> None:
    assert "is quantized already" in refused(CheckpointError, "quantize", packed_folder, out)


def test_an_unknown_preset(tiny_folder: Path, out: Path) -> None:
    message = refused(ConfigError, "quantize", tiny_folder, out, "--scheme", "pot9")
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
        (["--scale-method", "weighted"], "weighted needs calibration text: --calibration self"),
        (["--ignore", "experts"], "pattern 'experts' matches no module"),
        (["--ignore", "*.q_proj"], "is not a regular expression"),
    ],
)
def test_wrong_settings(tiny_folder: Path, out: Path, words: list[str], message: str) -> None:
    assert message in refused(ConfigError, "quantize", tiny_folder, out, *words)
    assert not out.exists()


def test_no_model_and_no_output() -> None:
    message = refused(ConfigError, "quantize")
    assert "model: Field required" in message
    assert "output: Field required" in message
    assert "found" not in message


def test_weights_that_are_nan(tiny_model: Any, tiny_folder: Path, out: Path) -> None:
    with torch.no_grad():
        tiny_model.model.layers[1].mlp.up_proj.weight[0, 0] = torch.nan
    tiny_model.save_pretrained(tiny_folder)
    assert "layers.1.mlp.up_proj.weight has 1 NaN" in refused(PotqError, "quantize", tiny_folder, out)
    assert not out.exists()


def test_calibration_text_that_is_too_short(tiny_folder: Path, out: Path, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("the cat")
    message = refused(DataError, "quantize", tiny_folder, out, "--calibration", tmp_path / "short.txt")
    assert "short.txt: the calibration text has" in message
    assert "less than one window of 128" in message  # the model's limit, for the default of 512 is more


@pytest.mark.parametrize("source", ["self", "pydoc"])
def test_a_calibration_window_beyond_the_models_limit(tiny_folder: Path, out: Path, source: str) -> None:
    message = refused(DataError, "quantize", tiny_folder, out, "--calibration", source, "calibration.window=129")
    assert "windows of 129 tokens exceed the model's limit of 128" in message
    assert not out.exists()


def test_calibration_text_that_is_not_there(tiny_folder: Path, out: Path) -> None:
    assert "cannot read the text none.txt" in refused(DataError, "quantize", tiny_folder, out, "--calibration", "none.txt")


def test_a_scheme_with_an_override(tiny_folder: Path, tmp_path: Path) -> None:
    succeed(
        "quantize", tiny_folder, tmp_path / "out", "--scheme", "pot4:group_size=32", "--embedding", "int8:group_size=row"
    )
    config = potq.load(tmp_path / "out").config.quantization_config
    assert (config.scheme.name, config.embedding.name) == ("pot4-g32", "int8-row")
    words = ("quantize", tiny_folder, tmp_path / "twice", "--scheme", "pot4:group_size=32", "--group-size", "16")
    assert "group_size is given twice" in refused(ConfigError, *words)


@pytest.mark.parametrize("words", [(), ("--effort", "gptq")])
def test_a_folder_without_tokenizer_is_quantized(
    tiny_folder: Path, out: Path, text: Path, words: tuple[str, ...], tokens: torch.Tensor
) -> None:
    for file in tiny_folder.glob("tokenizer*"):
        file.unlink()
    result = invoke("quantize", tiny_folder, out, *words)
    assert result.exit_code == 0
    assert "tiny has no tokenizer, so the output gets none" in " ".join(result.stderr.split())
    assert potq.load(out)(tokens).logits.isfinite().all()
    for command in ("generate", "eval"):
        given = ["the cat"] if command == "generate" else ["--text", text]
        assert "has no tokenizer; copy tokenizer.json" in refused(CheckpointError, command, out, *given)
    assert "has no tokenizer" in refused(CheckpointError, "quantize", tiny_folder, out, "--force", "--calibration", text)
