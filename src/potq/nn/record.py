"""What a packed model carries with it: the report of what was done, and what saving and loading need."""

from __future__ import annotations

from typing import Any

from torch import nn

from potq.config import PoTConfig
from potq.nn.packed import PackedModule
from potq.nn.packed_model import as_packed_model, packed_modules
from potq.nn.plain import is_plain, note_config
from potq.nn.properties import is_tied, tensor_bytes, weight_count
from potq.nn.report import ModuleReport, QuantReport, SkippedModule, UnusedTensor
from potq.nn.stacked import PoTStack

_UNUSED = "_potq_unused"


def make_report(model: nn.Module, modules: list[ModuleReport], skipped: list[SkippedModule]) -> QuantReport:
    """The report of ``model``, whose modules are packed by now: what was done to them, and the size of the whole."""
    unused = getattr(model, _UNUSED, [])
    size, weights = tensor_bytes(model), weight_count(model)
    return QuantReport(modules=modules, skipped=skipped, unused=unused, bytes_after=size, weights=weights)


def note_unused(model: nn.Module, unused: list[UnusedTensor]) -> None:
    """Have the report of ``model``, the one it has or one that is made later, say what of its files it does not use."""
    setattr(model, _UNUSED, unused)
    report = getattr(model, "quant_report", None)
    if isinstance(report, QuantReport):
        report.unused = unused


def attach(model: nn.Module, config: PoTConfig, report: QuantReport) -> None:
    """Record on the model what saving and loading need."""
    model.quant_report = report  # type: ignore[assignment]  # nn.Module's stub expects tensors and modules
    as_packed_model(model)
    if is_plain(model):
        note_config(model, config)
        return
    model_config: Any = model.config
    model_config.quantization_config = config
    if hasattr(model, "dequantize") and getattr(model, "hf_quantizer", None) is None:
        from transformers.quantizers import AutoHfQuantizer

        model.hf_quantizer = AutoHfQuantizer.from_config(config, pre_quantized=False)  # what dequantize() asks
    for module in model.modules():  # as from_pretrained marks a packed model: some forwards (FalconMamba's) go by it
        own: Any = getattr(module, "config", None)
        if hasattr(own, "to_dict"):
            own._is_quantized = True
    if getattr(model_config, "tie_word_embeddings", False) and not is_tied(model):
        model_config.tie_word_embeddings = False  # two weights, whatever the config said; both are saved


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
            kind=_kind(module),
            shape=module.stored_shape,
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
    return make_report(model, modules, [])


def _kind(module: PackedModule) -> str:
    if isinstance(module, PoTStack):
        return "experts"
    return "embedding" if isinstance(module, nn.Embedding) else "linear"
