"""Model cards of exported files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from potq.checkpoint.card import NOT_QUANTIZED, Part, model_card, write_card

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from potq.export.report import ExportReport


def write_export_card(
    folder: Path,
    model: PreTrainedModel,
    report: ExportReport,
    *,
    library: str,
    use: str,
    tag: str,
    replaces: Path | None = None,
) -> None:
    """Write into ``folder`` the card of what ``report`` says of an export of ``model``."""
    parts = [Part(tensor.scheme or NOT_QUANTIZED, tensor.type, tensor.weights, tensor.nbytes) for tensor in report.tensors]
    name = Path(report.path).name
    text = model_card(model, name, parts, nbytes=report.nbytes, library=library, use=use, tags=[tag])
    write_card(folder, text, replaces=replaces)
