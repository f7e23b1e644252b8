"""What it is worth to weigh tokens: the same efforts with second moments that count all tokens alike, and with weighed ones.

    python -m benchmarks.ptq.token_weights --data DIR [--model smollm2]   # TinyStories: 3 minutes on a core

Models, texts and perplexity are those of ``ptq/table.py``. SmolLM2 has fewer windows than there, for calibration and for
evaluation (half an hour on a busy core). Both sides of a comparison are measured here, on one machine. Rows of an earlier
run are kept.
"""

from __future__ import annotations

from dataclasses import replace

from benchmarks.common.goals import Row, print_goals
from benchmarks.ptq.goals import SMOLLM2, TOKEN_WEIGHTS, WEIGHED
from benchmarks.ptq.settings import FULL, chosen
from benchmarks.ptq.table import PROTOCOL as TABLES
from benchmarks.ptq.table import identity, row
from potq.config import effort_by_name

EFFORTS = ("balanced", f"balanced{WEIGHED}")
CALIBRATION, EVALUATION = 16, 4  # windows of SmolLM2: 512 tokens, 1024 tokens
PROTOCOL = {
    **TABLES,
    "efforts": {name: effort_by_name(name).model_dump(mode="json") for name in EFFORTS},
    "SmolLM2": f"{CALIBRATION} windows for calibration, the first {EVALUATION} windows of the test text",
}
CELLS = [(FULL, "-"), *((scheme, effort) for scheme in ("pot2", "pot3s") for effort in EFFORTS)]


def main() -> None:
    setting = chosen(__doc__)
    tokens = setting.tokens()
    if setting.model == SMOLLM2:
        setting, tokens = replace(setting, windows=CALIBRATION), tokens[: EVALUATION * setting.window]
    rows: list[Row] = TOKEN_WEIGHTS.load(PROTOCOL)
    for scheme, effort in CELLS:
        if (setting.model, scheme, effort) not in map(identity, rows):
            rows.append(row(setting, scheme, effort, None, tokens))
            print(f"{rows[-1]['perplexity']:.2f}  {setting.model}, {scheme}, {effort}", flush=True)
            TOKEN_WEIGHTS.write(PROTOCOL, rows)
    print_goals(TOKEN_WEIGHTS.judge(rows))


if __name__ == "__main__":
    main()
