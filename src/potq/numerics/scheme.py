"""Schemes and configs: how one weight is quantized, and which module gets which scheme.

:class:`QuantScheme` is one weight's format (grid, group size, scale format, rounding). :class:`PoTConfig` maps the modules
of a model to schemes; it is what a checkpoint's ``config.json`` carries and what ``from_pretrained`` accepts as
``quantization_config``. Both take a preset's name first and keywords that override it, are frozen, and refuse unknown keys.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import (
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from potq.errors import ConfigError
from potq.numerics.grid import E2M1, Grid, additive, pot, table, uniform
from potq.validation import Strict, meant

GroupSize = int | Literal["row", "tensor"]
ScaleDtype = Literal["float16", "e8m0"]
RoundingMode = Literal["nearest", "log"]
ScaleMethod = Literal["absmax", "mse", "magnitude", "weighted", "fisher"]
WEIGHTED_METHODS: tuple[ScaleMethod, ...] = ("weighted", "fisher")  # by what calibration text measures

_GRIDS: dict[str, Grid] = {
    **{f"pot{bits}": pot(bits) for bits in (3, 4, 5, 6, 7)},
    "pot2": pot(2, zero=False, stride=2),
    "pot2z": pot(2),
    "pot3nz": pot(3, zero=False),
    "apot4": additive((2, 7, 12, 18, 24, 31, 40, 56)),  # benchmarks/ptq/apot_search.py
    "apot3": additive((9, 30, 56, 96)),
    **{f"int{bits}": uniform(bits) for bits in (2, 3, 4, 8)},
    **{f"int{bits}_midrise": uniform(bits, midrise=True) for bits in (2, 3, 4)},
    # QLoRA's quantiles (2305.14314) times 127, rounded for the int8 kernels: a Gaussian's 21.4 dB, scale searched, lose 0.02
    "nf4": table((-127, -88, -67, -50, -36, -23, -12, 0, 10, 20, 31, 43, 56, 71, 92, 127)),
}
# for signed scales (benchmarks/ptq/signed_tables.py): {0, 1, 2, 4} with the code of "-0" put to use, and two terms a level
_POT3S, _APOT3S = table((-8, -4, -2, 0, 1, 2, 4, 8)), table((-96, -56, -28, 0, 24, 48, 80, 127))
_IQ4_NL = table((-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113))  # llama.cpp's


class QuantScheme(Strict):
    """How one weight matrix is quantized.

    ``QuantScheme("pot4", group_size=32)`` starts from a preset, as does ``QuantScheme("pot4:group_size=32")``;
    ``QuantScheme(grid=...)`` from a grid.

    Attributes:
        grid: the levels.
        group_size: inputs that share a scale; ``"row"`` is one scale per output, ``"tensor"`` one in all.
        scale_dtype: ``"float16"``, or ``"e8m0"``: a power of two in one byte (exponent + 127).
        row_scale: a float16 scale per output beside the scales of its groups, which are then E8M0.
        signed_scale: float16 scales may be negative, which turns a group's levels around; for grids that are not symmetric.
        trellis: a weight stores one bit less than the grid has, for half its levels are open to it: those that the three
            weights before it in its row leave it (:mod:`potq.numerics.trellis`).
        rounding: ``"nearest"`` level, or ``"log"``: nearest in the log domain, as 2506.00315 and 2601.02298 round.

    Raises:
        ConfigError: an unknown preset or key, a value out of range, or a combination that cannot be: a row scale without
            E8M0 scales or with one scale per tensor, a signed scale with E8M0 or a symmetric grid, log rounding on a grid
            that is not PoT, a trellis with scales other than plain float16 ones or a grid of repeated levels.

    Example:
        >>> from potq import QuantScheme
        >>> scheme = QuantScheme("pot4", group_size=32)
        >>> scheme.name
        'pot4-g32'
        >>> scheme.scale_shape(576, 1536)  # (outputs, groups)
        (576, 48)
        >>> scheme.bits_per_weight(576, 1536)  # 4 of the code, 16 of the scale for every 32 weights
        4.5
    """

    grid: Grid
    group_size: GroupSize = 64
    scale_dtype: ScaleDtype = "float16"
    row_scale: bool = False
    signed_scale: bool = False
    trellis: bool = False
    rounding: RoundingMode = "nearest"

    def __init__(self, preset: str | None = None, /, **fields: Any) -> None:
        name, overrides = split_preset(preset) if isinstance(preset, str) else (preset, {})
        if twice := sorted(overrides.keys() & fields.keys()):
            raise ConfigError(f"{twice[0]} is given twice, in {preset!r} and beside it; give it once")
        super().__init__(**{**_preset_fields(name), **overrides, **fields})

    @field_validator("grid", mode="before")
    @classmethod
    def _grid_by_name(cls, value: object) -> object:
        return _preset_fields(value)["grid"] if isinstance(value, str) else value

    @field_validator("group_size")
    @classmethod
    def _positive(cls, value: GroupSize) -> GroupSize:
        if isinstance(value, int) and value < 1:
            raise ValueError(f"invalid group size {value}; use a positive integer, 'row' or 'tensor'")
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

    @model_validator(mode="after")
    def _trellis_needs_plain_scales(self) -> QuantScheme:
        if not self.trellis:
            return self
        if self.scale_dtype != "float16" or self.signed_scale:  # squared errors under the least E8M0 ones underflow
            raise ValueError("trellis=True needs scale_dtype='float16' and signed_scale=False")
        if self.group_size == "tensor" or self.rounding != "nearest":
            raise ValueError("trellis=True needs groups within a row and rounding='nearest'")
        if self.grid.bits < 3 or len(set(self.grid.levels)) < 2**self.grid.bits:
            raise ValueError("trellis=True needs a grid of 3 bits or more, every level of it once")
        return self

    @model_serializer(mode="wrap")
    def _without_what_is_off(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Checkpoints of other schemes keep the JSON they had before scales had signs and grids a trellis."""
        fields: dict[str, Any] = serialize(self)
        for name in ("signed_scale", "trellis"):
            if not fields.get(name):
                fields.pop(name, None)
        return fields

    @property
    def name(self) -> str:
        """A short name for tables: the preset that has this grid (or the bits), the group size, the scale format."""
        alike = {
            name: each
            for name, each in (PRESETS | TRELLIS).items()
            if (each.grid, each.trellis) == (self.grid, self.trellis)
        }
        preset = next(iter(alike), f"custom{self.code_bits}{'t' * self.trellis}")
        suffix = f"-{self.scale_dtype}" * (self.scale_dtype != "float16") + "-row" * self.row_scale
        if self.signed_scale != any(scheme.signed_scale for scheme in alike.values()):
            suffix += "-signed" if self.signed_scale else "-unsigned"
        suffix += f"-{self.rounding}" * (self.rounding == "log")
        size = f"g{self.group_size}" if isinstance(self.group_size, int) else self.group_size
        return f"{preset}-{size}{suffix}"

    @property
    def code_bits(self) -> int:
        """Bits of a stored code: the grid's, or one less with a trellis."""
        return self.grid.bits - self.trellis

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
        return (8 * out_features * packed_row_bytes(in_features, self.code_bits) + scale_bits) / (out_features * in_features)


