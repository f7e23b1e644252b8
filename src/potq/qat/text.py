"""Text to train on without data: the teacher writes it (LLM-QAT, arXiv 2305.17888, section 3.1)."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from potq.data.generate import self_generated
from potq.data.tokens import choose_window
from potq.errors import DataError
from potq.nn.report import Progress
from potq.resume import WorkFolder, fingerprint
from potq.version import __version__

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_ROWS = 32  # of a part: written side by side, and kept when they are done


def written_by(
    model: PreTrainedModel,
    folder: Path | None,
    *,
    tokens: int,
    length: int,
    seed: int,
    tokenizer: PreTrainedTokenizerBase | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """Texts that ``model`` writes, int64 ``(ceil(tokens / length), length)`` on the CPU.

    See :func:`~potq.data.generate.self_generated`. They are written in parts, each of which depends on ``seed`` and its own
    number alone. torch's global generator is not used.

    Args:
        folder: where finished parts are kept, so that a killed run goes on where it stopped, to the same result; a later run
            for more tokens goes on too. It belongs to one model, length and seed. None keeps nothing.
        tokens: how many, at least.
        tokenizer: texts start with none of its special or added tokens. Without it only BOS, EOS and padding are known.
        progress: called after each step with tokens done, those found in ``folder`` among them, tokens in all, and speed.

    Raises:
        ConfigError: ``folder`` holds something else.
        DataError: a length beyond the model's limit, or a size that is not positive.
        ModelError: the model's output is NaN.
    """
    if tokens < 1:
        raise DataError(f"invalid number of tokens {tokens}; use at least 1")
    length = choose_window(model, length, length)
    kept = None if folder is None else WorkFolder(Path(folder), _fingerprint(model, length, seed, tokenizer))
    rows = -(-tokens // length)
    meter = Meter(rows * length, progress)
    parts: list[Tensor] = []
    for number, first in enumerate(range(0, rows, _ROWS)):
        name, shape = f"text-{number:05}", (min(_ROWS, rows - first), length)
        text = _load(kept, name, shape)
        if text is None:
            own, tell = _seed(seed, number), meter.within(first * length)
            text = self_generated(
                model, window=length, windows=shape[0], seed=own, batch=_ROWS, tokenizer=tokenizer, progress=tell
            )
            if kept is not None:
                kept.save(name, {"text": text})
        else:
            meter.found(text.numel(), first * length + text.numel())
        parts.append(text)
    return torch.cat(parts)


class Meter:
    """Tells the progress of a run that finds a part of its work done; the speed is that of the rest."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self._total, self._progress = total, progress
        self._found, self._began = 0, time.perf_counter()

    def found(self, tokens: int, done: int) -> None:
        """``tokens`` were there already; with them ``done`` are done."""
        self._found += tokens
        self.tell(done)

    def within(self, before: int) -> Progress:
        """What a part that begins after ``before`` tokens calls."""
        return lambda done, total, speed: self.tell(before + done)

    def tell(self, done: int) -> None:
        if self._progress is not None:
            speed = (done - self._found) / max(time.perf_counter() - self._began, 1e-9)
            self._progress(done, self._total, f"{speed:.0f} tokens/s")


def _load(kept: WorkFolder | None, name: str, shape: tuple[int, int]) -> Tensor | None:
    """A finished part; not one that was the last of a shorter text, and has less rows."""
    found = {} if kept is None else kept.load(name) or {}
    text = found.get("text")
    return text if text is not None and text.shape == shape else None


def _seed(seed: int, number: int) -> int:
    """Sums of both would write the same parts again under other seeds."""
    return random.Random(f"{seed} {number}").getrandbits(63)


def _fingerprint(model: PreTrainedModel, length: int, seed: int, tokenizer: PreTrainedTokenizerBase | None) -> str:
    configs = (repr(model.config), repr(getattr(model, "generation_config", None)))
    starts = None  # what texts never start with
    if tokenizer is not None:
        starts = (len(tokenizer), sorted({*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}))
    return fingerprint(model, [], ("text", __version__, *configs, repr((length, seed, starts))))
