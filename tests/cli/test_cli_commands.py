"""``potq eval``, ``inspect``, and what every command shares: help, version, errors, exit status."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import potq
from cli_helpers import invoke, refused, succeed
from potq import native
from potq.cli import app as cli
from potq.data.tokens import tokenize
from potq.errors import CheckpointError, ConfigError, DataError, MissingDependencyError, ModelError, PotqError
from potq.evaluate.divergence import kl_divergence
from potq.evaluate.perplexity import Perplexity, perplexity
from potq.kernels import explain, set_activations
from potq.nn.packed_model import packed_modules

compiled = pytest.mark.skipif(native.missing() is not None, reason=native.missing() or "")


# ---- eval


def test_eval_prints_the_number_and_its_protocol(packed_folder: Path, text: Path) -> None:
    out = succeed("eval", packed_folder, "--text", text, "--window", "32", "--windows", "3")
    assert out.startswith("perplexity ")
    assert f"on {text}" in out
    assert "GPTQ protocol: 3 non-overlapping windows of 32 tokens (stride 32), 93 tokens predicted" in out


def measured(folder: Path, text: Path, activations: Any) -> Perplexity:
    """What ``potq eval --window 96`` should find."""
    model, tokens = potq.load(folder), tokenize(potq.load_tokenizer(folder), text.read_text())
    set_activations(model, activations)
    return perplexity(model, tokens, window=96)


def test_eval_json(packed_folder: Path, text: Path) -> None:
    found = json.loads(succeed("eval", packed_folder, "--text", text, "--window", "96", "--json"))
    tokens = tokenize(potq.load_tokenizer(packed_folder), text.read_text())
    expected = measured(packed_folder, text, "float")
    assert found["perplexity"] == expected.perplexity
    assert found["window_nll"] == list(expected.window_nll)
    assert found["windows"] == len(tokens) // 96
    assert (found["model"], found["text"], found["protocol"]) == (str(packed_folder), str(text), expected.protocol)


@compiled
def test_eval_with_the_activations_of_generate(packed_folder: Path, text: Path) -> None:
    words = ["eval", packed_folder, "--text", text, "--window", "96", "--json"]
    rounded = json.loads(succeed(*words, "--activations", "int8"))
    assert rounded["window_nll"] == list(measured(packed_folder, text, "int8").window_nll)
    assert rounded["window_nll"] != json.loads(succeed(*words))["window_nll"]


def test_eval_of_a_full_precision_model_on_the_built_in_text(tiny_folder: Path) -> None:
    found = json.loads(
        succeed("eval", tiny_folder, "--text", "pydoc", "--windows", "1", "--dtype", "bfloat16", "--device", "cpu", "--json")
    )
    assert (found["text"], found["window"], found["windows"]) == ("pydoc", 128, 1)
    assert found["kernels"] == {}


def test_eval_of_the_divergence_from_full_precision(packed_folder: Path, tiny_folder: Path, text: Path) -> None:
    words: list[str | Path] = ["eval", packed_folder, "--text", text, "--window", "32", "--windows", "3"]
    found, plain = (json.loads(succeed(*words, *more, "--json")) for more in (("--kld", tiny_folder), ()))
    assert "kld" not in plain
    assert found["perplexity"] == plain["perplexity"]
    model, tokens = potq.load(packed_folder), tokenize(potq.load_tokenizer(packed_folder), text.read_text())
    set_activations(model, "float")
    expected = kl_divergence(model, potq.load(tiny_folder), tokens, window=32, max_windows=3).to_dict()
    assert expected["mean"] > 0
    del expected["seconds"], found["kld"]["seconds"]
    assert found["kld"] == {**expected, "window_divergence": list(expected["window_divergence"])}
    out = " ".join(succeed(*words, "--kld", tiny_folder).split())
    assert f"divergence {expected['mean']:.5f} nats; 99 % of tokens at most" in out
    assert "3 non-overlapping windows of 32 tokens, 93 tokens predicted" in out


def test_eval_refuses_a_reference(packed_folder: Path, tmp_path: Path) -> None:
    words = ["eval", packed_folder, "--text", "pydoc", "--kld", tmp_path / "none"]
    assert "does not exist" in refused(CheckpointError, *words)


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (b"the cat", [], "tokens, less than one window of 128"),
        (b"", [], "text.txt is empty"),
        ("Grüße".encode("latin-1"), [], "text.txt is not UTF-8"),
        (b"the cat " * 99, ["--window", "129"], "exceed the model's limit of 128; use a window of 128"),
        (b"the cat " * 99, ["--window", "1"], "invalid window 1"),
    ],
)
def test_eval_refuses_a_text(packed_folder: Path, text: Path, content: bytes, options: list[str], message: str) -> None:
    text.write_bytes(content)
    assert message in refused(DataError, "eval", packed_folder, "--text", text, *options)


def test_eval_refuses_a_model(tmp_path: Path) -> None:
    assert "does not exist" in refused(CheckpointError, "eval", tmp_path / "none", "--text", "pydoc")


def test_eval_refuses_no_window(packed_folder: Path) -> None:
    result = invoke("eval", packed_folder, "--text", "pydoc", "--windows", "0")
    assert result.exit_code == 2
    assert "--windows" in result.stderr


@pytest.mark.parametrize("device", ["nonsense", "cuda:99"])
def test_a_device_that_is_not_there(packed_folder: Path, device: str) -> None:
    assert device in refused(PotqError, "eval", packed_folder, "--text", "pydoc", "--windows", "1", "--device", device)


@pytest.mark.parametrize(
    "words",
    [
        "eval MODEL --text TEXT --windows 1",
        "compare MODEL --schemes pot4 --text TEXT --windows 1",
        "quantize MODEL OUT --effort balanced --calibration TEXT calibration.windows=2",
        "quantize MODEL OUT --effort fast --calibration TEXT calibration.windows=2",
        "generate MODEL <new> --no-engine",
        "train model=MODEL output=OUT data.text=TEXT data.length=16",
    ],
)
def test_another_models_tokenizer(words: str, tiny_folder: Path, text: Path, tmp_path: Path) -> None:
    """As when the wrong one was copied into a folder that had none; most of these ended in a traceback."""
    tokenizer = potq.load_tokenizer(tiny_folder)
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(tiny_folder)
    text.write_text("the cat<new> " * 400)
    paths = {"MODEL": tiny_folder, "TEXT": text, "OUT": tmp_path / "out"}
    for name, path in paths.items():
        words = words.replace(name, str(path))
    assert "holds token ids" in (said := refused(DataError, *words.split()))
    assert said.endswith("260, the model knows 0..259; use its own tokenizer")


# ---- inspect


def test_inspect_prints_modules_and_levels(packed_folder: Path) -> None:
    out = succeed("inspect", packed_folder)
    assert "15 modules quantized" in out
    assert "model.layers.*.mlp.up_proj" in out
    assert "pot4-g64: magnitudes used" in out
    assert "64 = 2^6" in out
    assert "model.layers.1.mlp.up_proj" in succeed("inspect", packed_folder, "--every-module")


def test_inspect_json(packed_folder: Path) -> None:
    found = json.loads(succeed("inspect", packed_folder, "--json"))
    report = potq.load(packed_folder).quant_report
    assert found.pop("bits_per_weight") == report.bits_per_weight
    assert found.pop("quantized_bits_per_weight") == report.quantized_bits_per_weight
    levels = found.pop("levels")
    assert list(levels["pot4-g64"]) == ["0", "1", "2", "4", "8", "16", "32", "64"]
    assert sum(found.pop("kernels").values()) == 16
    assert found == json.loads((packed_folder / "quant_report.json").read_text())
    total = sum(m["shape"][0] * m["shape"][1] for m in found["modules"])
    assert sum(sum(counts.values()) for counts in levels.values()) == total


def test_inspect_without_a_report(packed_folder: Path) -> None:
    (packed_folder / "quant_report.json").unlink()
    assert {m["algorithm"] for m in json.loads(succeed("inspect", packed_folder, "--json"))["modules"]} == {"not recorded"}
    succeed("inspect", packed_folder)


def test_inspect_plot(packed_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    plot = tmp_path / "usage.png"
    assert f"wrote {plot}" in succeed("inspect", packed_folder, "--plot", plot)
    assert plot.read_bytes().startswith(b"\x89PNG")
    json.loads(succeed("inspect", packed_folder, "--plot", plot, "--json"))


def test_inspect_plot_without_matplotlib(packed_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    message = refused(MissingDependencyError, "inspect", packed_folder, "--plot", tmp_path / "usage.png")
    assert "pip install 'potq[plot]'" in message


def test_inspect_of_a_full_precision_model_says_what_would_be_done(tiny_folder: Path) -> None:
    out = " ".join(succeed("inspect", tiny_folder).split())
    assert "15 modules to be quantized at 4.500, 0 skipped" in out
    assert "apot4-g32" in out
    expected = potq.load(tiny_folder, potq.PoTConfig("pot3", group_size=32)).quant_report
    (tiny_folder / "model.safetensors").unlink()  # no weights are read
    found = json.loads(succeed("inspect", tiny_folder, "--scheme", "pot3:group_size=32", "--json"))
    assert found.pop("quantized") is False
    for key in ("bits_per_weight", "quantized_bits_per_weight", "bytes_after", "weights", "skipped"):
        assert found[key] == expected.to_dict()[key], key
    same = {"name", "kind", "shape", "scheme", "bits_per_weight", "bytes_before", "bytes_after", "tied"}
    assert [{key: module[key] for key in same} for module in found["modules"]] == [
        module.model_dump(include=same, mode="json") for module in expected.modules
    ]


def test_inspect_markdown(packed_folder: Path, tiny_folder: Path) -> None:
    assert succeed("inspect", packed_folder, "--markdown") == potq.load(packed_folder).quant_report.to_markdown() + "\n"
    lines = succeed("inspect", tiny_folder, "--markdown", "--every-module").splitlines()
    assert lines[2] == "| module | n | shape | scheme | bits |"
    assert len([line for line in lines if line.startswith("| model.")]) == 15


def test_inspect_remarks_on_odd_sizes(tiny_folder: Path) -> None:
    result = invoke("inspect", tiny_folder, "--scheme", "pot4:group_size=33", "--json")
    assert "groups of 33 leave a short last one of 31 in rows of 64" in " ".join(result.stderr.split())
    assert len(json.loads(result.stdout)["remarks"]) == 3  # two widths, and the lack of a kernel


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["T5ForConditionalGeneration"]}, "model type llama, and a T5ForConditionalGeneration is of t5"),
        ({"architectures": ["LlamaForEverything"]}, "names the class LlamaForEverything, which transformers lacks"),
        ({"model_type": "own", "auto_map": {"AutoConfig": "own.Config"}}, "potq never runs code from a model folder"),
    ],
    ids=["another type", "no class", "own code"],
)
def test_inspect_refuses_what_quantize_refuses(
    changes: dict[str, object], message: str, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python code of the folder did run, if someone or something said yes on standard input."""
    monkeypatch.setattr("builtins.input", lambda *words: pytest.fail("it asked"))
    (tiny_folder / "own.py").write_text("raise SystemExit('it ran')")
    file = tiny_folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    for command in (("inspect", tiny_folder), ("quantize", tiny_folder, tiny_folder.with_name("out"))):
        assert message in refused(ModelError, *command)


