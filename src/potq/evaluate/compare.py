"""Schemes and efforts side by side on one model and text: rows that are kept as they come, as table, Markdown and plot."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from potq.config import PoTConfig
from potq.errors import DataError
from potq.evaluate.bootstrap import paired_bootstrap
from potq.evaluate.further import Further
from potq.evaluate.outputs import check_plot, check_rows_file
from potq.evaluate.perplexity import perplexity
from potq.files import write_whole
from potq.kernels import set_activations
from potq.nn.report import Progress, markdown_table
from potq.ptq.quantize import quantize
from potq.resume import fingerprint
from potq.version import __version__

if TYPE_CHECKING:
    from rich.table import Table
    from transformers import PreTrainedModel

FULL_PRECISION = "full precision"
HEADINGS = ("scheme", "effort", "bits", "quantized", "perplexity", "excess", "95% interval", "seconds")


@dataclass(frozen=True)
class Row:
    """One measured model: its perplexity, and what quantizing took.

    Attributes:
        bits_per_weight: stored bits per weight of the whole model.
        quantized_bits_per_weight: those of what was quantized.
        seconds: the quantization's alone.
        calibration_windows: of text that the effort was given.
        divergence: mean from full precision, in nats; None where it was not asked for, as is what follows.
        tasks: scores, by task and metric.
        tokens_per_second: of the decode engine.
    """

    scheme: str
    effort: str
    bits_per_weight: float
    quantized_bits_per_weight: float
    perplexity: float
    window: int
    predicted_tokens: int
    window_nll: tuple[float, ...]
    seconds: float
    calibration_windows: int = 0
    divergence: float | None = None
    tasks: Mapping[str, float] = field(default_factory=dict)
    tokens_per_second: float | None = None

    def excess(self, base: Row) -> float:
        """How much worse than ``base``, which is measured on the same windows."""
        return self.perplexity - base.perplexity

    def interval(self, base: Row) -> tuple[float, float] | None:
        """95% interval of the excess, by the paired bootstrap; None where one window cannot tell."""
        if len(self.window_nll) < 2:
            return None
        return paired_bootstrap(self.window_nll, base.window_nll, self.predicted_tokens)


@dataclass(frozen=True)
class Protocol:
    """What rows are measured on and with; rows are comparable if these are equal.

    Attributes:
        tokens: the text's token ids, 1-D.
        calibration: makes token batches for the efforts that want them; called when a row is first measured with some.
        calibration_key: what decides these batches, beside the model's weights. None: they are made, and looked at.
        further: what is measured beside perplexity.
    """

    tokens: Tensor
    window: int | None = None
    windows: int | None = None
    calibration: Callable[[], Sequence[Tensor]] = tuple
    calibration_key: str | None = None
    seed: int = 0
    further: Further = field(default_factory=Further)

    def keys(self, model: PreTrainedModel) -> Callable[[PoTConfig | None], str]:
        """A function that gives the hash of all that a row depends on: weights, tokens, settings, potq's version."""
        settings = (str(self.window), str(self.windows), str(model.dtype), __version__, *self.further.key)
        plain = fingerprint(model, [self.tokens], settings)

        @cache
        def calibrated() -> str:
            if self.calibration_key is not None:
                return f"{plain} {self.calibration_key}"
            return fingerprint(model, [self.tokens, *self.calibration()], settings)

        def key(config: PoTConfig | None) -> str:
            if config is None:
                return plain
            base = calibrated() if config.has_calibrated_effort else plain
            return hashlib.blake2b(f"{base} {config.model_dump_json()} {self.seed}".encode(), digest_size=16).hexdigest()

        return key


def measure_row(
    model: PreTrainedModel,
    config: PoTConfig | None,
    protocol: Protocol,
    progress: Progress | None = None,
    changed: Callable[[PreTrainedModel], None] | None = None,
) -> Row:
    """Perplexity of ``model`` as it is (no ``config``), or of a copy that is quantized, with exact activations.

    ``changed`` may change the copy further before it is measured.
    """
    measured, seconds, batches = model, 0.0, None
    whole = quantized = 8.0 * model.dtype.itemsize
    if config is not None:
        measured = copy.deepcopy(model)
        batches = protocol.calibration() if config.has_calibrated_effort else None
        began = time.perf_counter()
        report = quantize(measured, config, batches, seed=protocol.seed, progress=progress)
        whole, quantized = report.bits_per_weight or whole, report.quantized_bits_per_weight
        seconds = time.perf_counter() - began
        set_activations(measured, "float")
        if changed is not None:
            changed(measured)
    found = perplexity(measured, protocol.tokens, window=protocol.window, max_windows=protocol.windows, progress=progress)
    beside = protocol.further.measure(measured, model, protocol.tokens, protocol.window, protocol.windows)
    return Row(
        scheme=FULL_PRECISION if config is None else config.scheme.name,
        effort="" if config is None or config.effort is None else config.effort.name,
        bits_per_weight=whole,
        quantized_bits_per_weight=quantized,
        perplexity=found.perplexity,
        window=found.window,
        predicted_tokens=found.predicted_tokens,
        window_nll=found.window_nll,
        seconds=seconds,
        calibration_windows=sum(len(batch) for batch in batches or ()),
        **asdict(beside),
    )


