"""Which way to choose a group's scale without text is right: rounding to nearest under each, on validation text.

    python -m benchmarks.ptq.scale_methods --data DIR [--model smollm2]   # TinyStories: 2 minutes on a core

TinyStories: the 40 windows before those that ``ptq/table.py`` evaluates. SmolLM2: the first two windows of WikiText-2's
validation text. No test text is looked at, so that the tables' remain one. Rows of an earlier run are kept.
"""

from __future__ import annotations

from typing import Any

import potq
from benchmarks.common.goals import Row, print_goals
from benchmarks.ptq.goals import METHOD_GRIDS, METHODS, SCALE_METHODS, STORIES
from benchmarks.ptq.settings import FULL, WINDOWS, Setting, chosen, figures
from benchmarks.ptq.table import identity
from potq.kernels import set_activations

FEWER = 2  # windows of SmolLM2's 1024 tokens
PROTOCOL = {
    "text": f"TinyStories: {WINDOWS} windows of 512 tokens before the evaluated ones; SmolLM2: the first {FEWER} windows of "
    "1024 tokens of WikiText-2's validation text",
    "weights": "linears to nearest; embedding and head in full precision; activations never rounded",
}
CELLS = [(FULL, "-"), *((scheme, method) for scheme in METHOD_GRIDS for method in METHODS)]


def rounded(setting: Setting, scheme: str, method: str) -> Any:
    """The model with its linears in ``scheme``."""
    model = potq.load(setting.source)
    if scheme != FULL:
        name, _, candidates = method.partition(", ")
        tried = int(candidates.split()[0]) if candidates else None
        config = potq.PoTConfig(scheme, embedding=None, effort="fast", scale_method=name, scale_candidates=tried)
        potq.quantize(model, config)
        set_activations(model, "float")
    return model


def main() -> None:
    setting = chosen(__doc__)
    tokens = setting.validation(WINDOWS if setting.model == STORIES else FEWER)
    rows: list[Row] = SCALE_METHODS.load(PROTOCOL)
    for scheme, method in CELLS:
        if (setting.model, scheme, method) not in map(identity, rows):
            found = figures(setting, rounded(setting, scheme, method), tokens)
            rows.append({"model": setting.model, "scheme": scheme, "algorithm": method, **found})
            print(f"{found['perplexity']:.2f}  {setting.model}, {scheme}, {method}", flush=True)
            SCALE_METHODS.write(PROTOCOL, rows)
    print_goals(SCALE_METHODS.judge(rows))


if __name__ == "__main__":
    main()
