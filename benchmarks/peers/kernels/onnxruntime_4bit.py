"""ONNX Runtime ``MatMulNBits``: 4 bits, float32 scales, int8 activations inside (accuracy level 4).

One session holds a node per copy, all fed by one input, so that one ``run`` is a pass. Outputs are bound to buffers of ours,
all but the last to the same one: nothing is copied, and none is pruned. The bits counted are the file's; ONNX Runtime adds a
float32 sum per block when it packs the weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from benchmarks.peers.kernels.peer import Case, Work
from benchmarks.peers.packages import THREADS, optional


@dataclass(frozen=True)
class OnnxRuntime:
    block: int
    group: str = "4-bit"
    tolerance: float = 2e-2

    @property
    def name(self) -> str:
        return f"ONNX Runtime 4-bit b{self.block}"

    def bits(self, case: Case) -> float:
        blocks = -(-case.columns // self.block)  # the last one is padded
        return blocks * (4 * self.block + 32) / case.columns

    def prepare(self, case: Case, copies: int, seed: int) -> Work:
        runtime = optional("onnxruntime", "onnxruntime")
        x = case.input(seed)
        groups = torch.nn.functional.pad(case.pattern(seed), (0, -case.columns % self.block)).unflatten(1, (-1, self.block))
        scale = groups.abs().amax(2) / 7
        codes = (groups / scale[..., None]).round().add(8).clamp(0, 15)
        bytes_ = codes[..., ::2].byte() | codes[..., 1::2].byte() << 4
        model = self._model(case, case.repeat(bytes_).numpy(), case.repeat(scale).numpy(), copies)
        session = runtime.InferenceSession(model, _options(runtime), providers=["CPUExecutionProvider"])
        y, others = np.zeros((2, case.m, case.rows), np.float32)
        binding = _bind(session, x.numpy(), y, others, copies)
        return Work(
            run=lambda: session.run_with_iobinding(binding),
            output=lambda: torch.from_numpy(y),
            weight=lambda: case.repeat(((codes - 8) * scale[..., None]).flatten(1)[:, : case.columns]),
            keep=(x, others),
        )

    def _model(self, case: Case, codes: Any, scales: Any, copies: int) -> bytes:
        onnx = optional("onnx", "onnx")
        helper, float32 = optional("onnx.helper", "onnx"), onnx.TensorProto.FLOAT
        attributes = {"K": case.columns, "N": case.rows, "bits": 4, "block_size": self.block, "accuracy_level": 4}
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


def _options(runtime: Any) -> Any:
    options = runtime.SessionOptions()
    options.intra_op_num_threads = THREADS
    options.execution_mode = runtime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL  # equal nodes must not be merged
    options.add_session_config_entry("session.force_spinning_stop", "1")  # spin within a run, not into the next contestant's
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


PEERS = (OnnxRuntime(32), OnnxRuntime(128))
