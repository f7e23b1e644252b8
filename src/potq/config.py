"""What most users construct: :class:`PoTConfig`, which module of a model gets which scheme, and :class:`Effort`, how hard
post-training quantization tries.

A config is what a checkpoint's ``config.json`` carries and what ``from_pretrained`` accepts as
``quantization_config``. It takes a preset's name first and keywords that override it, is frozen, and refuses unknown keys.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any, Literal, get_args

from pydantic import (
    Field,
    PrivateAttr,
    SerializerFunctionWrapHandler,
    field_serializer,
    field_validator,
    model_serializer,
    model_validator,
)

from potq.errors import ConfigError
from potq.numerics.features import FORMAT_VERSION, features_of, require_readable
from potq.numerics.scheme import PRESETS, TRELLIS, QuantScheme, ScaleMethod, split_preset
from potq.validation import Strict, meant

Scope = Literal["none", "block", "model"]

Activations = Literal["int8", "float"]
"""What a packed product does with its inputs.

``"int8"`` rounds them in blocks of at most 64, which is fast. ``"float"`` keeps them.

Example:
    >>> from typing import get_args
    >>> from potq.kernels import Activations
    >>> get_args(Activations)
    ('int8', 'float')
"""


class Effort(Strict):
    """The steps of post-training quantization, in the order they are taken. By default none is taken.

    Attributes:
        compensate: round column by column and let the columns to come make up for each error (GPTQ, 2210.17323).
        ordered: take the columns of largest second moment first, each under the scale that its group got beforehand.
        damping: what is added to the diagonal of a Hessian, as a part of its mean.
        weigh_tokens: let a token count in a layer's Hessian as much as the loss feels an error there: by the mean square of
            the loss's gradient at the layer's outputs (GuidedQuant, 2505.07004). Of language models that predict tokens; the
            experts of a stack count theirs alike, as routing changes.
        rounds: rounds of joint refinement of a layer's scales (least squares) and codes (coordinate descent) afterwards.
        scope: what the straight-through refinement matches: the output of every ``"block"``, or the whole ``"model"``'s
            predictions (Kullback-Leibler divergence); ``"none"`` leaves it out.
        codes: whether that refinement moves codes as well as scales.
        epochs: its passes over the calibration windows.
        code_rate: its learning rate for weights, in mean steps of the layer's grid over the root of its number of inputs.
        scale_rate: its learning rate for the scales' logarithms.
    """

    compensate: bool = False
    ordered: bool = True
    damping: float = Field(default=0.01, gt=0, le=1)
    weigh_tokens: bool = False
    rounds: int = Field(default=0, ge=0)
    scope: Scope = "none"
    codes: bool = True
    epochs: int = Field(default=3, ge=1)
    code_rate: float = Field(default=0.15, ge=0)
    scale_rate: float = Field(default=3e-4, ge=0)

    @property
    def calibrated(self) -> bool:
        """Whether it needs calibration text."""
        return self.compensate or self.rounds > 0 or self.scope != "none"

    @model_validator(mode="after")
    def _tokens_are_counted(self) -> Effort:
        if self.weigh_tokens and not (self.compensate or self.rounds):
            raise ValueError("weigh_tokens changes Hessians, which only compensate and rounds use; set one of them")
        return self

    @model_serializer(mode="wrap")
    def _without_what_is_off(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Checkpoints of other efforts keep the JSON they had before tokens had weights."""
        fields: dict[str, Any] = serialize(self)
        return {key: value for key, value in fields.items() if value or key != "weigh_tokens"}

    @property
    def name(self) -> str:
        """The preset's name, with ``:weigh_tokens=true`` where only that was added; or "custom"."""
        plain = self.model_copy(update={"weigh_tokens": False})
        name = next((name for name, effort in EFFORTS.items() if effort == plain), "custom")
        return f"{name}:weigh_tokens=true" if self.weigh_tokens and name != "custom" else name

    @property
    def steps(self) -> str:
        """What is done to a layer, for reports: ``gptq+descent+block``."""
        parts = ["gptq"] * self.compensate + ["descent"] * (self.rounds > 0)
        parts += [f"{self.scope}{'' if self.codes else '-scales'}"] * (self.scope != "none")
        return "+".join(parts) or "rtn"


EFFORTS = {
    "fast": Effort(),
    "gptq": Effort(compensate=True),
    "balanced": Effort(compensate=True, rounds=3),
    "best": Effort(compensate=True, rounds=3, scope="model"),
    # step 2 of 2507.11959 refines scales alone; its settings are not all given, these are ours
    "potptq": Effort(scope="block", codes=False, epochs=5),
}
"""Presets by name. ``gptq`` and ``potptq`` are there to compare with."""

_SCHEME_KEYS = frozenset(QuantScheme.model_fields)


