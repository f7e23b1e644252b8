"""Post-training quantization of a whole model: plan, quantize weight by weight, replace, report."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from potq import calibration as calib
from potq.algorithms.rtn import rtn
from potq.errors import ConfigError, ModelError
from potq.model import Plan, Target, install, is_tied, linear_weight, packed_modules, plan, tensor_bytes
from potq.report import ModuleReport, QuantReport, decibels
from potq.scale_search import scale_multipliers
from potq.scheme import PoTConfig, QuantScheme, ScaleMethod
from potq.tensor import QuantizedWeight

Progress = Callable[[int, int, str], None]
"""Called before each weight: index, number of weights, name."""


def quantize(
    model: nn.Module,
    config: PoTConfig,
    calibration: Iterable[Tensor] | None = None,
    *,
    progress: Progress | None = None,
) -> QuantReport:
    """Quantize ``model`` in place; ``model.save_pretrained`` and :func:`potq.save` work afterwards.

    Args:
        model: a Hugging Face causal LM in full precision.
        config: which module gets which scheme.
        calibration: batches of token ids ``(batch, length)``. They are needed for ``scale_method="weighted"``, and add every
            layer's output error to the report.
        progress: called before each weight.

    Returns:
        What was done to each module, what was skipped and why. It is kept as ``model.quant_report`` too.

    Raises:
        ConfigError: a pattern that matches nothing, or ``"weighted"`` without calibration.
        ModelError: NaN or infinite weights (named), a model quantized before, nothing to quantize. The model is unchanged.
        DataError: calibration that is not token batches.
    """
    if not hasattr(model, "config"):
        raise ModelError(f"{type(model).__name__} has no config; potq quantizes Hugging Face models")
    todo = plan(model, config)
    require_calibration(config, given=calibration is not None)
    batches = calib.check_batches(calibration, _vocabulary(model)) if calibration is not None else []
    importance = _importance(model, config, todo, batches)
    done: list[tuple[QuantizedWeight, ModuleReport]] = []
    for index, target in enumerate(todo.targets):
        if progress is not None:
            progress(index, len(todo.targets), target.name)
        weight = linear_weight(model.get_submodule(target.name))
        done.append(quantize_weight(weight, target, config, importance.get(target.name)))
    if batches:
        _add_output_errors(model, todo, done, batches)
    for target, (quantized, _) in zip(todo.targets, done, strict=True):
        install(model, target, quantized)
    entries = [entry for _, entry in done]
    report = QuantReport(modules=entries, skipped=todo.skipped, bytes_after=tensor_bytes(model))
    attach(model, config, report)
    return report


def quantize_weight(
    weight: Tensor, target: Target, config: PoTConfig, importance: Tensor | None = None
) -> tuple[QuantizedWeight, ModuleReport]:
    """Quantize one weight ``(out, in)`` and say how well it went.

    Raises:
        ModelError: NaN or infinite weights, or weights beyond the scale's range; names the layer.
    """
    bytes_before = weight.nbytes
    weight = weight.detach().float()
    check_weight(weight, target)
    # embeddings and heads are looked up or tied; their inputs are not a layer's activations
    method = "mse" if config.scale_method == "weighted" and importance is None else config.scale_method
    quantized = rtn(weight, target.scheme, importance, method=method, candidates=config.scale_candidates)
    report = ModuleReport(
        name=target.name,
        kind=target.kind,
        shape=target.shape,
        scheme=target.scheme.name,
        algorithm=_algorithm(method, target.scheme, config.scale_candidates),
        bits_per_weight=target.scheme.bits_per_weight(*target.shape),
        snr_db=decibels(*quantized.energies(weight)),
        bytes_before=bytes_before,
        bytes_after=quantized.nbytes,
        tied=target.tied,
    )
    return quantized, report


def _algorithm(method: ScaleMethod, scheme: QuantScheme, candidates: int) -> str:
    """A name for the report, with the number of scales really tried (E8M0 has few)."""
    return "rtn/absmax" if method == "absmax" else f"rtn/{method}-{len(scale_multipliers(scheme, candidates))}"


def check_weight(weight: Tensor, target: Target) -> None:
    """Refuse weights that no scale can represent.

    Raises:
        ModelError: names the layer and says how many entries are at fault.
    """
    largest = float(torch.stack(torch.aminmax(weight)).abs().amax())  # NaN wins
    if not math.isfinite(largest):
        broken = int((~weight.isfinite()).sum())
        raise ModelError(f"{target.name}.weight has {broken} NaN or infinite entries; repair the model, or ignore the layer")
    grid, limit = target.scheme.grid, torch.finfo(torch.float16).max
    if target.scheme.scale_dtype == "float16" and largest * grid.reference / max(grid.levels) > limit:
        raise ModelError(
            f"{target.name}.weight reaches {largest:.3g}, its scale would pass float16's {limit:.0f}; use scale_dtype='e8m0'"
        )


def require_calibration(config: PoTConfig, *, given: bool) -> None:
    """Refuse ``"weighted"`` scales where there is no calibration text.

    Raises:
        ConfigError: says what to pass.
    """
    if config.scale_method == "weighted" and not given:
        raise ConfigError("scale_method='weighted' weighs inputs by calibration text; pass calibration=, or use 'mse'")


def attach(model: nn.Module, config: PoTConfig, report: QuantReport) -> None:
    """Record on the model what saving and loading need."""
    model.quant_report = report  # type: ignore[assignment]  # nn.Module's stub expects tensors and modules
    model_config: Any = model.config
    model_config.quantization_config = config
    if getattr(model_config, "tie_word_embeddings", False) and not is_tied(model):
        model_config.tie_word_embeddings = False  # two weights, whatever the config said; both are saved


def _vocabulary(model: nn.Module) -> int | None:
    text_config = getattr(model.config, "get_text_config", lambda: model.config)()
    return getattr(text_config, "vocab_size", None)


def _importance(model: nn.Module, config: PoTConfig, todo: Plan, batches: list[Tensor]) -> dict[str, Tensor]:
    if config.scale_method != "weighted":
        return {}
    return calib.input_mean_squares(model, [t.name for t in todo.targets if t.kind == "linear"], batches)


def _add_output_errors(
    model: nn.Module, todo: Plan, done: list[tuple[QuantizedWeight, ModuleReport]], batches: list[Tensor]
) -> None:
    """Fill in ``output_snr_db``; an embedding class with a forward of its own has no plain output to compare."""
    plain = {
        target.name: quantized
        for target, (quantized, _) in zip(todo.targets, done, strict=True)
        if target.kind != "embedding" or type(model.get_submodule(target.name)) is nn.Embedding
    }
    ratios = calib.output_snr(model, plain, batches)
    for _, entry in done:
        entry.output_snr_db = ratios.get(entry.name)


def describe(model: nn.Module) -> QuantReport:
    """The report of a packed model: the one recorded when it was quantized, or what its tensors show (without errors)."""
    recorded = getattr(model, "quant_report", None)
    if isinstance(recorded, QuantReport):
        return recorded
    tied: dict[int, list[str]] = {}
    packed = packed_modules(model)
    for name, module in packed.items():
        if module.tied_to is not None:
            tied.setdefault(id(module.tied_to), []).append(name)
    modules = [
        ModuleReport(
            name=name,
            kind="embedding" if isinstance(module, nn.Embedding) else "linear",
            shape=module.quantized.shape,
            scheme=module.scheme.name,
            algorithm="not recorded",
            bits_per_weight=module.scheme.bits_per_weight(*module.quantized.shape),
            snr_db=None,
            bytes_before=module.quantized.shape[0] * module.quantized.shape[1] * module.compute_dtype.itemsize,
            bytes_after=module.quantized.nbytes,
            tied=tuple(tied.get(id(module), ())),
        )
        for name, module in packed.items()
        if module.tied_to is None
    ]
    return QuantReport(modules=modules, skipped=[], bytes_after=tensor_bytes(model))
