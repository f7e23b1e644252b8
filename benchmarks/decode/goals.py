"""What the decode engine is judged by: its speed, and its agreement with the modules.

Ours are the slowest of several, theirs the fastest; ratios are medians over rounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from benchmarks.common.goals import Goal, Judge, Row, at_least, at_most, under
from benchmarks.common.results import Benchmark

FOUR = ("potq apot4", "potq pot4", "potq mxfp4")
LLAMA_FOUR = ("Q4_0", "IQ4_NL", "MXFP4")
BEST_FOUR = "4 bits / llama.cpp's best 4-bit file"
MEMORY_ALLOWED = 15e6  # bytes beside the model and its cache


def speed(rows: Sequence[Row]) -> list[Goal]:
    llama, modules = _named(rows, "llama.cpp"), _named(rows, "Hugging Face")
    return [
        _ratio(rows, "decode", BEST_FOUR, FOUR, _llama_four(rows), 2.0),
        _bandwidth(rows),
        _ratio(rows, "decode", "pot3 / pot4", ("potq pot3",), ("potq pot4",), 1.2),
        _ratio(rows, "decode", "apot3 / apot4", ("potq apot3",), ("potq apot4",), 1.2),
        _ratio(rows, "decode", "pot2 / pot4", ("potq pot2",), ("potq pot4",), 1.5),
        _ratio(rows, "decode", "4 bits / Hugging Face float32", FOUR, ("Hugging Face float32",), 15.0),
        _ratio(rows, "prefill", "4 bits / llama.cpp's best", FOUR, llama, 3.0),
        _ratio(rows, "prefill", "4 bits / the best of Hugging Face", FOUR, modules, 2.0),
        *_first_token(rows),
    ]


def avx2(rows: Sequence[Row]) -> list[Goal]:
    """With AVX2 alone, beside the goals of every machine: 0.75 of bandwidth is there."""
    whole, pot4 = "Hugging Face float32", ("potq pot4",)
    goals = [
        _ratio(rows, "decode", BEST_FOUR, FOUR, _llama_four(rows), 1.9),
        _ratio(rows, "decode", "pot3 / pot4", ("potq pot3",), pot4, 1.15),
        _ratio(rows, "decode", "pot2 / pot4", ("potq pot2",), pot4, 1.6),
        _ratio(rows, "prefill", "4 bits / llama.cpp's best", FOUR, _named(rows, "llama.cpp"), 2.5),
        _ratio(rows, "prefill", "4 bits / Hugging Face int8", FOUR, ("Hugging Face int8",), 1.7),
        _ratio(rows, "prefill", f"unpacked float32 / {whole}", ("potq float32",), (whole,), 1.0),
    ]
    return _of_kind("AVX2", goals)


def avx512(rows: Sequence[Row]) -> list[Goal]:
    """With AVX-512 VNNI, beside the goals of every machine: 0.75 of bandwidth and 1.2 for 3 bits are there."""
    native = _named(rows, "llama.cpp native")
    return _of_kind("AVX-512", [_ratio(rows, "prefill", "4 bits / llama.cpp's native build", FOUR, native, 1.7)])


def blocks_8b(rows: Sequence[Row]) -> list[Goal]:
    """Two blocks of an 8B model: fewer bits against our 4-bit, on every machine."""
    return [
        _ratio(rows, "decode", "pot3 / pot4", ("potq pot3",), ("potq pot4",), 1.15),
        _ratio(rows, "decode", "pot2 / pot4", ("potq pot2",), ("potq pot4",), 1.5),
    ]


def _blocks_8b(kind: str, target: float) -> Judge:
    return lambda rows: _of_kind(kind, [_ratio(rows, "decode", BEST_FOUR, FOUR, _llama_four(rows), target)])


def _of_kind(kind: str, goals: Sequence[Goal]) -> list[Goal]:
    """Goals that name the kind of machine they are for."""
    for goal in goals:
        goal["name"] = f"{kind}: {goal['name']}"
    return list(goals)


def _named(rows: Sequence[Row], whose: str) -> tuple[str, ...]:
    """Contestants whose name begins so."""
    return tuple(dict.fromkeys(row["name"] for row in rows if row["name"].startswith(whose)))


def _llama_four(rows: Sequence[Row]) -> tuple[str, ...]:
    """llama.cpp's 4-bit files, in each of its builds."""
    return tuple(name for name in _named(rows, "llama.cpp") if name.endswith(LLAMA_FOUR))


