"""The folder of a design: whole or not at all, and right by Verilator's account of it, if Verilator is here."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from potq.errors import CheckpointError
from potq.hardware.gates import simulate, tools
from potq.hardware.rtl import product, testbench
from potq.hardware.rtl.design import design_of
from potq.hardware.rtl.product import Structure, possible
from potq.hardware.rtl.vectors import product_vectors, sum_vectors
from potq.hardware.rtl.write import write
from potq.numerics.scheme import PRESETS, QuantScheme

verilator = pytest.mark.skipif(tools.missing("verilator") is not None, reason=tools.missing("verilator") or "")
deep = pytest.mark.skipif(os.environ.get("HYPOTHESIS_PROFILE") != "deep", reason="takes minutes: make check-deep")
NUMBERED = [name for name, scheme in PRESETS.items() if isinstance(scheme.group_size, int)]


@pytest.fixture
def few_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(testbench, "GROUPS", 8)


@pytest.mark.usefixtures("few_groups")
def test_a_folder_holds_modules_vectors_and_a_description(tmp_path: Path) -> None:
    design = design_of(QuantScheme("pot3s"))
    folder = write(design, tmp_path / "rtl")
    kinds = ("product", "mac", "dot", "scale")
    expected = {f"pot3s_g64_{kind}.{ending}" for kind in kinds for ending in ("sv", "hex")}
    assert {path.name for path in folder.iterdir()} == expected | {"pot3s_g64_testbench.sv", "design.json"}
    found = json.loads((folder / "design.json").read_text())
    assert (found["levels"], found["sum_bits"], found["start"]) == ([-8, -4, -2, 0, 1, 2, 4, 8], 18, 196608)
    assert len((folder / "pot3s_g64_product.hex").read_text().splitlines()) == 8 * 256


def test_what_is_in_the_way_stays(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="is not an empty folder; choose another output folder"):
        write(design_of(QuantScheme("pot3")), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_nothing_is_left_of_a_folder_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, *_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(CheckpointError, match="No space left on device"):
        write(design_of(QuantScheme("pot3")), tmp_path / "rtl")
    assert list(tmp_path.iterdir()) == []


def test_vectors_hold_python_s_integers_and_both_extremes() -> None:
    design = design_of(QuantScheme("mxpot", group_size=32), lanes=16)
    products = product_vectors(design)
    codes = {word[2] for word in products.words}
    assert codes == set(range(16)) - design.grid.unused_codes
    assert all(word[0] == design.grid.levels[word[2]] * word[1] for word in products.words)
    sums = [word[0] for word in sum_vectors(design, "dot", 3).words if word[1]]
    assert sums[:2] == [32 * 8 * 128, -32 * 8 * 128]
    assert len(sums) == 5


@verilator
@pytest.mark.usefixtures("few_groups")
def test_verilator_computes_what_python_does() -> None:
    found = simulate.simulate(design_of(QuantScheme("pot3s")))
    assert found["product"] == (8 * 256, 0)
    assert set(found) == {"product", "mac", "dot", "scale"}
    assert all(vectors and not differing for vectors, differing in found.values())


@verilator
@deep
@pytest.mark.usefixtures("few_groups")
def test_a_wrong_shift_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = product.build

    def wrong(*arguments: object) -> product.Product:
        built = right(*arguments)  # type: ignore[arg-type]
        return product.Product(tuple(line.replace("by2 ?", "~by2 ?") for line in built.lines), built.terms, built.constant)

    monkeypatch.setattr("potq.hardware.rtl.design.build", wrong)
    found = simulate.simulate(design_of(QuantScheme("pot3s")))
    assert found["product"][1] > 1000
    assert found["dot"][1] > 0


EVERY = [(name, structure) for name in NUMBERED for structure in possible(PRESETS[name].grid)]


@verilator
@deep
@pytest.mark.parametrize(("preset", "structure"), EVERY, ids=[f"{name}-{structure}" for name, structure in EVERY])
def test_every_preset_in_every_structure(preset: str, structure: Structure) -> None:
    found = simulate.simulate(design_of(QuantScheme(preset), structure=structure))
    assert all(vectors and not differing for vectors, differing in found.values())
    assert len(found) == 4


@verilator
@deep
@pytest.mark.parametrize("options", [{"activation_bits": 4}, {"lanes": 1}, {"chained": True}], ids=str)
@pytest.mark.parametrize("preset", ["pot3", "apot4", "int4"])
def test_other_sizes(preset: str, options: dict[str, int]) -> None:
    found = simulate.simulate(design_of(QuantScheme(preset), **options))  # type: ignore[arg-type]
    assert all(vectors and not differing for vectors, differing in found.values())
