"""The class of a model: the one that ``config.json`` names under ``architectures``, or that the user names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from potq.errors import ConfigError, ModelError, listed
from potq.nn.classes import each_name, family_names, has_decoder, predicts_next

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_NAME_IT = "name the class with --class (model_class= in Python)"


def find_class(name: str, config: dict[str, Any], asked: str | None = None) -> type[PreTrainedModel]:
    """The class of transformers that the model is loaded as.

    A decoder without a head, whose head is its embedding, is loaded as the causal language model that it is.

    Args:
        name: the model's.
        config: its ``config.json``.
        asked: the class that the user wants instead.

    Raises:
        ConfigError: ``asked`` is no class of transformers.
        ModelError: a model with code of its own; a model type or a class that transformers lacks; no class at all; one of
            another model type.
    """
    import transformers

    model_type = config.get("model_type")
    known = model_type in transformers.CONFIG_MAPPING
    kind = asked or class_name(config)
    if "auto_map" in config and not (known and _find(kind or _usual(model_type))):
        raise custom_code(name, packed="quantization_config" in config)
    if not known:
        raise ModelError(
            f"{name} is of the model type {model_type!r}, which transformers {transformers.__version__} does not know; "
            "a newer one may"
        )
    if kind is None and (kind := _usual(model_type)) is None:
        some = listed(family_names(str(model_type)), 6)
        raise ModelError(f"config.json of {name} names no class under architectures; {_NAME_IT}, one of {some}")
    if asked is None and _is_headless(kind, config):
        kind = _usual(model_type)
    found = _find(kind)
    if found is None:
        raise _unknown(name, str(kind), str(model_type), asked=asked is not None)
    _require_type(name, found, config)
    return found


def class_name(config: dict[str, Any]) -> str | None:
    """The model's class, if ``config.json`` names it."""
    architectures = config.get("architectures")
    return str(architectures[0]) if isinstance(architectures, list) and architectures else None


def is_causal_name(kind: str | None) -> bool:
    """Whether a class is a causal language model by its name, as nearly all are: this needs neither torch nor transformers.

    A folder that names no class is mostly one.
    """
    return kind is None or kind.endswith(("ForCausalLM", "LMHeadModel"))


def require_language_model(name: str, kind: type, what: str) -> None:
    """Refuse ``what``, as in "potq eval", for a class that does not predict the next token.

    Raises:
        ModelError: names the class.
    """
    if not predicts_next(kind):
        raise ModelError(f"{name} is a {kind.__name__}; {what} is for causal language models, which predict the next token")


def headless(name: str, config: dict[str, Any], kind: str, missing: Iterable[str]) -> ModelError:
    """The error for a model that lacks ``missing`` to be a ``kind``."""
    saved = class_name(config)
    of = f" of class {saved}" if saved is not None else ""
    return ModelError(
        f"{name}{of} has no {listed(sorted(missing), 5)}, which a {kind} needs; {_NAME_IT} that it was saved as"
    )


def custom_code(name: str, *, packed: bool = False) -> ModelError:
    """The error for a model that comes with Python files."""
    then = "" if packed else ", then call potq.quantize(model, config) and potq.save(model, folder, tokenizer)"
    return ModelError(
        f"{name} has code of its own (auto_map in its config), and potq never runs code from a model folder; if you trust "
        f"it, import potq and load it with AutoModelForCausalLM.from_pretrained({name!r}, trust_remote_code=True){then}"
    )


def _find(kind: str | None) -> type[PreTrainedModel] | None:
    import transformers

    found = getattr(transformers, kind, None) if kind else None
    return found if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel) else None


def _usual(model_type: Any) -> str | None:
    """The causal language model of a type of decoders; None: of encoders, or of both."""
    from transformers.models.auto import modeling_auto as auto

    base = _find(next(each_name([auto.MODEL_MAPPING_NAMES.get(model_type, ())]), None))
    if model_type in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES or (base is not None and has_decoder(base)):
        return None
    return next(each_name([auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(model_type, ())]), None)


def _is_headless(kind: str, config: dict[str, Any]) -> bool:
    """Whether it is the base of a causal language model, of which nothing is missing: its head is the embedding."""
    from transformers import CONFIG_MAPPING
    from transformers.models.auto import modeling_auto as auto

    model_type = config["model_type"]
    if _usual(model_type) is None or kind not in each_name([auto.MODEL_MAPPING_NAMES.get(model_type, ())]):
        return False
    tied = config.get("tie_word_embeddings", getattr(CONFIG_MAPPING[model_type], "tie_word_embeddings", False))
    return tied is True


def _unknown(name: str, kind: str, model_type: str, *, asked: bool) -> ConfigError | ModelError:
    import transformers

    family = family_names(model_type)
    close = difflib.get_close_matches(kind, family, 1) or difflib.get_close_matches(kind, dir(transformers), 1)
    meant = f"did you mean {close[0]!r}?" if close else f"a {model_type} may be one of {listed(family, 6)}"
    if asked:
        return ConfigError(f"transformers has no model of class {kind!r}; {meant}")
    return ModelError(f"config.json of {name} names the class {kind}, which transformers lacks; {_NAME_IT}: {meant}")


def _require_type(name: str, found: Any, config: dict[str, Any]) -> None:
    """Refuse a class of another family: transformers would make it of default sizes, and random."""
    model_type = config["model_type"]
    parts = {part.get("model_type") for part in config.values() if isinstance(part, dict)}
    own = getattr(found.config_class, "model_type", None)
    if own not in {model_type, *parts} and found.__name__ not in family_names(model_type):
        raise ModelError(
            f"{name} is of the model type {model_type}, and a {found.__name__} is of {own}; {_NAME_IT} it is of"
        )