def test_inspect_refuses_what_does_not_belong_together(packed_folder: Path, tiny_folder: Path, tmp_path: Path) -> None:
    assert "is quantized already" in refused(ConfigError, "inspect", packed_folder, "--scheme", "pot3")
    assert "choose one" in refused(ConfigError, "inspect", packed_folder, "--json", "--markdown")
    assert "unknown preset 'pot9'" in refused(ConfigError, "inspect", tiny_folder, "--scheme", "pot9")
    message = refused(ModelError, "inspect", tiny_folder, "--plot", tmp_path / "levels.png")
    assert (
        f"{tiny_folder} is not quantized by potq, so that no levels are used; potq quantize {tiny_folder} OUTPUT" in message
    )
    assert "does not exist" in refused(CheckpointError, "inspect", tmp_path / "none")


# ---- kernels

EVAL = ("eval", "--text", "pydoc", "--windows", "1")
GENERATE = ("generate", "the cat", "-n", "1", "--no-engine")


def kernels(folder: Path, activations: Any) -> dict[str, int]:
    """What ``"kernels"`` should hold: what computes, and in how many modules."""
    model = potq.load(folder)
    set_activations(model, activations)
    return dict(Counter(str(explain(module)) for module in packed_modules(model).values()))


@pytest.mark.parametrize(
    ("words", "activations"),
    [
        (EVAL, "float"),
        ((*EVAL, "--activations", "int8"), "int8"),
        (GENERATE, "int8"),
        ((*GENERATE, "--activations", "float"), "float"),
        (("inspect",), "int8"),
    ],
    ids=["eval", "eval int8", "generate", "generate float", "inspect"],
)
def test_json_names_the_kernels(packed_folder: Path, words: tuple[str, ...], activations: str) -> None:
    command, *options = words
    found = json.loads(succeed(command, packed_folder, *options, "--json"))["kernels"]
    assert found == kernels(packed_folder, activations)
    assert sum(found.values()) == 16  # 14 linears, the embedding, the head tied to it


