"""Generate text with the decode engine: stream it piece by piece, continue token ids, read logits.

    python examples/engine.py
    python examples/engine.py path/to/model --prompt "Once upon a time"

The engine is compiled code that reads the packed checkpoint itself. It knows GPT-2, Llama, Mistral, Qwen2, Qwen3,
Qwen3-MoE, SmolLM3, OLMo 2, OLMoE, Granite, Gemma 3, Phi-3 and Mixtral.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import potq


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="smollm2", help="a folder, a .gguf file, a hub name, or smollm2")
    parser.add_argument("--output", type=Path, default=Path("engine-model"), help="folder of the packed checkpoint")
    parser.add_argument("--prompt", default="The capital of France is")
    options = parser.parse_args()

    # The engine reads folders. load() with a config quantizes while it reads; memory never holds the whole float model.
    tokenizer = potq.load_tokenizer(options.model)
    potq.save(potq.load(options.model, potq.PoTConfig("apot4")), options.output, tokenizer, force=True)

    with potq.Engine(options.output) as engine:
        # A text comes in pieces. The next token is computed when the next piece is asked for, so a break stops the work.
        print(f"streamed: {options.prompt}", end="")
        for piece in engine.generate(options.prompt, max_new_tokens=16, stop="\n"):
            print(piece, end="", flush=True)
        print()

        # Drawn instead of greedy. The same seed draws the same tokens.
        drawn = [engine.generate(options.prompt, max_new_tokens=16, temperature=0.8, seed=1).finish() for _ in range(2)]
        print(f"the same seed gives the same text: {drawn[0].text == drawn[1].text}")

        # Token ids in, token ids out: no tokenizer is needed. `finish_reason` says why the text stopped.
        ids = tokenizer(options.prompt)["input_ids"]
        generation = engine.generate(ids, max_new_tokens=4, stop_token_ids=()).finish()
        print(f"token ids: {len(ids)} read, {len(generation.ids)} new, ended by {generation.finish_reason}")

        # What the model expects behind each token: a float32 tensor (tokens, vocabulary).
        logits = engine.logits(ids)
        probability, token = logits[-1].softmax(-1).max(0)
        print(f"logits: {logits.shape[0]} x {logits.shape[1]}")
        print(f"likeliest next token: {tokenizer.decode([int(token)])!r}, probability {float(probability):.2f}")


if __name__ == "__main__":
    main()
