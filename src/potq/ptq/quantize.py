"""Post-training quantization of a whole model: plan, quantize, replace, report."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from potq.config import EFFORTS, Effort, PoTConfig, require_config
from potq.errors import ConfigError, ModelError
from potq.nn.language import language_plan
from potq.nn.packed_model import as_packed_model
from potq.nn.plain import is_plain, note_config
from potq.nn.plan import (
    Plan,
    WeightPlan,
    install,
    is_tied,
    linear_weight,
    packed_modules,
    tensor_bytes,
    weight_count,
)
from potq.nn.refusals import require_weights
from potq.nn.report import ModuleReport, Progress, QuantReport, SkippedModule, UnusedTensor, decibels
from potq.numerics.scale_search import CANDIDATES, is_exact, scale_multipliers
from potq.numerics.scheme import WEIGHTED_METHODS, QuantScheme, ScaleMethod
from potq.numerics.tensor import QuantizedWeight
from potq.ptq import calibration as calib
from potq.ptq.algorithms.rtn import rtn
from potq.ptq.blocks import find_blocks, merge
from potq.ptq.sequential import SequentialCalibration
from potq.resume import WorkFolder, fingerprint
from potq.version import __version__

REPORTED = 8  # calibration batches that output errors are measured on
_UNUSED = "_potq_unused"

Done = dict[str, tuple[QuantizedWeight, ModuleReport]]


def quantize(
    model: nn.Module,
    config: PoTConfig,
    calibration: Iterable[Tensor] | None = None,
    *,
    seed: int = 0,
    work_folder: str | os.PathLike[str] | None = None,
    cache_bytes: int = 4 << 30,
    progress: Progress | None = None,
) -> QuantReport:
    """Quantize ``model`` in place; ``model.save_pretrained`` and :func:`potq.save` work afterwards.

    Args:
        model: a Hugging Face causal LM in full precision, or any other ``torch.nn.Module``: its linears, embeddings and
            convolutions are packed, and :func:`potq.save_module` saves it.
        config: which module gets which scheme, and how hard to try (``config.effort``).
        calibration: batches of token ids ``(batch, length)``, e.g. of :func:`potq.load_calibration`. Everything beyond
            ``"fast"`` needs them; they add every layer's output error to the report, too.
        seed: of the order of batches in refinement. The global generator is neither read nor set.
        work_folder: where a calibrated run leaves its finished blocks: called again after a kill, with the same model, text
            and config, it goes on from there to the same result. Delete it when the model is saved.
        cache_bytes: hidden states of the calibration text are kept in memory up to this size, beyond it in temporary files.
        progress: called before each matrix: weights done, weights in all, its name. A whole model's refinement counts steps.

    Returns:
        What was done to each module, what was skipped and why. It is kept as ``model.quant_report`` too.

    Raises:
        ConfigError: a pattern that matches nothing, or an effort or scale method that needs calibration without it.
        ModelError: NaN or infinite weights or activations (named), a model quantized before or not in memory, nothing to
            quantize, a calibrated effort for a model on a GPU; layers that the text never reaches where ``scale_method``
            needs them (otherwise they are rounded to nearest, and the report says so). The model is unchanged.
        DataError: calibration that is not token batches.

    Example:
        >>> import potq
        >>> model = potq.load("tiny")
        >>> report = potq.quantize(model, potq.PoTConfig("pot4"))
        >>> len(report.modules), report.modules[1].bits_per_weight
        (15, 4.25)
        >>> type(model.model.layers[0].mlp.up_proj).__name__
        'PoTLinear'

        With text, more than rounding can be done:

        >>> model = potq.load("tiny")
        >>> batches = potq.load_calibration("self", model, window=32, windows=4)
        >>> report = potq.quantize(model, potq.PoTConfig("pot4", effort="balanced"), batches)
        >>> report.modules[1].algorithm
        'gptq+descent'
    """
    require_config(config)
    config, todo = language_plan(model, config)
    require_weights(model)
    if is_plain(model) and calibration is not None:
        raise ModelError(f"{type(model).__name__} is a plain module, which takes no calibration; use effort='fast'")
    require_calibration(config, given=calibration is not None)
    batches = calib.check_batches(calibration, model) if calibration is not None else []
    effort = chosen_effort(config, given=bool(batches))
    config = config.model_copy(update={"effort": effort})
    if effort.calibrated:
        _require_cpu(model)
    for target in todo.targets:
        check_weight(linear_weight(model.get_submodule(target.name)).detach(), target)
    run = _Run(model, config, effort, todo, batches, seed, cache_bytes, progress)
    done = run.calibrated(work_folder) if effort.calibrated else run.rounded(todo.targets)
    if batches:
        _add_output_errors(model, todo, done, merge(batches[:REPORTED]))
    for target in todo.targets:
        install(model, target, done[target.name][0])
    entries = [done[target.name][1] for target in todo.targets]
    report = make_report(model, entries, todo.skipped)
    attach(model, config, report)
    return report


def chosen_effort(config: PoTConfig, *, given: bool) -> Effort:
    """The config's effort; without one ``"balanced"`` if calibration is ``given``, unless it is for a scale method."""
    if config.effort is not None:
        return config.effort
    return EFFORTS["balanced" if given and config.scale_method == "mse" else "fast"]


