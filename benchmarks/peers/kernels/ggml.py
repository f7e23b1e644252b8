"""llama.cpp's matrix products: one graph of ``ggml_mul_mat`` nodes, computed in one native call.

Weights lie in the repacked layout wherever ggml has one for the type and shape (it interleaves 8 rows), as llama.cpp itself
does at load, else in the plain one. Every node writes the same output memory.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.peers.ggml_library import Ggml, InitParams, ggml
from benchmarks.peers.kernels.peer import Case, Work
from benchmarks.peers.packages import UnavailableError

ALIGNMENT = 64


class Graph:
    """The tensors of one contestant and their graph. Allocates outside Python: :meth:`close` frees it."""

    def __init__(self, lib: Ggml, kind: int, case: Case, copies: int, buffer_type: int) -> None:
        self.lib, self.case = lib, case
        nodes = 2 * copies + 16
        size = lib.ggml_tensor_overhead() * nodes + lib.ggml_graph_overhead_custom(nodes, False)
        self.weights_context = lib.ggml_init(InitParams(size, None, True))
        self.context = lib.ggml_init(InitParams(size, None, True))
        self.weights = [lib.ggml_new_tensor_2d(self.weights_context, kind, case.columns, case.rows) for _ in range(copies)]
        self.weights_buffer = lib.ggml_backend_alloc_ctx_tensors_from_buft(self.weights_context, buffer_type)
        self.input = lib.ggml_new_tensor_2d(self.context, lib.types["f32"], case.columns, case.m)
        self.products = [lib.ggml_mul_mat(self.context, weight, self.input) for weight in self.weights]
        self.buffer = self._place()
        self.graph = lib.ggml_new_graph_custom(self.context, nodes, False)
        for product in self.products:
            lib.ggml_build_forward_expand(self.graph, product)

    def _place(self) -> int:
        """Memory for the input, and behind it for one output that all products share."""
        lib, floats = self.lib, ctypes.sizeof(ctypes.c_float)
        room = -(-self.case.m * self.case.columns * floats // ALIGNMENT) * ALIGNMENT
        total = room + self.case.m * self.case.rows * floats + 2 * ALIGNMENT
        buffer: int = lib.ggml_backend_buft_alloc_buffer(lib.plain, total)
        base = -(-lib.ggml_backend_buffer_get_base(buffer) // ALIGNMENT) * ALIGNMENT
        self.input_address, self.output_address = base, base + room
        lib.ggml_backend_tensor_alloc(buffer, self.input, self.input_address)
        for product in self.products:
            lib.ggml_backend_tensor_alloc(buffer, product, self.output_address)
        return buffer

    def supported(self) -> bool:
        return bool(self.lib.ggml_backend_dev_supports_op(self.lib.device, self.products[0]))

    def fill(self, x: Tensor, weight: bytes) -> None:
        ctypes.memmove(self.input_address, x.data_ptr(), x.nbytes)
        for tensor in self.weights:
            self.lib.ggml_backend_tensor_set(tensor, weight, 0, len(weight))

    def run(self) -> None:
        if self.lib.ggml_backend_graph_compute(self.lib.backend, self.graph):
            raise RuntimeError("ggml_backend_graph_compute failed")

    def output(self) -> Tensor:
        count = self.case.m * self.case.rows
        values = (ctypes.c_float * count).from_address(self.output_address)
        return torch.frombuffer(values, dtype=torch.float32).view(self.case.m, self.case.rows).clone()

    def close(self) -> None:
        for buffer in (self.weights_buffer, self.buffer):
            self.lib.ggml_backend_buffer_free(buffer)
        for context in (self.weights_context, self.context):
            self.lib.ggml_free(context)


@dataclass(frozen=True)
class GgmlPeer:
    """One type; ``ggml`` is its name there."""

    label: str
    ggml: str
    group: str
    stored_bits: float
    tolerance: float = 2e-2

    @property
    def name(self) -> str:
        return f"llama.cpp {self.label}"

    def bits(self, case: Case) -> float:
        return self.stored_bits

    def prepare(self, case: Case, copies: int, seed: int) -> Work:
        lib = ggml()
        if self.ggml not in lib.types:
            raise UnavailableError(f"this ggml has no {self.ggml}")
        kind = lib.types[self.ggml]
        if case.columns % lib.ggml_blck_size(kind):
            raise UnavailableError(f"columns must be a multiple of {lib.ggml_blck_size(kind)}")
        rows = case.pattern(seed)
        data = _quantize(lib, kind, rows)
        repacked = lib.repacked is not None and _supports(lib, kind, case, lib.repacked)
        graph = Graph(lib, kind, case, copies, lib.repacked if repacked and lib.repacked else lib.plain)
        whole = torch.frombuffer(data, dtype=torch.uint8).view(len(rows), -1)
        graph.fill(case.input(seed), case.repeat(whole).numpy().tobytes())
        return Work(
            run=graph.run,
            output=graph.output,
            weight=lambda: case.repeat(_dequantize(lib, self.ggml, data, rows.shape)),
            close=graph.close,
            note="repacked" if repacked else "plain layout",
        )


def _quantize(lib: Ggml, kind: int, rows: Tensor) -> bytearray:
    data = bytearray(lib.ggml_row_size(kind, rows.shape[1]) * len(rows))
    target = (ctypes.c_char * len(data)).from_buffer(data)
    lib.ggml_quantize_chunk(kind, rows.data_ptr(), ctypes.addressof(target), 0, len(rows), rows.shape[1], None)
    return data


def _dequantize(lib: Ggml, name: str, data: bytearray, shape: torch.Size) -> Tensor:
    return torch.frombuffer(lib.dequantize(name, bytes(data), shape.numel()), dtype=torch.float32).view(shape)


def _supports(lib: Ggml, kind: int, case: Case, buffer_type: int) -> bool:
    graph = Graph(lib, kind, case, 1, buffer_type)
    supported = graph.supported()
    graph.close()
    return supported


PEERS = (
    GgmlPeer("Q4_0", "q4_0", "4-bit", 4.5),
    GgmlPeer("IQ4_NL", "iq4_nl", "4-bit", 4.5),
    GgmlPeer("MXFP4", "mxfp4", "4-bit", 4.25),
    GgmlPeer("Q2_K", "q2_K", "2-bit", 2.625),
    GgmlPeer("TQ2_0", "tq2_0", "2-bit", 2.0625),
)
