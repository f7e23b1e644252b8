"""What every comparison with other people's packages shares: how many threads they get, and what happens without them."""

from __future__ import annotations

import importlib
from typing import Any

THREADS = 2


class UnavailableError(Exception):
    """Why a contestant cannot run here, or not with this shape."""


def optional(module: str, package: str) -> Any:
    """Import an optional package.

    Raises:
        UnavailableError: it is not installed; says how to get it.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        raise UnavailableError(f"pip install {package}") from None
