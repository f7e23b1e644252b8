"""What post-training quantization is judged by."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

import torch

from benchmarks.common.goals import Goal, Row, at_least, at_most, judged, no_more, under
from benchmarks.common.results import Benchmark
from benchmarks.ptq.settings import FULL, INTEGERS, PURE, TWO_TERM, full_precision
from potq.evaluate.bootstrap import middle, resampled

TIMES = {"fast": 45.0, "balanced": 300.0, "best": 2700.0}  # seconds, at most, of the efforts
MEMORY = {"balanced": 2e9}  # bytes, at most
SHARD = 100_000_000  # bytes of a shard of the folder that is quantized while it is read
LAYER = 49152 * 576 * 4  # bytes of SmolLM2's largest weight in float32
WEIGHED = ":weigh_tokens=true"  # ends an effort whose second moments weigh tokens
METHODS = ("absmax", "mse", "mse, 16 candidates", "magnitude")
METHOD_GRIDS = ("pot4", "apot4", "int4", "nf4", "pot3s", "apot3s")
GRIDS = ("pot2", "pot3", "pot4", "apot4")  # of the ablation
STORIES, SMOLLM2 = "TinyStories-656K", "SmolLM2-135M"
GEMMA = "Gemma-3-270M"
ROUNDED = "rounded"
DEFAULT_NOW = "apot4:group_size=32"  # what the command line takes without options, embedding and head too
NEIGHBOUR = "llama.cpp IQ4_NL"  # what it is judged by
_JUDGED = ("fast", "gptq", "balanced", "best")


def table(rows: Sequence[Row]) -> list[Goal]:
    """Ratios of excess perplexity over full precision, the same algorithm on both sides; None is not measured yet.

    At 4 bits the preset ``apot4`` is judged, on TinyStories, whose weights were never quantized before.
    """
    found: list[Goal] = []
    known = {row["model"] for row in rows if row["scheme"] == FULL}  # an excess is one over full precision
    rows = [row for row in rows if row["model"] in known]
    for algorithm in _JUDGED:
        for model in (STORIES, SMOLLM2):
            found.append(_ratio(rows, model, algorithm, "2 bits, best pure PoT / best integers", PURE[2], INTEGERS[2], 0.95))
        found.append(_ratio(rows, SMOLLM2, algorithm, "3 bits, best pure PoT / best integers", PURE[3], INTEGERS[3], 0.8))
        family = (*PURE[3], *TWO_TERM[3])
        found.append(
            _ratio(rows, STORIES, algorithm, "3 bits, best of the PoT family / best integers", family, INTEGERS[3], 0.95)
        )
        found.append(_ratio(rows, STORIES, algorithm, "4 bits, apot4 / NF4", ("apot4",), ("nf4",), 1.0))
        found.append(_ratio(rows, STORIES, algorithm, "4 bits, apot4 / best int4", ("apot4",), INTEGERS[4], 0.85))
    for model, target in ((SMOLLM2, 0.25), (STORIES, 0.5)):
        found.append(_improvement(rows, model, "pot4", "best", "fast", target))
        for scheme in ("pot2", "pot3"):
            found.append(_improvement(rows, model, scheme, "best", "gptq", 0.5))
    for model in (STORIES, SMOLLM2):
        for scheme, target in (("apot4", 1.2), ("pot4", 1.4)):
            name = f"{scheme}, E8M0 with row scales / float16, groups of 32"
            found.append(_ratio(rows, model, "best", name, (f"{scheme} g32 e8m0 + row",), (f"{scheme} g32",), target))
    return found


def token_weights(rows: Sequence[Row]) -> list[Goal]:
    """What weights of tokens leave of an effort's excess."""
    targets = {"pot2": 0.92, "pot3s": 0.95}
    return [
        _improvement(rows, model, scheme, f"balanced{WEIGHED}", "balanced", target)
        for model in (STORIES, SMOLLM2)
        for scheme, target in targets.items()
    ]


def default(rows: Sequence[Row]) -> list[Goal]:
    """The default against the neighbour, rounded against rounded, on test text: in nothing worse, at no more bytes."""
    found: list[Goal] = []
    for model in (SMOLLM2, STORIES, GEMMA):
        own, other = (
            next((row for row in rows if contest(row) == (model, "test", scheme, ROUNDED)), None)
            for scheme in (DEFAULT_NOW, NEIGHBOUR)
        )
        for name, figure, better in FIGURES:
            ours, theirs = (figure(row) if row is not None else None for row in (own, other))
            ratio = ours / theirs if ours is not None and theirs else None
            goal = at_most if better == "less" else at_least
            found.append(goal(f"{model}, rounded: {name}, the default / {NEIGHBOUR}", 1.0, ratio))
    return found


