"""The checkpoint folder: checked before it is read, written whole or not at all.

Format version 1 is a Hugging Face folder: ``config.json`` with ``quantization_config`` (a
:class:`~potq.config.PoTConfig`, and the features of :mod:`potq.numerics.features` that it uses) and ``model.safetensors``
(or shards with an index), where a quantized module ``M`` has

* ``M.weight_packed``: uint8 ``(out, row bytes)``, the layout of :mod:`potq.numerics.packing`;
* ``M.weight_scale``: float16, or uint8 (E8M0), ``(out, groups)``; ``(1, 1)`` for one scale per tensor;
* ``M.weight_row_scale``: float16 ``(out, 1)``, if the scheme has ``row_scale``;
* ``M.bias`` and everything unquantized as ever. A weight tied to another is stored once, under its owner.

The names ``weight_zero_point``, ``weight_outlier_index`` and ``weight_outlier_value`` are reserved.
"""

from __future__ import annotations

import math
import os
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open

from potq.checkpoint.card import packed_card, write_card
from potq.checkpoint.files import check_shard_size
from potq.errors import CheckpointError, ModelError, listed
from potq.files import check_destination, disk_errors, flush, replacing
from potq.nn.install import meta_model
from potq.nn.packed_model import packed_modules
from potq.nn.plain import is_plain, packed_config
from potq.nn.plan import WeightPlan, plan
from potq.nn.properties import tensor_bytes
from potq.nn.refusals import require_no_adapter, require_weights
from potq.numerics.tensor import storage

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

REPORT_FILE = "quant_report.json"
_PARTS = ("packed", "scale", "row_scale")  # of a packed weight
_DTYPE_NAMES = {torch.uint8: "U8", torch.float16: "F16"}


@dataclass(frozen=True)
class StoredTensor:
    """What a safetensors header says of a tensor."""

    file: Path
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        bits = re.search(r"\d+", self.dtype)  # "F32", "BF16", "F8_E4M3", "BOOL"
        return math.prod(self.shape) * int(bits[0] if bits else 8) // 8


def save(
    model: PreTrainedModel,
    path: str | os.PathLike[str],
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    files: Iterable[Path] = (),
    force: bool = False,
    max_shard_size: str | int = "5GB",
) -> None:
    """Write ``model`` (and ``tokenizer``, the quantization report and a model card) as a checkpoint folder.

    Everything is written under a temporary name beside ``path`` and renamed when complete: an interrupted or failed save
    leaves no trace in ``path``, and what stood there before stays whole. A ``README.md`` there that potq did not
    write is kept.

    Args:
        files: more to copy into it, e.g. of an image processor.
        force: replace a model folder that is there.
        max_shard_size: bytes of the largest weight file.

    Raises:
        CheckpointError: ``path`` exists (and ``force`` is not given, or it is not a model folder), or the disk is full.
        ModelError: the model is not quantized, or was changed since so that its config no longer describes it.
        ConfigError: an invalid ``max_shard_size``.

    Example:
        >>> import os, potq
        >>> model = potq.load("tiny", potq.PoTConfig("pot4"))
        >>> potq.save(model, "tiny-pot4", potq.load_tokenizer("tiny"))
        >>> sorted(file for file in os.listdir("tiny-pot4") if "tokenizer" not in file)
        ['README.md', 'config.json', 'generation_config.json', 'model.safetensors', 'quant_report.json']
    """
    require_no_adapter(model)
    if is_plain(model):
        raise ModelError(f"{type(model).__name__} is a plain module; potq.save_module saves it")
    if packed_config(model) is None:
        raise ModelError("the model is not quantized; call potq.quantize first, or use model.save_pretrained")
    check_shard_size(max_shard_size)
    check_reloadable(model)
    write(model, path, tokenizer, files=files, force=force, max_shard_size=max_shard_size)


def write(
    model: PreTrainedModel,
    path: str | os.PathLike[str],
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    files: Iterable[Path] = (),
    force: bool = False,
    max_shard_size: str | int = "5GB",
) -> None:
    """What :func:`save` does, for a model in full precision too, and without a look at it.

    Raises:
        CheckpointError: ``path`` exists (and ``force`` is not given, or it is not a model folder), or the disk is full.
    """
    target = check_destination(path, force=force)
    with disk_errors(target, tensor_bytes(model)), replacing(target) as folder:
        model.save_pretrained(folder, max_shard_size=max_shard_size)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        for file in files:
            shutil.copyfile(file, folder / file.name)
        if (report := getattr(model, "quant_report", None)) is not None:
            (folder / REPORT_FILE).write_text(report.to_json(), encoding="utf-8")
        write_card(folder, packed_card(model, target.name, has_tokenizer=tokenizer is not None), replaces=target)
        flush(folder)


