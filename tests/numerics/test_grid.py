"""Grids: the preset tables of the design, the three encodings, and what a grid refuses."""

from __future__ import annotations

from itertools import product
from statistics import NormalDist

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from potq.errors import ConfigError, PotqError
from potq.numerics.grid import E2M1, Grid, additive, pot, shift_terms, table, uniform
from potq.numerics.scheme import PRESETS, TRELLIS

MAGNITUDES = {
    "pot4": (0, 1, 2, 4, 8, 16, 32, 64),
    "pot3": (0, 1, 2, 4),
    "pot3nz": (1, 2, 4, 8),
    "pot2": (1, 4),
    "pot2z": (0, 1),
    "mxfp4": (0, 1, 2, 3, 4, 6, 8, 12),
    "int4_midrise": (1, 3, 5, 7, 9, 11, 13, 15),
    "int3_midrise": (1, 3, 5, 7),
    "int2_midrise": (1, 3),
    "pot5": (0, *(2**i for i in range(15))),
    "pot6": (0, *(2**i for i in range(31))),
    "pot7": (0, *(2**i for i in range(63))),
}


@pytest.mark.parametrize("name", MAGNITUDES)
def test_preset_table_is_the_designs(name: str) -> None:
    grid = PRESETS[name].grid
    assert grid.encoding == "sign-magnitude"
    assert grid.magnitudes == MAGNITUDES[name]
    assert grid.levels == MAGNITUDES[name] + tuple(-m for m in MAGNITUDES[name])


def test_mxpot_levels_are_power_of_two_levels_at_their_e2m1_codes() -> None:
    grid = PRESETS["mxpot"].grid
    assert sorted(set(grid.magnitudes)) == [0, 1, 2, 4, 8]
    written = set(range(16)) - grid.unused_codes
    assert {code: grid.levels[code] for code in written} == {code: E2M1.levels[code] for code in written}