def packed_row_bytes(columns: int, bits: int) -> int:
    """Bytes of one packed row: every plane of it is padded to a whole byte (see :mod:`potq.numerics.packing`)."""
    return sum(-(-columns * width // 8) for width in plane_widths(bits))


def plane_widths(bits: int) -> tuple[int, ...]:
    """Bit widths of the planes of a code: 2, 4 and 8 bits are one plane; 3, 5, 6, 7 a base plane and 1-bit planes."""
    base = 8 if bits == 8 else 4 if bits >= 4 else 2
    return (base,) + (1,) * (bits - base)


PRESETS: dict[str, QuantScheme] = {}
"""Every preset, a :class:`QuantScheme`, by its name.

Example:
    >>> import potq
    >>> potq.PRESETS["pot4"].grid.magnitudes
    (0, 1, 2, 4, 8, 16, 32, 64)
    >>> [name for name, scheme in potq.PRESETS.items() if scheme.scale_dtype == "e8m0"]
    ['mxfp4', 'mxpot']
"""

TRELLIS: dict[str, QuantScheme] = {}
"""Presets with a trellis, by name. They are apart from :data:`PRESETS` until kernels, engine and exports know them all."""


def split_preset(preset: str) -> tuple[str, dict[str, Any]]:
    """``"pot4:group_size=32:signed_scale=false"`` as the preset's name and what overrides it.

    Raises:
        ConfigError: a word that is no override, or a key twice.

    Example:
        >>> from potq.numerics.scheme import split_preset
        >>> split_preset("pot4:group_size=32:signed_scale=false")
        ('pot4', {'group_size': 32, 'signed_scale': False})
    """
    name, *words = preset.split(":")
    overrides: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise ConfigError(f"{preset}: {word!r} is not an override; write it like pot4:group_size=32")
        if key in overrides:
            raise ConfigError(f"{preset}: {key} is given twice; give it once")
        overrides[key] = int(value) if value.lstrip("-").isdigit() else {"true": True, "false": False}.get(value, value)
    return name, overrides


def _preset_fields(name: str | None) -> dict[str, Any]:
    if name is None:
        return {}
    known = PRESETS | TRELLIS
    if isinstance(name, str) and name in known:
        return {field: getattr(known[name], field) for field in QuantScheme.model_fields}
    raise ConfigError(f"unknown preset {name!r}; the presets are {', '.join(sorted(known))}{meant(name, known)}")


PRESETS.update({name: QuantScheme(grid=grid) for name, grid in _GRIDS.items()})
PRESETS["mxfp4"] = QuantScheme(grid=E2M1, group_size=32, scale_dtype="e8m0")
PRESETS["mxpot"] = QuantScheme(grid=Grid(bits=4, magnitudes=(0, 1, 2, 2, 4, 4, 8, 8)), group_size=32, scale_dtype="e8m0")
PRESETS["iq4nl"] = QuantScheme(grid=_IQ4_NL, group_size=32)
PRESETS["pot3s"] = QuantScheme(grid=_POT3S, signed_scale=True)
PRESETS["apot3s"] = QuantScheme(grid=_APOT3S, signed_scale=True)
# {1, 2, 4, 8} at 2 bits, the same over integers to compare with, two terms at 3 bits
TRELLIS["pot2t"] = QuantScheme(grid=_GRIDS["pot3nz"], trellis=True)
TRELLIS["int2t"] = QuantScheme(grid=_GRIDS["int3_midrise"], trellis=True)
TRELLIS["apot3t"] = QuantScheme(grid=additive((3, 8, 14, 20, 28, 36, 48, 63)), trellis=True)
