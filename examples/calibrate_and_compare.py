"""Compare rounding to nearest with calibrated quantization, at 4 and at 3 bits.

    python examples/calibrate_and_compare.py                      calibrates on text that the model writes itself
    python examples/calibrate_and_compare.py --calibration a.txt  calibrates on a text file

For real comparisons use `potq compare`: it takes more text, and gives an interval for every difference.
"""

from __future__ import annotations

import argparse
import copy

import potq
from potq.data.text import read_text
from potq.data.tokens import tokenize
from potq.evaluate.perplexity import perplexity

WINDOW = 128  # tokens at a time; short, so that this takes minutes on a laptop


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="smollm2", help="a folder, a .gguf file, a hub name, or smollm2")
    parser.add_argument("--calibration", default="self", help="a text file, a dataset, or self: the model writes it")
    options = parser.parse_args()

    model = potq.load(options.model)
    tokenizer = potq.load_tokenizer(options.model)

    # Perplexity is measured on text that is in every Python installation: the help topics of CPython.
    text = tokenize(tokenizer, read_text("pydoc"))
    full = perplexity(model, text, window=WINDOW, max_windows=8)
    print(f"full precision: perplexity {full.perplexity:.2f}")

    # Calibration text shows which inputs each layer gets, and so which errors matter. A list of tensors (1, WINDOW).
    calibration = potq.load_calibration(options.calibration, model, tokenizer, window=WINDOW, windows=8)

    for preset in ("apot4", "pot3"):
        # "fast" rounds each weight to the nearest level. "balanced" runs GPTQ and then refines codes and scales together.
        for effort in ("fast", "balanced"):
            # Embedding and head stay in full precision here, so that only the linears are compared.
            config = potq.PoTConfig(preset, effort=effort, embedding="none")
            packed = copy.deepcopy(model)
            report = potq.quantize(packed, config, None if effort == "fast" else calibration)
            measured = perplexity(packed, text, window=WINDOW, max_windows=8)
            bits = f"{report.quantized_bits_per_weight:.2f} bits per quantized weight"
            print(f"{preset}, {effort}: {bits}, perplexity {measured.perplexity:.2f}")


if __name__ == "__main__":
    main()
