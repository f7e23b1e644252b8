"""The quantization report: numbers, table, JSON."""

from __future__ import annotations

import io
import math
from typing import Any

import pytest
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

import potq
from potq.nn.record import describe
from potq.nn.report import ModuleReport, QuantReport, SkippedModule, UnusedTensor, decibels


def entry(name: str, **fields: Any) -> ModuleReport:
    values: dict[str, Any] = {
        "kind": "linear",
        "shape": (64, 64),
        "scheme": "pot4-g64",
        "algorithm": "rtn/mse-16",
        "bits_per_weight": 4.25,
        "snr_db": 20.0,
        "bytes_before": 16384,
        "bytes_after": 2176,
    }
    return ModuleReport(name=name, **(values | fields))


@pytest.fixture
def report() -> QuantReport:
    return QuantReport(
        modules=[
            entry("model.embed_tokens", kind="embedding", shape=(260, 64), bytes_after=17680, tied=("lm_head",)),
            entry("model.layers.0.mlp.up_proj", snr_db=20.0, output_snr_db=18.0),
            entry("model.layers.1.mlp.up_proj", snr_db=22.0),
            entry("model.layers.2.mlp.up_proj", snr_db=None, scheme="pot3-g64"),
        ],
        skipped=[SkippedModule(name="model.layers.0.gate", reason="ignored by config", nbytes=512)],
        bytes_after=30_000,
        weights=40_000,
    )


def rendered(tables: list[Table]) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(*tables)
    return console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("signal", "noise", "expected"),
    [
        (100.0, 1.0, 20.0),
        (1.0, 100.0, -20.0),
        (1.0, 1.0, 0.0),
        (1.0, 0.0, 200.0),
        (0.0, 0.0, 200.0),
        (0.0, 1.0, -200.0),
        (1e300, 1e-300, 200.0),
        (1e-300, 1e300, -200.0),
        (1e30, 1e-10, 200.0),
        (math.inf, 1.0, 200.0),
        (1.0, math.inf, -200.0),
    ],
)
def test_decibels(signal: float, noise: float, expected: float) -> None:
    assert decibels(signal, noise) == pytest.approx(expected)


def test_summary(report: QuantReport) -> None:
    assert report.bytes_before == 30_000 + 4 * 16384 - 17680 - 3 * 2176
    assert report.bits_per_weight == 8 * 30_000 / 40_000
    assert report.quantized_bits_per_weight == 8 * (17680 + 3 * 2176) / (260 * 64 + 3 * 64 * 64)
    quantized = "4 modules quantized at 6.695, 1 skipped; 0.1 MB -> 0.0 MB"
    assert report.summary() == f"6.000 bits per weight: {quantized}"
    assert report.model_copy(update={"weights": None}).summary() == quantized  # a report of 0.1, without its model


def test_bits_per_weight_count_what_was_skipped(tiny_model: Any) -> None:
    """A quarter of the weights at 4 bits is no 4-bit model."""
    config = potq.PoTConfig("pot4", embedding=None, ignore=["self_attn.*"])
    report = potq.quantize(tiny_model, config)
    state = tiny_model.state_dict()
    floats = [t for key, t in state.items() if t.is_floating_point() and not key.endswith("_scale")]
    left = {t.untyped_storage().data_ptr(): t.numel() for t in floats}  # the head is the embedding
    assert len(left) == len(floats) - 1
    weights = sum(left.values()) + sum(math.prod(module.shape) for module in report.modules)
    assert report.weights == weights
    stored = 4 * sum(left.values()) + sum(module.bytes_after for module in report.modules)
    assert report.bits_per_weight == 8 * stored / weights
    assert report.bits_per_weight > 3 * report.quantized_bits_per_weight
    assert report.summary().startswith(f"{report.bits_per_weight:.3f} bits per weight: 6 modules quantized at 4.")
    shown = report.to_dict()
    assert shown["bits_per_weight"] == report.bits_per_weight
    assert shown["quantized_bits_per_weight"] == report.quantized_bits_per_weight


def test_summary_says_how_much_was_skipped(report: QuantReport) -> None:
    experts = SkippedModule(name="model.layers.0.mlp.experts", reason="not supported", nbytes=20_000)
    found = report.model_copy(update={"skipped": [*report.skipped, experts]})
    assert found.skipped_share == 20_512 / found.bytes_before
    assert ", 2 skipped with 29% of the model; " in found.summary()


def test_fallbacks_name_their_modules(report: QuantReport) -> None:
    fallback = [entry(f"model.layers.{i}.mlp.spare", algorithm="rtn/mse (no text reaches it)") for i in range(5)]
    text = rendered(report.model_copy(update={"modules": [*report.modules, *fallback]}).tables())
    names = ", ".join(f"model.layers.{i}.mlp.spare" for i in range(3))
    assert f"algorithm: rtn/mse-16, rtn/mse (no text reaches it): {names} and 2 more" in " ".join(text.split())


