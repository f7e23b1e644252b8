"""What is timed: programs that run a model, each in a process of its own (``decode/worker.py``).

All get two threads. ``prefill`` is the time for a prompt to the logits of its last token; ``decode`` that of so many tokens
one after the other, the likeliest each time, after a prompt of one token.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from benchmarks.peers.llama_cpp import Context, IkContext, server
from benchmarks.peers.packages import THREADS, UnavailableError, optional

CONTEXT = 1024


class Contestant(Protocol):
    def prefill(self, ids: list[int]) -> float:
        """Seconds."""

    def decode(self, first: int, count: int) -> float:
        """Seconds."""

    def facts(self) -> dict[str, Any]:
        """What else the table should say of it."""


class Engine:
    """potq's engine on a folder."""

    def __init__(self, path: str) -> None:
        import potq

        self._engine = potq.Engine(path, threads=THREADS, context=CONTEXT)

    def prefill(self, ids: list[int]) -> float:
        self._engine.reset()
        return seconds(self._engine.generate(ids, max_new_tokens=1).finish)

    def decode(self, first: int, count: int) -> float:
        stream = self._engine.generate([first], max_new_tokens=count + 1, stop_token_ids=())
        next(stream)
        return seconds(stream.finish)

    def facts(self) -> dict[str, Any]:
        return {"weight_bytes": self._engine.weight_bytes, "runs_on": self._engine.isa}


class HuggingFace:
    """The model's modules in a bare loop, which is faster than ``generate``."""

    def __init__(self, kind: str) -> None:
        import torch

        import potq

        torch.set_num_threads(THREADS)
        self._torch = torch
        self._model = potq.load("smollm2", dtype="bfloat16" if kind == "bfloat16" else "float32").eval()
        if kind == "int8":  # the linears; the embedding stays
            quantize: Any = torch.ao.quantization.quantize_dynamic
            self._model = quantize(self._model, {torch.nn.Linear}, torch.qint8)

    def prefill(self, ids: list[int]) -> float:
        batch = self._torch.tensor([ids])
        with self._torch.inference_mode():
            return seconds(lambda: self._model(batch, use_cache=True, logits_to_keep=1))

    def decode(self, first: int, count: int) -> float:
        def run() -> None:
            ids, past = self._torch.tensor([[first]]), None
            for _ in range(count):
                output = self._model(ids, past_key_values=past, use_cache=True)
                ids, past = output.logits[:, -1].argmax(-1, keepdim=True), output.past_key_values

        with self._torch.inference_mode():
            return seconds(run)

    def facts(self) -> dict[str, Any]:
        return {"runs_on": f"torch {self._torch.__version__}"}


class StockFolder(HuggingFace):
    """A model folder in stock transformers (compressed-tensors' format, say), in bfloat16."""

    def __init__(self, path: str) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(THREADS)
        self._torch = torch
        self._model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16).eval()


class OnnxFolder:
    """A folder of ``potq export --to onnx`` in ONNX Runtime."""

    def __init__(self, path: str) -> None:
        from pathlib import Path

        from benchmarks.export.onnx import OnnxDecoder

        self._model = OnnxDecoder(Path(path), THREADS)

    def prefill(self, ids: list[int]) -> float:
        self._model.reset()
        return seconds(lambda: self._model(ids))

    def decode(self, first: int, count: int) -> float:
        def run() -> None:
            token = first
            for _ in range(count):
                token = int(self._model([token])[-1].argmax())

        self._model.reset()
        return seconds(run)

    def facts(self) -> dict[str, Any]:
        return {"runs_on": f"onnxruntime {optional('onnxruntime', 'onnxruntime').__version__}"}


class NativeLlamaCpp:
    """llama.cpp as the package llama-cpp-python builds it for this machine, through its C interface."""

    def __init__(self, path: str) -> None:
        self._context: Context | IkContext = Context(path, THREADS, CONTEXT, batch=512)

    def prefill(self, ids: list[int]) -> float:
        self._context.clear()
        return seconds(lambda: self._context.next_token(ids))

    def decode(self, first: int, count: int) -> float:
        self._context.clear()

        def run() -> None:
            token = first
            for _ in range(count):
                token = self._context.next_token([token])

        return seconds(run)

    def facts(self) -> dict[str, Any]:
        return {"runs_on": self._context.described()}


class IkLlamaCpp(NativeLlamaCpp):
    """ik_llama.cpp as the package ik-llama-cpp-python ships it (for AVX2), through its C interface."""

    def __init__(self, path: str) -> None:
        self._context = IkContext(path, THREADS, CONTEXT)


class PackagedLlamaCpp:
    """llama.cpp as the package xllamacpp ships it, by its own timings."""

    def __init__(self, path: str) -> None:
        self._server = server(path, THREADS, CONTEXT)

    def _timings(self, ids: list[int], count: int) -> dict[str, Any]:
        request = {"prompt": ids, "n_predict": count, "temperature": 0, "ignore_eos": True, "cache_prompt": False}
        answer = self._server.handle_completions(request | {"timings_per_token": False})
        return dict(answer["timings"])

    def prefill(self, ids: list[int]) -> float:
        return float(self._timings(ids, 1)["prompt_ms"]) / 1e3

    def decode(self, first: int, count: int) -> float:
        return float(self._timings([first], count + 1)["predicted_ms"]) / 1e3

    def facts(self) -> dict[str, Any]:
        return {"runs_on": optional("xllamacpp", "xllamacpp").get_system_info()}


class ReadBandwidth:
    """The roof: both threads read as many bytes as the engine's 4-bit model has, ``count`` times. No prompt."""

    def __init__(self, size: str) -> None:
        import torch

        from potq import native

        torch.set_num_threads(THREADS)
        floats = torch.empty(int(size) // 64 * 16)
        native.library().potq_advise_huge_pages(floats.data_ptr(), floats.nbytes)
        floats.fill_(1)
        self._integers, self._halves, self._dot = floats.view(torch.int64), floats.tensor_split(2), torch.dot

    def prefill(self, ids: list[int]) -> float:
        raise UnavailableError("memory has no prompt")

    def decode(self, first: int, count: int) -> float:
        return min(
            seconds(lambda: [self._integers.sum() for _ in range(count)]),
            seconds(lambda: [self._dot(*self._halves) for _ in range(count)]),
        )

    def facts(self) -> dict[str, Any]:
        return {"weight_bytes": self._integers.nbytes}


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


KINDS: dict[str, Callable[[str], Contestant]] = {
    "engine": Engine,
    "engine, unpacked": Engine,
    "huggingface": HuggingFace,
    "stock": StockFolder,
    "onnx": OnnxFolder,
    "llama.cpp native": NativeLlamaCpp,
    "llama.cpp": PackagedLlamaCpp,
    "ik_llama.cpp": IkLlamaCpp,
    "bandwidth": ReadBandwidth,
}


@dataclass(frozen=True)
class Entry:
    """A contestant of the table: its name, its kind, and the file (or variant) it runs."""

    name: str
    kind: str
    argument: str
