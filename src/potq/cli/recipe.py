"""Recipes: a command's settings as a YAML file, with ``a.b=value`` overrides on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import Field

from potq.errors import ConfigError
from potq.scheme import PoTConfig
from potq.validation import Strict

_Recipe = TypeVar("_Recipe", bound=Strict)


DEFAULT_PRESET = "apot4"


class CalibrationRecipe(Strict):
    """Calibration text: the first ``windows`` windows of ``window`` tokens of a UTF-8 file (or ``pydoc``)."""

    text: str
    window: int = Field(default=512, ge=2)
    windows: int = Field(default=16, ge=1)


class QuantizeRecipe(Strict):
    """Everything ``potq quantize`` does. ``quantization`` takes the keys of PoTConfig and QuantScheme, and ``preset``."""

    model: str
    output: Path
    quantization: dict[str, Any] = Field(default_factory=dict)
    calibration: CalibrationRecipe | None = None
    dtype: str = "auto"
    max_shard_size: str = "5GB"
    force: bool = False

    def config(self) -> PoTConfig:
        """The quantization config.

        Raises:
            ConfigError: unknown keys or presets.
        """
        fields = dict(self.quantization)
        preset = fields.pop("preset", None if {"grid", "scheme"} & fields.keys() else DEFAULT_PRESET)
        return PoTConfig(preset, **fields)


def build(kind: type[_Recipe], file: Path | None, overrides: list[str], options: dict[str, Any]) -> _Recipe:
    """A recipe from its file, then ``options`` (dotted keys; None means not given), then ``a.b=value`` overrides.

    Raises:
        ConfigError: a file that is no YAML mapping, an override that is none, an unknown key.
    """
    fields = _read(file) if file is not None else {}
    for key, value in options.items():
        if value is not None:
            _set(fields, key, value)
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise ConfigError(f"{override!r} is not an override; write key=value, e.g. quantization.group_size=32")
        _set(fields, key, _parse(text, override))
    try:
        return kind(**fields)
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}" if file is not None else str(error)) from None


def _read(file: Path) -> dict[str, Any]:
    try:
        fields = _parse(file.read_text(encoding="utf-8"), str(file))
    except OSError as error:
        raise ConfigError(f"cannot read the recipe {file} ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file} is not UTF-8: {error}") from None
    if not isinstance(fields, dict):
        raise ConfigError(f"{file} holds no YAML mapping; see examples/recipe.yaml")
    return fields


def _parse(text: str, what: str) -> Any:
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{what} is not YAML: {error}") from None
    _require_words(value, what)
    return value


def _require_words(value: Any, what: str) -> None:
    """YAML reads ``1:`` and ``true:`` as keys that are no strings; refuse them by name."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise ConfigError(f"{what}: the key {key!r} is not a word; quote it if it is meant")
            _require_words(inner, what)


def _set(fields: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        if fields.get(parent) is None:
            fields[parent] = {}
        inner = fields[parent]
        if not isinstance(inner, dict):
            raise ConfigError(f"{key}: {parent} is {inner!r}, not a mapping")
        fields = inner
    fields[last] = value