@dataclass(frozen=True)
class _Run:
    """One call of :func:`quantize`."""

    model: nn.Module
    config: PoTConfig
    effort: Effort
    todo: Plan
    batches: list[Tensor]
    seed: int
    cache_bytes: int
    progress: Progress | None

    def rounded(self, targets: Sequence[WeightPlan]) -> Done:
        """Every target by itself, to the nearest level."""
        importance = _importance(self.model, self.config, targets, self.batches)
        done: Done = {}
        count, total = 0, sum(target.weights for target in self.todo.targets)
        for target in targets:
            if self.progress is not None:
                self.progress(count, total, target.name)
            count += target.weights
            weight = linear_weight(self.model.get_submodule(target.name))
            done[target.name] = quantize_weight(weight, target, self.config, importance.get(target.name))
        return done

    def calibrated(self, work_folder: str | os.PathLike[str] | None) -> Done:
        """What is outside the blocks, and embeddings, to the nearest level; then the blocks by the steps of the effort."""
        prefix = find_blocks(self.model)[0] + "."
        inside = [each for each in self.todo.targets if each.name.startswith(prefix) and each.kind != "embedding"]
        done = self.rounded([target for target in self.todo.targets if target not in inside])
        calibrated = SequentialCalibration(
            self.model,
            inside,
            self.effort,
            self.batches,
            fixed={name: quantized for name, (quantized, _) in done.items()},
            seed=self.seed,
            cache_bytes=self.cache_bytes,
            folder=self._folder(work_folder),
            progress=self.progress,
        )
        layers = calibrated.run()
        for target in calibrated.targets:
            weight = linear_weight(self.model.get_submodule(target.name))
            layer = layers[target.name]
            done[target.name] = layer.weight, describe_weight(weight, target, layer.weight, layer.algorithm)
        return done

    def _folder(self, path: str | os.PathLike[str] | None) -> WorkFolder | None:
        if path is None:
            return None
        settings = (__version__, repr(self.model.config), self.config.model_dump_json(), str(self.seed))
        return WorkFolder(Path(path), fingerprint(self.model, self.batches, settings))


def quantize_weight(
    weight: Tensor, target: WeightPlan, config: PoTConfig, importance: Tensor | None = None
) -> tuple[QuantizedWeight, ModuleReport]:
    """Quantize one weight ``(out, in)`` and say how well it went.

    Raises:
        ModelError: NaN or infinite weights, or weights beyond the scale's range; names the layer.
    """
    weight = weight.detach()  # in its own dtype: what computes with it takes blocks of float32
    check_weight(weight, target)
    # embeddings and heads are looked up or tied; their inputs are not a layer's activations
    weighted = importance is not None
    plain: ScaleMethod = "mse" if config.scale_method in WEIGHTED_METHODS else config.scale_method
    method: ScaleMethod = "weighted" if weighted else plain
    quantized = rtn(weight, target.scheme, importance, method=method, candidates=config.scale_candidates)
    label = config.scale_method if weighted else method
    return quantized, describe_weight(weight, target, quantized, _algorithm(label, target.scheme, config.scale_candidates))


