"""A run that is killed, wherever, and started again ends as if nothing had happened, bit for bit."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from transformers import Trainer

import qat_helpers
from potq.errors import CheckpointError
from potq.qat import trainer as module
from potq.qat.recipe import TrainRecipe
from potq.qat.run import TrainingRun
from qat_helpers import (
    Killed,
    checkpoints,
    evaluations,
    finish,
    killing,
    logged,
    train,
    training_folder,
    weights,
)

ENOSPC = OSError(28, "No space left on device")


@contextmanager
def failing(owner: Any, name: str, error: BaseException, step: int) -> Iterator[None]:
    """``owner.name`` raises ``error`` while checkpoint ``step`` is written."""
    original = getattr(owner, name)

    def fail(*args: Any, **options: Any) -> Any:
        if any(f"checkpoint-{step}" in str(arg) for arg in args):
            raise error
        return original(*args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, fail)
        yield


CASES: dict[str, dict[str, Any]] = {
    "fixed": {"qat": {"scales": "fixed"}},
    "searched": {"qat": {"scales": "searched", "search_every": 3}},
    "learned": {"qat": {"scales": "learned"}, "optimization": {"accumulation": 2}, "loss": {"top_k": 8, "next_token": 0.5}},
    "gpt2-searched": {"qat": {"scales": "searched", "search_every": 3}, "optimization": {"batch": 3, "accumulation": 2}},
    "gpt2-learned": {"qat": {"scales": "learned"}, "optimization": {"batch": 4, "save_every": 3}, "loss": {"hidden": 1.0}},
}


@pytest.mark.parametrize("case", CASES)
def test_a_killed_run_ends_as_if_nothing_had_happened(
    case: str, make: Callable[..., TrainRecipe], gpt2_folder: Path, text: Path
) -> None:
    changes = CASES[case] | {"data": {"evaluation": str(text), "evaluation_windows": 3}}
    changes |= {"model": gpt2_folder} if case.startswith("gpt2") else {}
    whole, killed = make("whole", **changes), make("killed", **changes)
    finish(whole)
    for at in (1, 3, 5):  # before the first checkpoint, and between others
        with pytest.raises(Killed):
            train(killed, killing(at))
    with failing(Trainer, "_save_rng_state", Killed(), 6), pytest.raises(Killed):
        train(killed)
    with pytest.raises(Killed):
        train(killed, killing(6))
    train(killed)  # to the end, but nothing is written
    finish(killed)
    assert weights(killed.output) == weights(whole.output)
    assert logged(killed) == logged(whole)


def test_every_step_and_every_file_of_a_checkpoint(make: Callable[..., TrainRecipe], gpt2_folder: Path) -> None:
    """Without evaluation, epochs of three steps, a log line every step."""
    changes: dict[str, Any] = {"qat": {"scales": "searched", "search_every": 3}, "optimization": {"batch": 5, "steps": 7}}
    whole, killed = (make(name, gpt2_folder, **changes) for name in ("whole", "killed"))
    finish(whole)
    files = {2: (module, "save_file"), 4: (Trainer, "_save_optimizer_and_scheduler"), 6: (Path, "touch")}
    for at in range(1, 8):
        with pytest.raises(Killed):
            train(killed, killing(at))
        if at in files:
            with failing(*files[at], Killed(), at), pytest.raises(Killed):
                train(killed)
    finish(killed)
    assert weights(killed.output) == weights(whole.output)
    assert logged(killed) == logged(whole)


def test_sigkill(make: Callable[..., TrainRecipe], gpt2_folder: Path) -> None:
    changes: dict[str, Any] = {"optimization": {"steps": 40, "accumulation": 2}, "qat": {"scales": "searched"}}
    whole, killed = (make(name, gpt2_folder, **changes) for name in ("whole", "killed"))
    process = subprocess.Popen([sys.executable, qat_helpers.__file__, json.dumps(killed.model_dump(mode="json"))])
    finish(whole)
    deadline = time.monotonic() + 120
    while process.poll() is None and checkpoints(killed) in ([], ["checkpoint-2"]) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    run = TrainingRun.load(killed)
    assert 0 < run.resumes < 40
    finish(killed)
    assert weights(killed.output) == weights(whole.output)
    assert logged(killed) == logged(whole)


def test_logs_do_not_depend_on_where_a_run_was_killed(make: Callable[..., TrainRecipe]) -> None:
    """Checkpoints are no multiples of the steps from one log line to the next, and a line is half written."""
    changes = {"optimization": {"steps": 50, "save_every": 25}}
    whole, killed = make("whole", **changes), make("killed", **changes)
    finish(whole)
    with pytest.raises(Killed):
        train(killed, killing(38))
    with (training_folder(killed) / "log.jsonl").open("a") as file:
        file.write('{"step": 25, "loss": 0.')
    finish(killed)
    assert [line["step"] for line in logged(whole)] == [*range(2, 26, 2), 25, *range(26, 52, 2), 50]
    assert logged(killed) == logged(whole)


def test_half_a_checkpoint_is_deleted_and_the_one_before_taken(make: Callable[..., TrainRecipe]) -> None:
    recipe = make("out")
    with pytest.raises(Killed):
        train(recipe, killing(5))
    folder = training_folder(recipe)
    assert checkpoints(recipe) == ["checkpoint-4"]
    half = folder / "checkpoint-6"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    assert TrainingRun.load(recipe).resumes == 4
    steps: list[int] = []
    train(recipe, lambda step, *_: steps.append(step))
    assert steps == [5, 6]
    assert weights(half) != b"half"


@pytest.mark.parametrize(
    ("owner", "name"), [(module, "save_file"), (Trainer, "_save_optimizer_and_scheduler"), (Path, "touch")]
)
def test_a_full_disk_keeps_the_last_whole_checkpoint(owner: Any, name: str, make: Callable[..., TrainRecipe]) -> None:
    whole, recipe = make("whole"), make("out")
    finish(whole)
    folder = training_folder(recipe)
    message = (
        rf"cannot write {folder}/checkpoint-4 \(.*No space left.*\); the last whole checkpoint is {folder}/checkpoint-2$"
    )
    with failing(owner, name, ENOSPC, 4), pytest.raises(CheckpointError, match=message):
        finish(recipe)
    assert checkpoints(recipe) == ["checkpoint-2"]
    assert {path.name for path in folder.iterdir()} == {"checkpoint-2", "recipe.json", "log.jsonl"}
    finish(recipe)
    assert weights(recipe.output) == weights(whole.output)
    assert logged(recipe) == logged(whole)


def test_the_best_and_the_last_checkpoint_are_kept(make: Callable[..., TrainRecipe], text: Path) -> None:
    recipe = make("out", data={"evaluation": str(text)}, optimization={"steps": 9, "learning_rate": 1e-6})
    with pytest.raises(Killed):
        train(recipe, killing(9))
    found = evaluations(recipe)
    del found[0]
    best = min(found, key=lambda step: found[step])
    assert set(checkpoints(recipe)) == {f"checkpoint-{best}", "checkpoint-8"}


def test_what_a_finished_run_leaves(make: Callable[..., TrainRecipe]) -> None:
    recipe = make("out", loss={"top_k": 4})
    finish(recipe)
    assert {path.name for path in training_folder(recipe).iterdir()} == {"recipe.json", "log.jsonl"}
    again = make("out", loss={"top_k": 5}, force=True)  # another recipe: nothing of the first is left to go on with
    assert TrainingRun.load(again).resumes == 0
