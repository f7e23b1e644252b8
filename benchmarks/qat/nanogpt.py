"""Nano-GPT on Shakespeare's characters, quantized before, during and after training: ``python -m benchmarks.qat.nanogpt``.

Karpathy's set-up (character tokens, the first 90 % of tiny Shakespeare for training, the rest for validation; ``--size
small`` is his for a CPU, ``large`` the one for a GPU) with transformers' GPT-2. Three seeds of

* full precision,
* rounding to nearest afterwards: powers of two and integers of 2 to 6 bits, one scale per tensor, row, and group of 64, 32,
* quantized training: full precision for the first steps, then the rest of the *same* schedule, the same windows of text and
  the same optimizer state with rounded weights. Both see as many steps and as much text.

Linears and both embedding tables (the head is the tokens' one) are quantized, as 2506.00315 has it; some rows leave the
tables in full precision. Losses are of packed models, with exact activations, on the whole validation text. ``--data`` (or
the environment variable POTQ_DATA) is a folder with ``tinyshakespeare/input.txt``. Rows are kept as they come, trained
models in ``--work``; a killed run resumes. ``--save DIR`` writes the first seed's model in full precision, with a tokenizer.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import potq
from benchmarks.common.goals import Row, print_goals
from benchmarks.common.results import Benchmark
from benchmarks.qat.goals import FULL, NANOGPT
from benchmarks.qat.loop import Run, Training, mean_loss, pack
from benchmarks.qat.nanogpt_report import draw, show
from potq.kernels import set_activations
from potq.numerics.grid import Grid, uniform
from potq.numerics.scheme import GroupSize
from potq.qat.settings import QATSettings

SEEDS = (0, 1, 2)
GROUPS: tuple[GroupSize, ...] = (64, "tensor", "row", 32)
TRAINED: tuple[GroupSize, ...] = (64, "tensor")


@dataclass(frozen=True)
class Size:
    """A model, how it is trained, and after how many steps weights are rounded; ``starts`` are others that are tried."""

    layers: int
    heads: int
    width: int
    dropout: float
    training: Training
    start: int
    starts: tuple[int, ...]
    settings: QATSettings

    def model(self, vocabulary: int, seed: int) -> Any:
        from transformers import GPT2Config, GPT2LMHeadModel

        torch.manual_seed(seed)
        return GPT2LMHeadModel(
            GPT2Config(
                vocab_size=vocabulary,
                n_positions=self.training.length,
                n_embd=self.width,
                n_layer=self.layers,
                n_head=self.heads,
                activation_function="gelu",
                resid_pdrop=self.dropout,
                embd_pdrop=self.dropout,
                attn_pdrop=self.dropout,
                bos_token_id=None,
                eos_token_id=None,
            )
        )


SIZES = {
    "small": Size(
        layers=4,
        heads=4,
        width=128,
        dropout=0.0,
        training=Training(steps=2000, batch=12, length=64, rate=6e-3, least_rate=6e-4, warmup=100, scale_rate=1e-2),
        start=1750,
        starts=(1000, 1500),
        settings=QATSettings(scales="learned"),
    ),
    "large": Size(
        layers=6,
        heads=6,
        width=384,
        dropout=0.2,
        training=Training(steps=5000, batch=64, length=256, rate=1e-3, least_rate=1e-4, warmup=100, scale_rate=1e-2),
        start=4375,
        starts=(2500, 3750),
        settings=QATSettings(scales="learned"),
    ),
}


class Cell(NamedTuple):
    """What a row is of; ``tables``: whether embedding tables are quantized too."""

    kind: str
    family: str
    bits: int
    group: GroupSize
    tables: bool
    start: int
    seed: int


def cells(size: Size, seeds: Sequence[int]) -> list[Cell]:
    """Full precision, what needs no training, what the goals need, the rest."""
    every, few, start = range(2, 7), range(2, 5), size.start
    kinds: list[tuple[str, str, int, GroupSize, bool, int]] = [(FULL, "none", 32, "tensor", False, 0)]
    kinds += [("PTQ", family, bits, group, True, 0) for group in GROUPS for family in FAMILIES for bits in every]
    kinds += [("PTQ", family, bits, 64, False, 0) for family in FAMILIES for bits in every]
    kinds += [("QAT", family, bits, group, True, start) for group in TRAINED for family in RIVALS for bits in few]
    kinds += [("QAT", "PoT", bits, 64, False, start) for bits in few]
    kinds += [("QAT", "mid-rise integers", 2, group, True, start) for group in TRAINED]
    kinds += [(f"QAT from step {early}", "PoT", bits, 64, True, early) for early in size.starts for bits in few]
    return [Cell(*kind, seed) for kind in kinds for seed in seeds]


RIVALS = ("PoT", "integers")
FAMILIES: dict[str, Callable[[int], Grid]] = {
    "PoT": lambda bits: potq.PRESETS[f"pot{bits}"].grid,
    "integers": uniform,
    "mid-rise integers": lambda bits: uniform(bits, midrise=True),
}


@dataclass(frozen=True)
class Text:
    """Shakespeare in characters."""

    characters: str
    train: Tensor
    validation: Tensor

    @classmethod
    def read(cls, file: Path) -> Text:
        text = file.read_text(encoding="utf-8")
        characters = "".join(sorted(set(text)))
        code = {character: index for index, character in enumerate(characters)}
        tokens = torch.tensor([code[character] for character in text])
        train = int(0.9 * len(tokens))
        return cls(characters, tokens[:train], tokens[train:])

    def tokenizer(self) -> Any:
        """A tokenizer that transformers loads: byte-pair encoding without a pair."""
        from tokenizers import Tokenizer, decoders, models
        from transformers import PreTrainedTokenizerFast

        vocabulary = {character: index for index, character in enumerate(self.characters)}
        tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
        tokenizer.decoder = decoders.Fuse()
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False)


@dataclass(frozen=True)
class Bench:
    """Measures cells; trained models are in ``work``."""

    size: Size
    text: Text
    work: Path
    device: torch.device

    def row(self, cell: Cell) -> Row:
        began = time.process_time()
        self._trained(cell.seed)
        model, bits = {FULL: self._full, "PTQ": self._rounded}.get(cell.kind, self._quantized_training)(cell)
        seconds = time.process_time() - began
        loss = mean_loss(model, self.text.validation, self.size.training.length)
        return {**cell._asdict(), "loss": loss, "bits_per_weight": bits, "processor_seconds": seconds}

    def final(self, seed: int) -> Any:
        """The trained model of ``seed`` in full precision."""
        self._trained(seed)
        return self._load(seed, self.size.training.steps).model.eval()

    def _full(self, cell: Cell) -> tuple[Any, float]:
        return self.final(cell.seed), 32.0

    def _rounded(self, cell: Cell) -> tuple[Any, float]:
        model = self.final(cell.seed)
        report = potq.quantize(model, _config(cell))
        set_activations(model, "float")
        return model, report.quantized_bits_per_weight

    def _quantized_training(self, cell: Cell) -> tuple[Any, float]:
        run = self._load(cell.seed, cell.start)
        run.quantize(_config(cell), self.size.settings)
        run.until(self.size.training.steps)
        return run.model, pack(run.model)

    def _trained(self, seed: int) -> None:
        """Train in full precision, unless that was done before."""
        run, last = self._new(seed), self.size.training.steps
        if self._file(seed, last).exists():
            return
        for step in sorted({*self.size.starts, self.size.start, last}):
            run.until(step)
            run.save(self._file(seed, step))

    def _new(self, seed: int) -> Run:
        model = self.size.model(len(self.text.characters), seed).to(self.device)
        return Run(model, self.text.train, self.size.training, seed)

    def _load(self, seed: int, step: int) -> Run:
        run = self._new(seed)
        run.load(self._file(seed, step))
        return run

    def _file(self, seed: int, step: int) -> Path:
        return self.work / f"seed{seed}-step{step}.pt"


def _config(cell: Cell) -> potq.PoTConfig:
    scheme = potq.QuantScheme(grid=FAMILIES[cell.family](cell.bits), group_size=cell.group)
    return potq.PoTConfig(scheme=scheme, embedding=scheme if cell.tables else None, effort="fast")


def protocol(size: Size, text: Text) -> dict[str, Any]:
    shape = {key: getattr(size, key) for key in ("layers", "heads", "width", "dropout")}
    return {
        "model": f"GPT2LMHeadModel {shape}, tied head, GELU",
        "text": f"tiny Shakespeare, {len(text.characters)} characters; {len(text.train)} for training",
        "loss": f"nats a character: all {(len(text.validation) - 1) // size.training.length} non-overlapping windows of the "
        f"other {len(text.validation)}, each predicting {size.training.length}",
        "training": {**asdict(size.training), "optimizer": "AdamW, linear rise, cosine fall; next-token loss alone"},
        "quantized training": f"float up to step {size.start} (or {size.starts}), then rounded, in the same schedule",
        "chosen": "by seed 0 of the small size: the rate, full precision's best of 1e-3, 3e-3, 6e-3 and 1e-2; "
        "then the start",
        "settings": size.settings.model_dump(mode="json"),
        "rounding to nearest": "scales of least squared error",
        "quantized": "linears, wte (which is the head too) and wpe at the same scheme; tables: false leaves wte, wpe, head",
        "evaluated": "the packed model, activations exact; float16 scales",
        "bits": "of a code, its sign included",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("POTQ_DATA"), help="folder of texts")
    parser.add_argument("--size", choices=tuple(SIZES), default="small")
    parser.add_argument("--work", type=Path, default=Path("build/qat_nanogpt"), help="folder for trained models")
    parser.add_argument("--save", type=Path, help="write the first seed's full-precision model and a tokenizer here")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=1, help="1 is as fast as 2 for so small a model")
    parser.add_argument("--kind", action="append", choices=(FULL, "PTQ", "QAT"), help="default: all")
    options = parser.parse_args()
    if options.data is None:
        parser.error("give --data DIR or set POTQ_DATA")
    torch.set_num_threads(options.threads)
    size, text = SIZES[options.size], Text.read(Path(options.data) / "tinyshakespeare" / "input.txt")
    used = protocol(size, text)
    work = options.work / hashlib.sha256(json.dumps(used).encode()).hexdigest()[:12]
    work.mkdir(parents=True, exist_ok=True)
    bench = Bench(size, text, work, torch.device(options.device))
    results = NANOGPT if options.size == "small" else replace(NANOGPT, name=f"{NANOGPT.name}_{options.size}")
    rows = measure(bench, results, {**used, "device": str(bench.device)}, options.kind)
    if options.save is not None:
        tokenizer: Any = text.tokenizer()
        bench.final(SEEDS[0]).save_pretrained(options.save)
        tokenizer.save_pretrained(options.save)
    show(rows)
    print(draw(rows, results.picture()))
    print_goals(NANOGPT.judge(rows))


def measure(bench: Bench, results: Benchmark, used: dict[str, Any], kinds: Sequence[str] | None) -> list[Row]:
    """All rows, those of an earlier run included."""
    rows = results.load(used)
    for cell in cells(bench.size, SEEDS):
        wanted = kinds is None or cell.kind.split()[0] in (FULL, *kinds)
        if not wanted or any(cell._asdict().items() <= row.items() for row in rows):
            continue
        rows.append(bench.row(cell))
        print(
            "{kind} {family} {bits} {group} seed {seed}: {loss:.4f} in {processor_seconds:.0f} s".format(**rows[-1]),
            flush=True,
        )
        results.write(used, rows)
    return rows


if __name__ == "__main__":
    main()
