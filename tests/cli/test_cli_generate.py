"""``potq generate``: on the engine and on the modules."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import potq
from cli_helpers import invoke, refused, succeed
from potq import native
from potq.cli.app import app
from potq.engine import runners
from potq.errors import CheckpointError, ConfigError, DataError, EngineError

BOTH = pytest.mark.parametrize(
    "path",
    [
        pytest.param("--engine", marks=pytest.mark.skipif(native.missing() is not None, reason=native.missing() or "")),
        "--no-engine",
    ],
)
compiled = pytest.mark.skipif(native.missing() is not None, reason=native.missing() or "")


def found(*words: str | Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(succeed("generate", *words, "--json"))
    return result


@BOTH
def test_greedy_generation_is_deterministic(packed_folder: Path, path: str) -> None:
    words = ("generate", packed_folder, "the cat", "-n", "12", path)
    result = invoke(*words)
    assert result.exit_code == 0, result.exception
    assert result.stdout == succeed(*words)
    assert result.stdout.startswith("the cat")
    assert result.stdout == "the cat" + found(packed_folder, "the cat", "-n", "12", path)["text"] + "\n"
    assert "tokens/s" in result.stderr
    assert "tokens/s" not in result.stdout


@BOTH
def test_no_text_is_longer_than_the_model_knows(packed_folder: Path, path: str) -> None:
    limit = potq.load(packed_folder).config.max_position_embeddings
    prompt = "ab" * 60
    length = len(potq.load_tokenizer(packed_folder)(prompt)["input_ids"])
    assert found(packed_folder, prompt, "-n", "500", path)["tokens"] <= limit - length + 1
    message = f"the prompt has {3 * length} tokens, the model's limit is {limit}; shorten it"
    result = invoke("generate", packed_folder, prompt * 3, path)
    assert str(result.exception) == message
    assert result.stdout == ""


@BOTH
def test_json(packed_folder: Path, path: str) -> None:
    result = found(packed_folder, "the cat", "-n", "12", path)
    assert result["prompt"] == "the cat"
    assert 1 <= result["tokens"] <= 12
    assert result["tokens_per_second"] > 0
    model, tokenizer = potq.load(packed_folder), potq.load_tokenizer(packed_folder)
    ids = tokenizer("the cat", return_tensors="pt")["input_ids"]
    expected: list[int] = []
    with torch.no_grad():
        for _ in range(result["tokens"]):
            expected.append(
                int(model(torch.cat([ids, torch.tensor([expected], dtype=torch.long)], 1)).logits[0, -1].argmax())
            )
    assert result["text"] == tokenizer.decode(expected, skip_special_tokens=True)


@BOTH
def test_sampling_with_a_seed_is_repeatable(packed_folder: Path, path: str) -> None:
    options = ["-n", "16", "--temperature", "2", "--top-k", "50", "--top-p", "0.95", "--min-p", "0.001", path]

    def sample(seed: int) -> str:
        return str(found(packed_folder, "the", *options, "--seed", str(seed))["text"])

    assert sample(1) == sample(1)
    assert len({sample(seed) for seed in range(3)}) > 1


@BOTH
@pytest.mark.parametrize("options", [[], ["--top-p", "0"], ["--top-p", "1"], ["--top-k", "0"], ["--min-p", "1"]], ids=str)
def test_the_ends_of_the_settings(packed_folder: Path, options: list[str], path: str) -> None:
    found(packed_folder, "the", "-n", "4", "--temperature", "1", *options, path)


@BOTH
def test_min_p_of_1_is_greedy(packed_folder: Path, path: str) -> None:
    words = (packed_folder, "the", "-n", "9", path)
    assert found(*words, "--temperature", "5", "--min-p", "1")["text"] == found(*words)["text"]


@BOTH
def test_a_repetition_penalty_says_nothing_twice(packed_folder: Path, path: str) -> None:
    words = (packed_folder, "the cat", "-n", "24", path)
    tokenizer = potq.load_tokenizer(packed_folder)
    penalized = tokenizer(found(*words, "--repetition-penalty", "100")["text"])["input_ids"]
    assert len(set(penalized)) > len(set(tokenizer(found(*words)["text"])["input_ids"]))


@BOTH
def test_stop_texts(packed_folder: Path, path: str) -> None:
    words = (packed_folder, "the cat", "-n", "24", path)
    whole = found(*words)["text"]
    assert len(whole) > 4
    stopped = found(*words, "--stop", whole[2:4], "--stop", "never")
    assert stopped["text"] == whole[: whole.index(whole[2:4])]
    assert stopped["tokens"] < 24
    assert succeed("generate", *words, "--stop", whole[2:4]) == "the cat" + stopped["text"] + "\n"


@BOTH
def test_an_empty_prompt(packed_folder: Path, path: str) -> None:
    assert "the prompt is empty; give at least one character" in refused(DataError, "generate", packed_folder, "", path)
    assert refused(DataError, "generate", packed_folder, "", "--chat", path)


@BOTH
def test_chat(packed_folder: Path, path: str) -> None:
    message = refused(DataError, "generate", packed_folder, "hello", "--chat", path)
    assert "the tokenizer has no chat template; potq generate without --chat" in message
    tokenizer = potq.load_tokenizer(packed_folder)
    tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
    tokenizer.save_pretrained(packed_folder)
    out, written = succeed("generate", packed_folder, "hello", "--chat", "-n", "3", path), "<user>hello<assistant>"
    assert written + out == succeed("generate", packed_folder, written, "-n", "3", path)
    told = found(packed_folder, "hello", "--chat", "--system", "be brief", "-n", "3", path)
    assert told["text"] == found(packed_folder, "<system>be brief<user>hello<assistant>", "-n", "3", path)["text"]


@BOTH
def test_a_system_text_that_nobody_reads(packed_folder: Path, path: str) -> None:
    words = ("generate", packed_folder, "hello", "--system", "be brief", path)
    assert "--system is for --chat" in refused(ConfigError, *words)
    tokenizer = potq.load_tokenizer(packed_folder)
    tokenizer.chat_template = "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}"
    tokenizer.save_pretrained(packed_folder)
    assert "leaves a system text out" in refused(DataError, *words, "--chat")


@BOTH
def test_a_prompt_from_a_file_or_standard_input(packed_folder: Path, tmp_path: Path, path: str) -> None:
    file = tmp_path / "prompt.txt"
    file.write_bytes("zwölf\ncats\n".encode())
    expected = found(packed_folder, "zwölf\ncats", "-n", "4", path)
    read = found(packed_folder, "--prompt-file", file, "-n", "4", path)
    assert (read["prompt"], read["text"]) == ("zwölf\ncats", expected["text"])
    words = ["generate", str(packed_folder), "-", "-n", "4", path, "--json"]
    piped = json.loads(CliRunner().invoke(app, words, input=file.read_bytes()).stdout)
    assert (piped["prompt"], piped["text"]) == ("zwölf\ncats", expected["text"])


def test_prompts_that_cannot_be(packed_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "prompt.txt"
    file.write_bytes(b"a\xff")
    both = "give one prompt: a text, - for standard input, or --prompt-file FILE"
    assert both in refused(ConfigError, "generate", packed_folder)
    assert both in refused(ConfigError, "generate", packed_folder, "the", "--prompt-file", file)
    assert "prompt.txt is not UTF-8" in refused(DataError, "generate", packed_folder, "--prompt-file", file)
    assert "cannot read the prompt" in refused(DataError, "generate", packed_folder, "--prompt-file", tmp_path / "none")
    assert "the prompt is empty" in refused(DataError, "generate", packed_folder, "-")  # standard input is empty


@BOTH
def test_a_wish_without_effect(packed_folder: Path, path: str) -> None:
    for words in (["--seed", "1"], ["--top-k", "3"], ["--top-p", "0.5"], ["--min-p", "0.5"]):
        name = words[0].removeprefix("--").replace("-", "_")
        message = refused(ConfigError, "generate", packed_folder, "the", *words, path)
        assert f"{name} has no effect at temperature 0" in message


@BOTH
def test_why_a_text_ends(packed_folder: Path, path: str) -> None:
    for file in (packed_folder / "config.json", packed_folder / "generation_config.json"):  # no token ends a text
        file.write_text(json.dumps(json.loads(file.read_text()) | {"eos_token_id": None}))
    result = invoke("generate", packed_folder, "the cat", "-n", "100000", "--json", path)
    ended = json.loads(result.stdout)
    assert ended["finish_reason"] == "context"
    assert f"the text ends after {ended['tokens']} tokens, not 100000, at the model's limit of 128 tokens" in result.stderr
    short = invoke("generate", packed_folder, "the cat", "-n", "3", "--json", path)
    assert json.loads(short.stdout)["finish_reason"] == "length"
    assert "the text ends" not in short.stderr
    stop = ended["text"][4:6]
    assert found(packed_folder, "the cat", "--stop", stop, path)["finish_reason"] == "stop"


@BOTH
def test_characters_without_tokens_are_named(packed_folder: Path, path: str) -> None:
    file = packed_folder / "tokenizer.json"
    content = json.loads(file.read_text())
    del content["model"]["vocab"]["Å"]  # the byte that ž and š begin with, and ē does not
    file.write_text(json.dumps(content))
    result = invoke("generate", packed_folder, "the cat sēž, š", "-n", "2", path)
    assert result.exit_code == 0, result.exception
    assert "the tokenizer has no tokens for ž, š: they vanish from the prompt" in result.stderr
    assert "vanish" not in invoke("generate", packed_folder, "the cat", "-n", "2", path).stderr


@compiled
def test_a_packed_folder_starts_without_torch(packed_folder: Path) -> None:
    script = f"""
