"""The rows of the decode engine's benchmarks as tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from benchmarks.common.goals import Row
from benchmarks.common.markdown import captioned, goals_table, machine_name, table
from benchmarks.common.results import ISAS, Content
from benchmarks.decode.goals import AGREEMENT, BLOCKS_8B, LLAMA_FOUR, SPEED, TASKS, medians
from benchmarks.decode.quality import quality
from benchmarks.ptq.accuracy import figure

WHAT = {"decode": "decode", "prefill": "prompt of 512"}
README_OURS = ("potq pot4", "potq apot4", "potq pot3", "potq pot2")
README_OTHERS = ("Hugging Face float32", "Hugging Face int8")

Speeds = dict[str, dict[tuple[str, str], float]]
"""Tokens a second by contestant, by kind of machine and what was timed."""


def speeds() -> Speeds:
    found: Speeds = {}
    for kind, content in SPEED.by_kind().items():
        for what in WHAT:
            for name, speed in medians(content["rows"], what).items():
                found.setdefault(name, {})[kind, what] = speed
    return {name: cells for name, cells in found.items() if any(what == "prefill" for _, what in cells)}  # not the roof


def speed_table() -> str:
    """A line a contestant, fastest decoding first; a column for each kind of machine."""
    found = speeds()
    columns = _columns()
    order = sorted(found, key=lambda name: [-found[name].get(column, 0) for column in columns])
    lines = []
    for name in order:
        size = quality(name).file_bytes
        cells = [_rounded(found[name].get(column)) for column in columns]
        lines.append([name, f"{size / 1e6:.1f}" if size else "-", *_perplexities(name), *cells])
    return f"{_machines()}\n\n{table(('', 'file, MB', *PERPLEXITIES, *_headings()), lines)}"


PERPLEXITIES = ("perplexity, rounded (as timed)", "perplexity, calibrated")


def fastest_builds() -> Speeds:
    """llama.cpp's files, which are timed in two builds, by the faster one, under the file's name."""
    found: Speeds = {}
    for name, cells in speeds().items():
        best = found.setdefault(name.replace(" native", ""), {})
        for column, speed in cells.items():
            best[column] = max(speed, best.get(column, 0))
    return found


def readme_speed() -> str:
    """Ours beside the fastest of llama.cpp's 4-bit files, and others: a line each, a column for each kind of machine."""
    found, machines = fastest_builds(), SPEED.by_kind()
    lines = []
    for name in chosen(found):
        cells = [" / ".join(_rounded(found.get(name, {}).get((kind, what))) for what in WHAT) for kind in machines]
        lines.append([f"`{name[5:]}`" if name in README_OURS else name, *_perplexities(name), *cells])
    what = " / ".join(WHAT.values())
    speeds = (f"{what}, tokens/s, {machine_name(kind, content)}" for kind, content in machines.items())
    return table(("", *PERPLEXITIES, *speeds), lines)


def chosen(found: Speeds) -> list[str]:
    """What README shows: of llama.cpp's 4-bit files the one that decodes fastest, on each kind of machine."""
    four = [name for name in found if name.startswith("llama.cpp") and name.endswith(LLAMA_FOUR)]
    timed = {kind: [name for name in four if (kind, "decode") in found[name]] for kind in SPEED.by_kind()}
    best = [max(names, key=lambda name: found[name][kind, "decode"]) for kind, names in timed.items() if names]
    return [*README_OURS, *dict.fromkeys(best), "llama.cpp F16", *README_OTHERS]


def _rounded(speed: float | None) -> str:
    return "-" if speed is None else f"{speed:.0f}"


def _perplexities(name: str) -> list[str]:
    found = quality(name)
    return [figure(found.rounded), figure(found.calibrated)]


def _columns() -> list[tuple[str, str]]:
    return [(kind, what) for kind in SPEED.by_kind() for what in WHAT]


def _headings() -> list[str]:
    return [f"{WHAT[what]}, {ISAS.get(kind, kind)}" for kind, what in _columns()]


