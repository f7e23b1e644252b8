"""Folders of plain modules: ``config.json`` and ``model.safetensors``, without the code that makes the module.

``config.json`` has two keys. ``quantization_config`` is the config that the module was quantized with. ``potq_module`` is
what loading goes by: the format's version, the name of the module's class, and under ``weights`` every packed weight by the
name of its module: ``shape`` (out, in), ``scheme``, ``dtype`` (what it computes in), and ``tied`` (other modules that read
it). The tensors have the names of :mod:`potq.checkpoint.folder`. A tensor that several modules share is stored once, under
its first name.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from potq.checkpoint.files import MODULE_KEY, read_json
from potq.checkpoint.folder import REPORT_FILE, check_headers, read_headers
from potq.checkpoint.loading import check_device
from potq.config import PoTConfig, coerce_scheme
from potq.errors import CheckpointError, ConfigError, ModelError, listed
from potq.files import check_destination, disk_errors, flush, replacing
from potq.nn.install import install
from potq.nn.packed_model import as_packed_model, packed_modules
from potq.nn.plain import is_plain, note_config, packed_config
from potq.nn.plan import WeightPlan
from potq.nn.properties import tensor_bytes
from potq.nn.refusals import require_no_adapter, require_shapes, require_weights
from potq.nn.report import QuantReport
from potq.nn.weights import linear_weight, quantizable_modules
from potq.numerics.scheme import QuantScheme
from potq.numerics.tensor import QuantizedWeight, storage

VERSION = 1
_TENSORS = "model.safetensors"
_DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def save_module(module: nn.Module, path: str | os.PathLike[str], *, force: bool = False) -> None:
    """Write a quantized plain module as a folder of JSON and safetensors, whole or not at all.

    The code of the module is not saved: :func:`load_module` takes a module that this code makes.

    Args:
        force: replace a folder of a model or module that is there.

    Raises:
        ModelError: the module is not quantized, is a Hugging Face model, or holds state that is no tensor.
        CheckpointError: ``path`` exists (and ``force`` is not given, or it is no such folder), or the disk is full.

    Example:
        >>> import os, potq, torch
        >>> module = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 8))
        >>> report = potq.quantize(module, potq.PoTConfig("pot4"))
        >>> potq.save_module(module, "small")
        >>> sorted(os.listdir("small"))
        ['config.json', 'model.safetensors', 'quant_report.json']
    """
    config = packed_config(module)
    if not is_plain(module):
        raise ModelError(f"{type(module).__name__} is a Hugging Face model; save it with potq.save")
    if config is None or not packed_modules(module):
        raise ModelError("the module is not quantized; call potq.quantize first, or use torch's own means")
    require_no_adapter(module)
    require_weights(module)
    _require_tensors(module)
    fields = {MODULE_KEY: _description(module), "quantization_config": config.to_dict()}
    target = check_destination(path, force=force)
    with disk_errors(target, tensor_bytes(module)), replacing(target) as folder:
        (folder / "config.json").write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
        save_file(_unshared(dict(_tensors(module))), folder / _TENSORS, metadata={"format": "pt"})
        if isinstance(report := getattr(module, "quant_report", None), QuantReport):
            (folder / REPORT_FILE).write_text(report.to_json(), encoding="utf-8")
        flush(folder)


def load_module(
    path: str | os.PathLike[str], module: nn.Module | Callable[[], nn.Module], *, device: str | torch.device | None = None
) -> nn.Module:
    """Load what :func:`save_module` wrote into ``module``, in place, and return it.

    Tensors take the dtypes of the folder and the devices of those in whose place they come. Buffers that are not persistent,
    which no state dict holds, stay as they are.

    Args:
        module: what the same code makes, not quantized; its weights do not matter. It may be on the meta device, or a
            callable that makes it, such as its class.
        device: where all of its tensors go instead; from the meta device they go to the CPU by default.

    Raises:
        CheckpointError: no such folder; a damaged one; tensors that the folder lacks, that the module lacks, or whose shapes
            differ (named). The module is unchanged.
        ModelError: a callable that raises or makes no module; a module that is quantized already, or has buffers on the meta
            device that are never saved.
        ConfigError: a device that is not there.

    Example:
        >>> import potq, torch
        >>> make = lambda: torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 8))
        >>> module = make()
        >>> report = potq.quantize(module, potq.PoTConfig("pot4"))
        >>> potq.save_module(module, "small")
        >>> loaded = potq.load_module("small", make)
        >>> input = torch.ones(1, 64)
        >>> torch.equal(loaded(input), module(input))
        True
    """
    check_device(device)
    folder = Path(path).expanduser()
    config, weights = _read_description(folder)
    report = _read_report(folder)
    module = _made(module)
    _require_float(module)
    _check(module, weights, folder)
    tensors = _read(folder / _TENSORS)
    packed = [_quantized(each.target, tensors) for each in weights]
    _fill(module, weights, tensors, device)
    for each, weight in zip(weights, packed, strict=True):
        place = device or _device(linear_weight(module.get_submodule(each.target.name)))
        install(module, each.target, _moved(weight, place))
    modules = packed_modules(module)
    for name, dtype in ((name, each.dtype) for each in weights for name in each.target.names):
        modules[name].compute_dtype = dtype
    as_packed_model(module)
    note_config(module, config)
    module.quant_report = report  # type: ignore[assignment]  # nn.Module's stub expects tensors and modules
    return module


@dataclass(frozen=True)
class _Weight:
    """A packed weight as ``config.json`` has it."""

    target: WeightPlan
    dtype: torch.dtype


def _description(module: nn.Module) -> dict[str, Any]:
    packed = packed_modules(module)
    owners = {name: found for name, found in packed.items() if found.tied_to is None}
    weights = {
        name: {
            "shape": list(owner.quantized.shape),
            "dtype": str(owner.compute_dtype).removeprefix("torch."),
            "tied": [other for other, found in packed.items() if found.tied_to is owner],
            "scheme": owner.scheme.model_dump(mode="json"),
        }
        for name, owner in owners.items()
    }
    return {"version": VERSION, "class": type(module).__qualname__, "weights": weights}


def _read_description(folder: Path) -> tuple[PoTConfig, list[_Weight]]:
    fields = read_json(folder / "config.json")
    described = fields.get(MODULE_KEY)
    if not isinstance(described, dict):
        raise CheckpointError(f"{folder} was not written by potq.save_module; potq.load reads Hugging Face models")
    if described.get("version") != VERSION:
        raise CheckpointError(
            f"{folder}: version {described.get('version')} of a module's folder is not readable here (this potq reads "
            f"{VERSION}); upgrade potq"
        )
    config = PoTConfig.from_dict(fields.get("quantization_config", {}), folder / "config.json")
    try:
        return config, [_weight(name, entry) for name, entry in described["weights"].items()]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{folder}/config.json is damaged ({type(error).__name__}: {error}); copy it again") from None


def _read_report(folder: Path) -> QuantReport | None:
    file = folder / REPORT_FILE
    try:
        return QuantReport.from_json(file.read_text(encoding="utf-8")) if file.is_file() else None
    except ValueError:
        raise CheckpointError(f"{file} is damaged; delete it, the module does not need it") from None


def _weight(name: str, entry: dict[str, Any]) -> _Weight:
    scheme = coerce_scheme(entry["scheme"])
    if not isinstance(scheme, QuantScheme):
        raise ConfigError(f"{name} has no scheme")
    rows, columns = entry["shape"]
    target = WeightPlan(name, "linear", (int(rows), int(columns)), scheme, tuple(entry["tied"]))
    return _Weight(target, _DTYPES[entry["dtype"]])


def _made(module: Any) -> nn.Module:
    """The module, made if need be."""
    if isinstance(module, nn.Module):
        return module
    if not callable(module):
        raise ModelError(f"load_module needs a torch.nn.Module or a callable that makes one, not {type(module).__name__}")
    try:
        made = module()
    except Exception as error:
        raise ModelError(f"the callable that makes the module raised {type(error).__name__}: {error}") from error
    if not isinstance(made, nn.Module):
        raise ModelError(f"the callable that makes the module returned {type(made).__name__}, no torch.nn.Module")
    return made


def _require_float(module: nn.Module) -> None:
    if not is_plain(module):
        raise ModelError(f"{type(module).__name__} is a Hugging Face model; load it with potq.load")
    require_no_adapter(module)
    require_shapes(module)
    if packed_modules(module):
        raise ModelError("the module is quantized already; give one as its code makes it")
    lost = [name for name, buffer in _buffers(module, persistent=False) if buffer.is_meta]
    if lost:
        raise ModelError(
            f"{listed(lost, 3)}: on the meta device, and no folder holds them, since they are not persistent; "
            "make the module on a real device"
        )


def _check(module: nn.Module, weights: list[_Weight], folder: Path) -> None:
    """Compare folder and module before anything of the module changes."""
    stored, where = read_headers([folder / _TENSORS]), str(folder)
    _check_weights(module, weights, where)
    _check_names(module, weights, {key: tensor.shape for key, tensor in stored.items()}, where)
    check_headers(stored, [each.target for each in weights], where)


def _check_weights(module: nn.Module, weights: list[_Weight], where: str) -> None:
    """Every packed weight has its modules, of its shape, that share one weight."""
    found = quantizable_modules(module)
    for target in (each.target for each in weights):
        for name in target.names:
            if name not in found:
                raise CheckpointError(f"{where} holds a packed weight of {name}, which the module has no layer for")
            shape = tuple(linear_weight(found[name]).shape)
            if shape != target.shape:
                raise CheckpointError(f"{where} holds {name} as {list(target.shape)}, the module has it as {list(shape)}")


def _check_names(module: nn.Module, weights: list[_Weight], stored: dict[str, tuple[int, ...]], where: str) -> None:
    """What is in the folder is what the module needs, name by name and shape by shape."""
    replaced = {f"{name}.weight" for each in weights for name in each.target.names}
    parts = {
        f"{each.target.name}.weight_{part}" for each in weights for part in storage(each.target.shape, each.target.scheme)
    }
    own = {name: tuple(tensor.shape) for name, tensor in _tensors(module) if name not in replaced}
    if missing := sorted((own.keys() | parts) - stored.keys()):
        raise CheckpointError(f"{where} lacks {listed(missing, 5)}, which the module has")
    if unexpected := sorted(stored.keys() - own.keys() - parts):
        raise CheckpointError(f"{where} holds {listed(unexpected, 5)}, which the module has no place for")
    for name, shape in own.items():
        if stored[name] != shape:
            raise CheckpointError(f"{where} holds {name} as {list(stored[name])}, the module has it as {list(shape)}")


def _read(file: Path) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = load_file(file)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file} is truncated or corrupted ({error}); copy it again") from None
    return tensors


def _quantized(target: WeightPlan, tensors: dict[str, Tensor]) -> QuantizedWeight:
    parts = {part: tensors[f"{target.name}.weight_{part}"] for part in storage(target.shape, target.scheme)}
    weight = QuantizedWeight(shape=target.shape, scheme=target.scheme, **parts)
    weight.validate(target.name)
    return weight


def _moved(weight: QuantizedWeight, device: str | torch.device) -> QuantizedWeight:
    parts = {part: tensor.to(device) for part, tensor in weight.tensors().items()}
    return QuantizedWeight(shape=weight.shape, scheme=weight.scheme, **parts)


def _device(old: Tensor) -> torch.device:
    return torch.device("cpu") if old.is_meta else old.device


def _fill(module: nn.Module, weights: list[_Weight], tensors: dict[str, Tensor], device: str | torch.device | None) -> None:
    """Put what is not packed in place, in every module that shares it."""
    replaced = {f"{name}.weight" for each in weights for name in each.target.names}
    new: dict[int, Tensor] = {}
    for name, old in _tensors(module):
        if name not in replaced:
            tensor = tensors[name].to(device or _device(old))
            new[id(old)] = nn.Parameter(tensor, old.requires_grad) if isinstance(old, nn.Parameter) else tensor
    for each in module.modules():
        for registry in (each._parameters, each._buffers):
            for key, old_tensor in registry.items():
                if old_tensor is not None and id(old_tensor) in new:
                    registry[key] = new[id(old_tensor)]  # type: ignore[assignment]  # a parameter for a parameter


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and persistent buffers, those that are shared once, under their first name."""
    yield from module.named_parameters()
    yield from _buffers(module, persistent=True)


def _buffers(module: nn.Module, *, persistent: bool) -> Iterator[tuple[str, Tensor]]:
    for name, buffer in module.named_buffers():
        parent, _, key = name.rpartition(".")
        if (key not in module.get_submodule(parent)._non_persistent_buffers_set) is persistent:
            yield name, buffer


def _require_tensors(module: nn.Module) -> None:
    odd = [name for name, value in module.state_dict().items() if not isinstance(value, Tensor)]
    if odd:
        raise ModelError(f"{listed(odd, 3)}: state that is no tensor, which a folder of JSON and safetensors cannot hold")


def _unshared(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous, and none a view of another: safetensors takes no other."""
    seen: set[int] = set()
    result: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        storage = int(tensor.untyped_storage()._cdata)
        alone = storage not in seen and tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.nbytes
        seen.add(storage)
        result[name] = tensor.detach() if alone else tensor.detach().clone(memory_format=torch.contiguous_format)
    return result
