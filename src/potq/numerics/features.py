"""Features of the checkpoint format: a checkpoint lists those it uses; a reader refuses by name what it does not know."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from potq.errors import CheckpointError
from potq.numerics.scheme import QuantScheme, plane_widths

FORMAT_VERSION: Literal[1] = 1
_UPGRADE = "upgrade potq (pip install --upgrade potq)"


@dataclass(frozen=True)
class Feature:
    """Something in a checkpoint that a reader has to know.

    Attributes:
        meaning: for docs/format.md.
        since: the version of potq that wrote it first.
        is_used: whether weights of a scheme have it; None: the model says so, not a scheme.
    """

    meaning: str
    since: str
    is_used: Callable[[QuantScheme], bool] | None


# csrc/engine/scheme.cpp has the names too
FEATURES: dict[str, Feature] = {
    "bit-planes": Feature(
        "codes of 3, 5, 6 or 7 bits: rows of several planes", "0.1", lambda scheme: len(plane_widths(scheme.code_bits)) > 1
    ),
    "e8m0-scales": Feature("`scale_dtype` is `e8m0`", "0.1", lambda scheme: scheme.scale_dtype == "e8m0"),
    "expert-stacks": Feature("stacks of experts' matrices are packed", "0.2", None),
    "row-scales": Feature("`row_scale` is true", "0.1", lambda scheme: scheme.row_scale),
    "signed-scales": Feature("`signed_scale` is true", "0.1", lambda scheme: scheme.signed_scale),
    "table-grids": Feature("the `encoding` of a grid is `table`", "0.1", lambda scheme: scheme.grid.encoding == "table"),
    "tensor-scales": Feature('`group_size` is `"tensor"`', "0.1", lambda scheme: scheme.group_size == "tensor"),
    "trellis": Feature("`trellis` is true", "0.2", lambda scheme: scheme.trellis),
}
"""Every feature that this potq knows, in the order of their names. What is not listed every version knows."""


def features_of(schemes: Iterable[QuantScheme], further: Iterable[str] = ()) -> list[str]:
    """The features that a checkpoint with these schemes uses, and ``further`` ones, which its model does."""
    schemes, further = list(schemes), set(further)
    return [
        name
        for name, feature in FEATURES.items()
        if name in further or (feature.is_used is not None and any(map(feature.is_used, schemes)))
    ]


def require_readable(fields: Mapping[str, Any], file: str | os.PathLike[str]) -> None:
    """Refuse what another potq wrote and this one cannot read, before anything else of it is looked at.

    Args:
        fields: a ``quantization_config``; of potq 0.1 it has no list of features.
        file: where it stands.

    Raises:
        CheckpointError: another format version, or a feature that is not known; names it.
    """
    if (version := fields.get("version", FORMAT_VERSION)) != FORMAT_VERSION:
        found = f"{file} is of format version {version!r}"
        raise CheckpointError(f"{found}, this potq reads version {FORMAT_VERSION}; {_UPGRADE}")
    features = fields.get("features", [])
    if not isinstance(features, list) or not all(isinstance(name, str) for name in features):
        raise CheckpointError(f"{file}: features is not a list of names; the file is damaged, copy it again")
    if unknown := [name for name in features if name not in FEATURES]:
        raise CheckpointError(f"{file} uses the feature {unknown[0]!r}, which this potq does not know; {_UPGRADE}")
