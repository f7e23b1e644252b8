"""A run of quantization-aware training by a recipe: read, prepare, train, convert, save; a run that was killed goes on.

What it leaves while it runs is in ``OUTPUT.training``: the recipe, checkpoints, what the teacher wrote or predicted, and
``log.jsonl``, which stays there afterwards. With torchrun or ``accelerate launch`` every process calls it; the first writes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from potq.checkpoint.folder import save, write
from potq.checkpoint.loading import check_language_model, load, load_tokenizer
from potq.data.sequences import pack
from potq.data.text import read_documents, read_text
from potq.data.tokens import choose_window, require_own_tokens
from potq.errors import ConfigError, DataError, MissingDependencyError
from potq.nn.plan import Plan
from potq.nn.precision import mixed_precision
from potq.nn.report import Progress, QuantReport
from potq.qat.checks import check_recipe
from potq.qat.device import (
    fast_training,
    idle_devices,
    in_precision,
    processes,
    require_known_sharding,
    require_memory,
    training_device,
)
from potq.qat.objective import Objective
from potq.qat.preparation import convert, load_scale_state, prepare, scale_state
from potq.qat.recipe import WRITTEN, DataRecipe, TrainRecipe
from potq.qat.teacher import TeacherCache, check_teacher, check_top_k
from potq.qat.text import written_by
from potq.qat.trainer import LOG, QATTrainer, last_checkpoint, read_log
from potq.resume import fingerprint

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_RECIPE = "recipe.json"


Stages = Callable[[str], AbstractContextManager[Progress | None]]
"""A context for every stage of a run ("loading", "text", "teacher", "training", "writing"), which may yield its progress."""


class Texts(NamedTuple):
    """Sequences of tokens, int64 ``(sequences, length)``: to train on, and to evaluate on if the recipe has some."""

    train: Tensor
    evaluation: Tensor | None


@dataclass(frozen=True)
class TrainingResult:
    """What a run came to.

    Attributes:
        report: of the quantized modules; None in full precision.
        log: what was logged, a mapping a line.
        log_file: where it is.
        leads: whether this process wrote the model, the only process or the first.

    Example:
        >>> from pathlib import Path
        >>> from potq.qat import TrainingResult
        >>> log = [{"eval_perplexity": 9.0, "eval_loss": 2.2}, {"loss": 2.1}, {"eval_perplexity": 7.4, "eval_loss": 2.0}]
        >>> TrainingResult(report=None, log=log, log_file=Path("log.jsonl"), leads=True).best
        {'eval_perplexity': 7.4, 'eval_loss': 2.0}
    """

    report: QuantReport | None
    log: list[dict[str, Any]]
    log_file: Path
    leads: bool

    @property
    def evaluations(self) -> list[dict[str, Any]]:
        """The lines of the log that hold an evaluation, the one before training first."""
        return [line for line in self.log if "eval_perplexity" in line]

    @property
    def best(self) -> dict[str, Any] | None:
        """The evaluation of the checkpoint that was saved; None without text to evaluate on."""
        evaluated = self.evaluations
        return min(evaluated[1:] or evaluated, key=lambda line: float(line["eval_loss"]), default=None)


def train(
    recipe: TrainRecipe,
    *,
    stages: Stages | None = None,
    announce: Callable[[TrainingRun, Texts], None] | None = None,
) -> TrainingResult:
    """Train as ``recipe`` says and save the model to its output; the same call goes on with a run that was killed.

    With torchrun or ``accelerate launch`` every process calls it; the first writes, and reports progress.

    Args:
        recipe: what to train, on what, how, and where to.
        stages: a context for each stage, entered by the process that writes; see :data:`Stages`.
        announce: called by that process when all is loaded, before the first step.

    Raises:
        PotqError: anything that stops the run; what can be known beforehand stops it before a model is loaded.

    Example:
        >>> from pathlib import Path
        >>> from potq.qat import TrainRecipe, train
        >>> count = Path("text.txt").write_text("the cat sat on the mat. " * 40)
        >>> data = {"text": "text.txt", "length": 16}
        >>> recipe = TrainRecipe(model="tiny", output="out", data=data, optimization={"steps": 2, "batch": 2})
        >>> result = train(recipe)
        >>> len(result.report.modules), Path("out/model.safetensors").exists()
        (15, True)
    """
    within = stages or _silent
    with within("loading"):
        run = TrainingRun.load(recipe)
    if not run.leads:
        within = _silent
    with within("text") as progress:
        texts = run.read(progress)
    if announce is not None and run.leads:
        announce(run, texts)
    with within("teacher") as progress:
        predictions = run.teach(texts, progress)
    with within("training") as progress:
        run.fit(texts, predictions, progress)
    with within("writing"):
        report = run.finish()
    file = run.folder / LOG
    return TrainingResult(report, read_log(file), file, run.leads)


def _silent(stage: str) -> AbstractContextManager[None]:
    return nullcontext()


@dataclass
class TrainingRun:
    """One run: what was loaded for it, and its stages, each of which takes what the one before gave."""

    recipe: TrainRecipe
    folder: Path
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    teacher: PreTrainedModel | None
    plan: Plan | None
    """What is quantized and what is skipped; None in full precision."""
    memory: int
    """Bytes that a step takes at least, of :attr:`device`'s memory."""

    @classmethod
    def load(cls, recipe: TrainRecipe) -> TrainingRun:
        """Check what can be checked, load the models, and prepare the one that trains.

        Raises:
            PotqError: anything that would stop the run later.
        """
        require_known_sharding()
        target = check_recipe(recipe)
        _check_trackers(recipe)
        folder = target.with_name(f"{target.name}.training")
        _check_unfinished(folder, _content(recipe))
        for source in filter(None, (recipe.model, recipe.teacher, recipe.start)):
            check_language_model(source, "training")
        tokenizer = load_tokenizer(recipe.model)
        model = load(recipe.model, dtype="float32")
        choose_window(model, recipe.data.length, recipe.data.length)
        teacher = _load_teacher(recipe, model)
        if recipe.loss.top_k is not None and teacher is not None:
            check_top_k(teacher, recipe.loss.top_k)
        found = _prepare(recipe, model)
        memory = require_memory(model, recipe, teacher)
        return cls(recipe, folder, model, tokenizer, teacher, found, memory)

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes, the only one or the first."""
        return bool(processes().is_main_process)

    @property
    def device(self) -> torch.device:
        """Where this process trains."""
        return training_device()

    @property
    def idle_devices(self) -> int:
        """GPUs that a run of more processes would use."""
        return idle_devices()

    @property
    def resumes(self) -> int:
        """The step that training goes on from; 0 is the start."""
        last = last_checkpoint(self.folder)
        return 0 if last is None else int(last.name.partition("-")[2])

    def read(self, progress: Progress | None = None) -> Texts:
        """The texts as sequences; the teacher writes its own."""
        data = self.recipe.data
        with processes().main_process_first():
            if data.text == WRITTEN:
                train = self._written(progress)
            else:
                limit = None if data.tokens is None else max(1, data.tokens // data.length)
                train = _sequences(self.tokenizer, data.text, data, limit)
        evaluation = None
        if data.evaluation is not None:
            evaluation = _sequences(self.tokenizer, data.evaluation, data, data.evaluation_windows)
        batch = self.recipe.optimization.batch * processes().num_processes
        if len(train) < batch:
            raise DataError(
                f"{data.text} gives {len(train)} sequences of {data.length} tokens, less than one batch of {batch}; "
                "give more text, or a smaller length or batch"
            )
        texts = Texts(train, evaluation)
        for text, sequences in ((data.text, train), (data.evaluation, evaluation)):
            if sequences is not None:
                require_own_tokens(self.model, sequences, str(text))
        self._claim(texts)
        return texts

    def teach(self, texts: Texts, progress: Progress | None = None) -> TeacherCache | None:
        """Have the teacher predict, once, what the loss takes from the disk; None: the loss takes nothing from there.

        Args:
            progress: tokens done, tokens, speed.
        """
        loss, predictions = self.recipe.loss, None
        if self.teacher is not None and loss.distillation and loss.top_k is not None:
            computed = self.recipe.optimization.dtype, self.teacher.device
            with processes().main_process_first(), fast_training(*computed), in_precision(*computed):
                predictions = self._predict(self.teacher, texts.train, loss.top_k, progress)
        if not loss.runs_teacher:
            self.teacher = None
        return predictions

    def fit(self, texts: Texts, predictions: TeacherCache | None, progress: Progress | None = None) -> None:
        """Train; the model is that of the best checkpoint afterwards, or of the last step without evaluation.

        Args:
            progress: called after each step: step, steps, last losses.
        """
        objective = Objective(self.recipe.loss, self.teacher, predictions, self.recipe.optimization.dtype)
        trainer = QATTrainer(
            self.model,
            objective,
            self.recipe.optimization,
            self.folder,
            texts.train,
            texts.evaluation,
            seed=self.recipe.seed,
            progress=progress,
        )
        trainer.go_on()
        if any(isinstance(parameter, DTensor) for parameter in self.model.parameters()):
            self.model = _gather(self.model, self.recipe)

    def finish(self) -> QuantReport | None:
        """Convert the model, save it to the recipe's output, and delete what is needed no more."""
        report = convert(self.model) if self.recipe.quantizes else None
        self.model.eval()
        if self.leads:
            keep = save if self.recipe.quantizes else write
            keep(self.model, self.recipe.output, self.tokenizer, force=self.recipe.force)
            for path in self.folder.iterdir():
                if path.is_dir():
                    shutil.rmtree(path)
        processes().wait_for_everyone()
        return report

    def _claim(self, texts: Texts) -> None:
        """Keep in the run's folder what must be the same when it goes on; compare, if it does."""
        content = _content(self.recipe) | {
            "the text itself": fingerprint(nn.Module(), [tensor for tensor in texts if tensor is not None], ()),
            "number of processes": processes().num_processes,
        }
        _check_unfinished(self.folder, content)
        if self.leads and last_checkpoint(self.folder) is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / _RECIPE).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    def _written(self, progress: Progress | None) -> Tensor:
        data = self.recipe.data
        writer = self.teacher
        if writer is None:
            writer = load(self.recipe.teacher or self.recipe.model, dtype="float32", device=self.device)
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

    def _predict(self, teacher: PreTrainedModel, sequences: Tensor, top_k: int, progress: Progress | None) -> TeacherCache:
        folder = self.folder / "teacher"
        if not self.leads:
            return TeacherCache.open(folder, sequences)
        return TeacherCache.write(
            teacher,
            sequences,
            folder,
            top_k=top_k,
            temperature=self.recipe.loss.temperature,
            batch=self.recipe.optimization.batch,
            progress=progress,
        )


