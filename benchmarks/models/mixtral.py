"""A small Mixtral on Shakespeare's characters, trained here and quantized: ``python -m benchmarks.models.mixtral``.

Four layers of eight experts, two to a token, 2.7 million weights. It is trained in full precision on the first 90 % of tiny
Shakespeare, as ``qat/nanogpt.py`` trains its GPT-2, and judged by the rest: perplexity a character. Linears and experts are
quantized, embedding, head and routers stay in full precision, and activations are exact. ``--data`` (or the environment
variable POTQ_DATA) is a folder with ``tinyshakespeare/input.txt``. The model is kept in ``--work``, rows as they come; a
killed run goes on.
"""

from __future__ import annotations

import argparse
import math
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import MixtralConfig, MixtralForCausalLM

import potq
from benchmarks.common.goals import Row, print_goals
from benchmarks.models.check import expert_modules, expert_share, quantized_weights
from benchmarks.models.goals import EFFORTS, FULL, MIXTRAL, SCHEMES
from benchmarks.qat.loop import Run, Training, mean_loss
from benchmarks.qat.nanogpt import Text
from potq.config import EFFORTS as SETTINGS
from potq.kernels import set_activations

SEED, WINDOW, WINDOWS, KEPT = 0, 128, 128, 250
TRAINING = Training(steps=2500, batch=16, length=WINDOW, rate=3e-3, least_rate=3e-4, warmup=100)
SIZES = {
    **{"hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 4, "num_attention_heads": 4},
    **{"num_key_value_heads": 2, "num_local_experts": 8, "num_experts_per_tok": 2, "max_position_embeddings": 2 * WINDOW},
}
PROTOCOL = {
    "model": {"class": "MixtralForCausalLM", **SIZES},
    "training": {**asdict(TRAINING), "seed": SEED, "loss": "of the next character; none for the balance of experts"},
    "text": "tiny Shakespeare in characters: 90 % for training, the rest is judged",
    "perplexity": f"exp(nats a character), all windows of {WINDOW} characters of the rest",
    "calibration": f"{WINDOWS} random windows of {WINDOW} characters of the training text",
    "quantized": "linears and experts; embedding, head and routers in full precision; activations exact",
    "efforts": {name: SETTINGS[name].model_dump(mode="json") for name in EFFORTS},
}


def trained(text: Text, work: Path) -> Path:
    """The folder of the trained model; training goes on where it was stopped."""
    folder, state = work / "mixtral", work / "training.pt"
    if folder.exists():
        return folder
    run = Run(_model(text), text.train, TRAINING, SEED)
    if state.exists():
        run.load(state)
    while run.step < TRAINING.steps:
        run.until(min(run.step + KEPT, TRAINING.steps), lambda said: print(said, flush=True))
        run.save(state)
    text.tokenizer().save_pretrained(work / "partial")
    run.model.save_pretrained(work / "partial")
    (work / "partial").rename(folder)
    return folder


def _model(text: Text) -> Any:
    torch.manual_seed(SEED)
    special = {"bos_token_id": None, "eos_token_id": None}
    return MixtralForCausalLM(MixtralConfig(vocab_size=len(text.characters), **SIZES, **special))


def batches(text: Text) -> list[Tensor]:
    """Windows of the training text, int64 ``(1, 128)``."""
    generator = torch.Generator().manual_seed(SEED)
    starts = torch.randint(len(text.train) - WINDOW, (WINDOWS,), generator=generator)
    return [text.train[start : start + WINDOW][None] for start in starts]


def row(folder: Path, text: Text, scheme: str, effort: str) -> Row:
    """Perplexity of the model in ``scheme``, and what became of its experts."""
    model = potq.load(folder)
    facts: Row = {"scheme": scheme, "effort": effort}
    if scheme != FULL:
        full, chosen = potq.load(folder), SETTINGS[effort]
        config = potq.PoTConfig(scheme, effort=chosen, embedding=None)
        report = potq.quantize(model, config, batches(text) if chosen.calibrated else None, seed=SEED)
        set_activations(model, "float")
        facts |= {
            "bits_per_weight": report.bits_per_weight,
            "quantized_bits_per_weight": report.quantized_bits_per_weight,
            "quantized": quantized_weights(report) / sum(parameter.numel() for parameter in full.parameters()),
            "experts": expert_share(full, report, list(expert_modules(full))),
            "algorithms": sorted({module.algorithm for module in report.modules}),
        }
    nats = mean_loss(model, text.validation, WINDOW)
    return facts | {"nats": nats, "perplexity": math.exp(nats)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("POTQ_DATA"), help="folder of texts")
    parser.add_argument("--work", type=Path, default=Path("build/mixtral"), help="folder for the trained model")
    parser.add_argument("--train", action="store_true", help="train, and measure nothing")
    options = parser.parse_args()
    if options.data is None:
        parser.error("give --data DIR or set POTQ_DATA")
    options.work.mkdir(parents=True, exist_ok=True)
    text = Text.read(Path(options.data) / "tinyshakespeare" / "input.txt")
    folder = trained(text, options.work)
    if options.train:
        return
    rows = MIXTRAL.load(PROTOCOL)
    for scheme, effort in [(FULL, "-"), *((scheme, effort) for scheme in SCHEMES for effort in EFFORTS)]:
        if not any((row["scheme"], row["effort"]) == (scheme, effort) for row in rows):
            rows.append(row(folder, text, scheme, effort))
            print(rows[-1], flush=True)
            MIXTRAL.write(PROTOCOL, rows)
    print_goals(MIXTRAL.write(PROTOCOL, rows))


if __name__ == "__main__":
    main()
