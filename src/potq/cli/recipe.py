"""Recipes: a command's settings as a YAML file, with ``a.b=value`` overrides on the command line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ConfigDict, Field, field_validator

from potq.config import PoTConfig, coerce_scheme
from potq.data.text import SELF
from potq.errors import ConfigError
from potq.numerics.scheme import WEIGHTED_METHODS, QuantScheme
from potq.validation import Strict

_Recipe = TypeVar("_Recipe", bound=Strict)


_DEFAULT = {"preset": "apot4", "group_size": 32, "embedding": "apot4:group_size=32"}  # benchmarks/ptq/default.py
_LACKS_TEXT = "needs calibration text: --calibration self (the model writes it), a file or dataset"
DEFAULT_CANDIDATES = ("pot2", "pot3", "pot3s", "apot3s", "pot4", "apot4")


class CalibrationRecipe(Strict):
    """Calibration text: ``windows`` windows of ``window`` tokens (by default 512, or the model's limit if that is less).

    The model writes them ("self"), or they are random ones of a file, of a dataset (``name:config:split``) or of ``pydoc``.
    Of a model that reads images or sound, ``text`` is a folder of those, and ``windows`` says how many. Without a seed of
    their own they go by the recipe's.
    """

    text: str = SELF
    window: int | None = Field(default=None, ge=2)
    windows: int = Field(default=64, ge=1)
    seed: int | None = Field(default=None, ge=0, lt=2**63)


class QuantizeRecipe(Strict):
    """Everything ``potq quantize`` does. ``quantization`` takes the keys of PoTConfig and QuantScheme, and ``preset``.

    ``model_class`` is a class of transformers, in place of the one that the model's ``config.json`` names. ``budget`` (bits
    per weight of the linears) and ``candidates`` (schemes to choose each linear's from) are those of :func:`potq.allocate`;
    either of them asks for it. ``timeout`` is in minutes: how long one of several processes waits. ``stream``: whether a
    calibrated model is read block by block; None: if it does not fit in memory.
    """

    model_config = ConfigDict(protected_namespaces=())  # pydantic wants names like model_class for itself

    model: str
    output: Path
    model_class: str | None = None
    quantization: dict[str, Any] = Field(default_factory=dict)
    budget: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    candidates: tuple[QuantScheme, ...] | None = None
    calibration: CalibrationRecipe | None = None
    seed: int = Field(default=0, ge=0, lt=2**63)
    dtype: str = "auto"
    device: str | None = None
    timeout: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    max_shard_size: str = "5GB"
    stream: bool | None = None
    force: bool = False

    def config(self) -> PoTConfig:
        """The quantization config.

        Raises:
            ConfigError: unknown keys or presets.
        """
        return quantization_config(self.quantization)

    @property
    def allocates(self) -> bool:
        """Whether each linear's scheme is to be found."""
        return self.budget is not None or self.candidates is not None

    @property
    def schemes(self) -> tuple[QuantScheme, ...]:
        """The candidates, or the default ones."""
        return tuple(map(QuantScheme, DEFAULT_CANDIDATES)) if self.candidates is None else self.candidates

    def calibration_text(self) -> CalibrationRecipe | None:
        """The recipe's calibration; if it has none but the effort needs it, the model's own text.

        Raises:
            ConfigError: a budget, candidates, a scale method or a seed without calibration.
        """
        if self.config().has_calibrated_effort or self.calibration is not None:
            return self.calibration or CalibrationRecipe()
        if self.allocates:
            what = "a budget" if self.budget is not None else "choosing among candidates"
            raise ConfigError(f"{what} {_LACKS_TEXT}")
        if (method := self.config().scale_method) in WEIGHTED_METHODS:
            raise ConfigError(f"scale method {method} {_LACKS_TEXT}")
        if self.seed:
            raise ConfigError("seed has no effect without calibration text: name one with --calibration, or leave it out")
        return None

    @field_validator("candidates", mode="before")
    @classmethod
    def _candidates_by_name(cls, value: object) -> object:
        if isinstance(value, str):
            return parse_schemes(value)
        if not isinstance(value, (list, tuple)):
            return value
        return tuple(coerce_scheme(item) for item in value)


def quantization_config(fields: Mapping[str, Any]) -> PoTConfig:
    """The config of a recipe's ``quantization``: the keys of PoTConfig and QuantScheme, and ``preset``.

    Without a scheme everything is ``apot4`` in groups of 32, embedding and head too: 4.5 bits a weight.

    Raises:
        ConfigError: unknown keys or presets.

    Example:
        >>> from potq.cli.recipe import quantization_config
        >>> config = quantization_config({})
        >>> config.scheme.name, config.embedding.name
        ('apot4-g32', 'apot4-g32')
        >>> quantization_config({"preset": "pot3"}).embedding.name
        'int8-g64'
    """
    named = {"preset", "grid", "scheme"} & fields.keys()
    chosen = dict(fields) if named else {**_DEFAULT, **fields}
    return PoTConfig(chosen.pop("preset", None), **chosen)


def parse_schemes(text: str) -> tuple[QuantScheme, ...]:
    """Schemes as the command line gives them: ``pot3,pot4:group_size=32:scale_dtype=e8m0``.

    Raises:
        ConfigError: no scheme, an unknown preset, an invalid override.
    """
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words:
        raise ConfigError("no scheme is named; write presets with commas between them, e.g. pot3,pot4:group_size=32")
    return tuple(map(QuantScheme, words))


def build(kind: type[_Recipe], file: Path | None, overrides: list[str], options: dict[str, Any]) -> _Recipe:
    """A recipe from its file, then ``options`` (dotted keys; None means not given), then ``a.b=value`` overrides.

    Raises:
        ConfigError: a file that is not a YAML mapping, an invalid override, an unknown key.
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
        raise ConfigError(f"{file} holds no YAML mapping; see examples/recipe.yaml, and recipes/ for training")
    return fields


def _parse(text: str, what: str) -> Any:
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{what} is not YAML: {error}") from None
    _require_words(value, what)
    return value


def _require_words(value: Any, what: str) -> None:
    """YAML reads ``1:`` and ``true:`` as keys that are not strings; refuse them by name."""
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
