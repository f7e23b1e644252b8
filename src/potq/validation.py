"""The base of every validated value: frozen, no unknown keys, and pydantic's errors as potq's own."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from potq.errors import ConfigError


class Strict(BaseModel):
    """A pydantic model that is frozen (hence hashable), refuses unknown keys and raises :class:`ConfigError`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def __init__(self, **fields: Any) -> None:
        try:
            super().__init__(**fields)
        except ValidationError as error:
            raise ConfigError(explain(error, type(self).__name__, self.known_keys())) from None

    @classmethod
    def known_keys(cls) -> Iterable[str]:
        """The keys it takes."""
        return cls.model_fields


def meant(word: object, known: Iterable[str]) -> str:
    """What to append to a message about a word that is not ``known``: the one that it is like, if there is one.

    Example:
        >>> from potq.validation import meant
        >>> meant("quantisation", ["model", "quantization"])
        "; did you mean 'quantization'?"
    """
    close = difflib.get_close_matches(str(word), list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def explain(error: ValidationError, what: str, keys: Iterable[str]) -> str:
    """One line per problem: the key, what is wrong, what was found; for an unknown key, the one of ``keys`` like it."""
    lines = [f"invalid {what}:"]
    for problem in error.errors():
        key = ".".join(map(str, problem["loc"]))
        unknown = problem["type"] == "extra_forbidden"
        reason = "unknown key" if unknown else problem["msg"].removeprefix("Value error, ")
        told = problem["type"] == "missing" or reason.startswith("invalid ")  # the latter: an inner value's explanation
        found = "" if told else f" (found {problem['input']!r})"
        found += meant(key, keys) if unknown else ""
        lines.append(f"  {key}: {reason}{found}" if key else f"  {reason}")
    return "\n".join(lines)
