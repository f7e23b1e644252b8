"""Does the engine say what the Hugging Face modules say? ``python -m benchmarks.decode.agreement [--data DIR]``

SmolLM2-135M in the default scheme, rounded to nearest (``fast``). 100 prompts of 32 tokens of WikiText-2 test, 64 tokens on,
greedily; and the perplexity of the first 40 windows of 1024 tokens. The engine's text is given to the modules in one pass:
it is theirs too if each is the modules' likeliest. The engine keeps keys and values in float16, the modules in float32.

``int8`` rounds the inputs of products, and a difference in the last bit of a sum then turns into a step of 1/127 wherever it
crosses a boundary; after 30 layers the difference is as large as int8's own noise. How often the modules agree with
themselves (token by token against one pass) says what can be asked of anybody.
"""

from __future__ import annotations

import argparse
import math
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import potq
from benchmarks.common.goals import Row, print_goals
from benchmarks.decode.goals import AGREEMENT
from benchmarks.ptq.settings import Setting, settings
from potq.evaluate.perplexity import perplexity
from potq.kernels import Activations, set_activations

PROMPTS, PROMPT_TOKENS, NEW_TOKENS, STRIDE = 100, 32, 64, 400
WINDOWS, WINDOW = 40, 1024
ACTIVATIONS: tuple[Activations, ...] = ("float", "int8")
PROTOCOL = {
    "model": "SmolLM2-135M, apot4, embedding and head int8, effort fast",
    "greedy": f"{PROMPTS} prompts of {PROMPT_TOKENS} tokens of WikiText-2 test, {NEW_TOKENS} new tokens",
    "perplexity": f"first {WINDOWS} windows of {WINDOW} tokens of WikiText-2 test",
}


def agreement(engine: potq.Engine, model: Any, prompts: Tensor) -> Row:
    """Texts that are equal, positions whose likeliest token is, and the largest and mean relative error of logits."""
    texts = positions = equal = 0
    errors: list[float] = []
    for prompt in prompts:
        ids = torch.cat([prompt, torch.tensor(engine.generate(prompt, max_new_tokens=NEW_TOKENS).finish().ids)])
        ours, theirs = engine.logits(ids), _logits(model, ids)
        same = ours.argmax(-1) == theirs.argmax(-1)
        texts += bool(same[PROMPT_TOKENS - 1 : -1].all())
        positions, equal = positions + len(same), equal + int(same.sum())
        errors += _errors(ours, theirs)
    return {"equal_texts": texts / len(prompts), "equal_tokens": equal / positions, **_summary(errors)}


def self_agreement(model: Any, prompts: Tensor) -> Row:
    """The modules token by token against the modules in one pass."""
    texts, errors = 0, []
    for prompt in prompts:
        options: dict[str, Any] = {"do_sample": False, "output_logits": True, "return_dict_in_generate": True}
        with torch.inference_mode():
            made = model.generate(prompt[None], max_new_tokens=NEW_TOKENS, **options)
        ids = made.sequences[0]
        once = _logits(model, ids)[PROMPT_TOKENS - 1 : -1]
        texts += bool((once.argmax(-1) == ids[PROMPT_TOKENS:]).all())
        errors += _errors(once, torch.cat(made.logits).float())
    return {"equal_texts": texts / len(prompts), **_summary(errors)}


def engine_perplexity(engine: potq.Engine, tokens: Tensor) -> float:
    total = 0.0
    for window in tokens[: WINDOWS * WINDOW].view(WINDOWS, WINDOW):
        total += float(torch.nn.functional.cross_entropy(engine.logits(window)[:-1], window[1:], reduction="sum"))
    return math.exp(total / (WINDOWS * (WINDOW - 1)))


def _logits(model: Any, ids: Tensor) -> Tensor:
    with torch.inference_mode():
        logits: Tensor = model(ids[None]).logits[0].float()
    return logits


def _errors(found: Tensor, expected: Tensor) -> list[float]:
    """Largest difference of a token's logits, relative to the largest of them."""
    errors: list[float] = ((found - expected).abs().amax(-1) / expected.abs().amax(-1)).tolist()
    return errors


def _summary(errors: list[float]) -> dict[str, float]:
    return {"largest_error": max(errors), "mean_error": sum(errors) / len(errors)}


def measure(folder: Path, setting: Setting, activations: Activations) -> Row:
    tokens = setting.tokens()
    prompts = torch.stack([tokens[i * STRIDE : i * STRIDE + PROMPT_TOKENS] for i in range(PROMPTS)])
    model = potq.load(folder, dtype="float32").eval()
    set_activations(model, activations)
    with potq.Engine(folder, activations=activations, context=WINDOW) as engine:
        row = {"activations": activations, **agreement(engine, model, prompts)}
        row["perplexity"] = engine_perplexity(engine, tokens)
    row["modules_perplexity"] = perplexity(model, tokens, window=WINDOW, max_windows=WINDOWS).perplexity
    row["modules_with_themselves"] = self_agreement(model, prompts[:25])
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("POTQ_DATA"), help="folder of texts")
    options = parser.parse_args()
    if options.data is None:
        parser.error("give --data DIR or set POTQ_DATA")
    setting = settings(Path(options.data))["smollm2"]
    rows = AGREEMENT.load(PROTOCOL)
    left = [each for each in ACTIVATIONS if all(row["activations"] != each for row in rows)]
    if left:
        measure_all(left, setting, rows)
    print_goals(AGREEMENT.judge(rows))


def measure_all(activations: Sequence[Activations], setting: Setting, rows: list[Row]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        model = potq.load("smollm2")
        potq.quantize(model, potq.PoTConfig("apot4", effort="fast"))
        potq.save(model, Path(folder) / "model")
        for each in activations:
            rows.append(measure(Path(folder) / "model", setting, each))
            AGREEMENT.write(PROTOCOL, rows)


if __name__ == "__main__":
    main()
