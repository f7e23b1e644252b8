"""The models that ``export/measure.py`` exports: each in full precision, the text that judges it, and its packed folders."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

import potq
from benchmarks.common.tokenizer import byte_tokenizer
from benchmarks.ptq.settings import settings
from potq.data.tokens import tokenize

PROMPTS, PROMPT_TOKENS, STRIDE = 20, 32, 400
STEPS, BATCH, WINDOW, SEED = 400, 16, 64, 0  # of training the nano GPT-2


@dataclass(frozen=True)
class Subject:
    """A model.

    Attributes:
        name: in the tables.
        source: makes the full-precision folder's or file's name, as :func:`potq.load` takes it.
        tokens: of its text, int64 ``(n,)``.
        schemes: of the linears; embedding and head are ``int8``.
        windows: how many windows of ``window`` tokens are scored.
        calibration: windows to quantize with (effort ``balanced``); without them weights are rounded to nearest.
    """

    name: str
    source: Callable[[], str]
    tokens: Callable[[], Tensor]
    schemes: tuple[str, ...]
    window: int
    windows: int
    calibration: Callable[[], list[Tensor]] | None = None

    def folder(self, scheme: str, work: Path) -> Path:
        """The packed checkpoint; made if it is not there."""
        folder = work / f"{self.name}-{scheme}"
        if not folder.exists():  # a folder is written whole or not at all
            model = potq.load(self.source())
            batches = self.calibration and self.calibration()
            potq.quantize(model, potq.PoTConfig(scheme, effort="balanced" if batches else "fast"), batches)
            potq.save(model, folder, potq.load_tokenizer(self.source()))
        return folder

    def prompts(self) -> list[Tensor]:
        """The first 20 pieces of 32 tokens, 400 tokens apart."""
        tokens = self.tokens()
        return [tokens[i * STRIDE : i * STRIDE + PROMPT_TOKENS] for i in range(PROMPTS)]

    def scored(self) -> Tensor:
        """Windows for the perplexity, int64 ``(windows, window)``."""
        return self.tokens()[: self.windows * self.window].view(self.windows, self.window)


def subjects(data: Path, work: Path) -> dict[str, Subject]:
    """By name."""
    known = settings(data)
    stories, smollm2 = known["tinystories"], known["smollm2"]
    nano = _Nano(data / "tinyshakespeare" / "input.txt", work / "nano-gpt2")
    found = (
        Subject("TinyStories-656K", lambda: stories.source, stories.tokens, ("mxpot", "mxfp4", "pot3", "pot4"), 512, 16),
        Subject("nano GPT-2", nano.source, nano.tokens, ("mxpot", "pot3", "pot4"), 128, 32),
        Subject(
            "SmolLM2-135M", lambda: smollm2.source, smollm2.tokens, ("mxpot", "mxfp4", "pot3"), 512, 32, smollm2.batches
        ),
    )
    return {subject.name: subject for subject in found}


@dataclass(frozen=True)
class _Nano:
    """A GPT-2 of two layers, trained for a minute on Shakespeare, with a byte-level tokenizer of 512 tokens."""

    text: Path
    folder: Path

    def source(self) -> str:
        if not self.folder.exists():
            tokenizer = byte_tokenizer(self.text.read_text(encoding="utf-8"), 512)
            tokens = tokenize(tokenizer, self.text.read_text(encoding="utf-8"))
            model = _train(tokens[: len(tokens) * 9 // 10])
            tokenizer.save_pretrained(self.folder)
            model.save_pretrained(self.folder)  # the folder with a config.json is whole
        return str(self.folder)

    @cache  # noqa: B019  # one of it lives as long as the script
    def tokens(self) -> Tensor:
        """The last tenth, which it was not trained on."""
        tokens = tokenize(potq.load_tokenizer(self.source()), self.text.read_text(encoding="utf-8"))
        return tokens[len(tokens) * 9 // 10 :]


def _train(tokens: Tensor) -> Any:
    torch.manual_seed(SEED)
    # 1024 positions, the default: transformers' GGUF reader expects no other number
    config = GPT2Config(vocab_size=512, n_embd=128, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0)
    model = GPT2LMHeadModel(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(STEPS):
        starts = torch.randint(len(tokens) - WINDOW, (BATCH,))
        batch = torch.stack([tokens[start : start + WINDOW] for start in starts])
        loss = model(batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()
