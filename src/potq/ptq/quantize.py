"""Post-training quantization of a whole model: plan, quantize, replace, report."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from potq.config import EFFORTS, Effort, PoTConfig, require_config
from potq.data.ranks import Ranks, SharedFolder
from potq.errors import ConfigError, ModelError
from potq.nn.convolution import is_grouped
from potq.nn.install import install
from potq.nn.language import language_plan
from potq.nn.packed import PackedModule
from potq.nn.packed_model import as_packed_model, packed_modules
from potq.nn.parts import Part, bring, parts_of, stored
from potq.nn.plain import is_plain, note_config
from potq.nn.plan import Plan, WeightPlan
from potq.nn.properties import evaluation_mode, is_tied, tensor_bytes, weight_count
from potq.nn.refusals import require_causal, require_weights
from potq.nn.report import ModuleReport, Progress, QuantReport, SkippedModule, UnusedTensor, decibels
from potq.nn.stacked import PoTStack
from potq.nn.weights import matrix_of
from potq.numerics.scale_search import CANDIDATES, is_exact, scale_multipliers
from potq.numerics.scheme import WEIGHTED_METHODS, QuantScheme, ScaleMethod
from potq.numerics.tensor import QuantizedWeight
from potq.ptq import calibration as calib
from potq.ptq.algorithms.rtn import rtn
from potq.ptq.blocks import Chain, Keeper, find_blocks, merge
from potq.ptq.chain import Blocks, agreed_lists, check_settings, find_lists, record_chain
from potq.ptq.feed import Feed
from potq.ptq.kept import Reader, block_part, in_folder, in_memory, weight_tensors
from potq.ptq.sequential import SequentialCalibration, calibrated_layer, rounded_layer, rounded_only, substituted
from potq.ptq.share import check_shared
from potq.ptq.streaming import chain_in_parts
from potq.resume import WorkFolder, fingerprint
from potq.version import __version__

REPORTED = 8  # calibration batches that output errors are measured on
_UNUSED = "_potq_unused"

Source = list[Tensor] | Feed
"""Token batches, or what runs any other module."""

Done = dict[str, tuple[Reader, ModuleReport]]
"""What gives each packed weight, and its report."""


def quantize(
    model: nn.Module,
    config: PoTConfig,
    calibration: Iterable[Any] | Callable[[nn.Module], object] | None = None,
    *,
    blocks: Blocks | None = None,
    seed: int = 0,
    work_folder: str | os.PathLike[str] | None = None,
    cache_bytes: int = 4 << 30,
    progress: Progress | None = None,
    group: ProcessGroup | None = None,
) -> QuantReport:
    """Quantize ``model`` in place; ``model.save_pretrained`` and :func:`potq.save` work afterwards.

    Args:
        model: a Hugging Face model in full precision, or any other ``torch.nn.Module``: its linears, embeddings and
            convolutions are packed, and :func:`potq.save_module` saves it.
        config: which module gets which scheme, and how hard to try (``config.effort``).
        calibration: batches of token ids ``(batch, length)``, e.g. of :func:`potq.load_calibration`. Everything beyond
            ``"fast"`` needs them; they add every layer's output error to the report, too. For a Hugging Face model that is
            no causal LM: dicts of keyword arguments, e.g. of :func:`potq.load_inputs`. For any other module: inputs (a
            tensor, a tuple of arguments or such a dict each). For both also a callable that gets the module and runs it as
            ``module(...)``; it is called several times.
        blocks: of what runs on such inputs: names of the modules to calibrate one after another, each of which gets what the
            one before puts out; or several lists of them, of an encoder and its decoder, say. By default the children of the
            lists of alike modules, or else the module as a whole, whose inputs are then kept in memory; the report says so.
        seed: of the order of batches in refinement. The global generator is neither read nor set.
        work_folder: where a calibrated run leaves its finished blocks: called again after a kill, with the same model, text
            and config, it goes on from there to the same result. Delete it when the model is saved. A model that was loaded
            with ``stream=True`` needs one: its packed weights stay in these files until then.
        cache_bytes: hidden states of the calibration text are kept in memory up to this size, beyond it in temporary files.
        progress: called before each matrix: weights done, weights in all, its name. A whole model's refinement counts steps.
        group: processes of torch.distributed that share a calibrated run. All of them call this with the same model, config
            and calibration (no callable), and all get the same quantized model; the first keeps the ``work_folder``.

    Returns:
        What was done to each module, what was skipped and why. It is kept as ``model.quant_report`` too.

    Raises:
        ConfigError: a pattern that matches nothing, an effort or scale method that needs calibration without it, or that
            needs a language model; blocks that are not there.
        ModelError: NaN or infinite weights or activations (named), a model quantized before or not in memory, nothing to
            quantize; layers that the text never reaches where ``scale_method``
            needs them (otherwise they are rounded to nearest, and the report says so). The model is unchanged.
        DataError: calibration that is not token batches; of any other module, inputs that it does not run on, or a callable
            that raises or never runs it; fewer windows than processes.
        DistributedError: processes that have not the same model, config or calibration, or one that stopped.

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

        Any other module:

        >>> import torch
        >>> module = torch.nn.Sequential(torch.nn.Conv1d(4, 32, 3), torch.nn.ReLU(), torch.nn.Conv1d(32, 4, 3))
        >>> inputs = [torch.randn(8, 4, 20) for _ in range(4)]
        >>> report = potq.quantize(module, potq.PoTConfig("pot4", effort="balanced"), inputs)
        >>> [(entry.kind, entry.shape, entry.algorithm) for entry in report.modules]
        [('convolution', (32, 12), 'gptq+descent'), ('convolution', (4, 96), 'gptq+descent')]
    """
    require_config(config)
    config, todo = language_plan(model, config)
    if (parts := parts_of(model)) is None:
        require_weights(model)
    if isinstance(calibration, Iterable) and not isinstance(calibration, Tensor):
        calibration = list(calibration)
    fed = is_plain(model) or _is_fed(calibration)
    effort, remarks = _settle_effort(model, config, calibration, blocks, fed=fed)
    if parts is not None:
        _check_in_parts(effort, work_folder, fed=fed, shared=group is not None)
    source = _check_source(model, calibration, fed=fed)
    config = config.model_copy(update={"effort": effort})
    ranks = Ranks(group)
    if ranks.size > 1:
        check_shared(ranks, model, config, source, [str(seed), repr(blocks)])
    for target in todo.targets:
        bring(model, target.name)
        check_weight(matrix_of(model, target.name), target)
    run = _Run(model, config, effort, todo, source, blocks, seed, cache_bytes, progress, ranks, remarks)
    folder = run.folder(work_folder) if effort.calibrated else None
    done = run.calibrated(folder) if effort.calibrated else run.rounded(todo.targets)
    if calibration is not None:
        some = source.first(REPORTED).share(ranks) if isinstance(source, Feed) else merge(ranks.share(source[:REPORTED]))
        _add_output_errors(model, todo, done, some, ranks)
    if parts is not None:
        parts.release()
    for target in todo.targets:
        install(model, target, done[target.name][0]())
    if parts is not None and folder is not None:
        parts.settle(partial(_rest, folder))
    entries = [done[target.name][1] for target in todo.targets]
    report = make_report(model, entries, todo.skipped)
    report.remarks += run.remarks
    attach(model, config, report)
    return report


def _is_fed(calibration: Any) -> bool:
    """Whether a Hugging Face model gets inputs by name, or a callable, rather than token batches."""
    if isinstance(calibration, list):
        return any(isinstance(each, Mapping) for each in calibration)
    return callable(calibration)


def _settle_effort(
    model: nn.Module, config: PoTConfig, calibration: Any, blocks: Blocks | None, *, fed: bool
) -> tuple[Effort, list[str]]:
    """The effort that this model and calibration allow, and remarks if it is not the config's.

    Raises:
        ConfigError, ModelError: as :func:`quantize`.
    """
    given, remarks = calibration is not None, list[str]()
    effort = chosen_effort(config, given=given)
    if parts_of(model) is not None:
        effort, remarks = effort_in_parts(effort)
    if fed:
        check_settings(config, effort, blocks, given=given)
        return effort, remarks
    require_calibration(config, given=given)
    if blocks is not None:
        raise ConfigError("blocks= is for modules that run on inputs; those of a language model on text are found")
    if effort.scope == "model":
        require_causal(model, predicting=True)
    return effort, remarks


def _check_source(model: nn.Module, calibration: Any, *, fed: bool) -> Source:
    if calibration is None:
        return []
    return Feed.of(calibration) if fed else calib.check_batches(calibration, model)


def chosen_effort(config: PoTConfig, *, given: bool) -> Effort:
    """The config's effort; without one ``"balanced"`` if calibration is ``given``, unless it is for a scale method."""
    if config.effort is not None:
        return config.effort
    return EFFORTS["balanced" if given and config.scale_method == "mse" else "fast"]


