"""Frontiers: what is measured, what is on them, and how they are shown."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

import potq
from potq.errors import ConfigError
from potq.evaluate.compare import KeptRows, Protocol, Row
from potq.evaluate.perplexity import perplexity
from potq.hardware import report
from potq.hardware.gates import frontier as frontiers
from potq.hardware.gates import tools
from potq.hardware.gates.frontier import Circuit, Point, check_schemes, frontier, round_inputs, with_best
from potq.hardware.gates.stream import in_integers
from potq.numerics.scheme import QuantScheme

wanted = tools.missing("yosys", "sta", cells=True)
measured = pytest.mark.skipif(wanted is not None, reason=wanted or "")
deep = pytest.mark.skipif(os.environ.get("HYPOTHESIS_PROFILE") != "deep", reason="takes minutes: make check-deep")
SCHEMES = [QuantScheme("pot3", group_size=32), QuantScheme("int3", group_size=32)]


def point(name: str, perplexity: float, area: float, toggles: float, stored: float) -> Point:
    return Point(name, 8, perplexity, stored, Circuit("shift", area, 0.0, 5.0, toggles))


POINTS = [point("a", 9, 1, 1, 0.5), point("b", 8, 2, 1, 0.5), point("c", 8.5, 3, 0.5, 0.5), point("d", 8.5, 3, 2, 0.25)]


def test_a_point_is_on_a_frontier_if_none_is_as_cheap_and_as_good() -> None:
    assert [found.best for found in with_best(POINTS)] == [("area",), ("area", "toggles", "bytes"), ("toggles",), ("bytes",)]


def test_equal_points_are_both_on_it() -> None:
    assert [found.best for found in with_best([POINTS[0], POINTS[0]])] == [("area", "toggles", "bytes")] * 2


def test_inputs_of_packed_linears_are_rounded(tiny_model: LlamaForCausalLM, tokens: torch.Tensor) -> None:
    potq.quantize(tiny_model, potq.PoTConfig("pot4", group_size=32))
    linear, seen = tiny_model.get_submodule("model.layers.0.mlp.down_proj"), []
    before = tiny_model(tokens).logits
    round_inputs(tiny_model, 4)
    linear.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    after = tiny_model(tokens).logits
    assert not torch.equal(before, after)
    integers, step = in_integers(seen[0], 32, 4)
    assert torch.allclose((integers * step).flatten(-2), seen[0], rtol=1e-6)
    assert integers.abs().max() == 7


@pytest.mark.parametrize(
    ("schemes", "bits", "message"),
    [
        ([QuantScheme("pot3", group_size="row")], (8,), "pot3-row: the accumulator's width"),
        ([QuantScheme("pot3"), QuantScheme("pot3")], (8,), "named twice"),
        ([QuantScheme("pot3")], (8, 8), "named twice"),
        ([QuantScheme("pot3")], (), "at least one scheme and one number"),
        ([QuantScheme("pot3")], (20,), "activation_bits must be 2 to 16, found 20"),
    ],
)
def test_what_has_no_circuit_is_refused(schemes: list[QuantScheme], bits: tuple[int, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_schemes(schemes, bits)


def test_perplexities_are_kept_and_those_of_rounded_models(
    tiny_model: LlamaForCausalLM, tokens: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frontiers, "check_schemes", lambda *_: None)
    monkeypatch.setattr(
        frontiers, "circuit", lambda scheme, *_, **__: Circuit("shift", scheme.grid.levels[1], 0.0, 1.0, 1.0)
    )
    protocol, rows = Protocol(tokens.flatten(), window=24), tmp_path / "rows.json"
    base, points = frontier(tiny_model, protocol, SCHEMES, activation_bits=(8, 4), kept=KeptRows(rows))
    assert base.perplexity == perplexity(tiny_model, tokens.flatten(), window=24).perplexity
    assert [(found.scheme, found.activation_bits) for found in points] == [
        ("pot3-g32", 8),
        ("pot3-g32", 4),
        ("int3-g32", 8),
        ("int3-g32", 4),
    ]
    potq.quantize(tiny_model, potq.PoTConfig(scheme=SCHEMES[0], embedding=None))
    potq.kernels.set_activations(tiny_model, "float")
    round_inputs(tiny_model, 4)
    assert points[1].perplexity == perplexity(tiny_model, tokens.flatten(), window=24).perplexity
    assert len(json.loads(rows.read_text())["rows"]) == 5


@measured
@deep
def test_a_frontier_with_real_circuits(tiny_model: LlamaForCausalLM, tokens: torch.Tensor, tmp_path: Path) -> None:
    base, points = frontier(tiny_model, Protocol(tokens.flatten(), window=24), SCHEMES)
    pot3, int3 = (found.circuit for found in points)
    assert pot3.structure == "shift"
    assert pot3.dot < 0.75 * int3.dot
    assert pot3.toggles < 0.75 * int3.toggles
    assert "area" in points[0].best
    report.plot(base, points, tmp_path / "frontier.png", "tiny")
    assert (tmp_path / "frontier.png").read_bytes().startswith(b"\x89PNG")


def test_tables_and_json_say_the_same() -> None:
    points: list[Any] = with_best(POINTS)
    base = Row("full precision", "-", 32.0, 32.0, 7.0, 512, 511, (), 0.0)
    told = json.loads(json.dumps(report.to_dict(base, points)))
    assert told["full_precision"] == 7
    assert [(each["scheme"], each["perplexity"], each["circuit"]["dot"]) for each in told["points"]][1] == ("b", 8, 2)
    assert told["points"][1]["best"] == ["area", "toggles", "bytes"]
    lines = report.markdown(points).splitlines()
    assert [cell.strip() for cell in lines[3].split("|")[1:-1]][:4] == ["b", "int8", "8.00", "2"]
    assert lines[3].rstrip(" |").endswith("area, toggles, bytes")
    assert report.table(points).row_count == 4
