"""What ``config.json`` says a model is: causal language models are loaded, others refused by the name of their class."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from typing import Any

from potq.errors import ModelError

_LOADED = "potq loads causal language models, which predict the next token"


def check_architecture(name: str, config: dict[str, Any]) -> None:
    """Refuse what :func:`potq.load` would load as something that it is not.

    Args:
        name: the model's.
        config: its ``config.json``.

    Raises:
        ModelError: an encoder-decoder, an encoder, a classifier, or a model with code of its own.
    """
    import transformers

    kind = class_name(config)
    if "auto_map" in config and config.get("model_type") not in transformers.CONFIG_MAPPING:
        raise custom_code(name, packed="quantization_config" in config)
    if config.get("is_encoder_decoder"):
        raise ModelError(f"{name} is a {kind}, an encoder-decoder; {_LOADED}")
    if kind is not None and hasattr(transformers, kind) and kind not in _loadable():
        raise ModelError(f"{name} is a {kind}; {_LOADED}")


def class_name(config: dict[str, Any]) -> str | None:
    """The model's class, if ``config.json`` names it."""
    architectures = config.get("architectures")
    return str(architectures[0]) if isinstance(architectures, list) and architectures else None


def headless(name: str, kind: str, missing: Iterable[str]) -> ModelError:
    """The error for a model of class ``kind`` that lacks ``missing`` to be a causal LM."""
    return ModelError(f"{name} is a {kind}, without {', '.join(missing)}; {_LOADED}")


def custom_code(name: str, *, packed: bool = False) -> ModelError:
    """The error for a model that comes with Python files."""
    then = "" if packed else ", then call potq.quantize(model, config) and potq.save(model, folder, tokenizer)"
    return ModelError(
        f"{name} has code of its own (auto_map in its config), and potq never runs code from a model folder; if you trust "
        f"it, import potq and load it with AutoModelForCausalLM.from_pretrained({name!r}, trust_remote_code=True){then}"
    )


def _loadable() -> set[str]:
    """transformers' causal LMs, and models without a head, which may lack nothing but a tied one."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_MAPPING_NAMES

    names = chain(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values(), MODEL_MAPPING_NAMES.values())
    return set(chain.from_iterable([each] if isinstance(each, str) else each for each in names))
