"""What a comparison measures beside perplexity, if asked to: divergence from full precision, tasks, tokens a second."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from torch import Tensor

from potq.checkpoint.folder import save
from potq.engine.engine import Engine
from potq.evaluate.divergence import kl_divergence
from potq.nn.packed_model import packed_modules

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_TOKENS, _ROUNDS = 64, 3


@dataclass(frozen=True)
class Measured:
    """What was found.

    Attributes:
        divergence: mean Kullback-Leibler divergence from full precision, in nats a token.
        tasks: scores, by task and metric.
        tokens_per_second: of the decode engine, one text.
    """

    divergence: float | None = None
    tasks: dict[str, float] = field(default_factory=dict)
    tokens_per_second: float | None = None


@dataclass(frozen=True)
class Further:
    """What to measure.

    Attributes:
        tokenizer: the model's, for tasks and the engine.
        divergence: from full precision's predictions, on the same windows as perplexity.
        speed: by the decode engine, from a folder that is written for it.
        tasks: of lm-evaluation-harness, by transformers' modules with exact activations.
        include_path: a folder of task files.
        limit: only the first so many questions of each task.
    """

    tokenizer: PreTrainedTokenizerBase | None = None
    divergence: bool = False
    speed: bool = False
    tasks: tuple[str, ...] = ()
    include_path: Path | None = None
    limit: int | None = None

    @property
    def key(self) -> tuple[str, ...]:
        """What of it decides a row; nothing where nothing is asked for."""
        tasks = (*self.tasks, str(self.include_path), str(self.limit)) if self.tasks else ()
        return (*["divergence"] * self.divergence, *["speed"] * self.speed, *tasks)

    def measure(
        self, model: PreTrainedModel, reference: PreTrainedModel, tokens: Tensor, window: int | None, windows: int | None
    ) -> Measured:
        """Measure ``model``, which may be ``reference`` itself.

        Raises:
            PotqError: a model that the engine does not know, or a task that fails.
        """
        apart = None
        if self.divergence:
            same = model is reference
            apart = 0.0 if same else kl_divergence(model, reference, tokens, window=window, max_windows=windows).mean
        scores = self._scores(model) if self.tasks else {}
        return Measured(apart, scores, tokens_per_second(model, self.tokenizer) if self.speed else None)

    def _scores(self, model: PreTrainedModel) -> dict[str, float]:
        from potq.evaluate.tasks import modules_model, run_tasks, task_manager

        manager = task_manager(self.tasks, self.include_path)
        found = run_tasks(modules_model(model, self.tokenizer), self.tasks, manager, limit=self.limit)
        return {f"{score.task} {score.metric}": score.value for score in found}


def tokens_per_second(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None = None) -> float:
    """Tokens a second of the decode engine on ``model``: one text, greedy, the median of three.

    Raises:
        EngineError: the engine does not know the model; says why.
    """
    with TemporaryDirectory(prefix="potq-") as place:
        folder = Path(place) / "model"
        if packed_modules(model):
            save(model, folder, tokenizer)
        else:
            model.save_pretrained(folder)
        with Engine(folder) as engine:
            count = min(_TOKENS, engine.context - 2)
            return median(_speed(engine, count) for _ in range(_ROUNDS))


def _speed(engine: Engine, count: int) -> float:
    engine.reset()
    stream = engine.generate([0], max_new_tokens=count + 1, stop_token_ids=())
    next(stream)
    began = time.perf_counter()
    stream.finish()
    return count / (time.perf_counter() - began)
