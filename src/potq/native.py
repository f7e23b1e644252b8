"""The compiled library (``csrc/``, plain C interface) through ctypes: finding it, its structs, its instruction sets.

It serves the scale search, the algorithms, the kernels and the engine; where it does not (:func:`serves`), torch computes.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import struct
import sys
from ctypes import POINTER, c_char_p, c_float, c_int8, c_int32, c_int64, c_size_t, c_uint64, c_void_p
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from potq.errors import ConfigError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

ABI = 7
ISAS = ("scalar", "avx2", "avxvnni", "avx512vnni", "neon", "neondot", "neoni8mm")  # in the library's numbering
_PREFERRED = ("avx512vnni", "avxvnni", "avx2", "neoni8mm", "neondot", "neon", "scalar")
_NAMES = ("libpotq.so", "libpotq.dylib", "potq.dll", "libpotq.dll")


class Format(ctypes.Structure):
    """``potq_format`` of ``csrc/potq.h``."""

    _fields_ = [
        ("rows", c_int32),
        ("columns", c_int32),
        ("bits", c_int32),
        ("group", c_int32),
        ("scale_format", c_int32),
        ("scale_rows", c_int32),
        ("reference_log2", c_int32),
        ("trellis", c_int32),
        ("levels", c_int8 * 16),
    ]


# potq_product of csrc/potq.h: addresses of format, tiles, x, bias (or 0) and y; m, dtype, arithmetic, isa. Made at every
# call of a module, in a quarter of a ctypes.Structure's time; bytes, since two threads may call at once.
PRODUCT = struct.Struct("5Pq3i0q")


class Columns(ctypes.Structure):
    """``potq_columns`` of ``csrc/potq.h``."""

    _fields_ = [
        ("levels", c_void_p),
        ("boundaries", c_void_p),
        ("scale", c_void_p),
        ("shift", c_void_p),
        ("group", c_void_p),
        ("rows", c_int64),
        ("groups", c_int64),
        ("columns", c_int32),
        ("n_levels", c_int32),
    ]

    @classmethod
    def of(cls, levels: Tensor, boundaries: Tensor, scale: Tensor, shift: Tensor | None, group: Tensor) -> Columns:
        """Pointers to these tensors, which live as long as it does."""
        tensors = (levels, boundaries, scale, shift, group)
        pointers = (None if tensor is None else tensor.data_ptr() for tensor in tensors)
        described = cls(*pointers, *scale.shape, len(group), len(levels))
        described.tensors = tensors
        return described


class PathColumns(ctypes.Structure):
    """``potq_path_columns`` of ``csrc/potq.h``."""

    _fields_ = [
        ("levels", c_void_p),
        ("rows", c_int64),
        ("n_levels", c_int32),
        ("columns", c_int32),
        ("kept", c_int32),
    ]


class EngineOptions(ctypes.Structure):
    """``potq_engine_options`` of ``csrc/engine/engine.h``."""

    _fields_ = [("threads", c_int32), ("context", c_int32), ("arithmetic", c_int32), ("isa", c_int32)]


class EngineFacts(ctypes.Structure):
    """``potq_engine_facts`` of ``csrc/engine/engine.h``."""

    _fields_ = [
        ("vocabulary", c_int32),
        ("layers", c_int32),
        ("context", c_int32),
        ("threads", c_int32),
        ("isa", c_int32),
        ("weight_bytes", c_int64),
    ]


class EngineSampling(ctypes.Structure):
    """``potq_sampling`` of ``csrc/engine/engine.h``."""

    _fields_ = [
        ("temperature", c_float),
        ("top_p", c_float),
        ("min_p", c_float),
        ("repetition_penalty", c_float),
        ("top_k", c_int32),
        ("seed", c_uint64),
    ]


class SchedulerOptions(ctypes.Structure):
    """``potq_scheduler_options`` of ``csrc/engine/engine.h``."""

    _fields_ = [("slots", c_int32), ("chunk", c_int32), ("cache_bytes", c_int64)]


class Request(ctypes.Structure):
    """``potq_request`` of ``csrc/engine/engine.h``."""

    _fields_ = [
        ("prompt", c_void_p),
        ("ends", POINTER(c_int32)),
        ("count", c_int32),
        ("end_count", c_int32),
        ("most", c_int32),
        ("logprobs", c_int32),
        ("echo", c_int32),
        ("sampling", EngineSampling),
    ]


class Logprob(ctypes.Structure):
    """``potq_logprob`` of ``csrc/engine/engine.h``."""

    _fields_ = [("token", c_int32), ("logprob", c_float)]


class Event(ctypes.Structure):
    """``potq_event`` of ``csrc/engine/engine.h``."""

    _fields_ = [
        ("request", c_int64),
        ("token", c_int32),
        ("finish", c_int32),
        ("entries", c_int32),
        ("prompt_entries", c_int32),
        ("logprobs", POINTER(Logprob)),
        ("prompt_logprobs", POINTER(Logprob)),
        ("message", c_char_p),
    ]


class SchedulerFacts(ctypes.Structure):
    """``potq_scheduler_statistics`` of ``csrc/engine/engine.h``."""

    _fields_ = [
        ("running", c_int32),
        ("waiting", c_int32),
        ("pages_used", c_int64),
        ("pages_total", c_int64),
        ("cache_bytes", c_int64),
        ("shared_tokens", c_int64),
    ]


_FORMAT = POINTER(Format)
_MESSAGE = [c_char_p, c_size_t]
_SIGNATURES = {
    "potq_abi": (c_int32, []),
    "potq_isa_name": (c_char_p, [c_int32]),
    "potq_isa_usable": (c_int32, [c_int32]),
    "potq_has_openmp": (c_int32, []),
    "potq_unsupported": (c_char_p, [_FORMAT]),
    "potq_tiles_bytes": (c_size_t, [_FORMAT]),
    "potq_advise_huge_pages": (None, [c_void_p, c_size_t]),
    "potq_linear": (c_int32, None),  # bytes of PRODUCTs and two ints go as they are; ctypes takes 0.3 us to check them
    "potq_pack_all": (None, [_FORMAT, c_void_p, c_void_p, c_void_p, c_int32]),
    "potq_best_scales": (
        c_int32,
        [c_void_p, c_int32, c_void_p, c_void_p, c_int64, c_int64, c_int32, c_int32, c_void_p, c_int32],
    ),
    "potq_best_candidates": (
        None,
        [c_void_p, c_void_p, c_int32, c_float, c_void_p, c_void_p, c_int64, c_int64, c_void_p, c_int32, c_void_p, c_int32],
    ),
    "potq_compensate": (None, [POINTER(Columns)] + [c_void_p] * 4 + [c_int32]),
    "potq_descend": (None, [POINTER(Columns)] + [c_void_p] * 4 + [c_int32]),
    "potq_best_paths": (None, [c_void_p, c_int32, c_void_p, c_void_p, c_int64, c_int64, c_void_p, c_void_p, c_int32]),
    "potq_compensate_paths": (None, [POINTER(PathColumns)] + [c_void_p] * 7 + [c_int32]),
    "potq_round": (None, [POINTER(Columns), c_void_p, c_void_p, c_int32, c_int32]),
    "potq_round_backward": (None, [POINTER(Columns)] + [c_void_p] * 3 + [c_int32, c_void_p, c_void_p, c_int32]),
    "potq_lookup_all": (c_int64, [_FORMAT] + [c_void_p] * 3 + [c_int64, c_int64, c_void_p, c_int32, c_int32]),
    "potq_engine_open": (c_void_p, [c_char_p, POINTER(EngineOptions)] + _MESSAGE),
    "potq_engine_close": (None, [c_void_p]),
    "potq_engine_describe": (None, [c_void_p, POINTER(EngineFacts)]),
    "potq_engine_append": (c_int32, [c_void_p, c_void_p, c_int32, c_void_p, c_int32] + _MESSAGE),
    "potq_engine_length": (c_int32, [c_void_p]),
    "potq_engine_truncate": (c_int32, [c_void_p, c_int32]),
    "potq_engine_start": (c_int32, [c_void_p, c_void_p, c_int32, POINTER(EngineSampling), c_void_p, c_int32] + _MESSAGE),
    "potq_engine_next": (c_int32, [c_void_p, POINTER(c_int32)] + _MESSAGE),
    "potq_scheduler_open": (c_void_p, [c_void_p, POINTER(SchedulerOptions)] + _MESSAGE),
    "potq_scheduler_close": (None, [c_void_p]),
    "potq_scheduler_submit": (c_int64, [c_void_p, POINTER(Request)] + _MESSAGE),
    "potq_scheduler_allow": (c_int32, [c_void_p, c_int64, c_char_p, c_size_t] + _MESSAGE),
    "potq_scheduler_cancel": (None, [c_void_p, c_int64]),
    "potq_scheduler_step": (c_int32, [c_void_p] + _MESSAGE),
    "potq_scheduler_event": (None, [c_void_p, c_int32, POINTER(Event)]),
    "potq_scheduler_describe": (None, [c_void_p, POINTER(SchedulerFacts)]),
}


def path() -> Path | None:
    """Where the library is, or None: ``POTQ_LIBRARY`` if set, else beside this file or where an editable install put it."""
    chosen = os.environ.get("POTQ_LIBRARY")
    if chosen:
        return Path(chosen)
    spec = importlib.util.find_spec("potq")  # not its __path__, which needs an import of the package's face
    folders = (spec and spec.submodule_search_locations) or ()
    candidates = (Path(folder) / name for folder in folders for name in _NAMES)
    return next((file for file in candidates if file.is_file()), None)


@cache
def missing() -> str | None:
    """Why the library cannot be used, or None if it can."""
    file = path()
    if file is None:
        return "the compiled library is not installed; reinstall potq where a C++17 compiler is found"
    try:
        found = _open(file).potq_abi()
    except (OSError, AttributeError) as error:
        return f"{file} cannot be loaded ({error}); reinstall potq"
    return None if found == ABI else f"{file} is of another version (interface {found}, not {ABI}); reinstall potq"


def serves(device: torch.device) -> bool:
    """Whether the library computes with tensors on ``device``."""
    return device.type == "cpu" and missing() is None


@cache
def library() -> ctypes.CDLL:
    """The library, its functions typed.

    Raises:
        ConfigError: it cannot be used (see :func:`missing`).
    """
    file = path()
    if file is None or missing():
        raise ConfigError(f"the compiled library cannot be used: {missing()}")
    return _open(file)


def _open(file: Path) -> ctypes.CDLL:
    _open_openmp()
    loaded = ctypes.CDLL(str(file))
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(loaded, name)
        function.restype, function.argtypes = result, arguments
    return loaded


def _open_openmp() -> None:
    """Open torch's libgomp before ours is opened: the two then are one, and share one pool of threads."""
    if "torch" in sys.modules or sys.platform != "linux":
        return
    spec = importlib.util.find_spec("torch")
    for folder in (spec and spec.submodule_search_locations) or ():
        if (file := Path(folder, "lib", "libgomp.so.1")).is_file():
            ctypes.CDLL(str(file))