def effort_by_name(preset: str) -> Effort:
    """A preset, or one with overrides.

    Raises:
        ConfigError: another name (names those that there are), or an override that no effort has.

    Example:
        >>> from potq.config import effort_by_name
        >>> effort_by_name("balanced:weigh_tokens=true").weigh_tokens
        True
    """
    name, overrides = split_preset(preset)
    if name not in EFFORTS:
        raise ConfigError(f"unknown effort {name!r}; the presets are {', '.join(EFFORTS)}{meant(name, EFFORTS)}")
    return Effort(**{**EFFORTS[name].model_dump(), **overrides}) if overrides else EFFORTS[name]


class PoTConfig(Strict):
    """Which modules of a model get which scheme: ``PoTConfig("pot4", group_size=64, ignore=["lm_head"])``.

    Keywords of :class:`QuantScheme` override the preset. A pattern (in ``targets`` and ``ignore``) is a regular
    expression that must match a module's whole dotted name or a dotted suffix of it: ``"down_proj"`` matches every
    layer's, ``r"layers\\.0\\..*"`` everything in layer 0. ``ignore`` wins over ``targets``, the first target over later
    ones, and both over the defaults.

    Attributes:
        scheme: the linears' scheme.
        targets: pattern -> scheme (or preset name) of particular modules.
        ignore: patterns of modules that stay in full precision.
        embedding: the scheme of token and position embeddings and of the head; None (or "none") leaves them in full
            precision.
        scale_method: how a scale is chosen: ``"absmax"``, ``"mse"`` (least squared error, the data-free step 1 of
            2507.11959), ``"magnitude"`` (the same, but errors of a group's outliers count more:
            :func:`~potq.numerics.scale_search.magnitude_importance`), ``"weighted"`` (by the mean square of each input on
            calibration text) or ``"fisher"`` (by the mean squared gradient of each weight, SqueezeLLM's sensitivity,
            2306.07629); embeddings and heads fall back to ``"mse"`` under the last two, stacks of experts under
            ``"weighted"``, and the report says so. Calibrated efforts weigh by their Hessians instead.
        effort: what is done beyond rounding to nearest: a preset of :data:`potq.config.EFFORTS`, which may carry overrides
            (``"balanced:weigh_tokens=true"``), or an :class:`~potq.config.Effort`. None is ``"balanced"`` where calibration
            text is given, and ``"fast"`` where not.
        scale_candidates: scales tried per group; None is the exact optimum up to 4 bits, and 16 above.

    Raises:
        ConfigError: an unknown preset, effort or key, a value out of range, or a pattern that is no regular expression.

    Example:
        >>> from potq import PoTConfig, QuantScheme
        >>> config = PoTConfig(
        ...     "pot4", group_size=32, targets={"down_proj": "int4"}, embedding=QuantScheme("int8", group_size="row")
        ... )
        >>> config.scheme.name, config.targets["down_proj"].name, config.embedding.name
        ('pot4-g32', 'int4-g64', 'int8-row')
        >>> PoTConfig.from_dict(config.to_dict()) == config
        True
    """

    quant_method: Literal["potq"] = "potq"
    version: Literal[1] = FORMAT_VERSION
    scheme: QuantScheme
    targets: dict[str, QuantScheme] = Field(default_factory=dict)
    ignore: tuple[str, ...] = ()
    embedding: QuantScheme | None = Field(default_factory=lambda: PRESETS["int8"])
    effort: Effort | None = None
    scale_method: ScaleMethod = "mse"
    scale_candidates: int | None = Field(default=None, ge=1, le=4096)
    _expert_stacks: bool | None = PrivateAttr(default=None)

    def __init__(self, preset: str | None = None, /, **fields: Any) -> None:
        own = {key: value for key, value in fields.items() if key not in _SCHEME_KEYS}
        override = {key: value for key, value in fields.items() if key in _SCHEME_KEYS}
        if preset is not None or override:
            if "scheme" in own:
                raise ConfigError("give either a preset with its overrides or scheme=, not both")
            own["scheme"] = QuantScheme(preset, **override)
        elif "scheme" not in own:
            known = ", ".join(sorted(PRESETS | TRELLIS))
            raise ConfigError(f"scheme: Field required; name a preset, e.g. PoTConfig('pot4'); the presets are {known}")
        super().__init__(**own)

    @classmethod
    def known_keys(cls) -> Iterable[str]:
        return {*cls.model_fields, *_SCHEME_KEYS}

    @property
    def has_calibrated_effort(self) -> bool:
        """Whether an effort is named that needs calibration text."""
        return self.effort is not None and self.effort.calibrated

    @field_validator("scheme", mode="before")
    @classmethod
    def _scheme_by_name(cls, value: object) -> object:
        return coerce_scheme(value)

    @field_validator("embedding", mode="before")
    @classmethod
    def _embedding_by_name(cls, value: object) -> object:
        return None if value == "none" else coerce_scheme(value)

    @field_validator("effort", mode="before")
    @classmethod
    def _effort_by_name(cls, value: object) -> object:
        return effort_by_name(value) if isinstance(value, str) else value

    @field_validator("targets", mode="before")
    @classmethod
    def _targets_by_name(cls, value: object) -> object:
        if isinstance(value, list) and all(isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in value):
            counts = Counter(str(pattern) for pattern, _ in value)
            if twice := [pattern for pattern, count in counts.items() if count > 1]:
                raise ValueError(f"the pattern {twice[0]!r} stands twice; the first match would win")
            value = dict(value)
        return {key: coerce_scheme(scheme) for key, scheme in value.items()} if isinstance(value, dict) else value

    @field_serializer("targets")
    def _targets_in_order(self, value: dict[str, QuantScheme]) -> list[tuple[str, QuantScheme]]:
        """Pairs: whoever writes JSON may sort the keys of a mapping (transformers does), and the first match wins."""
        return list(value.items())

    @field_validator("ignore", mode="before")
    @classmethod
    def _one_pattern(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @field_validator("targets", "ignore")
    @classmethod
    def _valid_patterns(cls, value: Any) -> Any:
        for pattern in value:
            try:
                _regex(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is not a regular expression: {error}") from None
        return value

    @property
    def expert_stacks(self) -> bool | None:
        """Whether stacks of experts' matrices are packed in the model that it is of; None: wherever there are any."""
        return self._expert_stacks

    def with_expert_stacks(self, packed: bool | None) -> PoTConfig:
        """The same with another :attr:`expert_stacks`. Who packs a model knows, and who reads one: no user sets it."""
        copy = self.model_copy()
        copy._expert_stacks = packed
        return copy

    def __hash__(self) -> int:
        return hash(self.model_dump_json())

    def __eq__(self, other: object) -> bool:
        """Equal in JSON: the order of ``targets`` counts, since the first match wins."""
        return isinstance(other, PoTConfig) and self.model_dump_json() == other.model_dump_json()

    def to_dict(self) -> dict[str, Any]:
        """The JSON form, which all that writes checkpoints takes (Hugging Face's protocol for a quantization config)."""
        schemes = [self.scheme, *self.targets.values(), *([self.embedding] if self.embedding is not None else [])]
        further = ["expert-stacks"] if self.expert_stacks else []
        return {**self.model_dump(mode="json"), "features": features_of(schemes, further)}

    to_diff_dict = to_dict

    @classmethod
    def from_dict(cls, fields: dict[str, Any], file: str | os.PathLike[str] = "the quantization config") -> PoTConfig:
        """Read the JSON form.

        Args:
            fields: what :meth:`to_dict` returned. Features are not kept: they follow from the schemes. The exception is
                :attr:`expert_stacks`; those of potq 0.1 are not packed.
            file: where it stands, for messages.

        Raises:
            CheckpointError: another format version, or a feature that this potq does not know.
            ConfigError: an unknown key, or a value out of range.
        """
        require_readable(fields, file)
        try:
            made = cls(**{key: value for key, value in fields.items() if key != "features"})
            return made.with_expert_stacks("expert-stacks" in fields.get("features", []))
        except ConfigError as error:
            raise ConfigError(f"{file}: {error}") from None


def check_activations(activations: str) -> None:
    """Refuse another word.

    Raises:
        ConfigError: names those that there are.
    """
    if activations not in get_args(Activations):
        raise ConfigError(f"unknown activations {activations!r}; choose {' or '.join(get_args(Activations))}")


def coerce_scheme(value: object) -> object:
    """Accept a preset's name, or a mapping whose ``preset`` key is overridden by the others, as a scheme."""
    if isinstance(value, str):
        return QuantScheme(value)
    if isinstance(value, dict):
        fields = dict(value)
        return QuantScheme(fields.pop("preset", None), **fields)
    return value


def check_candidates(candidates: Sequence[QuantScheme | str]) -> list[QuantScheme]:
    """The candidates as schemes.

    Raises:
        ConfigError: no candidate, one given twice, or an unknown preset.
    """
    if isinstance(candidates, str):
        raise ConfigError(f"candidates is the string {candidates!r}; give a list of schemes or presets")
    schemes = [QuantScheme(candidate) if isinstance(candidate, str) else candidate for candidate in candidates]
    if not schemes:
        raise ConfigError("candidates is empty; give at least one scheme to choose from")
    for index, scheme in enumerate(schemes):
        if scheme in schemes[:index]:
            raise ConfigError(f"candidates holds {scheme.name} twice")
    return schemes


def matches(pattern: str, name: str) -> bool:
    """Whether ``pattern`` matches the dotted ``name`` or a dotted suffix of it."""
    return _regex(pattern).fullmatch(name) is not None


@cache
def _regex(pattern: str) -> re.Pattern[str]:
    return re.compile(rf"(?:.*\.)?(?:{pattern})")


def require_config(config: object) -> None:
    """Refuse anything but a :class:`PoTConfig`.

    Raises:
        ConfigError: says how one is written.
    """
    if not isinstance(config, PoTConfig):
        raise ConfigError(f"invalid config {config!r}; write potq.PoTConfig('pot4'), with the name of a preset")
