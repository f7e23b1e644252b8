"""llama.cpp for ``export/measure.py``: greedy text by the package xllamacpp, logits of every position by llama-cpp-python.

Both round the inputs of products with quantized weights to int8 in blocks of 32 (``Q8_0``, ``Q8_1``), each block with a
float16 scale; there is no switch for it. :func:`round_activations` does the same to our modules.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.peers.llama_cpp import Context, server
from potq.nn.packed_model import packed_modules

CONTEXT = 1024


class Writer:
    """Texts by xllamacpp: likeliest tokens only, keys and values in float32, attention unfused."""

    def __init__(self, path: str, threads: int) -> None:
        self._server = server(path, threads, CONTEXT, exact=True)

    def text(self, prompt: list[int], count: int) -> list[int]:
        """The ``count`` tokens after ``prompt``."""
        request = {"prompt": prompt, "n_predict": count, "temperature": 0, "return_tokens": True}
        answer = self._server.handle_completions(request | {"n_probs": 1, "cache_prompt": False})
        found = answer.get("tokens") or [token["id"] for token in answer["choices"][0]["logprobs"]["content"]]
        return [int(token) for token in found]


class Scorer:
    """Logits by llama-cpp-python's C interface, keys and values in float32."""

    def __init__(self, path: str, window: int, threads: int) -> None:
        self._context = Context(path, threads, window, batch=window, exact=True)

    def logits(self, ids: Tensor) -> Tensor:
        """Of every position: float32 ``(tokens, vocabulary)``."""
        lib, count = self._context.lib, len(ids)
        self._context.clear()
        batch = lib.llama_batch_init(count, 0, 1)
        batch.n_tokens = count
        for place, token in enumerate(ids.tolist()):
            batch.token[place], batch.pos[place], batch.logits[place] = token, place, 1
            batch.n_seq_id[place], batch.seq_id[place][0] = 1, 0
        failed = lib.llama_decode(self._context.handle, batch)
        lib.llama_batch_free(batch)
        if failed:
            raise RuntimeError("llama_decode failed")
        found = lib.llama_get_logits(self._context.handle)
        rows = np.ctypeslib.as_array(found, (count, self._context.vocabulary))
        return torch.from_numpy(rows.copy())

    def close(self) -> None:
        self._context.close()


def perplexity(logits: Callable[[Tensor], Tensor], windows: Tensor, bos: int | None) -> float:
    """llama.cpp's protocol: windows of a text, the first token of each replaced by BOS where the model wants one; the
    second half of each window counts.

    Args:
        logits: of the tokens of a window.
        windows: int64 ``(windows, tokens)``.
        bos: the token, or None.
    """
    total, counted = 0.0, 0
    first = windows.shape[1] // 2
    for window in windows:
        ids = window.clone()
        if bos is not None:
            ids[0] = bos
        found = logits(ids)[first:-1].float()
        total += float(torch.nn.functional.cross_entropy(found, window[first + 1 :], reduction="sum"))
        counted += len(found)
    return math.exp(total / counted)


@contextmanager
def round_activations(model: Any) -> Iterator[None]:
    """Inputs of packed linears as llama.cpp rounds them, in blocks of 32; everything else exact."""

    def rounded(module: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        blocks = inputs[0].unflatten(-1, (-1, 32))
        scale = blocks.abs().amax(-1, keepdim=True) / 127
        inverse = torch.where(scale > 0, 1 / scale, 0)
        return ((blocks * inverse).round() * scale.half().float()).flatten(-2).to(inputs[0].dtype), *inputs[1:]

    hooks = [
        module.register_forward_pre_hook(rounded)
        for module in packed_modules(model).values()
        if not isinstance(module, torch.nn.Embedding)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