FIGURES: tuple[tuple[str, Callable[[Row], float], str], ...] = (
    ("bytes", lambda row: float(row["bytes"]), "less"),
    ("perplexity", lambda row: float(row["perplexity"]), "less"),
    ("mean divergence", lambda row: float(row["divergence"]["mean"]), "less"),
    ("99 % divergence", lambda row: float(row["divergence"]["percentile_99"]), "less"),
    ("likeliest tokens that agree", lambda row: float(row["divergence"]["top1_agreement"]), "more"),
    ("last words that are right", lambda row: float(row["last_words"]), "more"),
)


def contest(row: Row) -> tuple[str, ...]:
    """What a row of the default's benchmark is of."""
    return row["model"], row["text"], row["scheme"], row["algorithm"]


def scale_methods(rows: Sequence[Row]) -> list[Goal]:
    """A method without text is right if nothing else does much better, whatever the grid."""
    found: list[Goal] = []
    for model in (STORIES, SMOLLM2):
        for scheme in METHOD_GRIDS:
            others = [_least(rows, model, (scheme,), method) for method in METHODS if method != "magnitude"]
            best = min((row for row in others if row), key=lambda row: float(row["perplexity"]), default=None)
            own = _least(rows, model, (scheme,), "magnitude")
            found.append(_goal(rows, f"{model}, {scheme}, fast: magnitude / the best other scale method", own, best, 1.02))
    return found


def _ratio(
    rows: Sequence[Row], model: str, algorithm: str, name: str, ours: Iterable[str], theirs: Iterable[str], target: float
) -> Goal:
    over, under = (_least(rows, model, schemes, algorithm) for schemes in (ours, theirs))
    return _goal(rows, f"{model}, {algorithm}: {name}", over, under, target)


def _improvement(rows: Sequence[Row], model: str, scheme: str, algorithm: str, before: str, target: float) -> Goal:
    over, under = (_least(rows, model, (scheme,), each) for each in (algorithm, before))
    return _goal(rows, f"{model}, {scheme}: {algorithm} / {before}", over, under, target)


def _goal(rows: Sequence[Row], name: str, over: Row | None, under: Row | None, target: float) -> Goal:
    name = f"excess perplexity, {name}"
    if over is None or under is None:
        return at_most(name, target, None)
    exact = full_precision(rows, over["model"])
    measured = (over["perplexity"] - exact["perplexity"]) / (under["perplexity"] - exact["perplexity"])
    sources = [f"{row['scheme']}, {row['algorithm']}" for row in (over, under)]
    return at_most(name, target, measured) | {"interval": _interval(over, under, exact), "rows": sources}


def _interval(over: Row, under: Row, exact: Row) -> list[float]:
    """The ratio's 95 % interval: paired bootstrap over windows, the same windows for all three."""
    nll = torch.tensor([row["window_nll"] for row in (over, under, exact)], dtype=torch.float64)
    above, below, base = resampled(nll, exact["predicted_tokens"])
    return [round(end, 4) for end in middle((above - base) / (below - base))]


def _least(rows: Sequence[Row], model: str, schemes: Iterable[str], algorithm: str) -> Row | None:
    """The row of least perplexity among ``schemes``."""
    wanted = set(schemes)
    found = [row for row in rows if row["model"] == model and row["scheme"] in wanted and row["algorithm"] == algorithm]
    return min(found, key=lambda row: float(row["perplexity"]), default=None)


def rtn_table(rows: Sequence[Row]) -> list[Goal]:
    """A prototype's figures, of other windows than ours: what is compared is not quite the same."""
    wanted = {"full precision": 28.5, "int4": 44.0, "pot4": 60.8, "mxfp4": 41.5, "pot3": 175.0, "int3": 514.0}
    linears = [row for row in rows if row["model"] == SMOLLM2 and row["embedding"] == "full precision"]
    found = {row["scheme"]: row["perplexity"] for row in linears}
    name = "linears only: perplexity on 40 windows, at most a prototype's on 8 or 10 other windows + 5 %"
    return [no_more(f"{SMOLLM2} {scheme}, {name}", target * 1.05, found.get(scheme)) for scheme, target in wanted.items()]


