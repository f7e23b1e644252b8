"""The contestants of ``kernels/cpu.py``, a file each. All give the interface of :mod:`benchmarks.peers.kernels.peer`."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.peers.kernels import ggml, onnx_runtime, ours, read_bandwidth, torch_float, torch_int4, torch_int8
from benchmarks.peers.kernels.peer import Peer

PEERS: Sequence[Peer] = (
    *read_bandwidth.PEERS,
    *ours.PEERS,
    *torch_float.PEERS,
    *torch_int8.PEERS,
    *torch_int4.PEERS,
    *onnx_runtime.PEERS,
    *ggml.PEERS,
)
