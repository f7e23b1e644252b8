"""transformers' Trainer for prepared models: scales, exact resumption, a log, and a stop where the loss is NaN or infinite.

What it adds to the Trainer: the losses of :mod:`potq.nn.losses`; a rate of their own for learned scales; scales that no
state dict holds, kept in ``scales.safetensors`` of every checkpoint; a mark in checkpoints that are whole, so that a run
that was killed while it wrote one goes on from the one before. (Optimizer and generator states are the Trainer's own files;
torch reads them with ``weights_only``.)
"""

from __future__ import annotations

import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import (
    EarlyStoppingCallback,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerState,
    TrainingArguments,
)

from potq.errors import CheckpointError, ModelError
from potq.nn.losses import next_token_loss
from potq.nn.report import Progress
from potq.qat.device import fast_training
from potq.qat.objective import Objective
from potq.qat.preparation import load_scale_state, qat_modules, refresh_scales, scale_state
from potq.qat.recipe import OptimizationRecipe

LOG = "log.jsonl"
_SCALES, _STATE, _WHOLE = "scales.safetensors", "trainer_state.json", "whole"
# the new name is transformers 5.20's
_CHECKPOINTING = f"{'activation' if hasattr(TrainingArguments, 'activation_checkpointing') else 'gradient'}_checkpointing"


class Sequences(Dataset[dict[str, Tensor]]):
    """Rows ``(n, length)`` of token ids as a dataset."""

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": self.rows[index], "index": torch.tensor(index)}