@pytest.mark.parametrize(("name", "bits"), [("apot4", 4), ("apot3", 3)])
def test_additive_preset_is_two_shifts_a_level_in_a_signed_byte(name: str, bits: int) -> None:
    """The tables themselves come from a search; what they may hold does not."""
    grid = PRESETS[name].grid
    assert (grid.bits, grid.terms, grid.fits_int8) == (bits, 2, True)
    assert len(set(grid.magnitudes)) == 2 ** (bits - 1)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_integer_preset_is_twos_complement(bits: int) -> None:
    grid = PRESETS[f"int{bits}"].grid
    signed = [code - (2**bits if code >= 2 ** (bits - 1) else 0) for code in range(2**bits)]
    assert list(grid.levels) == signed
    assert (min(grid.levels), max(grid.levels)) == (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def test_nf4_is_qloras_quantiles_times_127() -> None:
    """2305.14314, appendix E: normal quantiles, 8 above zero and 7 below, divided by the largest."""
    offset, quantile = 0.9677083, NormalDist().inv_cdf
    above = [quantile(offset + (0.5 - offset) * i / 8) for i in range(8)]
    below = [-quantile(offset + (0.5 - offset) * i / 7) for i in range(7)]
    assert PRESETS["nf4"].grid.levels == tuple(sorted(round(127 * level / above[0]) for level in (*above, 0, *below)))


def test_iq4nl_is_llama_cpps_table() -> None:
    grid = PRESETS["iq4nl"].grid
    assert grid.levels == grid.table
    assert grid.levels == (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


def test_the_presets_are_the_designs_and_no_others() -> None:
    integers = {"int2", "int3", "int4", "int8"}
    others = {"mxpot", "apot4", "apot3", "pot3s", "apot3s", "nf4", "iq4nl"}
    assert set(PRESETS) == set(MAGNITUDES) | integers | others
    assert set(TRELLIS) == {"pot2t", "int2t", "apot3t"}


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_code_has_a_level(name: str) -> None:
    grid = PRESETS[name].grid
    assert len(grid.levels) == 2**grid.bits


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_reference_is_the_power_of_two_at_or_below_the_largest_level(name: str) -> None:
    grid = PRESETS[name].grid
    top = max(abs(level) for level in grid.levels)
    assert grid.reference.bit_count() == 1
    assert grid.reference <= top < 2 * grid.reference


@pytest.mark.parametrize(
    ("name", "reference"),
    [("pot4", 64), ("pot3", 4), ("pot2", 4), ("pot2z", 1), ("mxfp4", 8), ("mxpot", 8),
     ("int2", 2), ("int4", 8), ("int8", 128), ("int3_midrise", 4), ("pot7", 2**62), ("nf4", 64), ("iq4nl", 64)],
)  # fmt: skip
def test_reference_values(name: str, reference: int) -> None:
    assert PRESETS[name].grid.reference == reference


def test_shift_terms_equal_brute_force_over_signed_digit_sums() -> None:
    signed = [sign * 2**k for sign, k in product((1, -1), range(11))]
    by_terms = [{0}]
    for _ in range(5):
        by_terms.append({total + power for total in by_terms[-1] for power in signed})
    for level in range(-300, 301):
        assert shift_terms(level) == next(n for n, sums in enumerate(by_terms) if level in sums), level


@given(st.integers(-(2**70), 2**70))
def test_shift_terms_ignore_sign_and_shift(level: int) -> None:
    assert shift_terms(level) == shift_terms(-level) == shift_terms(level * 8)


def test_terms_of_the_presets() -> None:
    one = {"pot2", "pot2z", "pot3", "pot3nz", "pot3s", "pot4", "pot5", "pot6", "pot7", "mxpot", "int2"}
    assert {name for name, scheme in PRESETS.items() if scheme.grid.is_power_of_two} == one
    assert PRESETS["apot4"].grid.terms == PRESETS["apot3"].grid.terms == PRESETS["apot3s"].grid.terms == E2M1.terms == 2


def test_has_zero() -> None:
    without = {"pot2", "pot3nz", "int2_midrise", "int3_midrise", "int4_midrise", "iq4nl"}
    assert {name for name, scheme in PRESETS.items() if not scheme.grid.has_zero} - {"apot3", "apot4"} == without


def test_levels_fit_int8_up_to_four_bits_and_in_int8_itself() -> None:
    for name, scheme in PRESETS.items():
        assert scheme.grid.fits_int8 == (scheme.grid.bits <= 4 or name == "int8"), name


def test_unused_codes_are_the_repeats_on_both_sides_of_the_sign() -> None:
    assert PRESETS["mxpot"].grid.unused_codes == {3, 5, 7, 11, 13, 15}
    assert all(not scheme.grid.unused_codes for name, scheme in PRESETS.items() if name != "mxpot")


def test_used_levels_keep_every_level() -> None:
    grid = Grid(bits=3, magnitudes=(0, 0, 3, 3))
    used = {grid.levels[code] for code in set(range(8)) - grid.unused_codes}
    assert used == set(grid.levels) == {-3, 0, 3}


def test_stride_spaces_the_exponents() -> None:
    assert pot(3, stride=2).magnitudes == (0, 1, 4, 16)
    assert pot(3, zero=False, stride=3).magnitudes == (1, 8, 64, 512)


def test_a_tables_code_is_its_index() -> None:
    grid = table((-9, -1, 0, 17))
    assert (grid.bits, grid.levels, grid.reference, grid.unused_codes) == (2, (-9, -1, 0, 17), 16, frozenset())
    assert grid == Grid(bits=2, encoding="table", table=(-9, -1, 0, 17))
    assert table((-(2**63), -1, 1, 2)).reference == 2**63
    assert [table(tuple(range(-(n // 2), n - n // 2))).bits for n in (4, 8, 16, 64, 256)] == [2, 3, 4, 6, 8]


def test_uniform_midrise_has_the_odd_magnitudes() -> None:
    assert uniform(8, midrise=True).magnitudes == tuple(range(1, 256, 2))


def test_additive_takes_bits_from_the_tables_size() -> None:
    assert [additive(tuple(range(1, n + 1)), terms=4).bits for n in (2, 4, 8, 16, 64, 128)] == [2, 3, 4, 5, 7, 8]


def test_grid_is_frozen_hashable_and_equal_by_value() -> None:
    first, second = pot(4), pot(4)
    assert first.levels  # a cached property must not enter equality
    assert first == second
    assert hash(first) == hash(second)
    assert first != pot(3)
    with pytest.raises(ValidationError):
        first.bits = 3


def test_json_round_trip() -> None:
    for scheme in PRESETS.values():
        assert Grid.model_validate_json(scheme.grid.model_dump_json()) == scheme.grid


def test_only_the_json_of_a_table_has_a_table() -> None:
    assert table((-2, 0, 1, 3)).model_dump() == {"bits": 2, "encoding": "table", "magnitudes": (), "table": (-2, 0, 1, 3)}
    assert pot(2).model_dump_json() == '{"bits":2,"encoding":"sign-magnitude","magnitudes":[0,1]}'
    assert uniform(2).model_dump_json() == '{"bits":2,"encoding":"twos-complement","magnitudes":[]}'
    assert Grid.model_validate_json('{"bits":2,"magnitudes":[0,1],"table":[]}') == pot(2)


@pytest.mark.parametrize(("bits", "stride"), [(1, 1), (8, 1), (0, 1), (4, 0), (4, -1)])
def test_pot_refuses_bits_and_strides_out_of_range(bits: int, stride: int) -> None:
    with pytest.raises(ConfigError, match=r"2\.\.7 bits"):
        pot(bits, stride=stride)


@pytest.mark.parametrize(("bits", "stride"), [(7, 2), (6, 3), (4, 11)])
def test_pot_refuses_levels_beyond_float32s_reach_with_potqs_error(bits: int, stride: int) -> None:
    with pytest.raises(PotqError, match=r"2\*\*63"):
        pot(bits, stride=stride)


@pytest.mark.parametrize("bits", [1, 9])
@pytest.mark.parametrize("midrise", [False, True])
def test_uniform_refuses_bits_out_of_range(bits: int, midrise: bool) -> None:
    with pytest.raises(ConfigError, match=r"2\.\.8 bits"):
        uniform(bits, midrise=midrise)


def test_additive_names_the_magnitudes_that_cost_too_much() -> None:
    with pytest.raises(ConfigError, match=r"\[11, 13\]"):
        additive((1, 3, 11, 13))
    assert additive((1, 3, 11, 13), terms=3).terms == 3


@pytest.mark.parametrize("size", [0, 1, 3, 5, 12, 256])
def test_additive_refuses_a_table_of_another_size(size: int) -> None:
    with pytest.raises(ConfigError, match=r"magnitude|bits"):
        additive(tuple(range(size)), terms=9)


@pytest.mark.parametrize("magnitudes", [(4, 1), (-1, 1), (0, 0)])
def test_additive_refuses_a_table_that_is_no_grid_with_potqs_error(magnitudes: tuple[int, ...]) -> None:
    with pytest.raises(PotqError, match="magnitudes"):
        additive(magnitudes)


@pytest.mark.parametrize("size", [0, 1, 2, 3, 15, 17, 512])
def test_table_refuses_another_number_of_levels(size: int) -> None:
    with pytest.raises(ConfigError, match=f"256 levels, found {size}"):
        table(tuple(range(-1, size - 1)))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"bits": 3, "magnitudes": (0, 1, 2)}, "needs 4 magnitudes, found 3"),
        ({"bits": 3}, "needs 4 magnitudes, found 0"),
        ({"bits": 2, "magnitudes": (2, 1)}, "ascending"),
        ({"bits": 2, "magnitudes": (-1, 1)}, "non-negative"),
        ({"bits": 2, "magnitudes": (0, 0)}, "not all zero"),
        ({"bits": 2, "encoding": "twos-complement", "magnitudes": (0, 1)}, "no magnitude table"),
        ({"bits": 2, "magnitudes": (1, 2**14 + 1)}, "13 significant bits"),
        ({"bits": 2, "magnitudes": (1, 2**64)}, r"2\*\*63"),
        ({"bits": 2, "encoding": "table"}, "needs 4 levels, found 0"),
        ({"bits": 3, "encoding": "table", "table": (-1, 0, 1, 2)}, "needs 8 levels, found 4"),
        ({"bits": 2, "encoding": "table", "table": (-1, 0, 0, 1)}, "strictly ascending"),
        ({"bits": 2, "encoding": "table", "table": (1, 0, -1, -2)}, "strictly ascending"),
        ({"bits": 2, "encoding": "table", "table": (0, 1, 2, 3)}, "from a negative level to a positive one"),
        ({"bits": 2, "encoding": "table", "table": (-3, -2, -1, 0)}, "from a negative level to a positive one"),
        ({"bits": 2, "encoding": "table", "table": (-(2**14) - 1, 0, 1, 2)}, "13 significant bits"),
        ({"bits": 2, "encoding": "table", "table": (-(2**64), 0, 1, 2)}, r"2\*\*63"),
        ({"bits": 2, "encoding": "table", "table": (-1, 0, 1, 2), "magnitudes": (0, 1)}, "no magnitude table"),
        ({"bits": 2, "magnitudes": (0, 1), "table": (-1, 0, 1, 2)}, "no table of levels"),
        ({"bits": 2, "encoding": "twos-complement", "table": (-1, 0, 1, 2)}, "no table of levels"),
        ({"bits": 1, "magnitudes": (1,)}, "bits"),
        ({"bits": 9, "encoding": "twos-complement"}, "bits"),
        ({"bits": 2, "encoding": "gray"}, "encoding"),
        ({"bits": 2, "magnitudes": (0, 1), "zero": True}, "zero"),
    ],
)
def test_grid_refuses(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Grid(**fields)  # type: ignore[arg-type]