@compiled
@pytest.mark.parametrize(
    ("words", "line"),
    [
        (EVAL, "16 modules on cpu (ISA), float activations"),
        (GENERATE, "15 modules on cpu (ISA), int8 activations"),  # all but the embedding, which has none
        (("inspect",), "15 modules on cpu (ISA), int8 activations"),
    ],
    ids=["eval", "generate", "inspect"],
)
def test_a_line_says_which_kernels_ran(packed_folder: Path, words: tuple[str, ...], line: str) -> None:
    command, *options = words
    result = invoke(command, packed_folder, *options)
    assert result.exit_code == 0, result.exception
    shown = result.stderr if command == "generate" else result.stdout  # generate's stdout is the text alone
    assert line.replace("ISA", native.isa()) in shown


@pytest.mark.parametrize("words", [EVAL, GENERATE], ids=lambda words: str(words[0]))
def test_other_activations_are_wrong_usage(packed_folder: Path, words: tuple[str, ...]) -> None:
    command, *options = words
    result = invoke(command, packed_folder, *options, "--activations", "int4")
    assert result.exit_code == 2
    assert "--activations" in result.stderr


# ---- what every command shares


def main(monkeypatch: pytest.MonkeyPatch, *words: str | Path) -> int:
    """Exit status of the command line."""
    monkeypatch.setattr(sys, "argv", ["potq", *map(str, words)])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    return int(caught.value.code or 0)


