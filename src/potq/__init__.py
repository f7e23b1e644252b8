"""potq: power-of-two quantization for language models.

Importing potq is cheap (torch loads at first use), and makes ``transformers``' ``from_pretrained`` understand its
checkpoints.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from types import ModuleType
from typing import TYPE_CHECKING, Any

from potq.version import __version__ as __version__

if TYPE_CHECKING:
    from potq.checkpoint.folder import save
    from potq.checkpoint.loading import load, load_tokenizer
    from potq.checkpoint.modules import load_module, save_module
    from potq.checkpoint.processors import load_processor
    from potq.config import PoTConfig
    from potq.data.calibration_text import load_calibration
    from potq.data.inputs import load_inputs
    from potq.engine.engine import Engine
    from potq.engine.runners import open_runner
    from potq.errors import PotqError
    from potq.nn.report import QuantReport
    from potq.numerics.grid import Grid
    from potq.numerics.scheme import PRESETS, QuantScheme
    from potq.ptq.allocation import allocate
    from potq.ptq.quantize import quantize

_HOME = {
    "Engine": "engine.engine",
    "Grid": "numerics.grid",
    "PRESETS": "numerics.scheme",
    "PoTConfig": "config",
    "PotqError": "errors",
    "QuantReport": "nn.report",
    "QuantScheme": "numerics.scheme",
    "allocate": "ptq.allocation",
    "load": "checkpoint.loading",
    "load_calibration": "data.calibration_text",
    "load_inputs": "data.inputs",
    "load_module": "checkpoint.modules",
    "load_processor": "checkpoint.processors",
    "load_tokenizer": "checkpoint.loading",
    "open_runner": "engine.runners",
    "quantize": "ptq.quantize",
    "save": "checkpoint.folder",
    "save_module": "checkpoint.modules",
}

_MODULES = ("kernels", "qat")  # potq.qat.prepare is to work without an import of its own

__all__ = [
    "PRESETS",
    "Engine",
    "Grid",
    "PoTConfig",
    "PotqError",
    "QuantReport",
    "QuantScheme",
    "allocate",
    "load",
    "load_calibration",
    "load_inputs",
    "load_module",
    "load_processor",
    "load_tokenizer",
    "open_runner",
    "quantize",
    "save",
    "save_module",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"potq.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'potq' has no attribute {name!r}")
    return getattr(importlib.import_module(f"potq.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


_REGISTRY = "transformers.quantizers"


class _RegisterWithTransformers(MetaPathFinder):
    """Registers potq's quantizer right after transformers' registry is imported, and not before.

    transformers discovers no plugins: unregistered, ``from_pretrained`` would leave a packed model's weights random.
    Registering at once would make every ``import potq``, and ``potq --help``, wait seconds for torch.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != _REGISTRY:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            execute(module)
            _register()

        spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec


def _register() -> None:
    importlib.import_module("potq.checkpoint.transformers")


if _REGISTRY in sys.modules:
    _register()
else:
    sys.meta_path.insert(0, _RegisterWithTransformers())
