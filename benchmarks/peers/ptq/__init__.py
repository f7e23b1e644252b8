"""Every contestant of ``ptq/table.py``, and those that do not run here."""

from __future__ import annotations

from benchmarks.peers.packages import UnavailableError
from benchmarks.peers.ptq import autoround, bitsandbytes, ggml, gptqmodel, hqq, llmcompressor, torchao
from benchmarks.peers.ptq.peer import Peer

PEERS: dict[str, Peer] = {
    peer.name: peer
    for module in (ggml, bitsandbytes, hqq, torchao, gptqmodel, llmcompressor, autoround)
    for peer in module.PEERS
}

UNAVAILABLE: dict[str, str] = {
    "torchao GPTQ": "refuses the CPU ('GPTQ only supports CUDA currently'), and knows 4 and 8 bits only",
    "torchao int4 HQQ": "needs the CUDA layout TILE_PACKED_TO_4D; hqq.py runs the same algorithm",
}
"""Name -> why it is not in the table, for what was tried and does not run on a CPU."""


def unavailable() -> dict[str, str]:
    """``UNAVAILABLE``, and the contestants whose package is missing here."""
    missing = {}
    for name, peer in PEERS.items():
        try:
            peer.require()
        except UnavailableError as error:
            missing[name] = str(error)
    return UNAVAILABLE | missing