def _check_in_parts(effort: Effort, work_folder: str | os.PathLike[str] | None, *, fed: bool, shared: bool) -> None:
    """Refuse to do without calibration by text, or without a work folder, for a model that is read in parts."""
    if shared:
        raise ConfigError("a model that is streamed is quantized by one process; leave the group out")
    if fed:
        raise ConfigError("a model that is streamed is calibrated by batches of token ids; load it without stream=True")
    if not effort.calibrated:
        raise ConfigError(
            f"effort={effort.name!r} needs no stream=True: potq.load(folder, config) rounds weights while they are read"
        )
    if work_folder is None:
        raise ConfigError("a model that is streamed needs a work_folder: finished blocks leave memory for it")


def effort_in_parts(effort: Effort) -> tuple[Effort, list[str]]:
    """What ``effort`` is for a model that is read in parts, and remarks on that."""
    if effort.scope != "model":
        return effort, []
    remark = f"effort {effort.name!r} refines the whole model in memory; streamed, it was refined block by block"
    return effort.model_copy(update={"scope": "block"}), [remark]


@dataclass(frozen=True)
class _Run:
    """One call of :func:`quantize`."""

    model: nn.Module
    config: PoTConfig
    effort: Effort
    todo: Plan
    source: Source
    blocks: Blocks | None
    seed: int
    cache_bytes: int
    progress: Progress | None
    ranks: Ranks
    remarks: list[str] = field(default_factory=list)

    def rounded(self, targets: Sequence[WeightPlan]) -> Done:
        """Every target by itself, to the nearest level."""
        importance = _importance(self.model, self.config, targets, self.source)
        done: Done = {}
        count, total = 0, sum(target.weights for target in self.todo.targets)
        for target in targets:
            if self.progress is not None:
                self.progress(count, total, target.name)
            count += target.weights
            bring(self.model, target.name)
            weight = matrix_of(self.model, target.name)
            quantized, entry = quantize_weight(weight, target, self.config, importance.get(target.name))
            done[target.name] = in_memory(quantized), entry
        return done

    def calibrated(self, folder: WorkFolder | None) -> Done:
        """What is outside the blocks, and embeddings, to the nearest level; then the blocks by the steps of the effort."""
        if isinstance(self.source, Feed):
            return self._in_chains(self.source, folder)
        inside, outside = self._divided((find_blocks(self.model)[0],))
        done = self.rounded(outside)
        if folder is not None and parts_of(self.model) is not None:
            return self._in_parts(inside, _moved(folder, outside, done), self.source, folder)
        return done | self._in_blocks(inside, done, self.source, None, folder, self.progress)

    def _in_parts(self, inside: list[WeightPlan], done: Done, batches: list[Tensor], folder: WorkFolder) -> Done:
        """The blocks of a model that is read in parts; each leaves memory when it is done."""
        with evaluation_mode(self.model), ExitStack() as stack:
            chain, remarks = chain_in_parts(self.model, merge(batches), Keeper(self.cache_bytes, stack))
            self.remarks.extend(remarks)
            return done | self._in_blocks(inside, done, batches, chain, folder, self.progress)

    def _in_chains(self, feed: Feed, folder: WorkFolder | None) -> Done:
        """One list of blocks after another: those of a decoder see what the quantized encoder puts out."""
        with evaluation_mode(self.model), ExitStack() as stack:
            keep, feed = Keeper(self.cache_bytes, stack), feed.share(self.ranks)
            lists, remarks = agreed_lists(find_lists(self.model, feed, self.todo, self.blocks), self.ranks)
            self.remarks.extend(remarks)
            done = self._outside(self._divided([name for names in lists for name in names])[1], feed)
            before: dict[str, Tensor] = {}
            for number, names in enumerate(lists):
                inside = self._divided(names)[0]
                with substituted(self.model, before):
                    chain = record_chain(self.model, feed, names, keep, first=sum(map(len, lists[:number])))
                    done |= self._in_blocks(inside, done, [], chain, folder, self._of_all)
                if number + 1 < len(lists):
                    before |= {target.name: done[target.name][0]().dequantize() for target in inside}
        return done

    def _of_all(self, count: int, _: int, name: str) -> None:
        """Progress of one list of blocks, as a part of all."""
        if self.progress is not None:
            self.progress(count, sum(target.weights for target in self.todo.targets), name)

    def _divided(self, names: Sequence[str]) -> tuple[list[WeightPlan], list[WeightPlan]]:
        """The targets in the modules of these names, but for embeddings; and all others. The model's own name is ``""``."""
        starts = tuple(f"{name}." if name else "" for name in names)
        inside = [t for t in self.todo.targets if t.kind != "embedding" and t.name.startswith(starts)]
        return inside, [target for target in self.todo.targets if target not in inside]

    def _in_blocks(
        self,
        inside: list[WeightPlan],
        done: Done,
        batches: list[Tensor],
        chain: Chain | None,
        folder: WorkFolder | None,
        progress: Progress | None,
    ) -> Done:
        """The targets ``inside`` a list of blocks by the steps of the effort, after those that are ``done``."""
        calibrated = SequentialCalibration(
            self.model,
            inside,
            self.effort,
            batches,
            chain,
            fixed={name: quantized() for name, (quantized, _) in done.items()},
            seed=self.seed,
            cache_bytes=self.cache_bytes,
            folder=folder,
            progress=progress,
            ranks=self.ranks,
        )
        layers = calibrated.run()
        found: Done = {}
        for target in inside:
            bring(self.model, target.name)
            weight, layer = matrix_of(self.model, target.name), layers.pop(target.name)
            entry = describe_weight(weight, target, layer.weight, layer.algorithm)
            found[target.name] = self._reader(target, layer.weight, chain, folder), entry
        return found

    def _reader(
        self, target: WeightPlan, quantized: QuantizedWeight, chain: Chain | None, folder: WorkFolder | None
    ) -> Reader:
        """What gives a weight that is done; of a model in parts, from its block's file."""
        if chain is None or folder is None or parts_of(self.model) is None:
            return in_memory(quantized)
        index, name = next((i, n) for i, n in enumerate(chain.names) if target.name.startswith(f"{n}."))
        return in_folder(folder, block_part(index), target.name.removeprefix(f"{name}."), target)

    def _outside(self, targets: Sequence[WeightPlan], feed: Feed) -> Done:
        """Layers outside the blocks, each by itself on what the module in full precision gives it."""
        alone = [target for target in targets if target.kind in ("embedding", "experts")]
        done = self.rounded(alone)
        layers = {target: self.model.get_submodule(target.name) for target in targets if target not in alone}
        reasons = {target.name: rounded_only(module, target.scheme) for target, module in layers.items()}
        able = [name for name, reason in reasons.items() if not reason]
        moments = calib.second_moments(self.model, able, feed, self.ranks) if able else {}
        for target in layers:
            weight, hessian = matrix_of(self.model, target.name), moments.get(target.name)
            if hessian is None:
                layer = rounded_layer(weight, target.scheme, reasons[target.name] or "no input reaches it")
            else:
                layer = calibrated_layer(weight, hessian, target.scheme, self.effort)
            done[target.name] = in_memory(layer.weight), describe_weight(weight, target, layer.weight, layer.algorithm)
        return done

    def folder(self, path: str | os.PathLike[str] | None) -> WorkFolder | None:
        """The work folder of this run.

        Raises:
            ModelError: the model has no blocks, so that there is nothing to be kept.
        """
        if not isinstance(self.source, Feed):
            find_blocks(self.model)
        if path is None:
            return None
        inputs = self.source.tensors() if isinstance(self.source, Feed) else self.source
        kind = type(self.model).__qualname__ if is_plain(self.model) else repr(self.model.config)
        settings = [__version__, kind, self.config.model_dump_json(), str(self.seed)]
        settings += [repr(list(self.blocks))] if self.blocks is not None else []
        settings += [f"{self.ranks.size} processes"] if self.ranks.size > 1 else []  # other sums, other bits
        weights = stored(self.model) if parts_of(self.model) is not None else None
        mark = fingerprint(self.model, inputs, settings, weights) if self.ranks.leads else ""
        return SharedFolder(Path(path), mark, self.ranks)


