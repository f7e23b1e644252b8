"""Everything ``potq train`` does, as validated values: a recipe is a YAML file of these keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from potq.config import PoTConfig
from potq.errors import ConfigError
from potq.qat.settings import QATSettings
from potq.validation import Strict

WRITTEN = "self"
Precision = Literal["float32", "bfloat16"]


class DataRecipe(Strict):
    """What is read.

    Attributes:
        text: a file, a dataset (``name:config:split``), ``pydoc``, or ``self``: the teacher writes it (LLM-QAT, 2305.17888).
        evaluation: a file, a dataset or ``pydoc``, for evaluation during training; None leaves it out.
        length: tokens a sequence.
        tokens: how much of ``text`` is used, at most; how much the teacher writes, at least.
        evaluation_windows: sequences of ``evaluation`` that are used, at most.
        joined: a source's rows are parts of one text, joined by blank lines (WikiText's are), not documents of their own.
    """

    text: str
    evaluation: str | None = None
    length: int = Field(default=512, ge=2)
    tokens: int | None = Field(default=None, ge=2)
    evaluation_windows: int = Field(default=40, ge=1)
    joined: bool = False

    @model_validator(mode="after")
    def _written_text_has_a_length(self) -> DataRecipe:
        if self.text == WRITTEN and self.tokens is None:
            raise ValueError("text: self needs tokens: how many the teacher is to write, e.g. 250000")
        return self


class LossRecipe(Strict):
    """What is minimized: a weighted sum.

    Attributes:
        next_token: weight of the cross entropy with the text.
        distillation: weight of the divergence from the teacher's predictions.
        hidden: weight of the relative squared error of every layer's output against the teacher's.
        temperature: of both predictions in the divergence.
        top_k: keep only so many of the teacher's predictions a token, computed once and kept on disk; None runs the teacher
            beside the student and compares all of them.
    """

    next_token: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    distillation: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    hidden: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    temperature: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    top_k: int | None = Field(default=None, ge=1)

    @property
    def needs_teacher(self) -> bool:
        return self.distillation > 0 or self.hidden > 0

    @property
    def runs_teacher(self) -> bool:
        """Whether the teacher computes at every step."""
        return self.hidden > 0 or (self.distillation > 0 and self.top_k is None)

    @model_validator(mode="after")
    def _something_is_minimized(self) -> LossRecipe:
        if not (self.next_token or self.distillation or self.hidden):
            raise ValueError("all weights are 0; set next_token, distillation or hidden")
        if self.top_k is not None and not self.distillation:
            raise ValueError("top_k has no effect without distillation; set it, or leave top_k out")
        return self


class OptimizationRecipe(Strict):
    """How it is minimized: AdamW, a linear rise of the rate, then a cosine fall.

    Attributes:
        steps: optimizer steps; None goes by ``epochs``.
        batch: sequences at a time on every device; ``accumulation`` of these make a step.
        learning_rate: of weights, and of everything that is not quantized.
        scale_rate: of learned scales' logarithms (base 2).
        save_every: steps from one checkpoint to the next. Each is evaluated if there is text for it, and the best one is
            the result; otherwise the last.
        patience: checkpoints without a better one after which training stops; None goes on to the end.
        dtype: what products are computed in, the teacher's too; weights and optimizer are float32 either way.
        report_to: trackers that transformers knows (``tensorboard``, ``wandb``); a JSON-lines log is always written.
    """

    steps: int | None = Field(default=None, ge=1)
    epochs: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    batch: int = Field(default=8, ge=1)
    accumulation: int = Field(default=1, ge=1)
    learning_rate: float = Field(default=1e-4, gt=0, allow_inf_nan=False)
    scale_rate: float = Field(default=1e-3, ge=0, allow_inf_nan=False)
    warmup: float = Field(default=0.1, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    clip: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    dtype: Precision = "float32"
    gradient_checkpointing: bool = False
    save_every: int = Field(default=100, ge=1)
    patience: int | None = Field(default=None, ge=1)
    report_to: tuple[str, ...] = ()


class TrainRecipe(Strict):
    """A run of quantization-aware training.

    ``quantization`` takes the keys of PoTConfig and QuantScheme, and ``preset`` ("none" trains in full precision: the
    control that shows what the data alone does). ``start`` is a packed checkpoint to start from, e.g. one of ``potq
    quantize``; its config is then used. ``teacher`` is by default the model itself, in full precision.

    Raises:
        ConfigError: an unknown key, a value out of range, or keys that exclude each other.

    Example:
        >>> from potq.qat import TrainRecipe
        >>> recipe = TrainRecipe(
        ...     model="tiny", output="out", quantization={"preset": "pot3", "group_size": 32}, data={"text": "pydoc"}
        ... )
        >>> recipe.config().scheme.name
        'pot3-g32'
        >>> recipe.loss.distillation, recipe.optimization.learning_rate  # the defaults
        (1.0, 0.0001)
    """

    model: str
    output: Path
    start: str | None = None
    teacher: str | None = None
    quantization: dict[str, Any] = Field(default_factory=dict)
    qat: QATSettings = Field(default_factory=QATSettings)
    data: DataRecipe
    loss: LossRecipe = Field(default_factory=LossRecipe)
    optimization: OptimizationRecipe = Field(default_factory=OptimizationRecipe)
    seed: int = Field(default=0, ge=0, lt=2**32)
    force: bool = False

    @property
    def quantizes(self) -> bool:
        """Whether it is not the full-precision control."""
        return self.quantization.get("preset") != "none"

    def config(self) -> PoTConfig | None:
        """The quantization config; None is ``start``'s, or none at all.

        Raises:
            ConfigError: unknown keys or presets.
        """
        fields = dict(self.quantization)
        if "effort" in fields:
            raise ConfigError("quantization.effort is potq quantize's: quantize first, and name what it wrote as start")
        if not self.quantizes or (self.start is not None and not fields):
            return None
        return PoTConfig(fields.pop("preset", None if {"grid", "scheme"} & fields.keys() else "apot4"), **fields)

    @model_validator(mode="after")
    def _control_starts_from_full_precision(self) -> TrainRecipe:
        if not self.quantizes and (self.start is not None or len(self.quantization) > 1):
            raise ValueError("quantization.preset none trains in full precision; it takes no start and no other key")
        return self

    @model_validator(mode="after")
    def _a_teacher_is_asked(self) -> TrainRecipe:
        if self.teacher is not None and not self.loss.needs_teacher and self.data.text != WRITTEN:
            raise ValueError("teacher has no effect: set loss.distillation, loss.hidden or data.text: self, or leave it out")
        return self

    @model_validator(mode="after")
    def _patience_is_for_evaluation(self) -> TrainRecipe:
        if self.optimization.patience is not None and self.data.evaluation is None:
            raise ValueError("optimization.patience needs data.evaluation: text to tell by which checkpoint is the best")
        return self
