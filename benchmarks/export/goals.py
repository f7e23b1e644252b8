"""What exported files are judged by."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.common.goals import Goal, Row, at_least, at_most
from benchmarks.common.results import Benchmark

TEXTS, PERPLEXITY = 18, 0.005
MODELS = ("TinyStories-656K", "nano GPT-2", "SmolLM2-135M")


def export(rows: Sequence[Row]) -> list[Goal]:
    files = [row for row in rows if row["what"] == "file"]
    agreement = [row for row in rows if row["what"] == "agreement"]
    unequal = [row["unequal_weights"] + row["missing"] for row in files]
    logits = [row["largest_difference"] for row in agreement if "largest_difference" in row]
    found = [
        _worst("weights that differ, all files", 0, unequal),
        _worst("compressed-tensors: largest difference of logits in its dtype", 0, logits),
    ]
    for way, words in (("at_once", "of a text at once"), ("token_by_token", "token by token, through the cache")):
        differences = [row[way] for row in agreement if way in row]
        found.append(_worst(f"ONNX Runtime: relative difference of logits {words}", 1e-4, differences))
    for file in ("as exported", "float32 control"):
        for model in MODELS:
            of_model = [row for row in agreement if (row.get("file"), row["model"]) == (file, model)]
            found += _llama_goals(f"llama.cpp, {file}, {model}", of_model)
    return found


def _llama_goals(name: str, rows: list[Row]) -> list[Goal]:
    texts = min((row["float"]["equal_texts"] for row in rows), default=None)
    found = [at_least(f"{name}: equal greedy texts of 20, fewest of the schemes", TEXTS, texts)]
    ways = {"float": "relative difference of perplexity, largest"}
    if "as exported" in name:
        ways["rounded alike"] = "the same, our inputs rounded alike"
    for way, what in ways.items():
        found.append(_worst(f"{name}: {what}", PERPLEXITY, [abs(row[way]["difference"]) for row in rows]))
    return found


def _worst(name: str, target: float, measured: list[float]) -> Goal:
    return at_most(name, target, max(measured, default=None))


def speed(rows: Sequence[Row]) -> list[Goal]:
    """Other engines run at their own speed; nothing is asked of it."""
    return []


_PACKAGES = ("gguf", "xllamacpp", "llama-cpp-python", "compressed-tensors", "onnx", "onnxruntime")
EXPORT = Benchmark("export", export, packages=_PACKAGES)
SPEED = Benchmark("export_speed", speed, timed="cpu", packages=_PACKAGES)
BENCHMARKS = (EXPORT, SPEED)
