"""Quantization-aware training of any model: :func:`prepare` it, train it as ever, :func:`convert` it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from potq.config import PoTConfig
from potq.errors import ConfigError, ModelError
from potq.nn.install import install
from potq.nn.language import language_plan
from potq.nn.packed import PackedModule
from potq.nn.packed_model import packed_modules
from potq.nn.plain import packed_config
from potq.nn.plan import Plan, WeightPlan
from potq.nn.record import attach, make_report
from potq.nn.refusals import require_no_adapter, require_weights
from potq.nn.report import QuantReport
from potq.nn.stacked import PoTStack
from potq.nn.weights import as_weight, linear_weight
from potq.numerics.scheme import WEIGHTED_METHODS
from potq.numerics.tensor import QuantizedWeight
from potq.ptq.algorithms.rtn import choose_scales
from potq.ptq.weight import check_weight, describe_weight
from potq.qat.checks import require_no_text
from potq.qat.nn import QATModule, qat_class
from potq.qat.settings import QATSettings

_PREPARED = "_potq_qat"  # the config and the plan


def prepare(
    model: nn.Module,
    config: PoTConfig | None = None,
    settings: QATSettings | None = None,
    *,
    start: nn.Module | None = None,
) -> Plan:
    """Make ``model`` compute with rounded weights, in place; what trains are its own parameters, under their own names.

    Args:
        model: a Hugging Face causal LM in full precision, or any other ``torch.nn.Module``.
        config: which module gets which scheme, as for :func:`potq.quantize`; its effort is not used. By default ``start``'s.
        settings: where scales come from, and whether activations are rounded.
        start: a packed model of the same architecture, whose weights and scales training starts with. Without it they are
            the model's own weights, and the scales that ``config.scale_method`` finds for them.

    Stacks of experts' matrices train in full precision, and stay so.

    Returns:
        What will be quantized, and what is skipped and why.

    Raises:
        ConfigError: no config; a pattern that matches nothing; a scale method that needs calibration text.
        ModelError: NaN weights (named); a model quantized or prepared before; a ``start`` that does not fit; layers of
            torch's attention, whose weights are read behind their backs.

    Example:
        >>> import potq, torch
        >>> model = potq.load("tiny")
        >>> plan = potq.qat.prepare(model, potq.PoTConfig("pot2"))
        >>> len(plan.targets)
        15
        >>> ids = torch.arange(16)[None]
        >>> model(ids, labels=ids).loss.backward()  # the gradient of the rounded weights reaches the float ones
        >>> model.model.layers[0].mlp.up_proj.weight.grad.shape
        torch.Size([160, 64])
    """
    settings = settings or QATSettings()
    config = _config(config, start)
    if start is None:
        config = config.model_copy(update={"effort": None})  # nothing was done of it, and nothing is to say so
    config, todo = language_plan(model, config, experts=False)
    for each in (model, *([start] if start is not None else [])):
        require_weights(each)
    _require_called(model, todo.targets)
    packed = _starts(start, todo.targets) if start is not None else {}
    for target in todo.targets:
        check_weight(linear_weight(model.get_submodule(target.name)).detach(), target)
    if start is not None:
        _copy_rest(model, start)
    for target in todo.targets:
        _prepare_target(model, target, config, settings, packed.get(target.name))
    setattr(model, _PREPARED, (config, todo))
    return todo


def convert(model: nn.Module) -> QuantReport:
    """The packed model that a prepared one is, in place: the same weights, bit for bit, in packed modules.

    Its products round their inputs to int8, unless :func:`potq.kernels.set_activations` says "float": then logits agree to
    the order of additions. Those of ``model.dequantize()`` agree bit for bit.

    The model is unchanged after an error.

    Raises:
        ModelError: the model is not prepared or has an adapter, was changed since, or its weights are NaN
            (named).

    Example:
        >>> import potq
        >>> model = potq.load("tiny")
        >>> plan = potq.qat.prepare(model, potq.PoTConfig("pot2"))
        >>> report = potq.qat.convert(model)
        >>> report.modules[1].algorithm, report.modules[1].bits_per_weight
        ('qat/searched', 2.25)
        >>> potq.save(model, "trained")
    """
    config, todo = getattr(model, _PREPARED, (None, Plan([], [])))
    if config is None:
        raise ModelError(f"{type(model).__name__} is not prepared for training; call potq.qat.prepare first")
    modules = qat_modules(model)
    _check_convertible(model, modules, todo)
    names = {module: name for name, module in modules.items() if module.tied_to is None}
    for module, name in names.items():
        for key, parameter in module.named_parameters(recurse=False):
            if not bool(parameter.isfinite().all()):
                raise ModelError(f"{name}.{key} has NaN or infinite entries; training diverged, go back to a checkpoint")
    packed = {name: module.quantized() for module, name in names.items()}
    scales = next(iter(modules.values())).settings.scales
    for module in modules.values():
        module.restore()
    delattr(model, _PREPARED)
    return _install(model, config, todo, packed, f"qat/{scales}")


def _check_convertible(model: nn.Module, modules: dict[str, QATModule], todo: Plan) -> None:
    """Everything that would fail once the floats are restored."""
    require_no_adapter(model)
    require_weights(model)
    names = {id(module): name for name, module in modules.items()}
    found = {name: names.get(id(module.tied_to or module)) for name, module in modules.items()}
    expected = {name: target.name for target in todo.targets for name in target.names}
    if odd := sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)):
        raise ModelError(f"{', '.join(odd[:3])} changed since the model was prepared; change a model before that")


def qat_modules(model: nn.Module) -> dict[str, QATModule]:
    """Every training module by name, tied ones included."""
    return {name: module for name, module in model.named_modules() if isinstance(module, QATModule)}


def refresh_scales(model: nn.Module) -> None:
    """Have scales searched anew in the next training pass: for training loops of one's own, under ``scales="searched"``.

    Example:
        >>> import potq, torch
        >>> model = potq.load("tiny").train()
        >>> plan = potq.qat.prepare(model, potq.PoTConfig("pot2"))
        >>> linear = model.model.layers[0].mlp.up_proj
        >>> before = linear.weight_scale.clone()
        >>> with torch.no_grad():
        ...     linear.weight *= 2
        >>> potq.qat.refresh_scales(model)
        >>> logits = model(torch.arange(16)[None]).logits
        >>> torch.equal(linear.weight_scale, 2 * before)
        True
    """
    for module in qat_modules(model).values():
        if module.tied_to is None:
            module.refresh_scales()


def scale_state(model: nn.Module) -> dict[str, Tensor]:
    """The stored scales of a prepared model, which its state dict does not hold, by buffer name."""
    return {
        f"{name}.{buffer}": tensor
        for name, module in qat_modules(model).items()
        for buffer, tensor in module.named_buffers(recurse=False)
        if buffer.startswith("weight_")
    }


def load_scale_state(model: nn.Module, state: dict[str, Tensor]) -> None:
    """The inverse of :func:`scale_state`.

    Raises:
        ModelError: the scales of another model, or of other schemes.
    """
    own = scale_state(model)
    kinds = [{name: (tensor.shape, tensor.dtype) for name, tensor in each.items()} for each in (own, state)]
    if kinds[0] != kinds[1]:
        raise ModelError("the scales are another model's, or of other schemes; train with the settings they were made with")
    for name, tensor in own.items():
        tensor.copy_(state[name])


def _config(config: PoTConfig | None, start: nn.Module | None) -> PoTConfig:
    found = packed_config(start)
    if start is not None and found is None:
        raise ModelError("start= is not a packed model; quantize it first, or leave it out")
    chosen = config or found
    if chosen is None:
        raise ConfigError("prepare needs a config, e.g. potq.PoTConfig('pot4'), or start= (a packed model)")
    if start is None:
        require_no_text(chosen)
    return chosen


def _require_called(model: nn.Module, targets: list[WeightPlan]) -> None:
    """Refuse layers whose parents compute with their weights and never call them: no pass would see them rounded."""
    readers = (nn.MultiheadAttention, nn.TransformerEncoderLayer)
    for name, module in model.named_modules():
        read = [t.name for t in targets if isinstance(module, readers) and t.name.startswith(f"{name}." if name else "")]
        if read:
            raise ModelError(
                f"{type(module).__name__} reads the weights of {', '.join(read[:3])} without calling these layers, so that "
                "training would not round them; ignore them"
            )


def _starts(start: nn.Module, targets: list[WeightPlan]) -> dict[str, PackedModule]:
    """The packed module of every target, compared with it."""
    packed = packed_modules(start)
    for target in targets:
        module = packed.get(target.name)
        if module is None:
            raise ModelError(f"start= has no packed weight {target.name}; its config is another")
        if (module.scheme, module.quantized.shape) != (target.scheme, target.shape):
            found, wanted = f"{module.scheme.name} {module.quantized.shape}", f"{target.scheme.name} {target.shape}"
            raise ModelError(f"start= has {target.name} as {found}, the config asks for {wanted}; use start's own config")
    return packed


@torch.no_grad()
def _copy_rest(model: nn.Module, start: nn.Module) -> None:
    """What is not quantized, norms, biases and experts: as ``start`` has it."""
    own = dict(model.named_parameters())
    for name, parameter in start.named_parameters():
        if name in own:
            own[name].copy_(parameter)
    for name, module in packed_modules(start).items():
        if isinstance(module, PoTStack) and name in own:
            own[name].copy_(module.weight)


def _prepare_target(
    model: nn.Module, target: WeightPlan, config: PoTConfig, settings: QATSettings, packed: PackedModule | None
) -> None:
    module = model.get_submodule(target.name)
    weight = linear_weight(module).detach()
    method, candidates = config.scale_method, config.scale_candidates
    if packed is None:
        scales = choose_scales(weight.float(), target.scheme, method=method, candidates=candidates)
    else:
        quantized = packed.quantized
        parameter: Any = module.weight
        parameter.detach().copy_(as_weight(module, quantized.dequantize()))
        row_scale = quantized.row_scale
        scales = (
            quantized.scale.to(weight.device, copy=True),
            None if row_scale is None else row_scale.to(weight.device, copy=True),
        )
    owner = _swap(module)
    method = "mse" if method in WEIGHTED_METHODS else method
    owner.hold(target.scheme, settings, scales, method=method, candidates=candidates)
    for name in target.tied:
        _swap(model.get_submodule(name)).tie(owner)


def _swap(module: nn.Module) -> QATModule:
    kind: Any = type(module)
    module.__class__ = qat_class(kind)
    assert isinstance(module, QATModule)  # the class was just made so
    return module


def _install(
    model: nn.Module, config: PoTConfig, todo: Plan, packed: dict[str, QuantizedWeight], algorithm: str
) -> QuantReport:
    entries = []
    for target in todo.targets:
        weight, quantized = linear_weight(model.get_submodule(target.name)), packed[target.name]
        entries.append(describe_weight(weight, target, quantized, algorithm))
        install(model, target, quantized)
    report = make_report(model, entries, todo.skipped)
    attach(model, config, report)
    return report
