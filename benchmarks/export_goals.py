"""What ``export.py`` is judged by."""

from __future__ import annotations

from collections.abc import Sequence

from results_io import Goal, Row

TEXTS, PERPLEXITY = 18, 0.005


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
    for file in ("as exported", "float32 control"):
        of_file = [row for row in agreement if row.get("file") == file]
        for model in dict.fromkeys(row["model"] for row in of_file):
            found += _llama_goals(f"llama.cpp, {file}, {model}", [row for row in of_file if row["model"] == model])
    return found


def _llama_goals(name: str, rows: list[Row]) -> list[Goal]:
    texts = min(row["float"]["equal_texts"] for row in rows)
    alike = [abs(row["rounded alike"]["difference"]) for row in rows]
    found: list[Goal] = [
        {
            "name": f"{name}: equal greedy texts of 20, fewest of the schemes",
            "target": TEXTS,
            "measured": texts,
            "met": texts >= TEXTS,
        },
        _goal(
            f"{name}: relative difference of perplexity, largest, at most",
            PERPLEXITY,
            [abs(row["float"]["difference"]) for row in rows],
        ),
    ]
    if "as exported" in name:
        found.append(_goal(f"{name}: the same, our inputs rounded alike, at most", PERPLEXITY, alike))
    return found


def _goal(name: str, target: float, measured: list[float]) -> Goal:
    worst = max(measured, default=None)
    return {"name": name, "target": target, "measured": worst, "met": worst is not None and worst <= target}