def _prepare(recipe: TrainRecipe, model: PreTrainedModel) -> Plan | None:
    """Make ``model`` what the recipe trains, in place."""
    model.requires_grad_(True)
    if not recipe.quantizes:
        return None
    start = load(recipe.start) if recipe.start is not None else None
    return prepare(model, recipe.config(), recipe.qat, start=start)


@torch.no_grad()
def _gather(sharded: PreTrainedModel, recipe: TrainRecipe) -> PreTrainedModel:
    """The same as ``sharded``, which FSDP has cut in parts, whole and on the CPU; every process calls this."""
    model = load(recipe.model, dtype="float32")
    _prepare(recipe, model)
    parts = dict(sharded.named_parameters())
    for name, parameter in model.named_parameters():
        part = parts[name]
        parameter.copy_(part.full_tensor() if isinstance(part, DTensor) else part)
    if recipe.quantizes:
        load_scale_state(model, scale_state(sharded))
    return model


def _load_teacher(recipe: TrainRecipe, model: PreTrainedModel) -> PreTrainedModel | None:
    if not recipe.loss.needs_teacher:
        return None
    teacher = load(recipe.teacher or recipe.model, dtype="float32", device=training_device())
    check_teacher(model, teacher)
    return teacher.requires_grad_(False).eval()


