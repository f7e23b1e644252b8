"""The models, texts and formats that ``ptq/table.py`` and ``ptq/ablation.py`` share.

Stories are tokenized one by one, each with the start token that the model was trained with, and joined; the last 40 windows
of 512 tokens are for evaluation, windows for calibration are drawn from what stands before them. SmolLM2 is evaluated on the
first 40 windows of 1024 tokens of WikiText-2's test set and calibrated on its training set: calibration and test are of one
kind, as everywhere in the literature.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import potq
from benchmarks.common.goals import Row
from benchmarks.peers.ptq import asymmetric
from potq.config import Effort, effort_by_name
from potq.data.text import read_documents
from potq.data.tokens import calibration_windows, tokenize
from potq.evaluate.divergence import kl_divergence
from potq.evaluate.perplexity import Perplexity, perplexity
from potq.kernels import set_activations
from potq.nn.plan import plan
from potq.numerics.grid import E2M1, additive
from potq.ptq.sequential import SequentialCalibration

WINDOWS = 40
SEED = 0
FULL = "full precision"  # the scheme of a row that nothing was quantized for

SCHEMES = {
    **{name: potq.PRESETS[name] for name in ("pot2", "pot2z", "int2", "int2_midrise")},
    **{name: potq.PRESETS[name] for name in ("pot3", "pot3nz", "pot3s", "apot3", "apot3s", "int3", "int3_midrise")},
    **{name: potq.PRESETS[name] for name in ("pot4", "apot4", "int4", "int4_midrise", "nf4")},
    **{name: potq.QuantScheme(name) for name in ("pot2t", "int2t", "apot3t")},
    "int3 signed": potq.QuantScheme("int3", signed_scale=True),
    "pot2 {1,2}": potq.QuantScheme(grid=additive((1, 2))),
    "2-term {1,3,5,9}": potq.QuantScheme(grid=additive((1, 3, 5, 9))),
    "2-term {3,9,16,24}": potq.QuantScheme(grid=additive((3, 9, 16, 24))),
    "2-term {1,2,3,5,7,9,12,16}": potq.QuantScheme(grid=additive((1, 2, 3, 5, 7, 9, 12, 16))),
    "2-term {3,8,14,20,28,36,48,63}": potq.QuantScheme(grid=additive((3, 8, 14, 20, 28, 36, 48, 63))),
    "e2m1": potq.QuantScheme(grid=E2M1),
    **{
        f"{name} g32{suffix}": potq.QuantScheme(name, group_size=32, **options)
        for name in ("pot4", "apot4")
        for suffix, options in (
            ("", {}),
            (" e8m0", {"scale_dtype": "e8m0"}),
            (" e8m0 + row", {"scale_dtype": "e8m0", "row_scale": True}),
        )
    },
}
ASYMMETRIC = {f"int{bits}_asym": bits for bits in (2, 3, 4)}
INTEGERS: dict[int, tuple[str, ...]] = {bits: (f"int{bits}", f"int{bits}_midrise", f"int{bits}_asym") for bits in (2, 3, 4)}
INTEGERS[3] += ("int3 signed",)  # as our tables of 3 bits
# a ternary grid is an integer grid, so pot2z counts as neither
PURE = {2: ("pot2", "pot2 {1,2}"), 3: ("pot3", "pot3nz", "pot3s"), 4: ("pot4",)}
TWO_TERM = {
    3: ("apot3", "apot3s", "2-term {1,3,5,9}", "2-term {3,9,16,24}"),
    4: ("apot4", "2-term {1,2,3,5,7,9,12,16}", "2-term {3,8,14,20,28,36,48,63}"),
}


ABSMAX = " absmax"  # ends the name of a scheme that is measured with the scales of its groups' largest weights too


@dataclass(frozen=True)
class Setting:
    """One model on one text."""

    model: str
    source: str
    text: Path
    calibration: Path
    window: int
    windows: int
    """Of 512 tokens, for calibration."""
    seed: int = SEED
    """Of the draw of these windows, and of everything random afterwards."""

    @cache  # noqa: B019  # a script's two settings live as long as it does
    def tokens(self, whole: bool = False) -> Tensor:
        """The text that is evaluated: ``WINDOWS * window`` tokens, or the ``whole`` of WikiText-2's test set."""
        tokenizer = potq.load_tokenizer(self.source)
        if self.text != self.calibration:
            tokens = tokenize(tokenizer, self.text.read_text(encoding="utf-8"))
            return tokens if whole else tokens[: WINDOWS * self.window]
        return self.stories()[-WINDOWS * self.window :]

    @cache  # noqa: B019
    def validation(self, windows: int) -> Tensor:
        """As many tokens as these ``windows`` have of text to choose settings by: what :meth:`tokens` never has."""
        count = windows * self.window
        if self.text != self.calibration:
            text = (self.text.parent / "wiki.valid.raw").read_text(encoding="utf-8")
            return tokenize(potq.load_tokenizer(self.source), text)[:count]
        return self.stories()[: -WINDOWS * self.window][-count:]

    @cache  # noqa: B019
    def reference(self) -> Any:
        """The model in full precision."""
        return potq.load(self.source)

    @cache  # noqa: B019
    def batches(self) -> list[Tensor]:
        """Calibration windows ``(1, 512)``."""
        tokenizer = potq.load_tokenizer(self.source)
        if self.text != self.calibration:
            documents = read_documents(str(self.calibration))
            return list(calibration_windows(tokenizer, documents, window=512, windows=self.windows, seed=self.seed).split(1))
        rest = self.stories()[: -WINDOWS * self.window]
        whole = rest[: len(rest) // 512 * 512].view(-1, 512)
        order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(self.seed))
        return list(whole[order[: self.windows]].split(1))

    def stories(self) -> Tensor:
        tokenizer = potq.load_tokenizer(self.source)
        stories = [story.strip() for story in read_documents(str(self.text))]
        return torch.cat([tokenize(tokenizer, story) for story in stories if story])


