"""Training runs as tests make them: tiny, whole, killed somewhere."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from potq.nn.report import QuantReport
from potq.qat.recipe import TrainRecipe
from potq.qat.run import Texts, TrainingRun

Tell = Callable[[int, int, str], None]


class Killed(BaseException):
    """What no ``except Exception`` sees, as nothing sees a SIGKILL."""


def make_recipe(model: Path, output: Path, text: Path, **changes: Any) -> TrainRecipe:
    """Six steps of two sequences, a checkpoint every two; a mapping in ``changes`` changes some keys of its section."""
    fields: dict[str, Any] = {
        "model": str(model),
        "output": output,
        "quantization": {"preset": "pot4", "group_size": 32},
        "data": {"text": str(text), "length": 16},
        "optimization": {"steps": 6, "batch": 2, "save_every": 2, "learning_rate": 3e-3, "scale_rate": 1e-2},
    }
    for key, value in changes.items():
        fields[key] = fields[key] | value if isinstance(fields.get(key), dict) else value
    return TrainRecipe(**fields)


def trained(recipe: TrainRecipe, tell: Tell | None = None) -> tuple[TrainingRun, Texts]:
    """Everything but the last stage."""
    run = TrainingRun.load(recipe)
    texts = run.read()
    fit(run, texts, tell)
    return run, texts


def fit(run: TrainingRun, texts: Texts, tell: Tell | None = None) -> None:
    run.fit(texts, run.teach(texts), tell)


def train(recipe: TrainRecipe, tell: Tell | None = None) -> TrainingRun:
    return trained(recipe, tell)[0]


def finish(recipe: TrainRecipe, tell: Tell | None = None) -> QuantReport | None:
    return train(recipe, tell).finish()


def killing(at: int) -> Tell:
    """A progress that ends the run after step ``at``, before anything is logged or saved."""

    def tell(step: int, steps: int, what: str) -> None:
        if step == at:
            raise Killed

    return tell


def training_folder(recipe: TrainRecipe) -> Path:
    return recipe.output.with_name(f"{recipe.output.name}.training")


def checkpoints(recipe: TrainRecipe) -> list[str]:
    return sorted(path.name for path in training_folder(recipe).glob("checkpoint-*"))


def weights(folder: Path) -> bytes:
    """A checkpoint's file of tensors."""
    return (folder / "model.safetensors").read_bytes()


def logged(recipe: TrainRecipe) -> list[dict[str, Any]]:
    """What the run logged, without times."""
    lines = (training_folder(recipe) / "log.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if not _is_time(key)} for line in lines]


def evaluations(recipe: TrainRecipe) -> dict[int, float]:
    """Evaluation loss by step."""
    return {line["step"]: line["eval_loss"] for line in logged(recipe) if "eval_loss" in line}


def _is_time(key: str) -> bool:
    return "runtime" in key or "per_second" in key


if __name__ == "__main__":  # a process that a test kills, slow enough to be hit
    torch.set_num_threads(1)
    finish(TrainRecipe(**json.loads(sys.argv[1])), lambda *_: time.sleep(0.05))
