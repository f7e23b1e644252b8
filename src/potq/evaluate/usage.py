"""How often each magnitude of a grid is used: the histogram that shows whether a grid suits the weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from potq.errors import DataError, MissingDependencyError
from potq.numerics.tensor import QuantizedWeight

_MAX_BARS = 32  # an 8-bit grid has 129 magnitudes; neighbouring ones are shown together

Usage = dict[str, dict[int, int]]
"""Scheme name -> magnitude -> number of weights, ascending."""


def level_usage(weights: Mapping[str, QuantizedWeight]) -> Usage:
    """Count the magnitudes of all weights by scheme. Wide grids are binned; a bin is named by its least magnitude."""
    counts: dict[str, torch.Tensor] = {}
    grids = {weight.scheme.name: weight.scheme.grid for weight in weights.values()}
    for weight in weights.values():
        name = weight.scheme.name
        histogram = torch.bincount(weight.codes().flatten(), minlength=2**weight.scheme.grid.bits)
        counts[name] = counts[name] + histogram if name in counts else histogram
    return {name: _by_magnitude(grids[name].levels, count.tolist()) for name, count in sorted(counts.items())}


def _by_magnitude(levels: tuple[int, ...], counts: list[int]) -> dict[int, int]:
    magnitudes = sorted({abs(level) for level in levels})
    width = -(-len(magnitudes) // _MAX_BARS)
    bin_of = {magnitude: magnitudes[i - i % width] for i, magnitude in enumerate(magnitudes)}
    result = dict.fromkeys(sorted(set(bin_of.values())), 0)
    for level, count in zip(levels, counts, strict=True):
        result[bin_of[abs(level)]] += count
    return result


def plot_usage(usage: Usage, path: Path) -> None:
    """Draw the histogram, one panel a scheme, as PNG.

    Raises:
        MissingDependencyError: matplotlib is not installed.
        DataError: ``path`` cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingDependencyError("--plot draws with matplotlib: pip install 'potq[plot]'") from None
    figure = Figure(figsize=(7, 3 * len(usage)), layout="constrained")
    for axes, (scheme, counts) in zip(figure.subplots(len(usage), squeeze=False)[:, 0], usage.items(), strict=True):
        total = sum(counts.values())
        axes.bar([str(magnitude) for magnitude in counts], [100 * count / total for count in counts.values()])
        axes.set(title=scheme, xlabel="magnitude (in units of the grid)", ylabel="share of weights, %")
        axes.tick_params(axis="x", labelrotation=90 if len(counts) > 16 else 0)
    try:
        figure.savefig(path, dpi=120)
    except (OSError, ValueError) as error:
        raise DataError(f"cannot write the plot {path} ({error})") from None
