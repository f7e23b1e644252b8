"""``potq compare`` end to end, on a tiny model."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

import potq
from cli_helpers import invoke, refused, succeed
from harness_tasks import write_tasks
from potq.data import calibration_text
from potq.data.calibration_text import load_calibration
from potq.data.tokens import tokenize
from potq.errors import CheckpointError, ConfigError, DataError, MissingDependencyError, ModelError
from potq.evaluate import compare as comparison
from potq.evaluate.bootstrap import paired_bootstrap
from potq.evaluate.divergence import kl_divergence
from potq.evaluate.perplexity import perplexity
from potq.kernels import set_activations


def test_rows_are_what_the_library_measures(tiny_folder: Path, text: Path) -> None:
    words = ["--schemes", "pot4,int3:group_size=32", "--efforts", "fast,gptq", "--text", text, "--window", "64"]
    words += ["--calibration-windows", "2", "--embedding", "int8", "--seed", "3"]
    found = json.loads(succeed("compare", tiny_folder, *words, "--json"))
    assert (found["model"], found["text"], found["embedding"]) == (str(tiny_folder), str(text), "int8")
    assert found["calibration"] == {"text": "self", "windows": 2}
    rows = {(row["scheme"], row["effort"]): row for row in found["rows"]}
    assert list(rows) == [
        ("full precision", ""),
        ("pot4-g64", "fast"),
        ("pot4-g64", "gptq"),
        ("int3-g32", "fast"),
        ("int3-g32", "gptq"),
    ]
    model, tokenizer = potq.load(tiny_folder), potq.load_tokenizer(tiny_folder)
    batches = load_calibration("self", model, tokenizer, windows=2, seed=3)
    tokens = tokenize(tokenizer, text.read_text())
    base = perplexity(model, tokens, window=64)
    for effort, calibration in (("fast", None), ("gptq", batches)):
        fresh = copy.deepcopy(model)
        report = potq.quantize(fresh, potq.PoTConfig("pot4", effort=effort), calibration, seed=3)
        set_activations(fresh, "float")
        expected, row = perplexity(fresh, tokens, window=64), rows["pot4-g64", effort]
        assert row["perplexity"] == expected.perplexity
        assert row["window_nll"] == list(expected.window_nll)
        assert row["bits_per_weight"] == report.bits_per_weight
        assert row["quantized_bits_per_weight"] == report.quantized_bits_per_weight
        assert row["excess"] == expected.perplexity - base.perplexity
        interval = paired_bootstrap(expected.window_nll, base.window_nll, base.predicted_tokens)
        assert row["interval"] == list(interval)
    assert rows["full precision", ""]["bits_per_weight"] == 32
    assert rows["full precision", ""]["excess"] == 0


def test_table_and_markdown(tiny_folder: Path, text: Path) -> None:
    words = [tiny_folder, "--schemes", "pot3,pot4", "--text", text, "--window", "64", "--windows", "3"]
    shown = succeed("compare", *words)
    for word in ("full precision", "pot3-g64", "pot4-g64", "fast", "95% interval", "3 windows of 64 tokens"):
        assert word in shown
    lines = [line for line in succeed("compare", *words, "--markdown").splitlines() if line.startswith("|")]
    assert lines[0] == "| scheme | effort | bits | quantized | perplexity | excess | 95% interval | seconds |"
    assert len(lines) == 5
    assert lines[2].startswith("| full precision |  | 32.000 | 32.000 | ")
    linears, others = 86_016, 64 * (260 + 5)  # embedding and head in full precision, and norms
    whole = (3.2619 * linears + 32 * others) / (linears + others)
    assert lines[3].startswith(f"| pot3-g64 | fast | {whole:.3f} | 3.262 | ")


def test_one_window_has_no_interval(tiny_folder: Path, text: Path) -> None:
    words = [tiny_folder, "--schemes", "pot4", "--text", text, "--window", "64", "--windows", "1"]
    assert json.loads(succeed("compare", *words, "--json"))["rows"][1]["interval"] is None
    succeed("compare", *words)


def test_plot(tiny_folder: Path, text: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    words = [tiny_folder, "--schemes", "pot3,pot4", "--text", text, "--window", "64", "--plot", tmp_path / "p.png"]
    result = invoke("compare", *words, "--efforts", "fast,gptq", "--calibration-windows", "1", "--json")
    assert result.exit_code == 0, result.exception
    json.loads(result.stdout)
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    assert "pot3-g64, gptq: about" in result.stderr


def test_page(tiny_folder: Path, text: Path, tmp_path: Path) -> None:
    words = [tiny_folder, "--schemes", "pot3,pot4", "--text", text, "--window", "64", "--html", tmp_path / "rows.html"]
    rows = json.loads(succeed("compare", *words, "--json"))["rows"]
    page = (tmp_path / "rows.html").read_text(encoding="utf-8")
    held = json.loads(page.partition('id="data">')[2].partition("</script>")[0])
    assert [row["perplexity"] for row in held["rows"]] == [row["perplexity"] for row in rows]
    whole = sum(tensor.numel() for tensor in load_file(tiny_folder / "model.safetensors").values())
    assert held["rows"][0]["megabytes"] == 4 * whole / 1e6
    assert "does not exist" in refused(DataError, "compare", *words[:-1], tmp_path / "none" / "rows.html")


def test_what_else_is_measured(tiny_folder: Path, text: Path, tmp_path: Path) -> None:
    words = [tiny_folder, "--schemes", "pot4,pot2", "--text", text, "--window", "64", "--windows", "2"]
    plain = json.loads(succeed("compare", *words, "--json"))["rows"]
    assert [(row["divergence"], row["tasks"], row["tokens_per_second"]) for row in plain] == [(None, {}, None)] * 3
    rows = json.loads(succeed("compare", *words, "--kld", "--speed", "--json", "--resume", tmp_path / "rows.json"))["rows"]
    again = json.loads(succeed("compare", *words, "--kld", "--speed", "--json", "--resume", tmp_path / "rows.json"))["rows"]
    assert again == rows
    assert [row["perplexity"] for row in rows] == [row["perplexity"] for row in plain]
    assert rows[0]["divergence"] == 0 < rows[1]["divergence"] < rows[2]["divergence"]
    assert all(row["tokens_per_second"] > 0 for row in rows)
    model, tokens = potq.load(tiny_folder), tokenize(potq.load_tokenizer(tiny_folder), text.read_text())
    packed = potq.load(tiny_folder, potq.PoTConfig("pot4", embedding="none"))
    set_activations(packed, "float")
    assert rows[1]["divergence"] == kl_divergence(packed, model, tokens, window=64, max_windows=2).mean
    shown = succeed("compare", *words, "--kld", "--markdown")
    assert "| seconds | divergence |" in shown
    assert "for tasks alone; pass --tasks NAMES" in refused(ConfigError, "compare", *words, "--limit", "3")


def test_tasks_beside_perplexity(tiny_folder: Path, text: Path, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval", reason="the harness is not installed: pip install 'potq[eval]'")
    asked = ["--tasks", "tiny_choice", "--include-path", write_tasks(tmp_path), "--limit", "2"]
    words = [tiny_folder, "--schemes", "pot4", "--text", text, "--window", "64", "--windows", "2", *asked]
    rows = json.loads(succeed("compare", *words, "--json"))["rows"]
    assert [set(row["tasks"]) for row in rows] == [{"tiny_choice acc", "tiny_choice acc_norm"}] * 2
    scores = json.loads(succeed("eval", tiny_folder, *asked, "--no-engine", "--activations", "float", "--json"))["tasks"]
    assert rows[0]["tasks"] == {f"{score['task']} {score['metric']}": score["value"] for score in scores}
    assert "there is no task" in refused(ConfigError, "compare", *words[:-5], "none", *asked[2:])


# ---- rows that are kept


def test_a_killed_run_goes_on(tiny_folder: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = [tiny_folder, "--schemes", "pot3,pot4", "--text", text, "--window", "64", "--json"]
    expected = json.loads(succeed("compare", *words))["rows"]
    file, measure, measured = tmp_path / "rows.json", comparison.measure_row, []

    def fails(model: Any, config: Any, *rest: Any) -> Any:
        measured.append(config and config.scheme.name)
        if config is not None and config.scheme.name == "pot4-g64" and len(measured) == 3:
            raise ModelError("the power is out")
        return measure(model, config, *rest)

    monkeypatch.setattr(comparison, "measure_row", fails)
    assert refused(ModelError, "compare", *words, "--resume", file) == "the power is out"
    assert len(json.loads(file.read_text())["rows"]) == 2
    found = json.loads(succeed("compare", *words, "--resume", file))["rows"]
    assert measured == [None, "pot3-g64", "pot4-g64", "pot4-g64"]
    for row, other in zip(found, expected, strict=True):
        assert {**row, "seconds": 0} == {**other, "seconds": 0}


def test_calibration_text_is_written_only_where_a_row_needs_it(
    tiny_folder: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []
    write = calibration_text.self_generated
    monkeypatch.setattr(calibration_text, "self_generated", lambda *a, **o: written.append(o["seed"]) or write(*a, **o))
    words = ["compare", tiny_folder, "--text", text, "--window", "64", "--windows", "2", "--resume", tmp_path / "rows.json"]
    words += ["--calibration-windows", "1", "--efforts", "gptq", "--json", "--schemes"]
    found = json.loads(succeed(*words, "pot3"))
    assert written == [0]
    assert json.loads(succeed(*words, "pot3")) == found  # the windows of the calibration text too
    assert written == [0]
    succeed(*words, "pot3,pot4")
    assert written == [0, 0]
    succeed(*words, "pot3", "--seed", "1")
    assert written == [0, 0, 1]
    succeed(*words, "pot3", "--calibration-windows", "2")
    assert written == [0, 0, 1, 0]
    file = load_file(tiny_folder / "model.safetensors")
    file["model.norm.weight"] += 0.5  # another model writes another text
    save_file(file, tiny_folder / "model.safetensors", metadata={"format": "pt"})
    succeed(*words, "pot3")
    assert written == [0, 0, 1, 0, 0]


def test_other_calibration_text_from_a_file_makes_other_rows(tiny_folder: Path, text: Path, tmp_path: Path) -> None:
    file, other = tmp_path / "rows.json", tmp_path / "other.txt"
    other.write_text("Something else to calibrate on, as long as a window is. " * 20)
    words = [
        "compare",
        tiny_folder,
        "--text",
        text,
        "--window",
        "64",
        "--windows",
        "2",
        "--resume",
        file,
        "--schemes",
        "pot3",
    ]
    words += ["--calibration-windows", "1", "--efforts", "gptq", "--calibration", other]
    succeed(*words)
    succeed(*words)
    assert len(json.loads(file.read_text())["rows"]) == 2
    other.write_text(other.read_text().upper())
    succeed(*words)
    assert len(json.loads(file.read_text())["rows"]) == 3


def test_calibration_text_that_is_missing_is_found_before_the_work(tiny_folder: Path, text: Path, tmp_path: Path) -> None:
    words = [
        "compare",
        tiny_folder,
        "--text",
        text,
        "--window",
        "64",
        "--resume",
        tmp_path / "rows.json",
        "--schemes",
        "pot3",
    ]
    refused(DataError, *words, "--efforts", "gptq", "--calibration", tmp_path / "none.txt")
    assert not (tmp_path / "rows.json").exists()


def test_rows_of_another_protocol_are_measured_anew(tiny_folder: Path, text: Path, tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    words = [tiny_folder, "--schemes", "pot4", "--text", text, "--resume", file, "--json"]
    for count, more in [
        (2, ["--window", "64"]),
        (4, ["--window", "32"]),
        (5, ["--window", "32", "--embedding", "int8"]),  # the full-precision row is the same
        (7, ["--window", "32", "--windows", "2"]),
        (9, ["--window", "32", "--dtype", "bfloat16"]),
        (9, ["--window", "64"]),
    ]:
        succeed("compare", *words, *more)
        assert len(json.loads(file.read_text())["rows"]) == count
    text.write_text(text.read_text() + "More text, which makes other windows of it.")
    succeed("compare", *words, "--window", "64")
    assert len(json.loads(file.read_text())["rows"]) == 11


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"rows": {"a": {}}}', b'{"rows": [1]}', b"\xff"])
def test_a_file_that_holds_no_rows(tiny_folder: Path, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "rows.json").write_bytes(content)
    message = refused(
        DataError, "compare", tiny_folder, "--text", "pydoc", "--schemes", "pot4", "--resume", tmp_path / "rows.json"
    )
    assert "rows.json holds no rows of potq compare" in message
    assert (tmp_path / "rows.json").read_bytes() == content


# ---- what is refused, before any work is done


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--schemes", "pot9"], "unknown preset 'pot9'"),
        (["--schemes", ","], "no scheme is named"),
        (["--schemes", "pot4,pot3,pot4"], "pot4-g64 is named twice"),
        (["--schemes", "pot4,pot4:group_size=64"], "pot4-g64 is named twice"),
        (["--schemes", "pot4:32"], "'32' is not an override"),
        (["--schemes", "pot4:colour=red"], "colour: unknown key"),
        (["--schemes", "pot4:group_size=0"], "invalid group size 0; use a positive integer"),
        (["--schemes", "pot4", "--efforts", "fast,some"], "unknown effort 'some'"),
        (["--schemes", "pot4", "--efforts", "fast,fast"], "fast is named twice"),
        (["--schemes", "pot4", "--efforts", ""], "no effort is named"),
        (["--schemes", "pot4", "--embedding", "pot9"], "unknown preset 'pot9'"),
        (["--schemes", "pot4", "--json", "--markdown"], "choose one"),
    ],
)
def test_wrong_settings(tmp_path: Path, words: list[str], message: str) -> None:
    assert message in refused(ConfigError, "compare", tmp_path / "none", "--text", "pydoc", *words)


@pytest.mark.parametrize("option", ["--resume", "--plot"])
def test_a_folder_that_is_not_there(tmp_path: Path, option: str) -> None:
    words = [tmp_path / "none", "--text", "pydoc", "--schemes", "pot4", option, tmp_path / "nowhere" / "file.png"]
    assert "does not exist" in refused(DataError, "compare", *words)


def test_plot_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    message = refused(
        MissingDependencyError,
        "compare",
        tmp_path / "none",
        *("--text", "pydoc", "--schemes", "pot4", "--plot", tmp_path / "p.png"),
    )
    assert "pip install 'potq[plot]'" in message


def test_a_packed_model(packed_folder: Path, text: Path) -> None:
    message = refused(CheckpointError, "compare", packed_folder, "--schemes", "pot4", "--text", text, "--window", "64")
    assert "quantized already" in message


def test_no_schemes() -> None:
    result = invoke("compare", "model", "--text", "pydoc")
    assert result.exit_code == 2
    assert "--schemes" in result.stderr


@pytest.mark.parametrize("words", [("eval", "model"), ("compare", "model", "--schemes", "pot4")], ids=lambda words: words[0])
def test_a_text_is_asked_for(words: tuple[str, ...]) -> None:
    """A perplexity on a text that nobody chose would be quoted all the same."""
    result = invoke(*words)
    assert result.exit_code == (1 if words[0] == "eval" else 2)  # eval may be told --tasks instead
    assert "--text" in (str(result.exception) if words[0] == "eval" else result.stderr)
