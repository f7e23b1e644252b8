"""Perplexity of the integer model beside the packed model's: ``python -m benchmarks.hardware.integer_model [--data DIR]``.

Both read the same windows. The packed model computes in float32 with float inputs of products, so the ratio is what integers
cost. TinyStories-656K: ``WINDOWS`` windows of 512 of stories that each begin with their start token; SmolLM2-135M: windows
of 512 of WikiText-2's test set. Embedding and head are int8 in groups of 64, unless the scheme is everywhere. Every row is
kept as it comes.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import potq
from benchmarks.common.goals import Row, print_goals
from benchmarks.hardware.core_goals import EVERYWHERE, MODEL, MODEL_SCHEMES
from benchmarks.ptq.settings import Setting, settings
from potq.evaluate.perplexity import perplexity
from potq.export.c import CExport
from potq.hardware import IntegerModel
from potq.kernels import set_activations

WINDOW = 512
WINDOWS = {"tinystories": 16, "smollm2": 4}
PROTOCOL = {
    "perplexity": "GPTQ protocol, non-overlapping windows of 512 tokens",
    "windows": WINDOWS,
    "quantization": "round to nearest; embedding and head int8 in groups of 64, or the scheme everywhere",
    "packed": "float32, inputs of products not rounded",
}


def measure(setting: Setting, scheme: str, windows: int, *, program: bool) -> Row:
    """Both perplexities, and what the program takes."""
    name = scheme.removesuffix(EVERYWHERE)
    config = potq.PoTConfig(name, embedding="int8" if name == scheme else name)
    model = potq.load(setting.source, config, dtype="float32")
    set_activations(model, "float")
    tokens = setting.tokens()[: WINDOW * windows]
    packed = perplexity(model, tokens, window=WINDOW).perplexity
    integer = IntegerModel.from_packed(model, context=WINDOW).perplexity(tokens, window=WINDOW).perplexity
    row: Row = {"model": setting.model, "scheme": scheme, "packed": packed, "integer": integer}
    if program:  # of a model that a microcontroller could hold
        export = CExport(model, potq.load_tokenizer(setting.source), core="rv32i", context=WINDOW).report
        row |= {"flash": export.flash, "ram": export.ram}
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("POTQ_DATA"), help="folder of texts and models")
    data = parser.parse_args().data
    if data is None:
        parser.error("give --data DIR or set POTQ_DATA")
    found = settings(data)
    rows = MODEL.load(PROTOCOL)
    for key, windows in WINDOWS.items():
        for scheme in MODEL_SCHEMES[found[key].model]:
            if any((row["model"], row["scheme"]) == (found[key].model, scheme) for row in rows):
                continue
            rows.append(measure(found[key], scheme, windows, program=key == "tinystories"))
            print(rows[-1], flush=True)
            MODEL.write(PROTOCOL, rows)
    print_goals(MODEL.judge(rows))


if __name__ == "__main__":
    main()
