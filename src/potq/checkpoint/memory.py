"""Whether a model that is to be calibrated fits in memory, found from the headers of its files."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import psutil  # type: ignore[import-untyped]

from potq.checkpoint.files import weight_files
from potq.checkpoint.folder import read_headers
from potq.config import Effort

if TYPE_CHECKING:
    import torch

_WORK = 2 << 30  # bytes for the libraries, hidden states and a layer's matrices
_REFINED = 24  # bytes a weight of a refinement of the whole model: latent weights, gradients, Adam's moments
_GROUP = Path("/sys/fs/cgroup")  # a container's limits


def memory_needed(folder: Path, effort: Effort, dtype: str | torch.dtype) -> int:
    """Bytes that calibrating the full-precision model in ``folder`` takes where the whole of it is loaded.

    Args:
        dtype: what it is loaded as; "auto" is what its files hold.

    Raises:
        CheckpointError: a file that is missing, truncated or corrupted.
    """
    tensors = read_headers(weight_files(folder)).values()
    weights = sum(math.prod(tensor.shape) for tensor in tensors)
    size = _item_bytes(dtype)
    loaded = sum(tensor.nbytes if size is None else math.prod(tensor.shape) * size for tensor in tensors)
    refined = _REFINED * weights if effort.scope == "model" else 0
    return loaded + weights * 5 // 8 + refined + _WORK


def _item_bytes(dtype: str | torch.dtype) -> int | None:
    import torch

    if dtype == "auto":
        return None
    named: torch.dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    return named.itemsize


def memory_available() -> int:
    """Bytes of memory that are free, or would be if files were not cached; in a container, within its limit."""
    free = int(psutil.virtual_memory().available)
    try:
        limit, used = ((_GROUP / name).read_text() for name in ("memory.max", "memory.current"))
        fields = dict(line.split() for line in (_GROUP / "memory.stat").read_text().splitlines())
        left = int(limit) - int(used) + int(fields["inactive_file"]) + int(fields["active_file"])
    except (OSError, ValueError, KeyError):  # no such group, or no limit ("max")
        return free
    return max(0, min(free, left))