def check_reloadable(model: PreTrainedModel) -> None:
    """Compare the packed modules with what loading will expect from the model's config.

    Raises:
        ModelError: names the modules that differ (after ``resize_token_embeddings``, say), or that have an adapter, or
            are not in memory.
    """
    require_no_adapter(model)
    if not getattr(model, "hf_device_map", None):  # with one, transformers fetches what is offloaded
        require_weights(model)
    targets = plan(meta_model(model), model.config.quantization_config).targets
    expected = {name: (target.shape, target.scheme, target.name) for target in targets for name in target.names}
    packed = packed_modules(model)
    names = {id(module): name for name, module in packed.items()}
    found = {
        name: (module.quantized.shape, module.scheme, names.get(id(module.tied_to or module)))
        for name, module in packed.items()
    }
    if expected != found:
        odd = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        raise ModelError(
            f"{', '.join(odd[:3])} changed since the model was quantized: its config no longer describes it; "
            "change the full-precision model and quantize it again"
        )


def require_all(name: str, missing: Iterable[str]) -> None:
    """Refuse a model of which some weights would stay random.

    Raises:
        CheckpointError: names the first of ``missing``.
    """
    if lacking := sorted(missing):
        raise CheckpointError(f"{name} lacks {listed(lacking, 5)}; it is incomplete, copy it again")


def read_headers(files: Iterable[Path]) -> dict[str, StoredTensor]:
    """The headers of safetensors files: dtype and shape of every tensor, none of them loaded.

    Raises:
        CheckpointError: a file that is missing, truncated or corrupted.
    """
    tensors: dict[str, StoredTensor] = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as handle:
                for key in handle.keys():  # noqa: SIM118  # not a dict
                    view = handle.get_slice(key)
                    tensors[key] = StoredTensor(file, view.get_dtype(), tuple(view.get_shape()))
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{file} is truncated or corrupted ({error}); copy it again") from None
    return tensors


def check_headers(stored: dict[str, StoredTensor], targets: Iterable[WeightPlan], where: str) -> None:
    """Compare what the files hold with what the config asks for, before anything is loaded.

    Raises:
        CheckpointError: names the file, the tensor, the expected and the found shape and dtype.
    """
    expected: set[str] = set()
    for target in targets:
        for name, (shape, dtype) in storage(target.shape, target.scheme).items():
            key = f"{target.holder}.weight_{name}"
            expected.add(key)
            _check_tensor(stored, key, shape, dtype)
    for tensor, what in (("weight_packed", "packed weights"), ("weight_row_scale", "row scales")):
        found, wanted = ({key for key in keys if key.endswith(f".{tensor}")} for keys in (stored, expected))
        # counted, not compared by name: transformers renames the tensors of some architectures, and joins those of others
        if len(found) != len(wanted) and not (tensor == "weight_packed" and _joined(stored, found, targets)):
            odd = sorted(found - wanted if len(found) > len(wanted) else wanted - found)
            raise CheckpointError(
                f"{where} holds {len(found)} {what}, its config.json asks for {len(wanted)}; "
                f"{'unexpected' if len(found) > len(wanted) else 'missing'}: {', '.join(odd[:3])}"
            )
    _check_parts(stored)


def _joined(stored: dict[str, StoredTensor], keys: Iterable[str], targets: Iterable[WeightPlan]) -> bool:
    """Whether the packed tensors are as large, all together, as those that are asked for: queries, keys, values in one."""
    wanted = sum(math.prod(storage(target.shape, target.scheme)["packed"][0]) for target in targets)
    return sum(math.prod(stored[key].shape) for key in keys) == wanted


def _check_parts(stored: dict[str, StoredTensor]) -> None:
    """Refuse a packed weight that has more to it than is known here; reserved names are among that."""
    for key, found in stored.items():
        module, _, part = key.rpartition(".weight_")
        if part not in _PARTS and f"{module}.weight_packed" in stored:
            raise CheckpointError(f"{found.file} holds {key}, a tensor that this potq does not know; upgrade potq")


def _check_tensor(stored: dict[str, StoredTensor], key: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    found = stored.get(key)
    if found is None:  # renamed or missing, which the loader can tell
        return
    if (found.shape, found.dtype) != (shape, _DTYPE_NAMES[dtype]):
        raise CheckpointError(
            f"{found.file}: {key} is {found.dtype} {list(found.shape)}, expected {_DTYPE_NAMES[dtype]} {list(shape)}; "
            "config.json and the weights do not belong together"
        )
