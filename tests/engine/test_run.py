"""``potq-run``, the engine as a program: what it reads, what it refuses, what it says."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, LlamaTokenizer

import potq
from potq import native

BESIDE_PYTHON = Path(sys.executable).parent
PROGRAM = shutil.which("potq-run", path=BESIDE_PYTHON) or shutil.which("potq-run")
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="potq-run is not installed")


def run(*words: str | Path, given: str = "") -> subprocess.CompletedProcess[str]:
    assert PROGRAM is not None
    words = (PROGRAM, *map(str, words), "--threads", "1")
    return subprocess.run(
        words, input=given, capture_output=True, encoding="utf-8", errors="surrogateescape", check=False, timeout=300
    )


def written(folder: Path, prompt: str, **settings: Any) -> str:
    with potq.Engine(folder, threads=1) as engine:
        return engine.generate(prompt, **settings).finish().text


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_standard_input_is_read_as_potq_generate_reads_it(packed_folder: Path, end: str) -> None:
    done = run(packed_folder, "-", "-n", "8", given=f"the\ncat{end}")
    assert done.stdout == written(packed_folder, "the\ncat", max_new_tokens=8) + "\n"
    assert run(packed_folder, "-", "--ids", "-n", "2", given=f"5,6{end}").returncode == 0


def test_a_wish_without_effect(packed_folder: Path) -> None:
    for words in (["--seed", "1"], ["--top-k", "3"], ["--top-p", "0.5"], ["--min-p", "0.5"]):
        done = run(packed_folder, "the", *words)
        assert (done.returncode, done.stdout) == (2, "")
        assert f"{words[0]} has no effect at temperature 0" in done.stderr
        assert run(packed_folder, "the", "-n", "1", *words, "--temperature", "1").returncode == 0


def test_the_instruction_set_is_the_one_asked_for(packed_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in native.usable_isas():
        monkeypatch.setenv("POTQ_CPU_ISA", name)
        assert f"({name})" in run(packed_folder, "the", "-n", "1", "--stats").stderr
    for name, reason in (
        ("mmx", "is unknown; known are scalar, "),
        (missing_isa(), "cannot be used here; usable are scalar"),
    ):
        monkeypatch.setenv("POTQ_CPU_ISA", name)
        done = run(packed_folder, "the")
        assert done.returncode == 2
        assert f"POTQ_CPU_ISA={name} {reason}" in done.stderr


def missing_isa() -> str:
    """One that was not compiled for this platform: a program is for x86 or for Arm."""
    return next(name for name in native.ISAS if name not in native.usable_isas())


def test_chats_are_for_python(packed_folder: Path) -> None:
    for option in ("--chat", "--system"):
        done = run(packed_folder, "the", option)
        assert done.returncode == 2
        assert f"{option} takes the model's chat template, which needs Python: potq generate --chat" in done.stderr


def test_a_full_context_is_said(packed_folder: Path) -> None:
    done = run(packed_folder, "5,6,7", "--ids", "--context", "8", "-n", "1000")
    count = len(done.stdout.strip().split(","))
    assert f"the text ends after {count} tokens, not 1000: the context is full" in done.stderr
    assert "the text ends" not in run(packed_folder, "5,6,7", "--ids", "-n", "1").stderr


def test_byte_fallback(tmp_path: Path) -> None:
    words = ["▁", "t", "h", "e", "c", "a", "▁t", "he", "▁the", "at", "cat"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *words]
    merges = [("▁", "t"), ("h", "e"), ("▁t", "he"), ("a", "t"), ("c", "at")]
    LlamaTokenizer(vocab={token: number for number, token in enumerate(tokens)}, merges=merges).save_pretrained(tmp_path)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 1}
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokens), max_position_embeddings=128, **sizes)).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "tokenizer.json").read_text())["model"]["byte_fallback"]
    done = run(tmp_path, "the cät 日本 😀", "-n", "20")
    assert done.returncode == 0, done.stderr
    with potq.Engine(tmp_path, threads=1) as engine:
        ids = engine.generate(engine.encode("the cät 日本 😀"), max_new_tokens=20).finish().ids
    assert done.stdout.encode(errors="surrogateescape") == b"".join(bytes_of(tokens[token]) for token in ids) + b"\n"


def bytes_of(token: str) -> bytes:
    if token in ("<unk>", "<s>", "</s>"):
        return b""
    return bytes([int(token[3:5], 16)]) if token.startswith("<0x") else token.replace("▁", " ").encode()
