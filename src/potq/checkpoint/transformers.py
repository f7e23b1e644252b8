"""Registers potq with transformers: ``from_pretrained`` reads packed checkpoints and quantizes others on the fly.

The public registry and the loading hooks of transformers 5 are used (5.0 and 5.23 pass the tests). Quantizing on the fly
streams: a weight is replaced by its packed form the moment it is read, so that the full-precision model never exists in
memory.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers.core_model_loading import ConversionOps
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from potq.checkpoint.architecture import headless
from potq.checkpoint.folder import StoredTensor, check_headers, check_reloadable, read_headers, require_all
from potq.config import PoTConfig
from potq.errors import CheckpointError, ModelError, PotqError
from potq.nn.install import install, unpack
from potq.nn.language import language_plan
from potq.nn.packed import PackedModule
from potq.nn.packed_model import as_packed_model, packed_modules
from potq.nn.plan import Plan, WeightPlan, narrowed, plan
from potq.nn.record import attach, make_report
from potq.nn.report import ModuleReport, Progress
from potq.nn.weights import Place
from potq.numerics.tensor import QuantizedWeight
from potq.ptq.effort import require_calibration
from potq.ptq.weight import quantize_weight

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass
class _Load:
    """What :func:`potq.load` adds to one ``from_pretrained`` call."""

    progress: Progress | None
    failure: PotqError | None = None


_current: ContextVar[_Load | None] = ContextVar("potq_load", default=None)


@contextmanager
def loading(progress: Progress | None) -> Iterator[None]:
    """Report progress of quantizing on the fly, and raise potq's own error where transformers, which collects errors while
    it loads, would raise a summary of them.
    """
    load = _Load(progress)
    token = _current.set(load)
    try:
        yield
    except Exception as error:
        if load.failure is not None:
            raise load.failure from error
        raise
    finally:
        _current.reset(token)


@register_quantization_config("potq")
class _RegisteredConfig(QuantizationConfigMixin):
    """What the registry asks for; it makes :class:`PoTConfig`, which is all that transformers handles afterwards."""

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        config: PoTConfig | _Unreadable
        try:
            config = PoTConfig.from_dict(config_dict)
        except PotqError:
            config = _Unreadable(config_dict)
        return (config, kwargs) if return_unused_kwargs else config


class _Unreadable(QuantizationConfigMixin):
    """A config that :class:`PoTQuantizer` will refuse. Here nobody knows yet which file it stands in."""

    def __init__(self, fields: dict[str, Any]) -> None:
        super().__init__("potq")
        self.fields = fields


@register_quantizer("potq")
class PoTQuantizer(HfQuantizer):
    """Loads a packed checkpoint (``pre_quantized``), or packs the weights of a full-precision one as they are read."""

    requires_calibration = False
    quantization_config: PoTConfig

    def __init__(self, quantization_config: PoTConfig | _Unreadable, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        if isinstance(quantization_config, _Unreadable) and not self.pre_quantized:
            PoTConfig.from_dict(quantization_config.fields)
        self._plan = Plan([], [])
        self._by_name: dict[str, WeightPlan] = {}
        self._by_parameter: dict[str, str] = {}  # of a weight in full precision, the name of its plan
        self._read: dict[str, dict[str, tuple[QuantizedWeight, ModuleReport]]] = {}  # target -> its own or a tied name
        self._reports: dict[str, ModuleReport] = {}
        self._stored: set[str] = set()  # names in the checkpoint

    def _process_model_before_weight_loading(
        self, model: PreTrainedModel, checkpoint_files: list[str] | None = None, **kwargs: Any
    ) -> None:
        if isinstance(self.quantization_config, _Unreadable):
            where = getattr(model.config, "name_or_path", "")
            PoTConfig.from_dict(self.quantization_config.fields, Path(where, "config.json"))
        stored = read_headers(Path(file) for file in checkpoint_files or () if str(file).endswith(".safetensors"))
        self._stored = set(stored)
        if _is_another_class(model):
            stored = _shared(model, stored)
            if self.pre_quantized:
                prefix = f"{model.base_model_prefix}." if model.base_model is model else ""
                self.quantization_config = narrowed(model, self.quantization_config, prefix)
            self.quantization_config = _without_new_heads(model, self.quantization_config, stored)
            model.config.quantization_config = self.quantization_config
        if self.pre_quantized:
            self._plan = plan(model, self.quantization_config)
        else:
            self.quantization_config, self._plan = language_plan(model, self.quantization_config)
        self._by_name = {name: target for target in self._plan.targets for name in target.names}
        self._by_parameter = {target.parameter_of(name): name for name, target in self._by_name.items()}
        if self.pre_quantized:
            check_headers(stored, self._plan.targets, getattr(model.config, "name_or_path", "the checkpoint"))
            for target in self._plan.targets:
                install(model, target, QuantizedWeight.empty(target.shape, target.scheme, "meta"))
            _keep_stored_dtypes(model)
        else:
            require_calibration(self.quantization_config, given=False)

    def validate_environment(self, *args: Any, device_map: Any = None, **kwargs: Any) -> None:
        """Refuses to quantize what will not be in memory."""
        if not self.pre_quantized and isinstance(device_map, dict) and "meta" in map(str, device_map.values()):
            raise ModelError("weights on the meta device cannot be quantized; load without a device map")

    def param_needs_quantization(self, model: nn.Module, param_name: str, **kwargs: Any) -> bool:
        return not self.pre_quantized and param_name in self._by_parameter

    def get_quantize_ops(self) -> ConversionOps:
        return _QuantizeOnLoad(self)

    def quantize_parameter(self, model: nn.Module, key: str, weight: Tensor, missing_keys: set[str]) -> dict[str, Tensor]:
        """Pack one weight that was just read, put its module in place, and return the tensors to be set."""
        name = self._by_parameter[key]
        target = self._by_name[name]
        if (load := _current.get()) is not None and load.progress is not None:
            done = sum(target.weights for target in self._plan.targets if target.name in self._reports)
            load.progress(done, sum(target.weights for target in self._plan.targets), name)
        read = self._read.setdefault(target.name, {})
        matrix = Place.of(model, name).matrix(weight)
        if tuple(matrix.shape) != target.shape:
            found, expected = list(matrix.shape), list(target.shape)
            raise CheckpointError(f"{target.parameter_of(name)} has shape {found}, its config.json asks for {expected}")
        quantized, report = quantize_weight(matrix, target, self.quantization_config)
        read[name] = quantized, report
        if len(read) > 1:
            self._untie_if_different(model, target)
            return {}
        install(model, target, quantized)
        self._reports[target.name] = report
        missing_keys.difference_update(map(target.parameter_of, target.names))
        return {f"{target.holder}.weight_{part}": tensor for part, tensor in quantized.tensors().items()}

    def _untie_if_different(self, model: nn.Module, target: WeightPlan) -> None:
        """A checkpoint may hold two weights although its config ties them; equal ones stay one, others are kept apart."""
        read = self._read[target.name]
        first, second = (weight.tensors() for weight, _ in list(read.values())[-2:])
        if all(torch.equal(first[part], second[part]) for part in first):
            return
        for name, (quantized, report) in read.items():
            module = model.get_submodule(name)
            if isinstance(module, PackedModule):
                module.hold(quantized, module.compute_dtype)
            kind = target.kind if name == target.name else "head"
            self._reports[name] = report.model_copy(update={"name": name, "kind": kind, "tied": ()})

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> PreTrainedModel:
        if _current.get() is None:  # potq.load does it by itself
            _require_loaded(model, self._stored)
        if self.pre_quantized:
            _validate(model)
            as_packed_model(model)
            return model
        unread = [target.name for target in self._plan.targets if target.name not in self._reports]
        if unread:
            where = getattr(model.config, "name_or_path", "the checkpoint")
            raise CheckpointError(f"{where} has no weights for {', '.join(unread[:5])}; it is incomplete, copy it again")
        self._read.clear()  # the model holds the weights now
        # in the model's order, not the file's
        entries = [self._reports[name] for name in self._by_name if name in self._reports]
        report = make_report(model, entries, self._plan.skipped)
        attach(model, self.quantization_config, report)
        return model

    def get_state_dict_and_metadata(self, model: PreTrainedModel) -> tuple[dict[str, Tensor] | None, dict[str, Any]]:
        """Refuses to save a model whose config no longer describes it, as :func:`potq.save` does."""
        if not getattr(model, "_hf_peft_config_loaded", False):  # of add_adapter(): then the adapter is saved, and it alone
            check_reloadable(model)
        return None, {}

    def _dequantize(self, model: PreTrainedModel, dtype: torch.dtype | str | None = None) -> PreTrainedModel:
        """What ``model.dequantize()`` does: float modules that compute the same."""
        named = getattr(torch, dtype) if isinstance(dtype, str) else dtype  # as a config made of code of its own has it
        unpack(model, named or model.dtype)
        return model

    def is_serializable(self, safe_serialization: bool | None = None) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        """Adapters (LoRA) train on top of the frozen packed weights."""
        return True

    @property
    def is_compileable(self) -> bool:
        return True


class _QuantizeOnLoad(ConversionOps):
    def __init__(self, quantizer: PoTQuantizer) -> None:
        self.quantizer = quantizer

    def convert(
        self, input_dict: dict[str, Any], *, model: nn.Module, missing_keys: set[str] | None = None, **kwargs: Any
    ) -> dict[str, Tensor]:
        result: dict[str, Tensor] = {}
        if (load := _current.get()) is not None and load.failure is not None:
            raise load.failure  # transformers goes on after an error; no use in quantizing the rest
        for key, value in input_dict.items():
            weight = value[0] if isinstance(value, list) else value
            if not self.quantizer.param_needs_quantization(model, key):  # made of the same tensors as one that does
                result[key] = weight
                continue
            try:
                missing = missing_keys if missing_keys is not None else set()
                result |= self.quantizer.quantize_parameter(model, key, weight, missing)
            except PotqError as error:
                if load is not None:
                    load.failure = error
                raise
        return result


def _keep_stored_dtypes(model: PreTrainedModel) -> None:
    """Take packed modules out of those whose tensors transformers reads as float32 (T5's ``wo``): codes are no floats."""
    parts = [f"{name}.{part}" for name, module in packed_modules(model).items() for part in module.state_dict()]
    for attribute in ("_keep_in_fp32_modules", "_keep_in_fp32_modules_strict", "dtype_plan"):  # the last in older ones
        found: Any = getattr(model, attribute, None) or ()
        packed = {each for each in found if any(re.search(each.replace("*", ".*"), part) for part in parts)}
        if packed:
            left = [each for each in found if each not in packed]
            setattr(model, attribute, {each: found[each] for each in left} if isinstance(found, dict) else type(found)(left))


def _is_another_class(model: PreTrainedModel) -> bool:
    """Whether the checkpoint was saved by another: a classifier is made of a causal LM, say, or its base alone is loaded."""
    saved: list[str] = getattr(model.config, "architectures", None) or []
    return bool(saved) and type(model).__name__ not in saved


def _shared(model: PreTrainedModel, stored: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Those tensors of another class's checkpoint that are this model's too: not those of a head that it does not have."""
    base = f"{model.base_model_prefix}."
    if not any(key.startswith(base) for key in stored):
        return stored  # it is the base's own
    modules = dict(model.named_modules())
    return {key: tensor for key, tensor in stored.items() if key.startswith(base) or key.rpartition(".")[0] in modules}


def _without_new_heads(model: PreTrainedModel, config: PoTConfig, stored: dict[str, StoredTensor]) -> PoTConfig:
    """``config`` that ignores heads which the checkpoint never had: transformers makes them, new and float, and says so.

    Raises:
        ModelError: this is for :func:`potq.load`, whose models are whole.
    """
    if model.base_model is model:
        return config
    known, base = {key.rpartition(".")[0] for key in stored}, f"{model.base_model_prefix}."
    new = [
        target.name
        for target in plan(model, config).targets
        if not target.name.startswith(base) and known.isdisjoint(target.names)
    ]
    if new and _current.get() is not None:
        name = getattr(model.config, "name_or_path", "the checkpoint")
        raise headless(name, model.config.to_dict(), type(model).__name__, new)
    return config.model_copy(update={"ignore": (*config.ignore, *map(re.escape, new))})


def _require_loaded(model: PreTrainedModel, stored: set[str]) -> None:
    """Refuse a checkpoint that lacks a tensor which is not packed; transformers makes it up, with a warning.

    Raises:
        CheckpointError: names what is missing.
    """
    if _is_another_class(model) or _is_scattered(model):
        return
    expected = [re.compile(pattern) for pattern in model._keys_to_ignore_on_load_missing or ()]
    made_up = [name for name, each in model.named_parameters() if not getattr(each, "_is_hf_initialized", False)]
    missing = [name for name in made_up if name not in stored and not any(each.search(name) for each in expected)]
    require_all(getattr(model.config, "name_or_path", "the checkpoint"), missing)


def _is_scattered(model: nn.Module) -> bool:
    """Whether some of its tensors are not here: they are offloaded."""
    return len(set((getattr(model, "hf_device_map", None) or {}).values())) > 1


def _validate(model: nn.Module) -> None:
    """Check every packed weight that was read.

    Raises:
        CheckpointError: a weight the files do not have, or whose content is damaged; names the layer.
    """
    scattered = _is_scattered(model)
    for name, module in packed_modules(model).items():
        if module.tied_to is not None or scattered:
            continue
        tensors = module.quantized.tensors()
        for part, tensor in tensors.items():
            if not getattr(tensor, "_is_hf_initialized", False):
                raise CheckpointError(f"the checkpoint has no {name}.weight_{part}; it is incomplete, copy it again")
        if not any(tensor.is_meta for tensor in tensors.values()):  # as device_map={"": "meta"} asks for
            module.quantized.validate(name)
