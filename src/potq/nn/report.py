"""What a quantization did, module by module: the :class:`QuantReport`, as a table and as JSON."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict

from potq.errors import listed

if TYPE_CHECKING:
    from rich.table import Table

Progress = Callable[[int, int, str], None]
"""What long work calls as it goes on: how much is done, of how much (weights, tokens, steps), and a word on the work."""


_NOTABLE = 0.1  # of a model
_WORDS = ("module", "reason", "scheme", "effort")  # columns that are no numbers


def duration(seconds: float) -> str:
    """In words: 12 s, 3 min, 2.5 h."""
    if seconds < 90:
        return f"{math.ceil(seconds)} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def decibels(signal: float, noise: float) -> float:
    """``10 log10(signal / noise)`` of two energies, held within +-200 so that exact results stay finite in JSON."""
    if noise == 0:
        return 200.0
    if signal == 0 or math.isinf(noise):
        return -200.0
    return max(-200.0, min(200.0, 10 * (math.log10(signal) - math.log10(noise))))


class ModuleReport(BaseModel):
    """One quantized module. Errors are signal-to-noise ratios in dB (higher is better); None: not measured."""

    model_config = ConfigDict(extra="forbid")

    name: str
    kind: str
    shape: tuple[int, ...]  # of a stack of experts' matrices: experts, outputs, inputs
    scheme: str
    algorithm: str
    bits_per_weight: float
    snr_db: float | None
    output_snr_db: float | None = None
    bytes_before: int
    bytes_after: int
    tied: tuple[str, ...] = ()


class SkippedModule(BaseModel):
    """A module with a weight matrix that stayed in full precision, and why."""

    model_config = ConfigDict(extra="forbid")

    name: str
    reason: str
    nbytes: int


class UnusedTensor(BaseModel):
    """A tensor of the checkpoint that the model has no place for."""

    model_config = ConfigDict(extra="forbid")

    name: str
    nbytes: int


class QuantReport(BaseModel):
    """Result of :func:`potq.quantize`: quantized and skipped modules, and the bytes of the whole quantized model.

    Attributes:
        modules: one entry a quantized weight, with its scheme, bits, bytes and signal-to-noise ratio in dB.
        skipped: modules with a weight matrix that stayed in full precision, each with the reason.
        bytes_after: of the quantized model, what was skipped included.
        weights: of the whole model, skipped ones, norms and biases included, tied ones once; None: a report that was
            written before they were counted, and read without the model (:func:`potq.load` counts them).
        unused: tensors of the checkpoint that the model does not use, such as heads that predict several tokens.
        remarks: what was done in another way than usual, or is allowed and hardly meant.

    Example:
        >>> import potq
        >>> report = potq.load("packed").quant_report
        >>> len(report.modules), len(report.skipped)
        (15, 0)
        >>> report.modules[1].name, report.modules[1].scheme, report.modules[1].shape
        ('model.layers.0.self_attn.q_proj', 'pot4-g64', (64, 64))
        >>> round(report.bits_per_weight, 2), round(report.quantized_bits_per_weight, 2)
        (4.99, 4.91)
        >>> potq.QuantReport.from_json(report.to_json()) == report
        True
    """

    model_config = ConfigDict(extra="forbid")

    modules: list[ModuleReport]
    skipped: list[SkippedModule]
    bytes_after: int
    weights: int | None = None
    unused: list[UnusedTensor] = []
    remarks: list[str] = []

    _verb: ClassVar[str] = "quantized"

    @property
    def bytes_before(self) -> int:
        """Bytes of the model before it was quantized."""
        return self.bytes_after + sum(module.bytes_before - module.bytes_after for module in self.modules)

    @property
    def skipped_share(self) -> float:
        """Of the model's bytes before, those of skipped modules."""
        return sum(module.nbytes for module in self.skipped) / self.bytes_before

    @property
    def bits_per_weight(self) -> float | None:
        """Stored bits per weight of the whole model: skipped modules, norms and biases count too."""
        return 8 * self.bytes_after / self.weights if self.weights else None

    @property
    def quantized_bits_per_weight(self) -> float:
        """Stored bits per quantized weight, scales included; a tied weight counts once."""
        weights = sum(math.prod(module.shape) for module in self.modules)
        return 8 * sum(module.bytes_after for module in self.modules) / weights

    @property
    def notes(self) -> list[str]:
        """A line for whatever is no matter of one module."""
        if not self.unused:
            return []
        names = list(dict.fromkeys(_alike(tensor.name) for tensor in self.unused))
        size = sum(tensor.nbytes for tensor in self.unused) / 1e6
        return [f"{len(self.unused)} tensors of the checkpoint are not used, {size:.1f} MB: {listed(names, 3)}"]

    def to_dict(self) -> dict[str, Any]:
        """What ``--json`` prints: everything, and the bits per weight of the whole model and of what was quantized."""
        bits = {"bits_per_weight": self.bits_per_weight, "quantized_bits_per_weight": self.quantized_bits_per_weight}
        return {**self.model_dump(mode="json"), **bits}

    def to_json(self) -> str:
        return self.model_dump_json(indent=2)

    @classmethod
    def from_json(cls, text: str) -> QuantReport:
        return cls.model_validate_json(text)

    def tables(self, *, every_module: bool = False) -> list[Table]:
        """Rich tables of what was quantized and, if anything, what was not.

        Layers that differ only by their number share a row unless ``every_module``. SNR is the weights' signal-to-noise
        ratio in dB, mean and worst of the row's modules; "output" that of their outputs.
        """
        from rich import box
        from rich.table import Table

        caption = "\n".join(self._captions())
        table = Table(title=self.summary(), caption=caption, title_justify="left", caption_justify="left", box=box.SIMPLE)
        for heading in self._headings():
            table.add_column(heading, justify="left" if heading in _WORDS else "right", overflow="fold")
        for cells in self._lines(every_module):
            table.add_row(*cells)
        return [table, *([self._skipped_table(every_module)] if self.skipped else [])]

    def _skipped_table(self, every_module: bool) -> Table:
        from rich import box
        from rich.table import Table

        table = Table(title="left in full precision", title_justify="left", box=box.SIMPLE)
        table.add_column("module", overflow="fold")
        table.add_column("reason", overflow="fold")
        for cells in self._skipped_lines(every_module):
            table.add_row(*cells)
        return table

    def to_markdown(self, *, every_module: bool = False) -> str:
        """What :meth:`tables` shows, as Markdown.

        Example:
            >>> import potq
            >>> print(potq.load("packed").quant_report.to_markdown().splitlines()[2])
            | module | n | shape | scheme | bits | SNR | worst |
        """
        parts = [self.summary(), markdown_table(self._headings(), self._lines(every_module)), *self._captions()]
        if self.skipped:
            parts += ["Left in full precision:", markdown_table(("module", "reason"), self._skipped_lines(every_module))]
        return "\n\n".join(parts)

    def _headings(self) -> tuple[str, ...]:
        errors = ("SNR", "worst") if any(module.snr_db is not None for module in self.modules) else ()
        outputs = ("output", "worst") if any(module.output_snr_db is not None for module in self.modules) else ()
        return ("module", "n", "shape", "scheme", "bits", *errors, *outputs)

    def _lines(self, every_module: bool) -> list[list[str]]:
        headings = self._headings()
        return [_cells(name, group, headings) for name, group in self._rows(every_module).items()]

    def _skipped_lines(self, every_module: bool) -> list[list[str]]:
        reasons = {skipped.name if every_module else _alike(skipped.name): skipped.reason for skipped in self.skipped}
        return [[name, reason] for name, reason in reasons.items()]

    def _captions(self) -> list[str]:
        measured = "SNR in dB; " if "SNR" in self._headings() else ""
        return [f"{measured}algorithm: {', '.join(self._algorithms())}", *self.notes, *self.remarks]

    def summary(self) -> str:
        """One line: the whole model's bits per weight, what was quantized, what was not, and the size."""
        share = f" with {self.skipped_share:.0%} of the model" if self.skipped_share >= _NOTABLE else ""
        whole = f"{self.bits_per_weight:.3f} bits per weight: " if self.bits_per_weight is not None else ""
        return (
            f"{whole}{len(self.modules)} modules {self._verb} at {self.quantized_bits_per_weight:.3f}, "
            f"{len(self.skipped)} skipped{share}; {self.bytes_before / 1e6:.1f} MB -> {self.bytes_after / 1e6:.1f} MB"
        )

    def _algorithms(self) -> list[str]:
        """Each once; one that is a fallback, with its reason in brackets, with the modules it was for."""
        names: dict[str, list[str]] = defaultdict(list)
        for module in self.modules:
            names[module.algorithm].append(module.name)
        return [
            f"{algorithm}: {listed(found, 3)}" if algorithm.endswith(")") else algorithm
            for algorithm, found in names.items()
        ]

    def _rows(self, every_module: bool) -> dict[str, list[ModuleReport]]:
        rows: dict[str, list[ModuleReport]] = defaultdict(list)
        for module in self.modules:
            label = " = ".join((module.name, *module.tied))
            alike = label if every_module else _alike(label)
            rows[f"{alike}\0{module.scheme}\0{module.shape}"].append(module)
        return rows