@cache
def usable_isas() -> dict[str, int]:
    """Number of every instruction set that was compiled in and that this CPU has, by name."""
    return {name: number for number, name in enumerate(ISAS) if library().potq_isa_usable(number) == 1}


def best_isa() -> str:
    """The best instruction set that this CPU has, whatever ``POTQ_CPU_ISA`` says."""
    return next(name for name in _PREFERRED if name in usable_isas())


@cache
def isa() -> str:
    """The instruction set in use: ``POTQ_CPU_ISA``, or the best that this CPU has.

    Raises:
        ConfigError: ``POTQ_CPU_ISA`` names one that does not exist, was not compiled in, or that this CPU lacks.
    """
    usable, chosen = usable_isas(), os.environ.get("POTQ_CPU_ISA")
    if not chosen:
        return best_isa()
    if chosen in usable:
        return chosen
    if chosen not in ISAS:
        raise ConfigError(f"POTQ_CPU_ISA={chosen} is unknown; known are {', '.join(ISAS)}")
    compiled = library().potq_isa_usable(ISAS.index(chosen)) >= 0
    reason = "this CPU lacks it" if compiled else "it was not compiled for this platform"
    raise ConfigError(f"POTQ_CPU_ISA={chosen} cannot be used: {reason}; usable here: {', '.join(usable)}")
