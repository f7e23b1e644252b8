"""Post-training quantization of a whole model: plan, quantize, replace, report."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.distributed import ProcessGroup

from potq.config import PoTConfig, require_config
from potq.data.ranks import Ranks
from potq.nn.install import install
from potq.nn.language import language_plan
from potq.nn.parts import bring, parts_of
from potq.nn.plain import is_plain
from potq.nn.plan import Plan
from potq.nn.record import attach, make_report
from potq.nn.refusals import require_weights
from potq.nn.report import Progress, QuantReport
from potq.nn.weights import matrix_of
from potq.ptq import calibration as calib
from potq.ptq.blocks import CACHE_BYTES
from potq.ptq.chain import Blocks
from potq.ptq.effort import check_in_parts, settle_effort
from potq.ptq.feed import Feed
from potq.ptq.kept import keep_rest
from potq.ptq.run import Done, Run, Source, add_output_errors
from potq.ptq.share import check_shared
from potq.ptq.weight import check_weight
from potq.resume import WorkFolder


def quantize(
    model: nn.Module,
    config: PoTConfig,
    calibration: Iterable[Any] | Callable[[nn.Module], object] | None = None,
    *,
    blocks: Blocks | None = None,
    seed: int = 0,
    work_folder: str | os.PathLike[str] | None = None,
    cache_bytes: int = CACHE_BYTES,
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
    in_parts = parts_of(model) is not None
    if not in_parts:
        require_weights(model)
    if isinstance(calibration, Iterable) and not isinstance(calibration, Tensor):
        calibration = list(calibration)
    fed = is_plain(model) or _is_fed(calibration)
    effort, remarks = settle_effort(model, config, calibration, blocks, fed=fed)
    if in_parts:
        check_in_parts(effort, work_folder, fed=fed, shared=group is not None)
    source = _check_source(model, calibration, fed=fed)
    config = config.model_copy(update={"effort": effort})
    ranks = Ranks(group)
    if ranks.size > 1:
        check_shared(ranks, model, config, source, [str(seed), repr(blocks)])
    for target in todo.targets:
        bring(model, target.name)
        check_weight(matrix_of(model, target.name), target)
    run = Run(model, config, effort, todo, source, blocks, seed, cache_bytes, progress, ranks, remarks)
    folder = run.folder(work_folder) if effort.calibrated else None
    done = run.calibrated(folder) if effort.calibrated else run.rounded(todo.targets)
    if calibration is not None:
        add_output_errors(model, todo, done, source, ranks)
    _replace(model, todo, done, folder)
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


def _check_source(model: nn.Module, calibration: Any, *, fed: bool) -> Source:
    if calibration is None:
        return []
    return Feed.of(calibration) if fed else calib.check_batches(calibration, model)


def _replace(model: nn.Module, todo: Plan, done: Done, folder: WorkFolder | None) -> None:
    """Packed modules in place of all targets; of a model in parts the rest comes from the work folder from now on."""
    parts = parts_of(model)
    if parts is not None:
        parts.release()
    for target in todo.targets:
        install(model, target, done[target.name][0]())
    if parts is not None and folder is not None:
        parts.settle(partial(keep_rest, folder))
