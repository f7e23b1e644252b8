"""What classes of transformers read and predict, by the class alone: no weight is needed.

Classes that are not transformers' own (code that a user trusts) count as language models, as nothing says otherwise.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from typing import Any, Literal

Reads = Literal["text", "images", "audio"]

_READS: dict[str, Reads] = {
    "input_ids": "text",
    "pixel_values": "images",
    "input_features": "audio",
    "input_values": "audio",
}


def reads(kind: type) -> Reads | None:
    """What a model of class ``kind`` is given in the first place; None: something else (a table, time series)."""
    return _READS.get(getattr(kind, "main_input_name", ""))


def reads_both(kind: Any) -> bool:
    """Whether ``kind`` is given text along with images or sound, as two towers side by side are."""
    return len(_READS.keys() & inspect.signature(kind.forward).parameters.keys()) > 1


def has_decoder(kind: Any) -> bool:
    """Whether ``kind`` is an encoder with a decoder behind it, which gets inputs of its own."""
    return "decoder_input_ids" in inspect.signature(kind.forward).parameters


def predicts_next(kind: type) -> bool:
    """Whether ``kind`` continues a text: a causal language model, or a multimodal one that takes text alone too."""
    if not kind.__module__.startswith("transformers."):
        return True
    return kind.__name__ in _causal_names() and reads(kind) == "text" and not has_decoder(kind)


def answers(kind: Any) -> bool:
    """Whether ``kind`` writes a text of its own to one that it is given: an encoder-decoder of text."""
    return reads(kind) == "text" and has_decoder(kind) and bool(kind.can_generate())


def is_base(kind: type) -> bool:
    """Whether ``kind`` has no head: it puts out hidden states."""
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    return kind.__name__ in each_name(MODEL_MAPPING_NAMES.values())


def family_names(model_type: str) -> list[str]:
    """The classes that transformers' Auto classes make of a ``model_type``, each once."""
    from transformers.models.auto import modeling_auto

    tables = (getattr(modeling_auto, name) for name in dir(modeling_auto) if name.endswith("_MAPPING_NAMES"))
    return list(dict.fromkeys(name for table in tables for name in each_name([table.get(model_type, ())])))


def each_name(values: Iterable[Any]) -> Iterator[str]:
    """The names in one of transformers' tables, where one model type may have several."""
    for value in values:
        yield from [value] if isinstance(value, str) else value


def _causal_names() -> set[str]:
    from transformers.models.auto import modeling_auto as auto

    tables = (auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)
    return {name for table in tables for name in each_name(table.values())}