import sys
from potq.cli import main
sys.argv = ["potq", "generate", {str(packed_folder)!r}, "the cat", "-n", "2"]
main_status = None
try:
    main()
except SystemExit as status:
    main_status = status.code
print(main_status, sorted(sys.modules.keys() & {{"torch", "transformers", "numpy"}}))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=300)
    assert done.stdout.endswith("0 []\n"), done.stdout + done.stderr


@BOTH
def test_threads(packed_folder: Path, path: str) -> None:
    before = torch.get_num_threads()
    try:
        result = invoke("generate", packed_folder, "the", "-n", "3", "--threads", "3", path)
        assert result.exit_code == 0, result.exception
        assert torch.get_num_threads() == 3 if path == "--no-engine" else "3 threads" in result.stderr
    finally:
        torch.set_num_threads(before)


# ---- which of the two


@compiled
def test_the_engine_runs_where_it_can(packed_folder: Path, tiny_folder: Path) -> None:
    for folder in (packed_folder, tiny_folder):
        result = found(folder, "the", "-n", "3")
        assert (result["path"], result["why_not_engine"], result["kernels"]) == ("engine", None, {})
    shown = invoke("generate", packed_folder, "the", "-n", "3", "--activations", "float").stderr
    assert f"the engine ({native.isa()}, {torch.get_num_threads()} threads), float activations" in shown
    assert "not the engine" not in shown
    assert "activations" not in invoke("generate", tiny_folder, "the", "-n", "3").stderr  # no product is packed