def cost(rows: Sequence[Row]) -> list[Goal]:
    found = {row["effort"]: row for row in rows}
    return [
        *(under(f"{effort}, seconds", limit, found.get(effort, {}).get("seconds")) for effort, limit in TIMES.items()),
        *(
            under(f"{effort}, peak bytes", limit, found.get(effort, {}).get("peak_bytes"))
            for effort, limit in MEMORY.items()
        ),
    ]


def quantize_speed(rows: Sequence[Row]) -> list[Goal]:
    def median(task: str, key: str) -> float:
        chosen = [row[key] for row in rows if row["task"] == task and row.get("embedding") in (None, "pot4")]
        return float(statistics.median(chosen))

    packed = median("quantize", "file_bytes")
    figures = [
        ("quantize every weight of SmolLM2-135M (s)", 45.0, median("quantize", "seconds")),
        ("4-bit group-64 checkpoint, everything quantized (bytes)", 72.5e6, packed),
        (
            "memory while streaming: packed model + one shard + one layer (bytes)",
            SHARD + LAYER + packed,
            median("quantize", "anonymous_bytes"),
        ),
        ("potq --help (s)", 1.0, median("help", "seconds")),
        ("load the packed model (s)", 3.0, median("load", "seconds")),
    ]
    return [no_more(name, target, value) for name, target, value in figures]


def apot_search(rows: Sequence[Row]) -> list[Goal]:
    """Of the 4-bit preset: its gain over int4, and at least NF4 (with searched scale) minus 0.1 dB."""
    snr = {(row["table"], row["data"]): row["snr_db"] for row in rows if "snr_db" in row}
    gain = round(snr["apot4", "gaussian"] - snr["int4", "gaussian"], 3)
    found = [judged("apot4 SNR gain over int4 on gaussian (dB)", ">= 1.0", gain, lambda value: value >= 1.0)]
    for name in dict.fromkeys(name for _, name in snr):
        margin = round(snr["apot4", name] - snr["nf4", name], 3)
        label = f"apot4 SNR minus that of NF4 with searched scale on {name} (dB)"
        found.append(judged(label, ">= -0.1", margin, lambda value: value >= -0.1))
    return found


def signed_tables(rows: Sequence[Row]) -> list[Goal]:
    found = {row["table"]: row["decibels"] for row in rows}
    best = max(row["decibels"] for row in rows if row["table"].startswith("searched"))
    of_integers = found["apot3s"] - found["int3 signed"]
    return [
        at_least("pot3s / pot3, decibels gained", 0.5, found["pot3s"] - found["pot3"]),
        at_least("apot3s / best integers with a zero and as many bits, decibels gained", 0, of_integers),
        at_least("apot3s / the best table found, decibels gained", -0.05, found["apot3s"] - best),
    ]


def ablation(rows: Sequence[Row]) -> list[Goal]:
    """Every further step should help."""
    found: list[Goal] = []
    chains = [
        ("absmax scales", "step 1: searched scales", "steps 1 and 2"),
        ("step 1: searched scales", "GPTQ", "GPTQ + layer", "GPTQ + layer + model"),
    ]
    values = {(r["scheme"], r["step"]): r["perplexity"] for r in rows}
    for scheme in GRIDS:
        for chain in chains:
            for before, after in pairwise(chain):
                over, base = values.get((scheme, after)), values.get((scheme, before))
                ratio = over / base if over and base else None
                name = f"{scheme}: perplexity of '{after}' / '{before}', below"
                found.append(judged(name, 1.0, ratio, lambda value: value < 1))
    return found


_PEERS = ("xllamacpp", "gguf", "gptqmodel", "llmcompressor", "hqq", "torchao", "auto-round", "bitsandbytes")
RTN_TABLE = Benchmark("rtn_table", rtn_table)
TABLE = Benchmark("ptq_table", table, packages=_PEERS)
COST = Benchmark("ptq_cost", cost, timed="cpu")
QUANTIZE_SPEED = Benchmark("quantize_speed", quantize_speed, timed="cpu")
APOT_SEARCH = Benchmark("apot_search", apot_search)
SIGNED_TABLES = Benchmark("signed_tables", signed_tables)
ABLATION = Benchmark("potptq_ablation", ablation)
TOKEN_WEIGHTS = Benchmark("token_weights", token_weights)
SCALE_METHODS = Benchmark("scale_methods", scale_methods)
DEFAULT = Benchmark("default", default, packages=("xllamacpp",))
BENCHMARKS = (
    DEFAULT,
    RTN_TABLE,
    TABLE,
    ABLATION,
    TOKEN_WEIGHTS,
    SCALE_METHODS,
    APOT_SEARCH,
    SIGNED_TABLES,
    COST,
    QUANTIZE_SPEED,
)
