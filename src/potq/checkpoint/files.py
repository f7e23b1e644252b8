"""What a model folder must hold, looked at before torch is loaded: mistakes are told at once."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from potq.checkpoint.source import Source, resolve
from potq.config import PoTConfig
from potq.errors import CheckpointError, ConfigError, ModelError, out_of_reach

MODULE_KEY = "potq_module"  # of config.json, where it is a plain module's
_DTYPES = ("auto", "float64", "double", "float32", "float", "bfloat16", "float16", "half")


def check_source(source: str, *, quantizing: bool = False, weights: bool = True) -> Source:
    """Find a model, and see that a folder holds one.

    Args:
        quantizing: it is to be in full precision.
        weights: whether its weights are to be there.

    Raises:
        CheckpointError: a path that is not there, files that are missing or damaged, a folder that is quantized already, a
            name that the hub does not have, or that cannot be fetched.
        ModelError: a folder of something else.
        MissingDependencyError: ``"smollm2"`` or ``"gemma3"`` without its package.
    """
    where = resolve(source)
    if where.folder is None:
        _check_hub(where.name)
    elif where.gguf_file is None:
        check_folder(where.folder, quantizing=quantizing, weights=weights)
    return where


def _check_hub(name: str) -> None:
    """Ask for a model that was not fetched before, by its smallest file, which is needed anyway."""
    import huggingface_hub
    from huggingface_hub import constants, errors

    if (Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}").is_dir():
        return
    try:
        huggingface_hub.hf_hub_download(name, "config.json")
    except errors.RepositoryNotFoundError:
        raise CheckpointError(f"{name} is not a folder here, and the hub has no such model, or not for you") from None
    except errors.HFValidationError:
        raise CheckpointError(f"{name} is not a folder here, and no name that the hub could have") from None
    except Exception as error:
        if (unreached := out_of_reach(name, error)) is not None:
            raise CheckpointError(unreached) from None
        return  # a model without that file, one behind a gate: transformers can say more


def check_folder(folder: Path, *, quantizing: bool, weights: bool = True) -> dict[str, Any]:
    """Everything that a folder's names and its config.json tell; returns what is in that.

    Raises:
        CheckpointError, ModelError: as :func:`check_source`; of a newer format also the former.
        ConfigError: a quantization config with a key or a value that this potq does not know.
    """
    config = read_json(folder / "config.json")
    quantized = config.get("quantization_config")
    if quantizing and quantized is not None:
        raise CheckpointError(f"{folder} is quantized already; quantize the full-precision model it was made from")
    if isinstance(quantized, dict) and quantized.get("quant_method") == "potq":
        PoTConfig.from_dict(quantized, folder / "config.json")
    if MODULE_KEY in config:
        raise ModelError(f"{folder} holds a plain module; potq.load_module loads it, into what its own code makes")
    if "model_type" not in config:
        raise ModelError(f"{folder}/config.json names no model_type; it is not a Hugging Face model")
    if weights:
        weight_files(folder)
    return config


def read_config(where: Source) -> dict[str, Any]:
    """A model's ``config.json``; empty for a GGUF file, which has none.

    Raises:
        CheckpointError: missing or damaged; a name that the hub does not have, or that cannot be fetched.
    """
    if where.gguf_file is not None:
        return {}
    if where.folder is not None:
        return read_json(where.folder / "config.json")
    import huggingface_hub

    try:
        return read_json(Path(huggingface_hub.hf_hub_download(where.name, "config.json")))
    except Exception as error:
        reason = out_of_reach(where.name, error) or f"the hub did not give config.json of {where.name} ({error})"
        raise CheckpointError(reason) from None


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model folder.

    Raises:
        CheckpointError: none, a shard that the index names is missing, or only pickled weights.
    """
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():  # before an index beside it, as transformers does
        return [single]
    if index.exists():
        weight_map = read_json(index).get("weight_map", {})
        if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
            raise CheckpointError(f"{index} has no weight_map of tensor names to file names; copy it again")
        names = sorted(set(weight_map.values()))
        missing = [name for name in names if not (folder / name).is_file()]
        if missing or not names:
            raise CheckpointError(
                f"{index} names {', '.join(missing) or 'no shard'}, not in the folder; copy it again, whole"
            )
        return [folder / name for name in names]
    if any(folder.glob("*.bin")):
        raise CheckpointError(f"{folder} has only pickled weights (.bin), which potq never opens; convert to safetensors")
    raise CheckpointError(f"{folder} has no model.safetensors: the folder is incomplete, or no model")


def check_shard_size(size: str | int) -> None:
    """Refuse what transformers would refuse after all the work.

    Raises:
        ConfigError: not a positive number of bytes, nor a number with KB, MB, GB or TB.
    """
    if not re.fullmatch(r"0*[1-9]\d*([KMGT]B)?", str(size), re.IGNORECASE):
        raise ConfigError(f"invalid max_shard_size {size!r}; write a number of bytes, or e.g. 500MB or 5GB")


def check_dtype(dtype: str) -> None:
    """Refuse another word than torch's for the floats that a model can compute in, or ``auto``.

    Raises:
        ConfigError: names them.
    """
    if dtype not in _DTYPES:
        raise ConfigError(f"invalid dtype {dtype!r}; use auto, float32, bfloat16 or float16")


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        CheckpointError: missing, truncated, or not an object.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{file} is missing: the folder is incomplete, or no model") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be read ({error}); copy it again") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} holds no JSON object; copy it again")
    return content
