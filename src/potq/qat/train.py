"""A run of quantization-aware training by a recipe: read, prepare, train, convert, save; a run that was killed goes on.

What it leaves while it runs is in ``OUTPUT.training``: the recipe, checkpoints, what the teacher wrote or predicted, and
``log.jsonl``, which stays there afterwards. With torchrun or ``accelerate launch`` every process calls it; the first writes.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import PartialState
from torch import Tensor

from potq.blocks import mixed_precision
from potq.checkpoint import check_destination, save
from potq.data.sequences import pack
from potq.data.text import read_documents
from potq.data.tokens import choose_window
from potq.errors import ConfigError, DataError, MissingDependencyError
from potq.loading import load, load_tokenizer
from potq.model import Plan
from potq.qat.objective import Objective
from potq.qat.prepare import convert, prepare
from potq.qat.recipe import WRITTEN, TrainRecipe
from potq.qat.teacher import TeacherCache, check_teacher
from potq.qat.text import written_by
from potq.qat.trainer import LOG, Progress, QATTrainer, clear_unfinished, last_checkpoint
from potq.report import QuantReport

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_RECIPE = "recipe.json"


@dataclass
class TrainingRun:
    """One run, in stages that are called one after another: :meth:`load`, :meth:`read`, :meth:`fit`, :meth:`finish`."""

    recipe: TrainRecipe
    folder: Path
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    teacher: PreTrainedModel | None
    plan: Plan | None
    """What is quantized and what is skipped; None in full precision."""
    train: Tensor | None = None
    evaluation: Tensor | None = None

    @classmethod
    def load(cls, recipe: TrainRecipe) -> TrainingRun:
        """Check what can be checked, load the models, and prepare the one that trains.

        Raises:
            PotqError: anything that would stop the run later.
        """
        target = check_destination(recipe.output, force=recipe.force)
        config = recipe.config()
        _check_trackers(recipe)
        _check_texts(recipe)
        folder = target.with_name(f"{target.name}.training")
        _claim(folder, recipe)
        tokenizer = load_tokenizer(recipe.model)
        model = load(recipe.model, dtype="float32")
        choose_window(model, recipe.data.length, recipe.data.length)
        teacher = _load_teacher(recipe, model)
        found = None
        if recipe.quantizes:
            start = load(recipe.start) if recipe.start is not None else None
            found = prepare(model, config, recipe.qat, start=start)
        model.requires_grad_(True)
        return cls(recipe, folder, model, tokenizer, teacher, found)

    @property
    def resumes(self) -> int:
        """The step that training goes on from; 0 is the start."""
        last = last_checkpoint(self.folder)
        return 0 if last is None else int(last.name.partition("-")[2])

    def read(self, progress: Progress | None = None) -> None:
        """The texts as sequences; the teacher writes its own."""
        data = self.recipe.data
        with PartialState().main_process_first():
            if data.text == WRITTEN:
                self.train = self._written(progress)
            else:
                self.train = _sequences(self.tokenizer, data.text, data.length)
                self.train = self.train[: -(-data.tokens // data.length)] if data.tokens is not None else self.train
        if data.evaluation is not None:
            self.evaluation = _sequences(self.tokenizer, data.evaluation, data.length)[: data.evaluation_windows]
        if len(self.train) < self.recipe.optimization.batch:
            raise DataError(
                f"{data.text} gives {len(self.train)} sequences of {data.length} tokens, less than one batch of "
                f"{self.recipe.optimization.batch}; give more text, or a smaller length or batch"
            )

    def fit(self, progress: Progress | None = None, teaching: Progress | None = None) -> None:
        """Train; the model is that of the best checkpoint afterwards, or of the last step without evaluation.

        Args:
            progress: called after each step: step, steps, last losses.
            teaching: called while the teacher's predictions are kept: tokens done, tokens, speed.
        """
        assert self.train is not None, "call read() first"
        cache = self._predictions(teaching)
        objective = Objective(self.recipe.loss, self.teacher if self.recipe.loss.runs_teacher else None, cache)
        trainer = QATTrainer(
            self.model,
            objective,
            self.recipe.optimization,
            self.folder,
            self.train,
            self.evaluation,
            seed=self.recipe.seed,
            progress=progress,
        )
        if objective.teacher is not None:
            objective.teacher.to(trainer.args.device)
        if trainer.is_world_process_zero():
            clear_unfinished(self.folder)
        last = last_checkpoint(self.folder)
        trainer.train(resume_from_checkpoint=str(last) if last is not None else None)

    def finish(self) -> QuantReport | None:
        """Convert the model, save it to the recipe's output, and delete what is needed no more."""
        report = convert(self.model) if self.recipe.quantizes else None
        self.model.eval()
        if PartialState().is_main_process:
            save(self.model, self.recipe.output, self.tokenizer, force=self.recipe.force)
            for path in self.folder.iterdir():
                if path.is_dir():
                    shutil.rmtree(path)
        return report

    def log(self) -> list[dict[str, Any]]:
        """What was logged, a mapping a line."""
        text = (self.folder / LOG).read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines()]

    def _written(self, progress: Progress | None) -> Tensor:
        data = self.recipe.data
        writer = self.teacher
        if writer is None:
            writer = load(self.recipe.teacher or self.recipe.model, dtype="float32")
        with torch.no_grad(), mixed_precision(writer.device):
            return written_by(
                writer,
                self.folder / "text",
                tokens=data.tokens or 0,
                length=data.length,
                seed=self.recipe.seed,
                tokenizer=self.tokenizer,
                progress=progress,
            )

    def _predictions(self, progress: Progress | None) -> TeacherCache | None:
        loss = self.recipe.loss
        if self.teacher is None or self.train is None or not loss.distillation or loss.top_k is None:
            return None
        with PartialState().main_process_first(), mixed_precision(self.teacher.device):
            return TeacherCache.write(
                self.teacher,
                self.train,
                self.folder / "teacher",
                top_k=loss.top_k,
                temperature=loss.temperature,
                batch=self.recipe.optimization.batch,
                progress=progress,
            )


