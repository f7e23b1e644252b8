"""The table of exact forms, and refusals that name the nearest scheme."""

from __future__ import annotations

import pytest

from potq.errors import ExportError
from potq.export.targets import COMPRESSED_TENSORS, GGUF, ONNX, TARGETS, check_schemes, nearest
from potq.numerics.scheme import PRESETS, TRELLIS, QuantScheme

FORMS = {
    "pot2": ("Q4_0", 4.5),
    "pot2z": ("Q4_0", 4.5),
    "pot3": ("Q4_0", 4.5),
    "pot3nz": ("Q5_0", 5.5),  # +8 and -8, and Q4_0 ends at +7
    "pot4": ("Q8_0", 8.5),
    "pot5": None,
    "pot6": None,
    "pot7": None,
    "pot3s": ("Q5_0", 5.5),
    "apot3": ("Q8_0", 8.5),
    "apot3s": ("Q8_0", 8.5),
    "apot4": ("Q8_0", 8.5),
    "int2": ("Q4_0", 4.5),
    "int3": ("Q4_0", 4.5),
    "int4": ("Q4_0", 4.5),
    "int8": ("Q8_0", 8.5),
    "int2_midrise": ("Q4_0", 4.5),
    "int3_midrise": ("Q4_0", 4.5),
    "int4_midrise": ("Q5_0", 5.5),
    "nf4": ("Q8_0", 8.5),
    "iq4nl": ("IQ4_NL", 4.5),
    "mxfp4": ("MXFP4", 4.25),
    "mxpot": ("MXFP4", 4.25),
}


def form(scheme: QuantScheme, columns: int = 4096) -> tuple[str, float] | None:
    kind = GGUF.form(scheme, columns)
    return (kind.name, kind.bits_per_weight) if kind is not None else None


def test_every_preset() -> None:
    assert {name: form(scheme) for name, scheme in PRESETS.items()} == FORMS


def test_a_trellis_takes_what_its_levels_take() -> None:
    forms = {"pot2t": ("Q5_0", 5.5), "int2t": ("Q4_0", 4.5), "apot3t": ("Q8_0", 8.5)}
    assert {name: form(scheme) for name, scheme in TRELLIS.items()} == forms


@pytest.mark.parametrize(
    ("scheme", "expected"),
    [
        (QuantScheme("pot2z", group_size="row"), ("TQ2_0", 2.0625)),
        (QuantScheme("pot2z", group_size=512), ("TQ2_0", 2.0625)),
        (QuantScheme("pot3", scale_dtype="e8m0"), ("MXFP4", 4.25)),
        (QuantScheme("pot2", scale_dtype="e8m0"), ("MXFP4", 4.25)),
        (QuantScheme("int3", scale_dtype="e8m0"), ("MXFP4", 4.25)),
        (QuantScheme("int4", scale_dtype="e8m0"), ("Q4_0", 4.5)),
        (QuantScheme("pot4", scale_dtype="e8m0"), ("Q8_0", 8.5)),
        (QuantScheme("mxpot", row_scale=True), ("Q5_0", 5.5)),
        (QuantScheme("pot3", group_size=16), None),
    ],
)
def test_variants(scheme: QuantScheme, expected: tuple[str, float] | None) -> None:
    assert form(scheme) == expected


def test_rows_decide_too() -> None:
    assert form(QuantScheme("pot2z", group_size="row"), 576) == ("Q4_0", 4.5)
    assert form(QuantScheme("pot3"), 100) is None


@pytest.mark.parametrize("name", [name for name, expected in FORMS.items() if expected and expected[1] < 8] + ["int8"])
def test_small_forms_pass(name: str) -> None:
    check_schemes([PRESETS[name]], GGUF, allow_8bit=False)


@pytest.mark.parametrize(("name", "instead"), [("pot4", "mxpot"), ("apot4", "mxfp4"), ("apot3", "int3"), ("nf4", "iq4nl")])
def test_eight_bits_want_the_flag(name: str, instead: str) -> None:
    with pytest.raises(ExportError) as error:
        check_schemes([PRESETS["int8"], PRESETS[name]], GGUF, allow_8bit=False)
    assert f"{PRESETS[name].name} exactly only as Q8_0, 8.5 bits per weight: pass --allow-8bit" in str(error.value)
    assert f"quantize to {instead}, the nearest" in str(error.value)
    check_schemes([PRESETS[name]], GGUF, allow_8bit=True)


def test_the_nearest_of_a_trellis_has_as_many_bits() -> None:
    with pytest.raises(ExportError, match=r"apot3t-g64 exactly only as Q8_0, .* quantize to int3, the nearest"):
        check_schemes([TRELLIS["apot3t"]], GGUF, allow_8bit=False)
    with pytest.raises(ExportError, match=r"no type that holds apot3t-g64 exactly; the nearest scheme .* is pot3"):
        check_schemes([TRELLIS["apot3t"]], COMPRESSED_TENSORS, allow_8bit=True)
    with pytest.raises(ExportError, match=r"pot2t-g64 exactly only as .*, 8.5 bits .* quantize to pot2z, the nearest"):
        check_schemes([TRELLIS["pot2t"]], ONNX, allow_8bit=False)


def test_what_has_no_form_is_refused() -> None:
    with pytest.raises(ExportError, match="no type that holds pot5-g64 exactly; the nearest scheme that it holds is mxpot"):
        check_schemes([PRESETS["pot5"]], GGUF, allow_8bit=True)


def test_the_nearest_has_a_small_form() -> None:
    for target in TARGETS.values():
        check_schemes([PRESETS[nearest(scheme, target)] for scheme in PRESETS.values()], target, allow_8bit=False)
