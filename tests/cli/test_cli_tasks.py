"""``potq eval --tasks``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("lm_eval", reason="the harness is not installed: pip install 'potq[eval]'")

from cli_helpers import invoke, refused, succeed
from harness_tasks import write_tasks
from potq import native
from potq.errors import ConfigError, MissingDependencyError

pytestmark = pytest.mark.skipif(native.missing() is not None, reason=native.missing() or "")


def test_json_and_a_reference(packed_folder: Path, tiny_folder: Path, tmp_path: Path) -> None:
    tasks = write_tasks(tmp_path)
    words = ["eval", packed_folder, "--tasks", "tiny_choice, tiny_rolling", "--include-path", tasks, "--limit", "2"]
    result = invoke(*words, "--activations", "int8", "--reference", tiny_folder, "--json")
    assert result.exit_code == 0, result.exception
    found = json.loads(result.stdout)
    assert (found["model"], found["path"], found["activations"], found["limit"]) == (str(packed_folder), "engine", "int8", 2)
    assert {score["samples"] for score in found["tasks"]} == {2}
    beside = found["reference"]
    assert (beside["model"], beside["activations"]) == (str(tiny_folder), "float")
    scores = {score["metric"]: score["value"] for score in found["tasks"]}
    others = {score["metric"]: score["value"] for score in beside["tasks"]}
    assert scores.keys() == others.keys() == {"acc", "acc_norm", "word_perplexity", "byte_perplexity"}
    assert scores["byte_perplexity"] != others["byte_perplexity"]
    shown = succeed(*words, "--activations", "int8", "--reference", tiny_folder)
    difference = scores["byte_perplexity"] - others["byte_perplexity"]
    assert f"{difference:+.4f}" in shown
    assert "the engine (" in shown


def test_the_modules_and_shots(packed_folder: Path, tmp_path: Path, one_thread: None) -> None:
    words = ["eval", packed_folder, "--tasks", "tiny_choice", "--include-path", write_tasks(tmp_path), "--no-engine"]
    found = json.loads(succeed(*words, "--json"))
    assert found["path"] == "modules"
    assert {score["shots"] for score in found["tasks"]} == {0}


def test_tasks_that_cannot_be(packed_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = write_tasks(tmp_path)
    message = refused(ConfigError, "eval", packed_folder, "--tasks", "tiny_choise", "--include-path", tasks)
    assert message == "there is no task 'tiny_choise'; did you mean 'tiny_choice'?"
    for name in [name for name in sys.modules if name.startswith("potq.evaluate.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    message = refused(MissingDependencyError, "eval", packed_folder, "--tasks", "tiny_choice")
    assert message == "--tasks needs lm_eval: pip install 'potq[eval]'"