def _load_teacher(recipe: TrainRecipe, model: PreTrainedModel) -> PreTrainedModel | None:
    if not recipe.loss.needs_teacher:
        return None
    teacher = load(recipe.teacher or recipe.model, dtype="float32")
    check_teacher(model, teacher)
    return teacher.requires_grad_(False).eval()


def _sequences(tokenizer: PreTrainedTokenizerBase, text: str, length: int) -> Tensor:
    try:
        return pack(tokenizer, read_documents(text), length)
    except DataError as error:
        raise DataError(f"{text}: {error}") from None


def _check_texts(recipe: TrainRecipe) -> None:
    """Files that are not there, before a model is loaded."""
    for text in (recipe.data.text, recipe.data.evaluation):
        if text is not None and text != WRITTEN and ":" not in text:
            read_documents(text)


def _check_trackers(recipe: TrainRecipe) -> None:
    from transformers.integrations import get_available_reporting_integrations

    for tracker in recipe.optimization.report_to:
        if tracker not in get_available_reporting_integrations():
            raise MissingDependencyError(f"report_to: {tracker} is not installed; pip install {tracker}, or leave it out")


def _claim(folder: Path, recipe: TrainRecipe) -> None:
    """Keep the recipe in the run's folder; an unfinished run of another recipe is not continued, and not deleted either."""
    content = recipe.model_dump(mode="json", exclude={"output", "force"})
    file = folder / _RECIPE
    if file.is_file() and last_checkpoint(folder) is not None:
        before = json.loads(file.read_text(encoding="utf-8"))
        changed = sorted(key for key in content if content[key] != before.get(key))
        if changed:
            raise ConfigError(
                f"{folder} holds an unfinished run with other settings ({', '.join(changed)}); "
                "go on with those, delete the folder, or choose another output"
            )
    if PartialState().is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
