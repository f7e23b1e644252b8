"""Designs: what can be asked for, and what is refused."""

from __future__ import annotations

import pytest

from potq.errors import ConfigError
from potq.hardware.rtl.design import design_of
from potq.numerics.scheme import QuantScheme


@pytest.mark.parametrize(
    ("scheme", "options", "message"),
    [
        ("pot4:group_size=row", {}, "pot4-row: the accumulator's width follows from the group.*such as pot4:group_size=64"),
        ("pot4", {"lanes": 48}, "48 lanes do not divide a group of 64"),
        ("pot4", {"lanes": 0}, "lanes must be 1 to 1024, found 0"),
        ("pot4", {"activation_bits": 1}, "activation_bits must be 2 to 16, found 1"),
        ("apot4", {"structure": "shift"}, "structure 'shift' cannot multiply by the levels .*two-shifts, baugh-wooley"),
        ("pot4", {"name": "Pot"}, "'Pot' cannot begin the name of a module"),
    ],
)
def test_what_cannot_be_is_refused(scheme: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        design_of(QuantScheme(scheme), **options)  # type: ignore[arg-type]


def test_an_accumulator_starts_with_the_constants_of_a_group() -> None:
    design = design_of(QuantScheme("int4"), structure="booth")
    assert design.product.constant == -(256 + 1024)
    assert design.start == -64 * 1280 % 2**18