def rounds(rows: Sequence[Row], what: str) -> list[dict[str, float]]:
    """Tokens per second by name, a dictionary for each round."""
    found: dict[int, dict[str, float]] = {}
    for row in rows:
        if row["what"] == "speed" and what in row:
            found.setdefault(row["round"], {})[row["name"]] = row[what]
    return list(found.values())


def medians(rows: Sequence[Row], what: str) -> dict[str, float]:
    """Median tokens per second by name."""
    each = rounds(rows, what)
    names = dict.fromkeys(name for found in each for name in found)
    return {name: median(found[name] for found in each if name in found) for name in names}


def _ratio(rows: Sequence[Row], what: str, name: str, ours: Sequence[str], theirs: Sequence[str], target: float) -> Goal:
    typical = medians(rows, what)
    ours, theirs = [each for each in ours if each in typical], [each for each in theirs if each in typical]
    if not ours or not theirs:
        return at_least(f"{what}: {name}", target, None)
    one, other = min(ours, key=lambda each: typical[each]), max(theirs, key=lambda each: typical[each])
    both = [found for found in rounds(rows, what) if one in found and other in found]
    measured = median(found[one] / found[other] for found in both) if both else None
    return at_least(f"{what}: {name}", target, measured) | {"rows": [one, other]}


def _bandwidth(rows: Sequence[Row]) -> Goal:
    """Bytes of weights a second over bytes that are merely read a second."""
    name, target = "decode: pot4, share of what read bandwidth allows", 0.75
    size = {row["name"]: row["weight_bytes"] for row in rows if row["what"] == "speed" and "weight_bytes" in row}
    ours, memory = "potq pot4", "memory read"
    if ours not in size or memory not in size:
        return at_least(name, target, None)
    shares = [found[ours] * size[ours] / (found[memory] * size[memory]) for found in rounds(rows, "decode")]
    return at_least(name, target, median(shares))


def _first_token(rows: Sequence[Row]) -> list[Goal]:
    starts = [row for row in rows if row["what"] == "first token"]
    names = {row["name"] for row in starts}
    slowest = max((median(row["seconds"] for row in starts if row["name"] == name) for name in names), default=None)
    beside = max((row["peak_bytes"] - row["model_bytes"] for row in starts), default=None)
    return [
        under("load to first token, slowest of our files, seconds", 0.15, slowest),
        under("resident memory beside the model's bytes, largest, bytes", MEMORY_ALLOWED, beside),
    ]


def agreement(rows: Sequence[Row]) -> list[Goal]:
    found: list[Goal] = []
    for row in rows:
        texts, relative = row["equal_texts"], abs(row["perplexity"] / row["modules_perplexity"] - 1)
        name = f"{row['activations']} activations"
        found += [
            at_least(f"{name}: equal greedy texts", 0.95, texts),
            at_most(f"{name}: relative difference of perplexity", 0.002, relative),
        ]
    return found


def files(rows: Sequence[Row]) -> list[Goal]:
    """Perplexities are there to be seen beside speeds; nothing is asked of them."""
    return []


LLAMA_PACKAGES = ("xllamacpp", "llama-cpp-python", "ik-llama-cpp-python")
SPEED = Benchmark("decode", speed, timed="cpu", packages=LLAMA_PACKAGES, judge_kind={"avx512vnni": avx512, "avx2": avx2})
BLOCKS_8B = Benchmark(
    "decode_8b",
    blocks_8b,
    timed="cpu",
    packages=LLAMA_PACKAGES,
    judge_kind={"avx512vnni": _blocks_8b("AVX-512", 1.1), "avx2": _blocks_8b("AVX2", 1.2)},
)
FILES = Benchmark("decode_files", files, packages=("xllamacpp",))
AGREEMENT = Benchmark("engine_agreement", agreement)
TASKS = Benchmark("engine_tasks", lambda rows: [], packages=("lm-eval",))  # the differences are there to be seen
SMOKE = Benchmark("smoke", lambda rows: [], timed="cpu")  # judged against itself: see decode/smoke.py
BENCHMARKS = (SPEED, BLOCKS_8B, FILES, AGREEMENT, TASKS, SMOKE)