def _machines() -> str:
    named = "; ".join(machine_name(kind, content) for kind, content in SPEED.by_kind().items())
    return f"SmolLM2-135M, tokens a second, two threads. {named}."


def blocks_table(content: Content) -> str:
    """Two blocks of an 8B model: tokens a second, fastest decoding first, and gigabytes of weights a second."""
    rows = content["rows"]
    decoded, prompts = (medians(rows, what) for what in ("decode", "prefill"))
    size = {row["name"]: row["weight_bytes"] for row in rows if "weight_bytes" in row}
    lines = []
    for name in sorted(decoded, key=lambda name: -decoded[name]):
        rate = f"{decoded[name] * size[name] / 1e9:.1f}" if name in size else "-"
        lines.append([name, _rounded(decoded[name]), _rounded(prompts.get(name)), rate])
    return table(("", "decode, tokens/s", "prompt of 128, tokens/s", "weights read, GB/s"), lines)


def start_table(content: Content) -> str:
    """The program's first token, files in the page cache."""
    starts = [row for row in content["rows"] if row["what"] == "first token"]
    lines = []
    for name in dict.fromkeys(row["name"] for row in starts):
        own = [row for row in starts if row["name"] == name]
        milliseconds = sorted(row["seconds"] * 1e3 for row in own)
        beside = max(row["peak_bytes"] - row["model_bytes"] for row in own)
        peak = max(row["peak_bytes"] for row in own)
        figures = [f"{milliseconds[len(milliseconds) // 2]:.0f}", *(f"{size / 1e6:.1f}" for size in (peak, beside))]
        lines.append([name, *figures])
    headings = ("", "start to first token (warm), ms", "peak memory, MB", "beside the model's bytes, MB")
    return table(headings, lines)


def agreement_table(rows: Iterable[Row]) -> str:
    lines = []
    for row in rows:
        shares = [f"{row['equal_texts']:.0%}", f"{row['equal_tokens']:.2%}"]
        errors = [f"{row['mean_error']:.1e}", f"{row['largest_error']:.1e}"]
        perplexities = [f"{row['perplexity']:.3f}", f"{row['modules_perplexity']:.3f}"]
        own = f"{row['modules_with_themselves']['equal_texts']:.0%}"
        lines.append([row["activations"], *shares, *errors, *perplexities, own])
    return table(AGREEMENT_HEADINGS, lines)


def tasks_table(rows: Sequence[Row]) -> str:
    """A line a metric: the score of each run, and how far int8 activations are from float ones on the engine."""
    runs = list(dict.fromkeys(row["run"] for row in rows))
    scores = {(row["task"], row["metric"], row["run"]): row["score"] for row in rows}
    lines = []
    for task, metric in dict.fromkeys((row["task"], row["metric"]) for row in rows):
        found = [scores[task, metric, run] for run in runs]
        apart = scores[task, metric, "engine, int8"] - scores[task, metric, "engine, float"]
        lines.append([f"{task}, {metric}", *(f"{score:.4f}" for score in found), f"{apart:+.4f}"])
    return table(("", *runs, "int8 - float"), lines)


AGREEMENT_HEADINGS: Sequence[str] = (
    "activations",
    "equal texts",
    "equal tokens",
    "error of logits, mean",
    "largest",
    "perplexity",
    "the modules'",
    "the modules with themselves",
)


def readme() -> dict[str, str]:
    return {"speed": readme_speed()}


def document() -> dict[str, str]:
    """The tables of docs/engine.md."""
    agreement = AGREEMENT.read()
    speeds = (captioned(each, lambda content: goals_table(content["goals"])) for each in (SPEED, BLOCKS_8B))
    goals = "\n\n".join(filter(None, [goals_table(agreement["goals"]), *speeds]))
    return {
        "agreement": agreement_table(agreement["rows"]),
        "tasks": tasks_table(TASKS.read()["rows"]) if TASKS.files() else "Not measured yet.",
        "speed": speed_table(),
        "8b": captioned(BLOCKS_8B, blocks_table) or "Not measured yet.",
        "start": captioned(SPEED, start_table),
        "goals": goals,
    }