def _moved(folder: WorkFolder, targets: Sequence[WeightPlan], done: Done) -> Done:
    """``done``, but the weights of ``targets`` lie in ``folder``."""
    tensors = {key: tensor for name, (weight, _) in done.items() for key, tensor in weight_tensors(name, weight()).items()}
    folder.save("outside", tensors)
    return {target.name: (in_folder(folder, "outside", target.name, target), done[target.name][1]) for target in targets}


def _rest(folder: WorkFolder, part: Part, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """What is not quantized of a part, in a file that is mapped."""
    name = f"rest-{part[0]}"
    folder.save(name, tensors)
    found = folder.load(name)
    if found is None:
        raise ModelError(f"{name} cannot be read from the work folder {folder.folder}; quantize again")
    return found


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
        shape=target.stored_shape,
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
    name = target.parameter_of(target.name)
    largest = float(torch.stack(torch.aminmax(weight)).float().abs().amax())  # NaN wins
    if not math.isfinite(largest):
        broken = int((~weight.float().isfinite()).sum())
        raise ModelError(f"{name} has {broken} NaN or infinite entries; repair the model, or ignore the layer")
    grid, limit = target.scheme.grid, torch.finfo(torch.float16).max
    if target.scheme.scale_dtype == "float16" and largest * grid.reference / max(grid.levels) > limit:
        raise ModelError(f"{name} reaches {largest:.3g}, its scale would pass float16's {limit:.0f}; use scale_dtype='e8m0'")


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


def _importance(model: nn.Module, config: PoTConfig, targets: Sequence[WeightPlan], source: Source) -> dict[str, Tensor]:
    kinds = ("linear", "convolution")
    names = [each.name for each in targets if each.kind in kinds and not is_grouped(model.get_submodule(each.name))]
    if config.scale_method == "weighted" and names:
        return calib.input_mean_squares(model, names, source)
    if config.scale_method == "fisher" and names and parts_of(model) is not None:
        raise ConfigError(f"scale_method='fisher' for {names[0]} needs the whole model in memory; use 'weighted' or 'mse'")
    if config.scale_method == "fisher" and names and not isinstance(source, Feed):
        names += [target.name for target in targets if target.experts]
        found = calib.mean_squared_gradients(model, names, source)
        return {name: each.where(each.any(1, keepdim=True), 1) for name, each in found.items()}  # experts without tokens
    return {}


def _add_output_errors(model: nn.Module, todo: Plan, done: Done, source: Source, ranks: Ranks) -> None:
    """Fill in ``output_snr_db``; an embedding class with a forward of its own has no plain output to compare."""
    plain = {
        target.name: done[target.name][0]
        for target in todo.targets
        if target.kind != "embedding" or type(model.get_submodule(target.name)) is nn.Embedding
    }
    ratios = calib.output_snr(model, plain, source, ranks)
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