def _sequences(tokenizer: PreTrainedTokenizerBase, text: str, data: DataRecipe, limit: int | None) -> Tensor:
    try:
        return pack(tokenizer, [read_text(text)] if data.joined else read_documents(text), data.length, limit=limit)
    except DataError as error:
        raise DataError(f"{text}: {error}") from None


def _check_trackers(recipe: TrainRecipe) -> None:
    from transformers.integrations import get_available_reporting_integrations

    for tracker in recipe.optimization.report_to:
        if tracker not in get_available_reporting_integrations():
            raise MissingDependencyError(f"report_to: {tracker} is not installed; pip install {tracker}, or leave it out")


def _check_unfinished(folder: Path, content: dict[str, Any]) -> None:
    """An unfinished run of another recipe, text or number of processes is not continued, and not deleted either."""
    file = folder / _RECIPE
    if not file.is_file() or last_checkpoint(folder) is None:
        return
    before = json.loads(file.read_text(encoding="utf-8"))
    changed = sorted(key for key in content if content[key] != before.get(key))
    if changed:
        raise ConfigError(
            f"{folder} holds an unfinished run with other settings ({', '.join(changed)}); "
            "go on with those, delete the folder, or choose another output"
        )


def _content(recipe: TrainRecipe) -> dict[str, Any]:
    return recipe.model_dump(mode="json", exclude={"output", "force"})
