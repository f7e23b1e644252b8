"""The papers' GPT-2 experiment as one command, on a tiny GPT-2: ``benchmarks/papers/gpt2.py``."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAPERS = {
    "PTQ, 4 exponent bits, as 2506.00315": 5,
    "PTQ, 5 exponent bits, as 2506.00315": 6,
    "PTQ, 6 exponent bits, as 2506.00315": 7,
    "PTQ, 15 levels, as 2601.02298": 4,
    "QAT, 15 levels, as 2601.02298": 4,
}


def _run(*arguments: str) -> str:
    command = [sys.executable, "-m", "benchmarks.papers.gpt2", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_one_command_measures_every_setting_and_resumes(gpt2_folder: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the cat sat on the mat, then the other cat. " * 100)
    options = ["--text", str(text), "--name", str(tmp_path / "results"), "--threads", "1"]
    options += ["--steps", "3", "--batch", "2", "--windows", "2", "--rounds", "1"]

    printed = _run(str(gpt2_folder), *options)
    results = next(tmp_path.glob("results.*.json"))  # of this kind of machine: rows have speeds
    found = json.loads(results.read_text())
    rows = {row["setting"]: row for row in found["rows"]}
    assert all(name in printed for name in rows)
    full = rows["fp32"]
    for name, bits in PAPERS.items():
        row = rows[name]
        assert bits <= row["bits_per_weight"] < bits + 0.1, name  # one scale a tensor adds next to nothing
        assert row["bytes"] < full["bytes"] * (bits + 3) / 32  # norms, biases and the file's header are not packed
        assert (row["perplexity"] != row["int8"]["perplexity"]) == (bits == 4)  # more levels have exact products alone
    assert rows["QAT, 15 levels, as 2601.02298"]["perplexity"] != rows["PTQ, 15 levels, as 2601.02298"]["perplexity"]
    assert {goal["name"].split(":")[0] for goal in found["goals"]} == {"2506.00315", "2601.02298"}

    found["rows"].pop()
    results.write_text(json.dumps(found))
    assert "QAT, 15 levels, as 2601.02298: perplexity" not in _run(str(gpt2_folder), *options)
    resumed = json.loads(results.read_text())["rows"]
    assert resumed[:-1] == found["rows"]
    assert [row["setting"] for row in resumed] == list(rows)
