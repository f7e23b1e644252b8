"""What the ONNX export needs beside potq."""

from __future__ import annotations

from importlib.util import find_spec

from potq.errors import MissingDependencyError

_PACKAGES = ("onnx", "onnx_ir", "onnxruntime", "onnxscript")


def require_packages() -> None:
    """Look for what the export needs, before any work is done.

    Raises:
        MissingDependencyError: names what is missing.
    """
    missing = [name for name in _PACKAGES if find_spec(name) is None]
    if missing:
        raise MissingDependencyError(f"the onnx export needs {', '.join(missing)}: pip install 'potq[onnx]'")