def test_version(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(monkeypatch, "--version") == 0
    assert capsys.readouterr().out == f"{potq.__version__}\n"


@pytest.mark.parametrize("command", ["quantize", "eval", "generate", "inspect", "compare"])
def test_help_of_every_command(command: str) -> None:
    assert command in succeed("--help")
    assert "--json" in succeed(command, "--help")


def test_wrong_usage_is_status_2(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(monkeypatch, "no-such-command") == 2
    assert main(monkeypatch, "eval") == 2
    assert main(monkeypatch, "eval", "model", "--text", "pydoc", "--no-such-option") == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err


def test_an_error_is_one_message_and_status_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / ("a-long-name-[bold]" * 10)  # neither wrapped nor read as markup
    assert main(monkeypatch, "quantize", folder, tmp_path / "out", "--json") == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("does not exist") == 1
    assert str(folder) in captured.err
    assert captured.err.count("\n") == 1


def test_an_interrupt_is_status_130(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("potq.checkpoint.loading.find_tokenizer", interrupted)
    assert main(monkeypatch, "quantize", tiny_folder, tmp_path / "out") == 130
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err
    assert "interrupted; no output was changed" in captured.err


def python(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *args], capture_output=True, text=True, check=False, timeout=300)


@pytest.mark.parametrize("words", [["--help"], ["quantize", "--help"], ["compare", "--help"], ["--version"]], ids=" ".join)
def test_help_answers_before_torch_is_loaded(words: list[str]) -> None:
    script = f"""
import sys
from potq.cli import main
sys.argv = ["potq", *{words!r}]
try:
    main()
except SystemExit as status:
    print("status", status.code or 0)
print("loaded", sorted(sys.modules.keys() & {{"torch", "transformers", "numpy", "matplotlib"}}))
"""
    result = python("-c", script)
    assert result.stdout.endswith("status 0\nloaded []\n"), result.stdout + result.stderr
    assert result.stderr == ""


def test_an_error_in_a_process_of_its_own(packed_folder: Path) -> None:
    (packed_folder / "model.safetensors").write_bytes(b"damaged")
    result = python("-c", "from potq.cli import main; main()", "inspect", str(packed_folder))
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr.count("model.safetensors is truncated or corrupted") == 1
    assert result.stderr.startswith("error: "), result.stderr
    assert "Traceback" not in result.stderr