def settings(data: Path) -> dict[str, Setting]:
    stories = data / "tinystories" / "tinystories_sample_2MiB.txt"
    train = next(iter(sorted((data / "wikitext2").glob("*train*"))), data / "wikitext2" / "train")
    test = data / "wikitext2" / "hf_joined_test.txt"
    return {
        "tinystories": Setting("TinyStories-656K", str(data / "tinystories-656k"), stories, stories, 512, 128),
        "smollm2": Setting("SmolLM2-135M", "smollm2", test, train, 1024, 64),
    }


def chosen(description: str | None) -> Setting:
    """The setting that the command line names, by ``--data`` and ``--model``; ``description`` is the script's."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("POTQ_DATA"), help="folder of texts and models")
    parser.add_argument("--model", choices=("tinystories", "smollm2"), default="tinystories")
    options = parser.parse_args()
    if options.data is None:
        parser.error("give --data DIR or set POTQ_DATA")
    return settings(Path(options.data))[options.model]


def quantized(setting: Setting, scheme: str, effort: str | Effort, work: Path | None = None) -> tuple[Any, float]:
    """The model with its linears in ``scheme``, and their bits per weight; embedding and head stay in full precision.

    With a ``work`` folder a killed run goes on where it stopped, and a finished one is loaded (not asymmetric ones).
    """
    chosen = effort_by_name(effort) if isinstance(effort, str) else effort
    folder = None if work is None else work / re.sub(r"\W+", "-", f"{setting.model} {scheme} {effort}").strip("-")
    if folder is not None and (folder / "model").is_dir():
        model = potq.load(folder / "model", dtype="float32")
        set_activations(model, "float")
        return model, model.quant_report.quantized_bits_per_weight
    model = potq.load(setting.source)
    batches = setting.batches() if chosen.calibrated else None
    if scheme in ASYMMETRIC:
        return model, _asymmetric(model, ASYMMETRIC[scheme], chosen, setting)
    method = "absmax" if scheme.endswith(ABSMAX) else "mse"
    config = potq.PoTConfig(scheme=SCHEMES[scheme.removesuffix(ABSMAX)], effort=chosen, scale_method=method, embedding=None)
    report = potq.quantize(model, config, batches, seed=setting.seed, work_folder=folder and folder / "blocks")
    if folder is not None:
        potq.save(model, folder / "model")
        shutil.rmtree(folder / "blocks", ignore_errors=True)
    set_activations(model, "float")  # what the weights cost, and nothing else
    return model, report.quantized_bits_per_weight


def full_precision(rows: Iterable[Row], model: str) -> Row:
    """The row that the others of ``model`` are compared with."""
    return next(row for row in rows if row["model"] == model and row["scheme"] == FULL)


def measure(setting: Setting, model: Any, *, whole: bool = False) -> Perplexity:
    return perplexity(model, setting.tokens(whole), window=setting.window)


def figures(setting: Setting, model: Any, tokens: Tensor) -> Row:
    """Perplexity, and the divergence from full precision's predictions on the same windows."""
    apart = kl_divergence(model, setting.reference(), tokens, window=setting.window)
    kept = {name: getattr(apart, name) for name in ("mean", "percentile_99", "top1_agreement")}
    return {**perplexity(model, tokens, window=setting.window).to_dict(), "divergence": kept}


def _asymmetric(model: Any, bits: int, effort: Effort, setting: Setting) -> float:
    """Asymmetric integers leave float weights that lie on their grid."""
    config = potq.PoTConfig(f"int{bits}", embedding=None)
    targets = plan(model, config).targets
    rounding: Any = asymmetric.AsymmetricRounding.of  # its weights are no QuantizedWeight: all that is used is dequantize()
    walk = SequentialCalibration(model, targets, effort, setting.batches(), seed=setting.seed, rounding=rounding)
    layers = walk.run()
    for target in targets:
        model.get_submodule(target.name).weight.data = layers[target.name].weight.dequantize()
    return asymmetric.bits_per_weight(bits, config.scheme.group(64))
