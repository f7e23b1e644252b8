"""Schemes and configs: how one weight is quantized, and which module gets which scheme.

:class:`QuantScheme` is one weight's format (grid, group size, scale format, rounding). :class:`PoTConfig` maps the modules
of a model to schemes; it is what a checkpoint's ``config.json`` carries and what ``from_pretrained`` accepts as
``quantization_config``. Both take a preset's name first and keywords that override it, are frozen, and refuse unknown keys.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any, Literal

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    field_serializer,
    field_validator,
    model_serializer,
    model_validator,
)

from potq.effort import EFFORTS, Effort
from potq.errors import ConfigError
from potq.grid import E2M1, Grid, additive, pot, table, uniform
from potq.validation import Strict

FORMAT_VERSION = 1

GroupSize = int | Literal["row", "tensor"]
ScaleDtype = Literal["float16", "e8m0"]
Rounding = Literal["nearest", "log"]
ScaleMethod = Literal["absmax", "mse", "weighted", "fisher"]

_GRIDS: dict[str, Grid] = {
    **{f"pot{bits}": pot(bits) for bits in (3, 4, 5, 6, 7)},
    "pot2": pot(2, zero=False, stride=2),
    "pot2z": pot(2),
    "pot3nz": pot(3, zero=False),
    "apot4": additive((2, 7, 12, 18, 24, 31, 40, 56)),  # benchmarks/apot_search.py
    "apot3": additive((9, 30, 56, 96)),
    **{f"int{bits}": uniform(bits) for bits in (2, 3, 4, 8)},
    **{f"int{bits}_midrise": uniform(bits, midrise=True) for bits in (2, 3, 4)},
    # QLoRA's quantiles (2305.14314) times 127, rounded for the int8 kernels: a Gaussian's 21.4 dB, scale searched, lose 0.02
    "nf4": table((-127, -88, -67, -50, -36, -23, -12, 0, 10, 20, 31, 43, 56, 71, 92, 127)),
}
# for signed scales (benchmarks/signed_tables.py): {0, 1, 2, 4} with the code of "-0" put to use, and two terms a level
_POT3S, _APOT3S = table((-8, -4, -2, 0, 1, 2, 4, 8)), table((-96, -56, -28, 0, 24, 48, 80, 127))
_IQ4_NL = table((-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113))  # llama.cpp's


class QuantScheme(Strict):
    """How one weight matrix is quantized.

    ``QuantScheme("pot4", group_size=32)`` starts from a preset; ``QuantScheme(grid=...)`` from a grid.

    Attributes:
        grid: the levels.
        group_size: inputs that share a scale; ``"row"`` is one scale per output, ``"tensor"`` one in all.
        scale_dtype: ``"float16"``, or ``"e8m0"``: a power of two in one byte (exponent + 127).
        row_scale: a float16 scale per output beside the scales of its groups, which are then E8M0.
        signed_scale: float16 scales may be negative, which turns a group's levels around; for grids that are not symmetric.
        rounding: ``"nearest"`` level, or ``"log"``: nearest in the log domain, as 2506.00315 and 2601.02298 round.
    """

    grid: Grid
    group_size: GroupSize = 64
    scale_dtype: ScaleDtype = "float16"
    row_scale: bool = False
    signed_scale: bool = False
    rounding: Rounding = "nearest"

    def __init__(self, preset: str | None = None, /, **fields: Any) -> None:
        super().__init__(**{**_preset_fields(preset), **fields})

    @field_validator("grid", mode="before")
    @classmethod
    def _grid_by_name(cls, value: object) -> object:
        return _preset_fields(value)["grid"] if isinstance(value, str) else value

    @field_validator("group_size")
    @classmethod
    def _positive(cls, value: GroupSize) -> GroupSize:
        if isinstance(value, int) and value < 1:
            raise ValueError("group_size is a positive integer, 'row' or 'tensor'")
        return value

    @model_validator(mode="after")
    def _log_rounding_needs_powers(self) -> QuantScheme:
        if self.rounding == "log" and not (self.grid.encoding == "sign-magnitude" and self.grid.is_power_of_two):
            raise ValueError("rounding='log' needs a power-of-two grid; use rounding='nearest'")
        return self

    @model_validator(mode="after")
    def _row_scale_needs_powers(self) -> QuantScheme:
        if self.row_scale and self.scale_dtype != "e8m0":  # 11 bits * 11 bits * a level's 13 exceed float32's 24
            raise ValueError("row_scale=True needs scale_dtype='e8m0'; a product of two float16 scales would not be exact")
        if self.row_scale and self.group_size == "tensor":
            raise ValueError("row_scale=True needs groups within a row; give a group_size or 'row', not 'tensor'")
        return self

    @model_validator(mode="after")
    def _signed_scale_needs_sides(self) -> QuantScheme:
        if self.signed_scale and self.scale_dtype != "float16":
            raise ValueError(
                "signed_scale=True needs scale_dtype='float16': E8M0 scales have no sign; add signed_scale=False"
            )
        if self.signed_scale and self.grid.is_symmetric:
            raise ValueError("signed_scale=True needs a grid that is not symmetric; here a sign would change nothing")
        return self

    @model_serializer(mode="wrap")
    def _without_unsigned_scale(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Checkpoints of other schemes keep the JSON they had before scales had signs."""
        fields: dict[str, Any] = serialize(self)
        if not self.signed_scale:
            fields.pop("signed_scale", None)
        return fields

    @property
    def name(self) -> str:
        """A short name for tables: the preset that has this grid (or the bits), the group size, the scale format."""
        alike = {name: scheme for name, scheme in PRESETS.items() if scheme.grid == self.grid}
        preset = next(iter(alike), f"custom{self.grid.bits}")
        suffix = f"-{self.scale_dtype}" * (self.scale_dtype != "float16") + "-row" * self.row_scale
        if self.signed_scale != any(scheme.signed_scale for scheme in alike.values()):
            suffix += "-signed" if self.signed_scale else "-unsigned"
        suffix += f"-{self.rounding}" * (self.rounding == "log")
        size = f"g{self.group_size}" if isinstance(self.group_size, int) else self.group_size
        return f"{preset}-{size}{suffix}"

    def group(self, in_features: int) -> int:
        """Inputs per scale for a row of ``in_features`` (a per-tensor scale spans every row)."""
        return min(self.group_size, in_features) if isinstance(self.group_size, int) else in_features

    def scale_shape(self, out_features: int, in_features: int) -> tuple[int, int]:
        """Shape of the stored scales of an ``(out_features, in_features)`` weight."""
        if self.group_size == "tensor":
            return (1, 1)
        return (out_features, -(-in_features // self.group(in_features)))

    def bits_per_weight(self, out_features: int, in_features: int) -> float:
        """Stored bits per weight, scales and row padding included."""
        groups = self.scale_shape(out_features, in_features)
        scale_bits = groups[0] * groups[1] * (16 if self.scale_dtype == "float16" else 8)
        scale_bits += 16 * out_features * self.row_scale
        return (8 * out_features * packed_row_bytes(in_features, self.grid.bits) + scale_bits) / (out_features * in_features)


def packed_row_bytes(columns: int, bits: int) -> int:
    """Bytes of one packed row: every plane of it is padded to a whole byte (see :mod:`potq.packing`)."""
    return sum(-(-columns * width // 8) for width in plane_widths(bits))


def plane_widths(bits: int) -> tuple[int, ...]:
    """Bit widths of the planes of a code: 2, 4 and 8 bits are one plane; 3, 5, 6, 7 a base plane and 1-bit planes."""
    base = 8 if bits == 8 else 4 if bits >= 4 else 2
    return (base,) + (1,) * (bits - base)


PRESETS: dict[str, QuantScheme] = {}
"""Every preset by name."""


def _preset_fields(name: str | None) -> dict[str, Any]:
    if name is None:
        return {}
    if isinstance(name, str) and name in PRESETS:
        scheme = PRESETS[name]
        return {field: getattr(scheme, field) for field in QuantScheme.model_fields}
    raise ConfigError(f"unknown preset {name!r}; the presets are {', '.join(sorted(PRESETS))}")


PRESETS.update({name: QuantScheme(grid=grid) for name, grid in _GRIDS.items()})
PRESETS["mxfp4"] = QuantScheme(grid=E2M1, group_size=32, scale_dtype="e8m0")
PRESETS["mxpot"] = QuantScheme(grid=Grid(bits=4, magnitudes=(0, 1, 2, 2, 4, 4, 8, 8)), group_size=32, scale_dtype="e8m0")
PRESETS["iq4nl"] = QuantScheme(grid=_IQ4_NL, group_size=32)
PRESETS["pot3s"] = QuantScheme(grid=_POT3S, signed_scale=True)
PRESETS["apot3s"] = QuantScheme(grid=_APOT3S, signed_scale=True)

_SCHEME_KEYS = frozenset(QuantScheme.model_fields)


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
            2507.11959), ``"weighted"`` (the same, weighted by the mean square of each input on calibration text) or
            ``"fisher"`` (weighted by the mean squared gradient of each weight, SqueezeLLM's sensitivity, 2306.07629);
            embeddings and heads fall back to ``"mse"`` under both, and the report says so. Calibrated efforts weigh by
            their Hessians instead.
        effort: what is done beyond rounding to nearest: a preset of :data:`potq.effort.EFFORTS` or an
            :class:`~potq.effort.Effort`. None is ``"balanced"`` where calibration text is given, and ``"fast"`` where not.
        scale_candidates: scales tried per group; None is the exact optimum up to 4 bits, and 16 above.
    """

    quant_method: Literal["potq"] = "potq"
    version: int = FORMAT_VERSION
    scheme: QuantScheme
    targets: dict[str, QuantScheme] = Field(default_factory=dict)
    ignore: tuple[str, ...] = ()
    embedding: QuantScheme | None = Field(default_factory=lambda: PRESETS["int8"])
    effort: Effort | None = None
    scale_method: ScaleMethod = "mse"
    scale_candidates: int | None = Field(default=None, ge=1, le=4096)

    def __init__(self, preset: str | None = None, /, **fields: Any) -> None:
        own = {key: value for key, value in fields.items() if key not in _SCHEME_KEYS}
        override = {key: value for key, value in fields.items() if key in _SCHEME_KEYS}
        if preset is not None or override:
            if "scheme" in own:
                raise ConfigError("give either a preset with its overrides or scheme=, not both")
            own["scheme"] = QuantScheme(preset, **override)
        elif "scheme" not in own:
            known = ", ".join(sorted(PRESETS))
            raise ConfigError(f"scheme: Field required; name a preset, e.g. PoTConfig('pot4'); the presets are {known}")
        super().__init__(**own)

    @property
    def has_calibrated_effort(self) -> bool:
        """Whether an effort is named that needs calibration text."""
        return self.effort is not None and self.effort.calibrated

    @field_validator("version")
    @classmethod
    def _known_version(cls, value: int) -> int:
        if value != FORMAT_VERSION:
            raise ValueError(f"format version {value} is not readable here (this potq reads {FORMAT_VERSION}); upgrade potq")
        return value

    @field_validator("scheme", mode="before")
    @classmethod
    def _scheme_by_name(cls, value: object) -> object:
        return _coerce_scheme(value)

    @field_validator("embedding", mode="before")
    @classmethod
    def _embedding_by_name(cls, value: object) -> object:
        return None if value == "none" else _coerce_scheme(value)

    @field_validator("effort", mode="before")
    @classmethod
    def _effort_by_name(cls, value: object) -> object:
        if isinstance(value, str) and value not in EFFORTS:
            raise ValueError(f"unknown effort {value!r}; the presets are {', '.join(EFFORTS)}")
        return EFFORTS[value] if isinstance(value, str) else value

    @field_validator("targets", mode="before")
    @classmethod
    def _targets_by_name(cls, value: object) -> object:
        if isinstance(value, list) and all(isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in value):
            value = dict(value)
        return {key: _coerce_scheme(scheme) for key, scheme in value.items()} if isinstance(value, dict) else value

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

    def __hash__(self) -> int:
        return hash(self.model_dump_json())

    def __eq__(self, other: object) -> bool:
        """Equal in JSON: the order of ``targets`` counts, since the first match wins."""
        return isinstance(other, PoTConfig) and self.model_dump_json() == other.model_dump_json()

    def to_dict(self) -> dict[str, Any]:
        """The JSON form (also Hugging Face's protocol for a quantization config)."""
        return self.model_dump(mode="json")

    to_diff_dict = to_dict

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> PoTConfig:
        """Read the JSON form.

        Raises:
            ConfigError: an unknown key, a value out of range, or another format version.
        """
        return cls(**fields)


def _coerce_scheme(value: object) -> object:
    """Accept a preset's name, or a mapping whose ``preset`` key is overridden by the others, as a scheme."""
    if isinstance(value, str):
        return QuantScheme(value)
    if isinstance(value, dict):
        fields = dict(value)
        return QuantScheme(fields.pop("preset", None), **fields)
    return value


def matches(pattern: str, name: str) -> bool:
    """Whether ``pattern`` matches the dotted ``name`` or a dotted suffix of it."""
    return _regex(pattern).fullmatch(name) is not None


@cache
def _regex(pattern: str) -> re.Pattern[str]:
    return re.compile(rf"(?:.*\.)?(?:{pattern})")


def require_config(config: object) -> None:
    """Refuse what is meant as a config and is none.

    Raises:
        ConfigError: says how one is written.
    """
    if not isinstance(config, PoTConfig):
        raise ConfigError(f"{config!r} is no PoTConfig; write potq.PoTConfig('pot4'), with the name of a preset")
