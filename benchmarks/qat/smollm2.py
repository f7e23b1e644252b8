"""Quantization-aware training of SmolLM2-135M on WikiText-2: what a quarter of a million tokens bring back.

``python -m benchmarks.qat.smollm2 [--data DIR] [--work DIR] [--scheme pot4] [--encoder DIR [--layer N] [--prompts N]]``.
The model is quantized by the best post-training effort, then trained on at most 250,000 tokens of WikiText-2's training
text, distilled from full precision; beside it the control: full precision trained on the next tokens of the same text, and
the quantized model trained so too, or distilled from the control, or on a little text that full precision wrote. All goes
through ``potq train``'s own code with checkpoints in ``--work``: a killed run resumes. A run with another encoder, or with
more prompts, adds its BERTScore to the rows that are there.
"""

from __future__ import annotations

import argparse
import os
import time
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import potq
from benchmarks.common.results import Goal, Row, at_least, load_rows, print_goals, write_results
from benchmarks.ptq.settings import Setting, measure, settings
from potq.evaluate.bertscore import continuation_score
from potq.evaluate.bootstrap import middle, resampled
from potq.evaluate.continuations import continuations, prompts_of
from potq.evaluate.encoder import Encoder, load_encoder
from potq.kernels import set_activations
from potq.qat import QATSettings
from potq.qat.recipe import DataRecipe, LossRecipe, OptimizationRecipe, TrainRecipe
from potq.qat.train import TrainingRun

NAME = "qat_smollm2"
TOKENS, LENGTH = 250_000, 512
DISTILLED, ON_DATA, TUNED = "distillation", "next_token", "tuned_teacher"  # the last distilled from the control
FREE, WRITTEN = "free", 32_768  # distilled without data; tokens that full precision writes
FULL, PROMPTS = "none", 100
TRAINING = {"batch": 2, "learning_rate": 4e-4, "scale_rate": 3e-4, "save_every": 40, "dtype": "bfloat16"}
TARGETS = {"pot4": 0.9, "pot3": 0.85, "pot2": 0.8}
PROTOCOL = {
    "perplexity": "GPTQ protocol: WikiText-2 test, the first 40 windows of 1024 tokens",
    "weights": "linears in groups of 64; embedding and head in full precision; activations never rounded",
    "training": {
        **TRAINING,
        "scales": "learned",
        "tokens": TOKENS,
        "length": LENGTH,
        "text": "WikiText-2 train, from its beginning",
    },
    "start": "effort best, 64 windows of 512 tokens of WikiText-2 train",
    "bertscore": f"{PROMPTS} prompts, or as many as said, of 64 tokens of WikiText-2 test; greedy continuations of up to 64",
    "gap closed": "(rounded to nearest - trained) / (rounded to nearest - full precision)",
}


def recipe(setting: Setting, scheme: str, step: str, work: Path) -> TrainRecipe:
    free = step == FREE
    data = DataRecipe(text="self" if free else str(setting.calibration), tokens=WRITTEN if free else TOKENS, length=LENGTH)
    start = None if scheme == FULL else str(work / f"{scheme}-best")
    loss = ON_DATA if step == ON_DATA else DISTILLED
    return TrainRecipe(
        model=setting.source,
        output=work / f"{scheme}-{step}",
        start=start,
        teacher=str(work / f"{FULL}-{ON_DATA}") if step == TUNED else None,
        quantization={"preset": FULL} if scheme == FULL else {},
        qat=QATSettings(scales="learned"),
        data=data,
        loss=LossRecipe.model_validate({DISTILLED: 0.0, loss: 1.0}),
        optimization=OptimizationRecipe.model_validate(TRAINING),
        force=True,
    )


def quantized(setting: Setting, scheme: str, effort: str, work: Path) -> Any:
    """By post-training quantization; the result of ``best`` is kept in ``work``."""
    folder = work / f"{scheme}-{effort}"
    if folder.exists():
        return potq.load(folder)
    model = potq.load(setting.source)
    config = potq.PoTConfig(scheme, effort=effort, embedding=None)
    potq.quantize(model, config, setting.batches() if effort != "fast" else None, work_folder=folder.with_suffix(".work"))
    potq.save(model, folder, potq.load_tokenizer(setting.source))
    return model


def trained(setting: Setting, scheme: str, step: str, work: Path) -> Any:
    wanted = recipe(setting, scheme, step, work)
    if not wanted.output.exists():
        run = TrainingRun.load(wanted)
        run.read()
        run.fit(
            lambda done, steps, losses: print(f"\r{scheme} {step}: step {done} of {steps}, {losses}", end="", flush=True)
        )
        run.finish()
    return potq.load(wanted.output)


def cells(schemes: list[str]) -> list[tuple[str, str]]:
    """Scheme, and what was done: an effort of post-training quantization, or a kind of training."""
    distilled = [(scheme, step) for scheme in schemes for step in ("fast", "best", DISTILLED)]
    others = [(scheme, step) for step in (ON_DATA, FREE, TUNED) for scheme in schemes]
    return [(FULL, "-"), *distilled, (FULL, ON_DATA), *others]


def made(setting: Setting, scheme: str, step: str, work: Path) -> Any:
    """The model of a row, with exact activations."""
    if step == "-":
        return potq.load(setting.source)
    if step in ("fast", "best"):
        model = quantized(setting, scheme, step, work)
    else:
        if scheme != FULL:
            quantized(setting, scheme, "best", work)
        model = trained(setting, scheme, step, work)
    if scheme != FULL:
        set_activations(model, "float")
    return model


