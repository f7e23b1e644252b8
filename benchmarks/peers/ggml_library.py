"""llama.cpp's ggml through ctypes: which library, and the few functions that the benchmark calls.

``POTQ_GGML`` may name a folder with ``libggml-base`` and one or more ``libggml-cpu*`` libraries; the one that scores highest
on this CPU is taken, as llama.cpp itself does; where AVX2 is forced, of those without AVX-512. Without the variable the
library inside the package xllamacpp is used, which is built for AVX2 on x86: a native build is the stronger peer.
"""

from __future__ import annotations

import ctypes
import os
from ctypes import POINTER, Structure, c_bool, c_char_p, c_float, c_int, c_int64, c_size_t, c_uint32, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.forced import forced
from benchmarks.peers.packages import THREADS, UnavailableError, optional

TYPES = range(40)  # ggml_type, f32 to mxfp4: files store these numbers, so they do not change
FEATURES = ("avx2", "avx_vnni", "avx512", "avx512_vnni", "avx512_bf16", "neon", "dotprod", "matmul_int8", "sve")


LogCallback = ctypes.CFUNCTYPE(None, c_int, c_char_p, c_void_p)


class InitParams(Structure):
    """``ggml_init_params``."""

    _fields_ = (("size", c_size_t), ("memory", c_void_p), ("no_alloc", c_bool))


class ThreadpoolParams(Structure):
    """``ggml_threadpool_params``."""

    _fields_ = (
        ("cpumask", c_bool * 512),
        ("threads", c_int),
        ("priority", c_int),
        ("poll", c_uint32),
        ("strict_cpu", c_bool),
        ("paused", c_bool),
    )


_TYPES: dict[str, tuple[Any, tuple[Any, ...]]] = {  # result, arguments
    "ggml_backend_alloc_ctx_tensors_from_buft": (c_void_p, (c_void_p, c_void_p)),
    "ggml_backend_buffer_free": (None, (c_void_p,)),
    "ggml_backend_buffer_get_base": (c_void_p, (c_void_p,)),
    "ggml_backend_buft_alloc_buffer": (c_void_p, (c_void_p, c_size_t)),
    "ggml_backend_buft_name": (c_char_p, (c_void_p,)),
    "ggml_backend_cpu_buffer_type": (c_void_p, ()),
    "ggml_backend_cpu_init": (c_void_p, ()),
    "ggml_backend_cpu_reg": (c_void_p, ()),
    "ggml_backend_cpu_set_n_threads": (None, (c_void_p, c_int)),
    "ggml_backend_cpu_set_threadpool": (None, (c_void_p, c_void_p)),
    "ggml_backend_dev_supports_op": (c_bool, (c_void_p, c_void_p)),
    "ggml_backend_graph_compute": (c_int, (c_void_p, c_void_p)),
    "ggml_backend_reg_dev_get": (c_void_p, (c_void_p, c_size_t)),
    "ggml_backend_reg_get_proc_address": (c_void_p, (c_void_p, c_char_p)),
    "ggml_backend_tensor_alloc": (c_int, (c_void_p, c_void_p, c_void_p)),
    "ggml_backend_tensor_set": (None, (c_void_p, c_void_p, c_size_t, c_size_t)),
    "ggml_build_forward_expand": (None, (c_void_p, c_void_p)),
    "ggml_free": (None, (c_void_p,)),
    "ggml_graph_overhead_custom": (c_size_t, (c_size_t, c_bool)),
    "ggml_init": (c_void_p, (InitParams,)),
    "ggml_log_set": (None, (LogCallback, c_void_p)),
    "ggml_mul_mat": (c_void_p, (c_void_p, c_void_p, c_void_p)),
    "ggml_new_graph_custom": (c_void_p, (c_void_p, c_size_t, c_bool)),
    "ggml_new_tensor_2d": (c_void_p, (c_void_p, c_int, c_int64, c_int64)),
    "ggml_blck_size": (c_int64, (c_int,)),
    "ggml_quantize_chunk": (c_size_t, (c_int, c_void_p, c_void_p, c_int64, c_int64, c_int64, c_void_p)),
    "ggml_row_size": (c_size_t, (c_int, c_int64)),
    "ggml_tensor_overhead": (c_size_t, ()),
    "ggml_threadpool_new": (c_void_p, (c_void_p,)),
    "ggml_threadpool_params_init": (None, (c_void_p, c_int)),
    "ggml_type_name": (c_char_p, (c_int,)),
}


