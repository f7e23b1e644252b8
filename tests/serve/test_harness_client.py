"""lm-evaluation-harness as a client of ``potq serve``: it scores what ``potq eval --tasks`` does."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="the server is not installed: pip install 'potq[serve]'")
pytest.importorskip("lm_eval", reason="the harness is not installed: pip install 'potq[eval]'")
pytest.importorskip("aiohttp", reason="the harness asks servers with it: pip install 'potq[eval]'")

from lm_eval.models.openai_completions import LocalCompletionsAPI

from harness_tasks import NAMES, write_tasks
from potq import Engine
from potq.evaluate.harness import EngineLM
from potq.evaluate.tasks import run_tasks, task_manager
from serve_helpers import Live


@pytest.mark.parametrize("batch", [1, 3])
def test_local_completions(server: Live, chat_folder: Path, tmp_path: Path, batch: int) -> None:
    manager = task_manager(NAMES, write_tasks(tmp_path))
    client = LocalCompletionsAPI(
        model=chat_folder.name,
        tokenizer=str(chat_folder),
        tokenizer_backend="huggingface",
        base_url=f"{server.url}/v1/completions",
        max_length=1024,
        batch_size=batch,
    )
    with Engine(chat_folder, threads=1) as engine:  # with int8 activations, as the server
        expected = run_tasks(EngineLM(engine), NAMES, manager)
    for ours, theirs in zip(run_tasks(client, NAMES, manager), expected, strict=True):
        assert (ours.task, ours.metric, ours.samples) == (theirs.task, theirs.metric, theirs.samples)
        assert ours.value == pytest.approx(theirs.value, rel=1e-6)