def test_table_joins_the_layers(report: QuantReport) -> None:
    lines = rendered(report.tables()).splitlines()
    assert lines[0].startswith("6.000 bits per weight: 4 modules quantized")
    (joined,) = [line for line in lines if "model.layers.*.mlp.up_proj" in line and "pot4" in line]
    cells = ["model.layers.*.mlp.up_proj", "2", "64x64", "pot4-g64", "4.25", "21.0", "20.0", "18.0", "18.0"]
    assert joined.split() == cells
    (other,) = [line for line in lines if "pot3-g64" in line]  # another scheme, another row; nothing was measured
    assert other.split()[1:] == ["1", "64x64", "pot3-g64", "4.25", "-", "-", "-", "-"]
    assert any("model.embed_tokens = lm_head" in line for line in lines)
    assert any("algorithm: rtn/mse-16" in line for line in lines)
    assert any("model.layers.*.gate" in line and "ignored by config" in line for line in lines)


def test_table_of_every_module(report: QuantReport) -> None:
    tables = report.tables(every_module=True)
    text = rendered(tables)
    assert "*" not in text
    assert all(module.name in text for module in report.modules)
    assert [table.row_count for table in tables] == [4, 1]


def test_columns_and_tables_without_content_are_left_out(report: QuantReport) -> None:
    modules = [module.model_copy(update={"output_snr_db": None}) for module in report.modules]
    bare = report.model_copy(update={"modules": modules, "skipped": []})
    assert len(bare.tables()) == 1
    assert "output" not in rendered(bare.tables())


def test_markdown(report: QuantReport) -> None:
    report.unused.append(UnusedTensor(name="mtp.fc.weight", nbytes=2_000_000))
    blocks = report.to_markdown().split("\n\n")
    assert blocks[0] == report.summary()
    lines = blocks[1].splitlines()
    assert lines[:2] == [
        "| module | n | shape | scheme | bits | SNR | worst | output | worst |",
        "| --- | ---: | ---: | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    assert r"| model.layers.\*.mlp.up_proj | 2 | 64x64 | pot4-g64 | 4.25 | 21.0 | 20.0 | 18.0 | 18.0 |" in lines
    assert blocks[2:4] == [
        "SNR in dB; algorithm: rtn/mse-16",
        "1 tensors of the checkpoint are not used, 2.0 MB: mtp.fc.weight",
    ]
    assert blocks[4] == "Left in full precision:"
    assert blocks[5].splitlines()[2:] == [r"| model.layers.\*.gate | ignored by config |"]
    assert len(report.to_markdown(every_module=True).split("\n\n")[1].splitlines()) == 2 + 4


def test_json_round_trip(report: QuantReport) -> None:
    assert QuantReport.from_json(report.to_json()) == report
    with pytest.raises(ValidationError):
        QuantReport.from_json('{"modules": [], "skipped": [], "bytes_after": 1, "colour": "red"}')


def test_a_tied_weight_counts_once(tiny_model: Any) -> None:
    before = sum(p.nbytes for p in tiny_model.parameters())
    report = potq.quantize(tiny_model, potq.PoTConfig("pot4"))
    embedding = report.modules[0]
    assert (embedding.name, embedding.kind, embedding.tied) == ("model.embed_tokens", "embedding", ("lm_head",))
    assert report.bytes_before == before
    weights = sum(math.prod(module.shape) for module in report.modules)
    quantized = report.quantized_bits_per_weight
    assert quantized == sum(math.prod(m.shape) * m.bits_per_weight for m in report.modules) / weights
    assert report.weights == weights + 5 * 64  # norms
    linears = sum(math.prod(module.shape) for module in report.modules if module.kind == "linear")
    assert weights == 260 * 64 + linears
    # pot4 in groups of 64 is 4.25 bits; rows of 160 have 3 groups; int8 in groups of 64 is 8.25
    down = 2 * 64 * 160
    assert quantized * weights == pytest.approx(8.25 * 260 * 64 + 4.25 * (linears - down) + (4 + 3 * 16 / 160) * down)


def test_describe_without_a_recorded_report(packed_model: Any) -> None:
    recorded = describe(packed_model)
    assert recorded is packed_model.quant_report
    del packed_model.quant_report
    seen = describe(packed_model)
    fields = {"name", "shape", "scheme", "bits_per_weight", "bytes_before", "bytes_after", "tied"}
    assert {m.name: m.model_dump(include=fields) for m in seen.modules} == {
        m.name: m.model_dump(include=fields) for m in recorded.modules
    }
    assert (seen.bytes_after, seen.bytes_before) == (recorded.bytes_after, recorded.bytes_before)
    assert seen.weights == recorded.weights
    assert {module.algorithm for module in seen.modules} == {"not recorded"}
    assert "SNR" not in rendered(seen.tables())