def test_the_modules_run_if_asked_for(packed_folder: Path) -> None:
    result = found(packed_folder, "the", "-n", "3", "--no-engine")
    assert (result["path"], result["why_not_engine"]) == ("modules", "the modules were asked for")
    assert sum(result["kernels"].values()) == 16


@compiled
@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--dtype", "bfloat16"], "the engine computes in float32"),
        (["--device", "meta"], "the engine runs on the CPU, not on meta"),
    ],
    ids=str,
)
def test_options_of_the_modules(packed_folder: Path, options: list[str], reason: str) -> None:
    assert reason in refused(EngineError, "generate", packed_folder, "the", "-n", "3", "--engine", *options)
    if "meta" not in options:
        result = found(packed_folder, "the", "-n", "3", *options)
        assert result["path"] == "modules"
        assert reason in result["why_not_engine"]


@compiled
def test_a_family_that_the_engine_does_not_know(packed_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = packed_folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "model_type": "mamba"}))
    assert "engine knows llama" in refused(EngineError, "generate", packed_folder, "the", "--engine")
    took = []

    class Modules:
        def __init__(self, model: str, *_: Any, **__: Any) -> None:
            took.append(model)
            raise DataError("far enough")

    monkeypatch.setattr(runners, "ModulesRunner", Modules)
    refused(DataError, "generate", packed_folder, "the")
    assert took == [str(packed_folder)]


def test_without_the_library(packed_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("potq.engine.engine.native.missing", lambda: "it is not there")
    result = found(packed_folder, "the", "-n", "3")
    assert (result["path"], result["why_not_engine"]) == ("modules", "the engine is not available: it is not there")
    assert "it is not there" in refused(EngineError, "generate", packed_folder, "the", "--engine")


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    assert "does not exist" in refused(CheckpointError, "generate", tmp_path / "none", "the")