class KeptRows:
    """Rows by key, in a JSON file that is written anew with each; without a file they are only remembered."""

    def __init__(self, file: Path | None) -> None:
        """Read ``file``, if it is there.

        Raises:
            DataError: the file has another format, or its folder does not exist.
        """
        self._file, self._rows = file, {}
        if file is None:
            return
        check_rows_file(file)
        if file.exists():
            self._rows = _read_rows(file)

    def get(self, key: str) -> Row | None:
        return self._rows.get(key)

    def add(self, key: str, row: Row) -> None:
        self._rows[key] = row
        if self._file is None:
            return
        content = json.dumps({"rows": {k: asdict(v) for k, v in self._rows.items()}}, indent=1)
        write_whole(self._file, f"{content}\n", f"cannot keep rows in {self._file}")


def _read_rows(file: Path) -> dict[str, Row]:
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))["rows"]
        return {key: Row(**{**fields, "window_nll": tuple(fields["window_nll"])}) for key, fields in rows.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{file} holds no rows of potq compare ({error}); choose another file, or delete it") from None


# ---- for people: the first row is what the others are compared with


def headings(rows: Sequence[Row]) -> tuple[str, ...]:
    """Those that all rows have, then those of what was measured beside perplexity."""
    return (*HEADINGS, *_beside(rows[0]))


def _beside(row: Row) -> dict[str, str]:
    found = {} if row.divergence is None else {"divergence": f"{row.divergence:.4f}"}
    found |= {name: f"{score:.4f}" for name, score in row.tasks.items()}
    return found if row.tokens_per_second is None else found | {"tokens/s": f"{row.tokens_per_second:.1f}"}


def cells(rows: Sequence[Row]) -> list[list[str]]:
    """The rows in words, under :func:`headings`."""
    base, found = rows[0], []
    for row in rows:
        interval = row.interval(base) if row is not base else None
        found.append(
            [
                row.scheme,
                row.effort,
                f"{row.bits_per_weight:.3f}",
                f"{row.quantized_bits_per_weight:.3f}",
                _figure(row.perplexity),
                "" if row is base else _figure(row.excess(base), sign=True),
                f"{_figure(interval[0], sign=True)} .. {_figure(interval[1], sign=True)}" if interval else "",
                "" if row is base else f"{row.seconds:.1f}",
                *_beside(row).values(),
            ]
        )
    return found


def _figure(value: float, *, sign: bool = False) -> str:
    """Three decimals as long as they mean something."""
    form = ".3f" if abs(value) < 1000 else ".0f" if abs(value) < 1e6 else ".3g"
    return f"{value:{'+' * sign}{form}}"


def table(rows: Sequence[Row]) -> Table:
    from rich import box
    from rich.table import Table

    result = Table(box=box.SIMPLE)
    for heading in headings(rows):
        result.add_column(heading, justify="left" if heading in ("scheme", "effort") else "right")
    for row in cells(rows):
        result.add_row(*row)
    return result


def markdown(rows: Sequence[Row]) -> str:
    return markdown_table(headings(rows), cells(rows))


def to_dict(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """For JSON, with each row's excess over the first and its interval."""
    base = rows[0]
    return [{**asdict(row), "excess": row.excess(base), "interval": row.interval(base)} for row in rows]


def plot(rows: Sequence[Row], path: Path, title: str) -> None:
    """Perplexity over bits per weight, a line an effort, as PNG (or whatever the name's ending says).

    Raises:
        MissingDependencyError, DataError: see :func:`check_plot`; or ``path`` cannot be written.
    """
    check_plot(path)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    base, *others = rows
    axes.axhline(base.perplexity, color="black", linestyle="--", linewidth=1, label=base.scheme)
    efforts: dict[str, list[Row]] = defaultdict(list)
    for row in others:
        efforts[row.effort].append(row)
    for marker, (effort, members) in zip("os^Dv<>P*X" * math.ceil(len(efforts) / 10), efforts.items(), strict=False):
        best: dict[float, Row] = {}
        for row in sorted(members, key=lambda row: row.perplexity):
            best.setdefault(row.bits_per_weight, row)
        line = sorted(best.values(), key=lambda row: row.bits_per_weight)
        (drawn,) = axes.plot([row.bits_per_weight for row in line], [row.perplexity for row in line], linewidth=1)
        points = [row.bits_per_weight for row in members], [row.perplexity for row in members]
        axes.plot(*points, marker, color=drawn.get_color(), label=effort)
    for row in others:  # efforts' names to the right and the left in turn
        at, left = (row.bits_per_weight, row.perplexity), list(efforts).index(row.effort) % 2
        side, shift = ("right", -6) if left else ("left", 6)
        axes.annotate(row.scheme, at, xytext=(shift, -3), textcoords="offset points", fontsize=7, ha=side)
    axes.set_title(title, fontsize=9)
    axes.set(xlabel="bits per weight of the whole model", ylabel="perplexity", yscale="log")
    axes.margins(x=0.15)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.legend()
    try:
        figure.savefig(path, dpi=120)
    except (OSError, ValueError) as error:
        raise DataError(f"cannot write the plot {path} ({error})") from None
