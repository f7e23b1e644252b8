"""Quantization-aware training in a loop of your own: prepare, train, convert, save.

    python examples/train.py
    python examples/train.py path/to/model --output out --steps 100

The 3-bit model learns to predict what the full-precision model predicts (distillation). For whole runs use `potq train`: a
recipe, checkpoints that go on after a kill, several GPUs.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch.nn import functional

import potq
from potq.data.text import read_text
from potq.data.tokens import tokenize
from potq.evaluate.perplexity import perplexity

WINDOW = 128  # tokens of a step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="smollm2", help="a folder, a .gguf file, a hub name, or smollm2")
    parser.add_argument("--output", type=Path, default=Path("trained"), help="folder of the packed checkpoint")
    parser.add_argument("--steps", type=int, default=24)
    options = parser.parse_args()

    tokenizer = potq.load_tokenizer(options.model)
    teacher = potq.load(options.model, dtype="float32").requires_grad_(False)
    student = potq.load(options.model, dtype="float32")
    text = tokenize(tokenizer, read_text("pydoc"))
    held_out, training = text[: 8 * WINDOW], text[8 * WINDOW :]
    print(f"full precision: perplexity {perplexity(teacher, held_out, window=WINDOW).perplexity:.2f}")

    # From here on the student computes with rounded weights. Its parameters stay floats, and those are what trains.
    potq.qat.prepare(student, potq.PoTConfig("pot3"))
    print(f"pot3, rounded to nearest: perplexity {perplexity(student, held_out, window=WINDOW).perplexity:.2f}")

    optimizer = torch.optim.AdamW(student.parameters(), lr=2e-4, weight_decay=0.0)
    student.train()
    for step in range(options.steps):
        if step == options.steps // 2:
            potq.qat.refresh_scales(student)  # weights have moved: search their scales anew
        ids = training[step * WINDOW : (step + 1) * WINDOW][None]
        with torch.no_grad():
            wanted = teacher(ids).logits[0].log_softmax(-1)
        found = student(ids).logits[0].log_softmax(-1)
        loss = functional.kl_div(found, wanted, log_target=True, reduction="batchmean")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    student.eval()

    # The packed model has the weights that the student computed with.
    potq.qat.convert(student)
    potq.save(student, options.output, tokenizer, force=True)
    packed = potq.load(options.output)
    trained = perplexity(packed, held_out, window=WINDOW).perplexity
    print(f"pot3, after {options.steps} steps, packed: perplexity {trained:.2f}")


if __name__ == "__main__":
    main()
