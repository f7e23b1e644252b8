"""Fine-tune a packed model with LoRA: 4-bit weights stay as they are, small float matrices beside them learn.

    pip install peft
    python examples/fine_tune_lora.py
    python examples/fine_tune_lora.py path/to/model --output out

The adapter is a folder of its own, which is loaded on top of the packed model. Merging it into the packed weights is not
supported: the sum of both would have to be rounded again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model

import potq

TEXT = "potq is a library that stores the weights of language models as signed powers of two."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="smollm2", help="a folder, a .gguf file, a hub name, or smollm2")
    parser.add_argument("--output", type=Path, default=Path("lora"), help="folder of the packed model and the adapter")
    options = parser.parse_args()

    # A packed checkpoint to start from.
    tokenizer = potq.load_tokenizer(options.model)
    packed = options.output / "packed"
    options.output.mkdir(exist_ok=True)
    potq.save(potq.load(options.model, potq.PoTConfig("apot4")), packed, tokenizer, force=True)

    # peft takes potq's packed linears for what they are, torch.nn.Linear. Gradients pass through them to the adapters below.
    torch.manual_seed(0)
    config = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(potq.load(packed), config)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    print(f"trainable parameters: {sum(parameter.numel() for parameter in trainable):,}")

    ids = tokenizer(TEXT, return_tensors="pt")["input_ids"]
    optimizer = torch.optim.AdamW(trainable, lr=3e-3)
    for step in range(12):
        loss = model(input_ids=ids, labels=ids).loss
        if step == 0:
            print(f"loss on the text before: {loss.item():.3f}")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        print(f"loss on the text after 12 steps: {model(input_ids=ids, labels=ids).loss.item():.3f}")

    # Only the adapter is saved. To use it: load the packed model, then the adapter on top.
    adapter = options.output / "adapter"
    model.save_pretrained(adapter)
    size = (adapter / "adapter_model.safetensors").stat().st_size
    print(f"size of the adapter's file: {size / 1e6:.2f} MB")
    loaded = PeftModel.from_pretrained(potq.load(packed), adapter).eval()
    with torch.no_grad():
        same = torch.equal(model(input_ids=ids).logits, loaded(input_ids=ids).logits)
    print(f"the same logits after loading: {same}")


if __name__ == "__main__":
    main()
