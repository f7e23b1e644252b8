"""What ``export.py`` is judged by."""

from __future__ import annotations

from collections.abc import Sequence

from results_io import Goal, Row

TEXTS, PERPLEXITY = 18, 0.005
MODELS = ("TinyStories-656K", "nano GPT-2", "SmolLM2-135M")


def goals(rows: Sequence[Row]) -> list[Goal]:
    files = [row for row in rows if row["what"] == "file"]
    agreement = [row for row in rows if row["what"] == "agreement"]
    found = [
        _goal("weights that differ, all files, at most", 0, [row["unequal_weights"] + row["missing"] for row in files]),
        _goal(
            "compressed-tensors: largest difference of bfloat16 logits, at most",
            0,
            [row["largest_difference"] for row in agreement if "largest_difference" in row],
        ),
    ]
    for way, words in (("at_once", "of a text at once"), ("token_by_token", "token by token, through the cache")):
        differences = [row[way] for row in agreement if way in row]
        found.append(_goal(f"ONNX Runtime: relative difference of logits {words}, at most", 1e-4, differences))
    for file in ("as exported", "float32 control"):
        for model in MODELS:
            of_model = [row for row in agreement if (row.get("file"), row["model"]) == (file, model)]
            found += _llama_goals(f"llama.cpp, {file}, {model}", of_model)
    return found


def _llama_goals(name: str, rows: list[Row]) -> list[Goal]:
    texts = min((row["float"]["equal_texts"] for row in rows), default=None)
    label = "equal greedy texts of 20, fewest of the schemes, at least"
    found: list[Goal] = [
        {"name": f"{name}: {label}", "target": TEXTS, "measured": texts, "met": texts is not None and texts >= TEXTS}
    ]
    ways = {"float": "relative difference of perplexity, largest, at most"}
    if "as exported" in name:
        ways["rounded alike"] = "the same, our inputs rounded alike, at most"
    for way, what in ways.items():
        found.append(_goal(f"{name}: {what}", PERPLEXITY, [abs(row[way]["difference"]) for row in rows]))
    return found


def _goal(name: str, target: float, measured: list[float]) -> Goal:
    worst = max(measured, default=None)
    return {"name": name, "target": target, "measured": worst, "met": worst is not None and worst <= target}
