"""The base of every validated value: frozen, no unknown keys, and pydantic's errors as potq's own."""

from __future__ import annotations

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
            raise ConfigError(explain(error, type(self).__name__)) from None


def explain(error: ValidationError, what: str) -> str:
    """One line per problem: the key, what is wrong, what was found."""
    lines = [f"invalid {what}:"]
    for problem in error.errors():
        key = ".".join(map(str, problem["loc"]))
        reason = "unknown key" if problem["type"] == "extra_forbidden" else problem["msg"].removeprefix("Value error, ")
        nested = reason.startswith("invalid ")  # an inner value's own explanation, which shows what was found
        found = "" if nested else f" (found {problem['input']!r})"
        lines.append(f"  {key}: {reason}{found}" if key else f"  {reason}")
    return "\n".join(lines)