class Ggml:
    """Functions of ggml by name, a CPU backend with a thread pool, and the numbers of the types by name."""

    def __init__(self, libraries: list[ctypes.CDLL]) -> None:
        for name, (result, arguments) in _TYPES.items():
            function = next((getattr(library, name) for library in libraries if hasattr(library, name)), None)
            if function is None:
                raise UnavailableError(f"this ggml exports no {name}")
            function.restype, function.argtypes = result, arguments
            setattr(self, name, function)
        self._libraries = libraries
        self._quiet = LogCallback(lambda level, text, data: None)  # kept alive: ggml goes on calling it
        self.ggml_log_set(self._quiet, None)
        self.types = {self.ggml_type_name(i).decode(): i for i in TYPES}
        self.plain = self.ggml_backend_cpu_buffer_type()
        registry = self.ggml_backend_cpu_reg()
        self.device = self.ggml_backend_reg_dev_get(registry, 0)
        self.repacked = self._repacked(registry)
        self.backend = self._start_backend()

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)  # tells mypy that functions are set by name

    def description(self) -> str:
        """The file, and the instruction sets it uses on this CPU."""
        features = [name for name in FEATURES if self._find(f"ggml_cpu_has_{name}")()]
        return f"{Path(self._libraries[0]._name).name} ({', '.join(features)})"

    def dequantize(self, kind: str, data: bytes, count: int) -> Any:
        """``count`` floats out of ``data``, as a ctypes array."""
        out = (c_float * count)()
        self._find(f"dequantize_row_{kind}")(data, out, c_int64(count))
        return out

    def _find(self, name: str) -> Any:
        return next(getattr(library, name) for library in self._libraries if hasattr(library, name))

    def _repacked(self, registry: int) -> int | None:
        """The buffer type that interleaves rows for the kernels, if there is one."""
        address = self.ggml_backend_reg_get_proc_address(registry, b"ggml_backend_dev_get_extra_bufts")
        if not address:
            return None
        listed = ctypes.CFUNCTYPE(POINTER(c_void_p), c_void_p)(address)(self.device)
        for i in range(16):
            if not listed or not listed[i]:
                break
            if b"REPACK" in self.ggml_backend_buft_name(listed[i]):
                return int(listed[i])
        return None

    def _start_backend(self) -> int:
        params = ThreadpoolParams()
        self.ggml_threadpool_params_init(ctypes.byref(params), THREADS)
        params.poll = 1  # threads spin for about a millisecond after a graph, not into the next contestant's time
        backend: int = self.ggml_backend_cpu_init()
        self.ggml_backend_cpu_set_n_threads(backend, THREADS)
        self.ggml_backend_cpu_set_threadpool(backend, self.ggml_threadpool_new(ctypes.byref(params)))
        return backend


@cache
def ggml() -> Ggml:
    """The library, loaded once.

    Raises:
        UnavailableError: there is none.
    """
    folder = os.environ.get("POTQ_GGML")
    if folder:
        return Ggml(_from_folder(Path(folder)))
    module = optional("xllamacpp", "xllamacpp")
    return Ggml([ctypes.CDLL(str(next(Path(module.__file__).parent.glob("xllamacpp*.so"))))])


def _from_folder(folder: Path) -> list[ctypes.CDLL]:
    bases = sorted(folder.glob("libggml-base.*"))
    if not bases:
        raise UnavailableError("POTQ_GGML names a folder without libggml-base")
    base = ctypes.CDLL(str(bases[0]), mode=ctypes.RTLD_GLOBAL)
    variants = [ctypes.CDLL(str(path)) for path in sorted(folder.glob("libggml-cpu*.so"))]
    if forced() == "avx2":
        variants = [each for each in variants if not each.ggml_cpu_has_avx512()]
    if not variants:
        raise UnavailableError("POTQ_GGML names a folder without a libggml-cpu that may be used")
    return [max(variants, key=_score), base]


def _score(variant: ctypes.CDLL) -> int:
    """How well a build suits this CPU; 0 if it cannot run. A native build does not say, and is alone."""
    return int(variant.ggml_backend_score()) if hasattr(variant, "ggml_backend_score") else 1