def row(setting: Setting, scheme: str, step: str, work: Path) -> Row:
    began = time.perf_counter()
    found = measure(setting, made(setting, scheme, step, work)).to_dict()
    return {**found, "scheme": scheme, "step": step, "seconds": time.perf_counter() - began, "bertscores": {}}


class Judge:
    """Scores greedy continuations against the true ones, and against those of full precision."""

    def __init__(self, encoder: Encoder, setting: Setting, prompts: int) -> None:
        self._encoder, self._source, self._tokenizer = encoder, setting.source, potq.load_tokenizer(setting.source)
        self._prompts = prompts_of(setting.tokens(whole=True), prompts)
        more = f", {prompts} prompts" if prompts != PROMPTS else ""
        self.name = f"{Path(encoder.name).name}, layer {encoder.layer}{more}"

    @cached_property
    def _full(self) -> list[Tensor]:
        """What full precision writes."""
        return continuations(potq.load(self._source), self._prompts.prompts, batch=PROMPTS)

    def score(self, model: Any) -> dict[str, Any]:
        found = continuation_score(model, self._tokenizer, self._prompts, self._encoder, reference=self._full, batch=PROMPTS)
        return {**found.to_dict(), "encoder": Path(found.encoder).name}


def goals(rows: list[Row]) -> list[Goal]:
    found: list[Goal] = []
    values = {(row["scheme"], row["step"]): row["perplexity"] for row in rows}
    exact = values.get((FULL, "-"))
    for scheme, target in TARGETS.items():
        rounded, best, distilled = (values.get((scheme, step)) for step in ("fast", "best", DISTILLED))
        closed = left = None
        if exact and rounded and best and distilled:
            closed = (rounded - distilled) / (rounded - exact)
            left = (best - distilled) / (best - exact)
        found.append(at_least(f"gap between rounding to nearest and full precision closed, {scheme}", target, closed))
        found.append(at_least(f"of what the best post-training quantization left, closed, {scheme}", 0.5, left))
    for judge in dict.fromkeys(name for row in rows for name in row["bertscores"]):
        scores = {(row["scheme"], row["step"]): row["bertscores"][judge] for row in rows if judge in row["bertscores"]}
        pairs = [((scheme, step), (FULL, base)) for scheme in TARGETS for step, base in SCORED]
        found += [_score_goal(scores, judge, *pair) for pair in pairs if scores.keys() >= {*pair}]
    return found


SCORED = ((DISTILLED, "-"), (ON_DATA, "-"), (TUNED, "-"), (ON_DATA, ON_DATA), (TUNED, ON_DATA))
"""How the model was trained (PoT-QAT: on next tokens), and the full-precision one whose score it is divided by."""


def _score_goal(scores: dict[tuple[str, str], Any], judge: str, trained: tuple[str, str], base: tuple[str, str]) -> Goal:
    control = "" if base[1] == "-" else f" after {base[1]}"
    name = f"BERTScore ({judge}) with the true continuations, {' after '.join(trained)} / full precision{control}"
    each = torch.tensor([scores[cell]["model_true"]["each"] for cell in (trained, base)], dtype=torch.float64)
    own, full = resampled(each, each.shape[1]).log()  # means over the drawn prompts
    goal = at_least(name, 0.99, float(each[0].mean() / each[1].mean()))
    goal["interval"] = list(middle(own / full))
    return goal


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("POTQ_DATA"), help="folder of texts and models")
    parser.add_argument("--work", type=Path, default=Path("qat-smollm2"), help="folder for checkpoints")
    parser.add_argument("--scheme", choices=tuple(TARGETS), action="append", help="default: pot4")
    parser.add_argument("--encoder", help="folder or hub name of an encoder for BERTScore; without it there is none")
    parser.add_argument("--layer", type=int, help="of the encoder, from 1; default: what bert-score uses, or the last")
    parser.add_argument("--prompts", type=int, default=PROMPTS, help="for BERTScore; more than %(default)s tell more")
    options = parser.parse_args()
    if options.data is None:
        parser.error("give --data DIR or set POTQ_DATA")
    setting = settings(options.data)["smollm2"]
    rows = load_rows(NAME, PROTOCOL)
    done = {(row["scheme"], row["step"]) for row in rows}
    for scheme, step in cells(options.scheme or ["pot4"]):
        if (scheme, step) not in done:
            rows.append(row(setting, scheme, step, options.work))
            print(f"\r{scheme} {step}: {rows[-1]['perplexity']:.3f} in {rows[-1]['seconds']:.0f} s", flush=True)
            write_results(NAME, PROTOCOL, rows, goals(rows))
    if options.encoder is not None:
        judge = Judge(load_encoder(options.encoder, options.layer), setting, options.prompts)
        for each in rows:
            if judge.name not in each["bertscores"]:
                model = made(setting, each["scheme"], each["step"], options.work)
                each["bertscores"][judge.name] = judge.score(model)
                print(f"{each['scheme']} {each['step']}: scored by {judge.name}", flush=True)
                write_results(NAME, PROTOCOL, rows, goals(rows))
    print_goals(goals(rows))


if __name__ == "__main__":
    main()
