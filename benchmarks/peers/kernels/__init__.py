"""The contestants of ``cpu_kernels.py``, a file each. All give the interface of :mod:`peers.peer`."""

from __future__ import annotations

from collections.abc import Sequence

from peers import ggml, onnxruntime_4bit, ours, read_bandwidth, torch_float, torch_int4, torch_int8
from peers.peer import Peer

PEERS: Sequence[Peer] = (
    *read_bandwidth.PEERS,
    *ours.PEERS,
    *torch_float.PEERS,
    *torch_int8.PEERS,
    *torch_int4.PEERS,
    *onnxruntime_4bit.PEERS,
    *ggml.PEERS,
)
