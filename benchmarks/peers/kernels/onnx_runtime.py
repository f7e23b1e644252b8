"""ONNX Runtime ``MatMulNBits``: 4 and 2 bits, float32 scales, int8 activations inside (accuracy level 4).

One session holds a node per copy, all fed by one input, so that one ``run`` is a pass. Outputs are bound to buffers of ours,
all but the last to the same one: nothing is copied, and none is pruned. The bits counted are the file's; ONNX Runtime adds a
float32 sum per block when it packs the weights.

Of 2 bits there are two kinds of kernels, both with int8 activations: those like the other widths', and ``LUT``, which looks
sums up in tables. A session must ask for the latter, and other shapes than its own get the former. Shape and machine decide
which is faster. A version with neither multiplies by float32 weights: the relative error of ``--check`` is then below 1e-6.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.peers.kernels.peer import Case, Work
from benchmarks.peers.packages import THREADS, UnavailableError, optional

LUT_ROWS = 128


@dataclass(frozen=True)
class OnnxRuntime:
    width: int
    block: int
    tables: bool = False
    tolerance: float = 2e-2

    @property
    def name(self) -> str:
        return f"ONNX Runtime {self.width}-bit b{self.block}{' LUT' if self.tables else ''}"

    @property
    def group(self) -> str:
        return f"{self.width}-bit"

    def bits(self, case: Case) -> float:
        blocks = -(-case.columns // self.block)  # the last one is padded
        return blocks * (self.width * self.block + 32) / case.columns

    def prepare(self, case: Case, copies: int, seed: int) -> Work:
        runtime = optional("onnxruntime", "onnxruntime")
        if self.tables and case.rows % LUT_ROWS:
            raise UnavailableError(f"rows must be a multiple of {LUT_ROWS}")
        x = case.input(seed)
        groups = torch.nn.functional.pad(case.pattern(seed), (0, -case.columns % self.block)).unflatten(1, (-1, self.block))
        zero = 2 ** (self.width - 1)
        scale = groups.abs().amax(2) / (zero - 1)
        codes = (groups / scale[..., None]).round().add(zero).clamp(0, 2 * zero - 1)
        model = self._model(case, case.repeat(packed(codes, self.width)).numpy(), case.repeat(scale).numpy(), copies)
        session = runtime.InferenceSession(model, _options(runtime, self.tables), providers=["CPUExecutionProvider"])
        y, others = np.zeros((2, case.m, case.rows), np.float32)
        binding = _bind(session, x.numpy(), y, others, copies)
        return Work(
            run=lambda: session.run_with_iobinding(binding),
            output=lambda: torch.from_numpy(y),
            weight=lambda: case.repeat(((codes - zero) * scale[..., None]).flatten(1)[:, : case.columns]),
            note="tables of sums" if self.tables else "",
            keep=(x, others),
        )

    def _model(self, case: Case, codes: Any, scales: Any, copies: int) -> bytes:
        onnx = optional("onnx", "onnx")
        helper, float32 = optional("onnx.helper", "onnx"), onnx.TensorProto.FLOAT
        attributes = {"K": case.columns, "N": case.rows, "bits": self.width, "block_size": self.block, "accuracy_level": 4}
        nodes, values = [], []
        for i in range(copies):
            names = ["x", f"codes{i}", f"scales{i}"]
            nodes.append(helper.make_node("MatMulNBits", names, [f"y{i}"], domain="com.microsoft", **attributes))
            # ONNX Runtime packs equal weights once and shares them; the last is not rolled, and is checked
            other = np.roll(codes, copies - 1 - i)
            values.append(helper.make_tensor(names[1], onnx.TensorProto.UINT8, codes.shape, other.tobytes(), raw=True))
            values.append(helper.make_tensor(names[2], float32, scales.shape, scales.tobytes(), raw=True))
        inputs = [helper.make_tensor_value_info("x", float32, [case.m, case.columns])]
        outputs = [helper.make_tensor_value_info(f"y{i}", float32, [case.m, case.rows]) for i in range(copies)]
        graph = helper.make_graph(nodes, "products", inputs, outputs, initializer=values)
        opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
        serialized: bytes = model.SerializeToString()
        return serialized


def packed(codes: Tensor, width: int) -> Tensor:
    """Codes ``(..., n)`` as bytes ``(..., n * width / 8)``, the first in the lowest bits."""
    shifts = torch.arange(0, 8, width, dtype=torch.uint8)
    return torch.sum(codes.byte().unflatten(-1, (-1, len(shifts))) << shifts, -1, dtype=torch.uint8)


def _options(runtime: Any, tables: bool) -> Any:
    options = runtime.SessionOptions()
    options.intra_op_num_threads = THREADS
    options.execution_mode = runtime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL  # equal nodes must not be merged
    options.add_session_config_entry("session.force_spinning_stop", "1")  # spin within a run, not into the next contestant's
    if tables:
        options.add_session_config_entry("mlas.use_lut_gemm", "1")
    options.log_severity_level = 3
    return options


def _bind(session: Any, x: Any, y: Any, others: Any, copies: int) -> Any:
    binding = session.io_binding()
    binding.bind_cpu_input("x", x)
    for i in range(
        copies
    ):  # the order of execution is ONNX Runtime's choice: the output that is checked gets its own memory
        target = y if i == copies - 1 else others
        binding.bind_output(f"y{i}", "cpu", 0, np.float32, target.shape, target.ctypes.data)
    return binding


PEERS = (OnnxRuntime(4, 32), OnnxRuntime(4, 128), OnnxRuntime(2, 32), OnnxRuntime(2, 128), OnnxRuntime(2, 128, tables=True))