class QATTrainer(Trainer):
    """A Trainer whose loss is an :class:`~potq.qat.objective.Objective`, and whose evaluation loss is next-token nats."""

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        recipe: OptimizationRecipe,
        folder: Path,
        train: Tensor,
        evaluation: Tensor | None,
        *,
        seed: int,
        progress: Progress | None = None,
    ) -> None:
        self._objective, self._recipe, self._folder = objective, recipe, folder
        callbacks: list[TrainerCallback] = [_Log(folder / LOG), _Scales(), *([_Tell(progress)] if progress else [])]
        if recipe.patience is not None and evaluation is not None:
            callbacks.append(EarlyStoppingCallback(recipe.patience))
        super().__init__(
            model,
            training_arguments(recipe, folder, evaluates=evaluation is not None, seed=seed),
            data_collator=_collate,
            train_dataset=Sequences(train),
            eval_dataset=None if evaluation is None else Sequences(evaluation),
            compute_metrics=lambda losses: {"loss": float(losses.predictions.mean())},
            callbacks=callbacks,
        )
        self.remove_callback(PrinterCallback)
        self.loss_is_scaled_for_ga = False  # our losses are means: the Trainer divides by the number accumulated

    def go_on(self) -> None:
        """Train from the last whole checkpoint or the start; the model ends as the best checkpoint has it, or the last."""
        if self.is_world_process_zero():
            clear_unfinished(self._folder)
        last = last_checkpoint(self._folder)
        state = TrainerState() if last is None else TrainerState.load_from_json(str(last / _STATE))
        if last is None:
            self._train()
        elif state.stateful_callbacks["TrainerControl"]["args"]["should_training_stop"]:  # it was killed after its last step
            self._load_from_checkpoint(str(self._folder / Path(state.best_model_checkpoint or last).name))
        else:
            self.args.eval_on_start = False  # it is in the log, and would count as a checkpoint without progress
            self._train(resume_from_checkpoint=str(last))
        for name in ("forward", "_original_forward"):
            self.model.__dict__.pop(name, None)  # accelerate's autocast

    def _train(self, **options: Any) -> None:
        with fast_training(self._recipe.dtype, self.args.device):
            self.train(**options)

    def compute_loss(self, model: nn.Module, inputs: dict[str, Tensor], *args: Any, **options: Any) -> Tensor:
        loss = self._objective(model, inputs)
        if not bool(loss.detach().isfinite()):
            where = f"step {self.state.global_step + 1}, sequences {inputs['index'].tolist()}"
            raise self._diverged(f"the loss is {float(loss.detach())} at {where}")
        return loss

    @torch.no_grad()
    def prediction_step(self, model: nn.Module, inputs: dict[str, Tensor], *args: Any, **options: Any) -> Any:
        ids = self._prepare_inputs(inputs)["input_ids"]
        with self.compute_loss_context_manager():
            logits = model(input_ids=ids, use_cache=False).logits
        # each sequence by itself: in the last batch, several processes get some of them twice, and drop these afterwards
        losses = torch.stack([next_token_loss(*pair) for pair in zip(logits.split(1), ids.split(1), strict=True)])
        return None, losses, losses

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        kind, options = self.get_optimizer_cls_and_kwargs(self.args, self.model)
        self.optimizer: torch.optim.Optimizer = self.optimizer or kind(_groups(self.model, self._recipe), **options)
        return self.optimizer

    def log(self, logs: dict[str, float], *args: Any, **options: Any) -> None:
        if "eval_loss" in logs:
            logs["eval_perplexity"] = math.exp(min(logs["eval_loss"], 700.0))
        logs.pop("train_loss", None)  # a mean over the steps since this process began
        super().log(logs, *args, **options)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        for name, parameter in self.model.named_parameters():
            if not bool(parameter.isfinite().all()):
                raise self._diverged(f"{name} has NaN or infinite entries after step {self.state.global_step}")
        folder = self._folder / f"checkpoint-{self.state.global_step}"
        try:
            folder.mkdir(exist_ok=True)  # the Trainer looks for the best checkpoint's folder before FSDP writes to it
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                (folder / "training_args.bin").unlink(missing_ok=True)  # a pickle that nothing reads
                save_file({name: tensor.contiguous() for name, tensor in scale_state(self.model).items()}, folder / _SCALES)
                (folder / _WHOLE).touch()
        except Exception as error:  # a full disk surfaces as OSError, SafetensorError or RuntimeError
            shutil.rmtree(folder, ignore_errors=True)
            kept = last_checkpoint(self._folder) or "the start"
            raise CheckpointError(f"cannot write {folder} ({error}); the last whole checkpoint is {kept}") from error
        if self.args.should_save:
            best = Path(self.state.best_model_checkpoint or folder).name
            _delete([path for path in self._folder.glob("checkpoint-*") if path.name not in (folder.name, best)])

    def _diverged(self, what: str) -> ModelError:
        last = last_checkpoint(self._folder)
        return ModelError(f"{what}; lower learning_rate. The last good checkpoint is {last or 'the start'}")

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self._load_scales(Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        super()._load_best_model()
        self._load_scales(Path(self.state.best_model_checkpoint))

    def _load_scales(self, folder: Path) -> None:
        if qat_modules(self.model):
            load_scale_state(self.model, load_file(folder / _SCALES))


def training_arguments(recipe: OptimizationRecipe, folder: Path, *, evaluates: bool, seed: int) -> TrainingArguments:
    """The recipe as the Trainer takes it."""
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=recipe.steps or -1,
        num_train_epochs=recipe.epochs,
        per_device_train_batch_size=recipe.batch,
        per_device_eval_batch_size=recipe.batch,
        gradient_accumulation_steps=recipe.accumulation,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=recipe.warmup,
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.clip,
        adam_beta2=0.95,
        bf16=recipe.dtype == "bfloat16",
        eval_strategy="steps" if evaluates else "no",
        eval_steps=recipe.save_every,
        eval_on_start=evaluates,
        save_strategy="steps",
        save_steps=recipe.save_every,
        load_best_model_at_end=evaluates,
        restore_callback_states_from_checkpoint=True,  # patience
        metric_for_best_model="eval_loss" if evaluates else None,
        greater_is_better=False if evaluates else None,
        logging_steps=max(1, recipe.save_every // 10),
        logging_nan_inf_filter=False,
        disable_tqdm=True,
        log_level_replica="error",
        report_to=list(recipe.report_to) or "none",
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
        remove_unused_columns=False,
        label_names=[],
        seed=seed,
        **{_CHECKPOINTING: recipe.gradient_checkpointing},
    )
    # several GPUs take several processes: DataParallel, which the Trainer would use here, cannot copy prepared modules
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def last_checkpoint(folder: Path) -> Path | None:
    """The last checkpoint that was written to its end."""
    found = {int(path.name.partition("-")[2]): path for path in folder.glob("checkpoint-*") if (path / _WHOLE).is_file()}
    return found[max(found)] if found else None


def clear_unfinished(folder: Path) -> None:
    """Delete checkpoints that a killed run left half written."""
    _delete([path for path in folder.glob("checkpoint-*") if not (path / _WHOLE).is_file()])


def read_log(file: Path) -> list[dict[str, Any]]:
    """What was logged, a mapping a line; a line that a killed run left half written is left out."""
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True) if file.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def _delete(folders: list[Path]) -> None:
    for folder in folders:
        (folder / _WHOLE).unlink(missing_ok=True)  # first: a kill must not leave a part that looks whole
        shutil.rmtree(folder)


