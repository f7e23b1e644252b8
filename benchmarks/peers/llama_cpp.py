"""llama.cpp on a GGUF file, on the CPU: as the package xllamacpp ships it, or through llama-cpp-python's C interface.

And its fork ik_llama.cpp, as the package ik-llama-cpp-python ships it.

``exact``: keys and values in float32 and attention unfused, for what is compared number by number; otherwise llama.cpp's
own choice, which is the fastest.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.peers.packages import UnavailableError, optional

_F32 = "GGML_TYPE_F32"


def server(path: str, threads: int, context: int, *, exact: bool = False) -> Any:
    """xllamacpp's ``Server``.

    Raises:
        UnavailableError: the package is missing.
    """
    lib = optional("xllamacpp", "xllamacpp")
    params = lib.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel = path, context, 1
    params.n_gpu_layers, params.verbosity, params.cache_ram_mib = 0, -1, 0
    for each in (params.cpuparams, params.cpuparams_batch):
        each.n_threads = threads
    if exact:
        params.cache_type_k = params.cache_type_v = getattr(lib.ggml_type, _F32)
        params.flash_attn_type = lib.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    return lib.Server(params)


class Context:
    """llama-cpp-python's model and context; ``batch`` is how many tokens it computes at a time.

    Raises:
        UnavailableError: the package is missing, or llama.cpp cannot load the file.
    """

    def __init__(self, path: str, threads: int, context: int, *, batch: int, exact: bool = False) -> None:
        self.lib = lib = optional("llama_cpp", "llama-cpp-python")
        self._silent = lib.llama_log_callback(lambda level, text, data: None)  # kept alive: llama.cpp goes on calling it
        lib.llama_log_set(self._silent, None)
        lib.llama_backend_init()
        self._model = lib.llama_model_load_from_file(path.encode(), lib.llama_model_default_params())
        params = lib.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = context, context, batch
        params.n_threads = params.n_threads_batch = threads
        if exact:
            params.type_k = params.type_v = getattr(lib, _F32)
            params.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self.handle = lib.llama_init_from_model(self._model, params)
        if not self.handle:
            raise UnavailableError(f"llama.cpp cannot load {path}")
        self.vocabulary = int(lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(self._model)))

    def clear(self) -> None:
        """Forget what it read."""
        self.lib.llama_memory_clear(self.lib.llama_get_memory(self.handle), True)

    def next_token(self, ids: list[int]) -> int:
        """Read tokens; the likeliest one after them."""
        tokens = (self.lib.llama_token * len(ids))(*ids)  # a batch only points at them
        if self.lib.llama_decode(self.handle, self.lib.llama_batch_get_one(tokens, len(ids))):
            raise RuntimeError("llama_decode failed")
        return _likeliest(self.lib.llama_get_logits_ith(self.handle, -1), self.vocabulary)

    def described(self) -> str:
        """How it was built."""
        return str(self.lib.llama_print_system_info().decode().strip())

    def close(self) -> None:
        self.lib.llama_free(self.handle)
        self.lib.llama_model_free(self._model)


class IkContext:
    """ik_llama.cpp's model and context, attention as the package chooses it; what it reads goes through in one batch.

    Raises:
        UnavailableError: the package is missing, or it cannot load the file.
    """

    def __init__(self, path: str, threads: int, context: int) -> None:
        package = "ik-llama-cpp-python"
        llama = optional("ik_llama_cpp", package).IkLlama
        self._batches, self._lib = (optional(f"ik_llama_cpp.{name}", package) for name in ("_internals", "_ctypes_api"))
        try:
            self._llama = llama(path, n_ctx=context, n_threads=threads)
        except RuntimeError as error:
            raise UnavailableError(f"ik_llama.cpp: {error}") from None
        self._context, self._read = self._llama._context, 0

    def clear(self) -> None:
        """Forget what it read."""
        self._context.kv_cache_clear()
        self._read = 0

    def next_token(self, ids: list[int]) -> int:
        """Read tokens; the likeliest one after them."""
        batch = self._batches.make_batch_range(ids, pos_start=self._read)
        failed = self._context.decode(batch)
        self._lib.llama_batch_free(batch)
        if failed:
            raise RuntimeError("llama_decode failed")
        self._read += len(ids)
        return _likeliest(self._context.get_logits(-1), self._context.model.n_vocab)

    def described(self) -> str:
        """Its version: the library does not tell how it was built."""
        return f"ik-llama-cpp-python {optional('ik_llama_cpp', '').__version__}"


def _likeliest(logits: Any, count: int) -> int:
    """The largest of ``count`` floats behind a pointer of ctypes."""
    return int(np.ctypeslib.as_array(logits, (count,)).argmax())