def describe_weight(weight: Tensor, target: WeightPlan, quantized: QuantizedWeight, algorithm: str) -> ModuleReport:
    """The report of one weight: sizes, and how far ``quantized`` is from ``weight`` ``(out, in)``."""
    return ModuleReport(
        name=target.name,
        kind=target.kind,
        shape=target.shape,
        scheme=target.scheme.name,
        algorithm=algorithm,
        bits_per_weight=target.scheme.bits_per_weight(*target.shape),
        snr_db=decibels(*quantized.energies(weight.detach())),
        bytes_before=weight.nbytes,
        bytes_after=quantized.nbytes,
        tied=target.tied,
    )


def _algorithm(method: ScaleMethod, scheme: QuantScheme, candidates: int | None) -> str:
    """A name for the report, with the number of scales really tried (E8M0 has few), or "exact"."""
    if method == "absmax":
        return "rtn/absmax"
    exact = is_exact(scheme, candidates)
    return f"rtn/{method}-{'exact' if exact else len(scale_multipliers(scheme, candidates or CANDIDATES))}"


def check_weight(weight: Tensor, target: WeightPlan) -> None:
    """Refuse weights that no scale can represent.

    Raises:
        ModelError: names the layer and says how many entries are at fault.
    """
    largest = float(torch.stack(torch.aminmax(weight)).float().abs().amax())  # NaN wins
    if not math.isfinite(largest):
        broken = int((~weight.float().isfinite()).sum())
        raise ModelError(f"{target.name}.weight has {broken} NaN or infinite entries; repair the model, or ignore the layer")
    grid, limit = target.scheme.grid, torch.finfo(torch.float16).max
    if target.scheme.scale_dtype == "float16" and largest * grid.reference / max(grid.levels) > limit:
        raise ModelError(
            f"{target.name}.weight reaches {largest:.3g}, its scale would pass float16's {limit:.0f}; use scale_dtype='e8m0'"
        )


def require_calibration(config: PoTConfig, *, given: bool) -> None:
    """Refuse what needs calibration text if none is given.

    Raises:
        ConfigError: says what to pass.
    """
    if given:
        return
    if config.scale_method in WEIGHTED_METHODS:
        raise ConfigError(f"scale_method={config.scale_method!r} needs calibration text; pass calibration=, or use 'mse'")
    effort = chosen_effort(config, given=False)
    if effort.calibrated:
        raise ConfigError(
            f"effort={effort.name!r} needs calibration text: call potq.quantize(model, config, calibration) with "
            "the loaded model (potq.load_calibration makes batches, from the model itself if need be), or use 'fast'"
        )


def _require_cpu(model: nn.Module) -> None:
    elsewhere = sorted({str(p.device) for p in model.parameters() if p.device.type != "cpu"})
    if elsewhere:
        raise ModelError(
            f"calibrated efforts compute on the CPU, the model is on {', '.join(elsewhere)}; quantize model.cpu(), or use "
            "effort='fast'"
        )


def make_report(model: nn.Module, modules: list[ModuleReport], skipped: list[SkippedModule]) -> QuantReport:
    """The report of ``model``, whose modules are packed by now: what was done to them, and the size of the whole."""
    unused = getattr(model, _UNUSED, [])
    size = {"bytes_after": tensor_bytes(model), "weights": weight_count(model)}
    return QuantReport(modules=modules, skipped=skipped, unused=unused, **size)


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


def _importance(
    model: nn.Module, config: PoTConfig, targets: Sequence[WeightPlan], batches: list[Tensor]
) -> dict[str, Tensor]:
    names = [target.name for target in targets if target.kind == "linear"]
    if config.scale_method == "weighted" and names:
        return calib.input_mean_squares(model, names, batches)
    if config.scale_method == "fisher" and names:
        return calib.mean_squared_gradients(model, names, batches)
    return {}


def _add_output_errors(model: nn.Module, todo: Plan, done: Done, batches: list[Tensor]) -> None:
    """Fill in ``output_snr_db``; an embedding class with a forward of its own has no plain output to compare."""
    plain = {
        target.name: done[target.name][0]
        for target in todo.targets
        if target.kind != "embedding" or type(model.get_submodule(target.name)) is nn.Embedding
    }
    ratios = calib.output_snr(model, plain, batches)
    for name, (_, entry) in done.items():
        entry.output_snr_db = ratios.get(name)


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
    return make_report(model, modules, [])