def _groups(model: nn.Module, recipe: OptimizationRecipe) -> list[dict[str, Any]]:
    """Parameters by their rate: matrices, what has one dimension (never decayed), learned scales."""
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    scales = [parameter for name, parameter in named if name.endswith("weight_log2_scale")]
    rest = [parameter for name, parameter in named if not name.endswith("weight_log2_scale")]
    groups: list[dict[str, Any]] = [
        {"params": [parameter for parameter in rest if parameter.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [parameter for parameter in rest if parameter.ndim <= 1], "weight_decay": 0.0},
        {"params": scales, "weight_decay": 0.0, "lr": recipe.scale_rate},
    ]
    return [group for group in groups if group["params"]]


def _collate(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {key: torch.stack([row[key] for row in rows]) for key in rows[0]}


class _Scales(TrainerCallback):
    """Outdates searched scales when their settings say so."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **options: Any) -> None:
        modules = qat_modules(options["model"])
        settings = next((module.settings for module in modules.values()), None)
        if settings is not None and settings.searches_before(state.global_step, state.max_steps):
            refresh_scales(options["model"])


class _Log(TrainerCallback):
    """A line of JSON for everything that is logged; what a killed run logged after its last checkpoint is taken back.

    Losses are means since the line before. There is one at every checkpoint, so that none begins before it.
    """

    def __init__(self, file: Path) -> None:
        self._file = file

    def on_train_begin(self, args: Any, state: Any, control: Any, **options: Any) -> None:
        if state.is_world_process_zero:
            kept = [line for line in read_log(self._file) if 0 < state.global_step >= line["step"]]
            partial = self._file.with_suffix(".partial")
            partial.write_text("".join(map(_line, kept)), encoding="utf-8")
            os.replace(partial, self._file)

    def on_step_end(self, args: Any, state: Any, control: Any, **options: Any) -> None:
        control.should_log = control.should_log or control.should_save
        if state.global_step >= state.max_steps and args.eval_strategy != "no":  # transformers 5.0 leaves the last step out
            control.should_evaluate = True

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **options: Any) -> None:
        if state.is_world_process_zero:
            with self._file.open("a", encoding="utf-8") as file:
                file.write(_line({"step": state.global_step, **(logs or {})}))


def _line(logged: dict[str, Any]) -> str:
    return json.dumps(logged) + "\n"


class _Tell(TrainerCallback):
    """Progress, with the last loss and perplexity."""

    def __init__(self, progress: Progress) -> None:
        self._progress, self._last = progress, {"loss": "", "eval_perplexity": ""}

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **options: Any) -> None:
        for key, name in (("loss", "loss"), ("eval_perplexity", "perplexity")):
            if logs and key in logs:
                self._last[key] = f"{name} {float(logs[key]):.4g}"

    def on_step_end(self, args: Any, state: Any, control: Any, **options: Any) -> None:
        self._progress(state.global_step, state.max_steps, ", ".join(text for text in self._last.values() if text))
