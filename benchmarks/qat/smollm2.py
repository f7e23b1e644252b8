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
from contextlib import nullcontext
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from torch import Tensor

import potq
from benchmarks.common.goals import Row, print_goals
from benchmarks.common.results import summary
from benchmarks.ptq.settings import Setting, measure, settings
from benchmarks.qat.goals import CLOSED, DISTILLED, NONE, ON_DATA, SMOLLM2, TUNED
from potq.evaluate.bertscore import continuation_score
from potq.evaluate.continuations import continuations, prompts_of
from potq.evaluate.encoder import Encoder, load_encoder
from potq.kernels import set_activations
from potq.qat import QATSettings
from potq.qat.recipe import DataRecipe, LossRecipe, OptimizationRecipe, TrainRecipe
from potq.qat.run import train

TOKENS, LENGTH = 250_000, 512
FREE, WRITTEN = "free", 32_768  # distilled without data; tokens that full precision writes
PROMPTS = 100
TRAINING = {"batch": 2, "learning_rate": 4e-4, "scale_rate": 3e-4, "save_every": 40, "dtype": "bfloat16"}
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
    start = None if scheme == NONE else str(work / f"{scheme}-best")
    loss = ON_DATA if step == ON_DATA else DISTILLED
    return TrainRecipe(
        model=setting.source,
        output=work / f"{scheme}-{step}",
        start=start,
        teacher=str(work / f"{NONE}-{ON_DATA}") if step == TUNED else None,
        quantization={"preset": NONE} if scheme == NONE else {},
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
        train(wanted, stages=lambda stage: nullcontext(partial(_tell, f"{scheme} {step}: {stage}")))
    return potq.load(wanted.output)


def _tell(what: str, done: int, steps: int, losses: str) -> None:
    print(f"\r{what}: step {done} of {steps}, {losses}", end="", flush=True)


def cells(schemes: list[str]) -> list[tuple[str, str]]:
    """Scheme, and what was done: an effort of post-training quantization, or a kind of training."""
    distilled = [(scheme, step) for scheme in schemes for step in ("fast", "best", DISTILLED)]
    others = [(scheme, step) for step in (ON_DATA, FREE, TUNED) for scheme in schemes]
    return [(NONE, "-"), *distilled, (NONE, ON_DATA), *others]


def made(setting: Setting, scheme: str, step: str, work: Path) -> Any:
    """The model of a row, with exact activations."""
    if step == "-":
        return potq.load(setting.source)
    if step in ("fast", "best"):
        model = quantized(setting, scheme, step, work)
    else:
        if scheme != NONE:
            quantized(setting, scheme, "best", work)
        model = trained(setting, scheme, step, work)
    if scheme != NONE:
        set_activations(model, "float")
    return model


def row(setting: Setting, scheme: str, step: str, work: Path) -> Row:
    began = time.perf_counter()
    found = summary(measure(setting, made(setting, scheme, step, work)))
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
        scores = {**found.to_dict(), "encoder": Path(found.encoder).name}
        for kind in ("reference_true", "model_reference"):
            del scores[kind]["each"]  # intervals are computed of the others
        return scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("POTQ_DATA"), help="folder of texts and models")
    parser.add_argument("--work", type=Path, default=Path("qat-smollm2"), help="folder for checkpoints")
    parser.add_argument("--scheme", choices=tuple(CLOSED), action="append", help="default: pot4")
    parser.add_argument("--encoder", help="folder or hub name of an encoder for BERTScore; without it there is none")
    parser.add_argument("--layer", type=int, help="of the encoder, from 1; default: what bert-score uses, or the last")
    parser.add_argument("--prompts", type=int, default=PROMPTS, help="for BERTScore; more than %(default)s tell more")
    options = parser.parse_args()
    if options.data is None:
        parser.error("give --data DIR or set POTQ_DATA")
    setting = settings(options.data)["smollm2"]
    rows = SMOLLM2.load(PROTOCOL)
    done = {(row["scheme"], row["step"]) for row in rows}
    for scheme, step in cells(options.scheme or ["pot4"]):
        if (scheme, step) not in done:
            rows.append(row(setting, scheme, step, options.work))
            print(f"\r{scheme} {step}: {rows[-1]['perplexity']:.3f} in {rows[-1]['seconds']:.0f} s", flush=True)
            SMOLLM2.write(PROTOCOL, rows)
    if options.encoder is not None:
        judge = Judge(load_encoder(options.encoder, options.layer), setting, options.prompts)
        for each in rows:
            if judge.name not in each["bertscores"]:
                model = made(setting, each["scheme"], each["step"], options.work)
                each["bertscores"][judge.name] = judge.score(model)
                print(f"{each['scheme']} {each['step']}: scored by {judge.name}", flush=True)
                SMOLLM2.write(PROTOCOL, rows)
    print_goals(SMOLLM2.judge(rows))


if __name__ == "__main__":
    main()
