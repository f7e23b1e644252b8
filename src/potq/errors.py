"""The one exception family of potq: catch :class:`PotqError` and you have caught all of them."""

from __future__ import annotations

import os
from collections.abc import Sequence

_OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
_UNREACHED = {
    "OfflineModeIsEnabled",
    "LocalEntryNotFoundError",
    "ConnectionError",
    "ConnectError",
    "Timeout",
    "TimeoutException",
}


class PotqError(Exception):
    """Something the caller can act on; the message names the file or layer and the remedy.

    Its kinds are also the built-in exceptions that they are like: a :class:`ConfigError` is a :class:`ValueError`, a
    :class:`CheckpointError` an :class:`OSError`, a :class:`MissingDependencyError` an :class:`ImportError`.

    Example:
        >>> import potq
        >>> try:
        ...     potq.load("./no-such-folder")
        ... except potq.PotqError as error:
        ...     print(type(error).__name__)
        CheckpointError
    """


class ConfigError(PotqError, ValueError):
    """A grid, scheme, config or recipe that cannot mean anything."""


class ModelError(PotqError, ValueError):
    """A model that cannot be quantized as asked (NaN weights, not a causal LM, nothing to quantize)."""


class CheckpointError(PotqError, OSError):
    """A file or folder that is missing, damaged, of another format version, or in the way."""


class DataError(PotqError, ValueError):
    """Text or token input that cannot be used as asked."""


class ExportError(PotqError, ValueError):
    """A model that a foreign format cannot hold exactly, or that its engines would not understand."""


class EngineError(PotqError, ValueError):
    """What the decode engine cannot open, or cannot do as asked or in its state."""


class DistributedError(PotqError, RuntimeError):
    """Processes that share a run and disagree, or one that stopped or does not answer."""


class MissingDependencyError(PotqError, ImportError):
    """An optional package is needed; the message gives the pip line."""


def listed(names: Sequence[str], most: int) -> str:
    """``names`` with commas between, the first ``most`` of them, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{', '.join(names[:most])}{more}"


def out_of_reach(name: str, error: BaseException) -> str | None:
    """What to say of ``name``, no file here, where ``error`` came because the hub could not be asked; None: it could."""
    seen: BaseException | None = error
    while seen is not None and not any(kind.__name__ in _UNREACHED for kind in type(seen).__mro__):
        seen = seen.__cause__ or seen.__context__
    if seen is None:
        return None
    switches = [switch for switch in _OFFLINE if os.environ.get(switch, "").upper() in ("1", "ON", "YES", "TRUE")]
    why = f"{switches[0]} is set" if switches else "no connection"
    return f"{name} is not here, and the hub cannot be reached ({why}); give a folder or file here, or connect"
