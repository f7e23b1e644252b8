"""What calibration text can tell: how much every input and every weight of a layer matters, and the error a quantized layer
makes on it.

Each is one pass over the token batches that keeps sums, not activations, whatever the amount of text.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from potq.data.ranks import ALONE, Ranks
from potq.data.tokens import require_own_tokens
from potq.errors import DataError, ModelError
from potq.nn.convolution import convolve, is_convolution, rows
from potq.nn.experts import stacks
from potq.nn.parts import input_device
from potq.nn.properties import evaluation_mode, longest_text
from potq.nn.refusals import require_causal
from potq.nn.report import decibels
from potq.nn.weights import Place, linear_weight
from potq.numerics.tensor import QuantizedWeight
from potq.ptq.blocks import layer_input, no_moments
from potq.ptq.experts import watched
from potq.ptq.feed import Feed
from potq.ptq.kept import Reader

_TOKEN_DTYPES = (torch.int32, torch.int64)
_ROWS = 1 << 14  # of a weight, in float32 at a time


def check_batches(calibration: Iterable[Tensor], model: nn.Module) -> list[Tensor]:
    """Token batches for ``model`` as a list of ``(batch, length)`` integer tensors.

    Raises:
        DataError: no batch, one that is not a 2-D integer tensor, token ids outside the vocabulary, more tokens than the
            model has positions for.
        ModelError: an encoder-decoder.
    """
    if not hasattr(model, "config"):
        raise ModelError(f"{type(model).__name__} is a plain module; token batches are for models of transformers")
    require_causal(model)
    limit = longest_text(model)
    if not isinstance(calibration, Iterable):
        raise DataError(f"calibration is {type(calibration).__name__}; give (batch, length) integer tensors of token ids")
    batches = list(calibration)
    for batch in batches:
        if not isinstance(batch, Tensor) or batch.ndim != 2 or batch.dtype not in _TOKEN_DTYPES or not batch.numel():
            raise DataError("calibration must be (batch, length) integer tensors of token ids, as a tokenizer returns them")
        require_own_tokens(model, batch, "calibration")
        if limit is not None and batch.shape[1] > limit:
            raise DataError(f"calibration windows of {batch.shape[1]} tokens exceed the model's limit of {limit}; cut them")
    if not batches:
        raise DataError("calibration is empty; give at least one (batch, length) tensor of token ids")
    return batches


def input_mean_squares(model: nn.Module, names: Sequence[str], feed: Sequence[Tensor] | Feed) -> dict[str, Tensor]:
    """Mean square of each input feature, float32 ``(in,)``, of the named linears and convolutions.

    Args:
        feed: token batches, or what runs a plain module.

    Raises:
        ModelError: a layer that the text never reaches, or NaN activations; names the layer.
    """
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def hook(name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        for x in map(Tensor.float, rows(module, layer_input(args, kwargs).detach())):
            sums[name] = sums.get(name, 0) + x.square().sum(0)
            counts[name] = counts.get(name, 0) + len(x)

    _run(model, {name: partial(hook, name) for name in names}, feed)
    _require_reached(names, counts)
    for name, total in sums.items():
        if not total.isfinite().all():
            raise ModelError(f"{name}: its inputs on the calibration text are NaN or infinite; load the model in float32")
    return {name: sums[name] / counts[name] for name in names}


def second_moments(model: nn.Module, names: Sequence[str], feed: Feed, ranks: Ranks = ALONE) -> dict[str, Tensor]:
    """Mean of ``x^T x`` over the rows that enter each named layer of a plain module, float32 ``(in, in)``; of those reached.

    The rows are those of all processes.

    Raises:
        ModelError: NaN or infinite activations; names the layer.
    """
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def hook(name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        for x in map(Tensor.float, rows(module, layer_input(args, kwargs).detach())):
            sums[name] = sums.get(name, 0) + x.t() @ x
            counts[name] = counts.get(name, 0) + len(x)

    _run(model, {name: partial(hook, name) for name in names}, feed)
    everywhere = ranks.values(counts)
    for name in (name for name in names if any(name in each for each in everywhere)):
        counts[name] = sum(each.get(name, 0) for each in everywhere)
        sums[name] = ranks.sum(sums[name] if name in sums else no_moments(model.get_submodule(name)))
    for name, total in sums.items():
        if not counts[name]:
            raise ModelError(f"{name}: its inputs on the calibration are empty")
        if not total.isfinite().all():
            raise ModelError(f"{name}: its inputs on the calibration are NaN or infinite")
    return {name: total / counts[name] for name, total in sums.items()}


def mean_squared_gradients(model: nn.Module, names: Sequence[str], batches: Sequence[Tensor]) -> dict[str, Tensor]:
    """Mean over the windows of the squared gradient of next-token loss: the diagonal of the empirical Fisher information.

    Float32, as a matrix, for each named linear or stack of experts; SqueezeLLM (2306.07629, eq. 3) weighs errors by it.

    Raises:
        ModelError: a layer that the text never reaches, or NaN gradients; names the layer. A model that predicts no tokens.
    """
    require_causal(model, predicting=True)
    places = {name: Place.of(model, name) for name in names}
    weights = {name: place.parameter for name, place in places.items()}
    sums = {name: torch.zeros_like(weight, dtype=torch.float32) for name, weight in weights.items()}
    reached: dict[str, int] = {}
    device = next(model.parameters()).device
    windows = [window[None] for batch in batches for window in batch]
    with evaluation_mode(model), _trainable(weights.values()), torch.enable_grad():
        for window in windows:
            loss = model(window.to(device), labels=window.to(device), use_cache=False).loss
            gradients = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
            for name, gradient in zip(weights, gradients, strict=True):
                if gradient is not None:
                    sums[name] += gradient.float().square()
                    reached[name] = 1
    _require_reached(names, reached)
    for name, total in sums.items():
        if not total.isfinite().all():
            raise ModelError(f"{name}: its gradients on the calibration text are NaN or infinite; load the model in float32")
    return {name: places[name].matrix(sums[name] / len(windows)) for name in names}


def output_snr(
    model: nn.Module, quantized: dict[str, Reader], feed: Sequence[Tensor] | Feed, ranks: Ranks = ALONE
) -> dict[str, float]:
    """Signal-to-noise ratio (dB) of each layer's output on the text: full precision against quantized, same inputs.

    ``model`` is still in full precision; ``quantized`` maps names of its linears, convolutions, plain embeddings and stacks
    of experts' matrices to what gives their weights. A stack's output is that of all its experts. Of several processes each
    has a part of the text, or none.
    Layers that the text never reaches are left out.
    """
    signal: dict[str, float] = {}
    noise: dict[str, float] = {}
    stacked = {name: stack.shape[1] for name, stack in stacks(model).items() if name in quantized}  # rows of an expert

    def hook(
        name: str, read: Reader, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
    ) -> None:
        for clean, error in _outputs(module, read(), layer_input(args, kwargs).detach()):
            signal[name] = signal.get(name, 0.0) + float(clean.square().sum(dtype=torch.float64))
            noise[name] = noise.get(name, 0.0) + float(error.square().sum(dtype=torch.float64))

    def of_expert(name: str, number: int) -> Any:
        return partial(hook, name, partial(_expert, quantized[name], number, stacked[name]))

    with watched(model, stacked, of_expert):
        _run(model, {name: partial(hook, name, read) for name, read in quantized.items() if name not in stacked}, feed)
    totals: dict[str, tuple[float, float]] = {}
    for energies in ranks.values({name: (signal[name], noise[name]) for name in signal}):
        for name, (clean, error) in energies.items():
            before = totals.get(name, (0.0, 0.0))
            totals[name] = before[0] + clean, before[1] + error
    return {name: decibels(clean, error) for name, (clean, error) in totals.items()}


def _expert(read: Reader, number: int, rows: int) -> QuantizedWeight:
    """One matrix, of ``rows`` rows, of a stack."""
    return read().rows(slice(number * rows, (number + 1) * rows))


def _outputs(module: nn.Module, quantized: QuantizedWeight, x: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """What ``module`` puts out for ``x``, and the quantized one's error, both float32; a head's, some rows at a time."""
    weight = linear_weight(module)
    if isinstance(module, nn.Embedding):
        exact = weight[x.flatten()].float()
        yield exact, quantized.rows(x.flatten()).dequantize() - exact
        return
    if is_convolution(module):
        exact = weight.float()
        yield convolve(module, x.float(), exact), convolve(module, x.float(), quantized.dequantize() - exact)
        return
    x = x.float()
    for start in range(0, len(weight), _ROWS):
        rows = slice(start, start + _ROWS)
        exact = weight[rows].float()
        yield x @ exact.t(), x @ (quantized.rows(rows).dequantize() - exact).t()


def _run(model: nn.Module, hooks: dict[str, Any], feed: Sequence[Tensor] | Feed) -> None:
    with _hooked(model, hooks), evaluation_mode(model), torch.no_grad():
        if isinstance(feed, Feed):
            feed(model)
            return
        for batch in feed:
            model(batch.to(input_device(model)))


@contextmanager
def _trainable(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Parameters that get gradients, and afterwards those do not that did not before."""
    frozen = [parameter for parameter in parameters if not parameter.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


@contextmanager
def _hooked(model: nn.Module, hooks: dict[str, Any]) -> Iterator[None]:
    """Hooks attached and, whatever happens, removed."""
    handles = [model.get_submodule(name).register_forward_hook(hook, with_kwargs=True) for name, hook in hooks.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _require_reached(names: Sequence[str], counts: dict[str, int]) -> None:
    missed = [name for name in names if not counts.get(name)]
    if missed:
        raise ModelError(f"the calibration never reaches {', '.join(missed[:5])}; ignore these modules or use 'mse'")
