"""Write a packed model as a GGUF file for llama.cpp, and check that every weight is the same there.

    python examples/export.py
    python examples/export.py path/to/model --output model.gguf

llama.cpp knows some block types. Each holds some of potq's schemes exactly, and `potq export --list` prints which. "mxpot"
is a grid of powers of two that MXFP4 blocks hold in the same 4.25 bits per weight.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import gguf
import torch

import potq
from potq.export.gguf.write import export_gguf


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="smollm2", help="a folder, a .gguf file, a hub name, or smollm2")
    parser.add_argument("--output", type=Path, default=Path("mxpot.gguf"), help="the GGUF file")
    options = parser.parse_args()

    tokenizer = potq.load_tokenizer(options.model)
    model = potq.load(options.model, potq.PoTConfig("mxpot"))

    # A scheme that no block type holds exactly is refused; the error names the nearest scheme that fits.
    report = export_gguf(model, options.output, tokenizer, force=True)
    print(f"exported: {report.summary()}")
    for scheme in sorted({tensor.scheme or "not quantized" for tensor in report.tensors}):
        kinds = [tensor.type for tensor in report.tensors if (tensor.scheme or "not quantized") == scheme]
        print(f"{scheme}: {len(kinds)} tensors as {', '.join(sorted(set(kinds)))}")

    # Read the file back with llama.cpp's own Python package, and compare a weight with potq's.
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(options.output).tensors}["blk.0.ffn_down.weight"]
    in_file = torch.from_numpy(gguf.quants.dequantize(stored.data, stored.tensor_type))
    in_potq = model.get_submodule("model.layers.0.mlp.down_proj").weight
    print(f"a weight of the file equals potq's: {torch.equal(in_file, in_potq.to(torch.float32))}")


if __name__ == "__main__":
    main()