class PlannedReport(QuantReport):
    """What quantizing would do; nothing was done, so that there are no errors."""

    _verb: ClassVar[str] = "to be quantized"

    def _captions(self) -> list[str]:
        return self.notes


def markdown_table(headings: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Words to the left, numbers to the right."""
    rule = ["---" if heading in _WORDS else "---:" for heading in headings]
    cells = ([cell.replace("|", "\\|").replace("*", "\\*") for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in (headings, rule, *cells))


def _alike(name: str) -> str:
    """The name with its layer numbers blotted out."""
    return re.sub(r"(?<=\.)\d+(?=\.)", "*", name)


def _cells(key: str, group: list[ModuleReport], headings: Sequence[str]) -> list[str]:
    first = group[0]
    cells = [key.partition("\0")[0], str(len(group)), "x".join(map(str, first.shape)), first.scheme]
    cells.append(f"{first.bits_per_weight:.2f}")
    errors = _mean_and_worst([module.snr_db for module in group]) if "SNR" in headings else []
    return cells + errors + (_mean_and_worst([module.output_snr_db for module in group]) if "output" in headings else [])


def _mean_and_worst(values: list[float | None]) -> list[str]:
    known = [value for value in values if value is not None]
    return [f"{sum(known) / len(known):.1f}", f"{min(known):.1f}"] if known else ["-", "-"]
