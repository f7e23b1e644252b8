"""Codes and scales of ONNX Runtime's operators for n bits, read by the operators themselves."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from potq.errors import ExportError
from potq.export.blocks import BlockType
from potq.export.onnx.types import DOMAIN, NBITS_TYPES, matmul_attributes, operands
from potq.export.targets import ONNX, check_schemes
from potq.numerics.scheme import PRESETS, QuantScheme
from potq.numerics.tensor import QuantizedWeight
from potq.ptq.algorithms.rtn import rtn

onnxruntime = pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")

from potq.export.onnx.check import dequantize  # noqa: E402

WIDTHS = {
    2: {"pot2z", "int2"},
    4: {"pot2", "pot3", "int2_midrise", "int3", "int3_midrise", "int4"},
    8: {
        "pot3nz",
        "pot3s",
        "pot4",
        "apot3",
        "apot3s",
        "apot4",
        "int4_midrise",
        "int8",
        "nf4",
        "iq4nl",
        "mxfp4",
        "mxpot",
    },  # +8 is none of -8..7
    None: {"pot5", "pot6", "pot7"},
}
VARIANTS = [
    QuantScheme("pot3", group_size="row"),
    QuantScheme("pot4", group_size="tensor"),
    QuantScheme("pot2z", group_size=32, scale_dtype="e8m0"),
    QuantScheme("mxpot", row_scale=True),
    QuantScheme("pot2", group_size=48),
]


def random(scheme: QuantScheme, columns: int) -> QuantizedWeight:
    weight = torch.randn(24, columns, generator=torch.Generator().manual_seed(columns))
    weight[1] = 0
    return rtn(weight, scheme, method="absmax")


def multiplied(codes: Tensor, scales: Tensor, kind: BlockType, columns: int) -> Tensor:
    """The weight ``(out, columns)`` as MatMulNBits multiplies it with the identity."""
    rows = len(codes)
    fields = matmul_attributes(kind, (rows, columns))
    node = onnx.helper.make_node("MatMulNBits", ["x", "codes", "scales"], ["y"], domain=DOMAIN, **fields)
    value = lambda name, width: onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [columns, width])  # noqa: E731
    stored = [onnx.numpy_helper.from_array(t.numpy(), name) for name, t in (("codes", codes), ("scales", scales))]
    graph = onnx.helper.make_graph([node], "product", [value("x", columns)], [value("y", rows)], stored)
    opsets = [onnx.helper.make_opsetid("", 20), onnx.helper.make_opsetid(DOMAIN, 1)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"x": np.eye(columns, dtype=np.float32)})[0]).T


def test_widths_of_the_presets() -> None:
    found: dict[int | None, set[str]] = {}
    for name, scheme in PRESETS.items():
        kind = ONNX.form(scheme)
        found.setdefault(int(kind.name.split("-")[0]) if kind else None, set()).add(name)
    assert found == WIDTHS


@pytest.mark.parametrize("columns", [64, 100, 576])
@pytest.mark.parametrize("scheme", [s for s in PRESETS.values() if ONNX.form(s)] + VARIANTS, ids=lambda scheme: scheme.name)
def test_both_operators_read_the_very_weights(scheme: QuantScheme, columns: int) -> None:
    weight = random(scheme, columns)
    kind = ONNX.form(scheme, columns)
    assert kind is not None
    codes, scales = operands(weight, kind)
    assert codes.nbytes + scales.nbytes == round(weight.shape[0] * columns * kind.bits(columns) / 8)
    expected = weight.dequantize()
    assert expected.abs().max() > 0
    assert torch.equal(dequantize(codes.numpy(), scales.numpy(), kind)[:, :columns], expected)
    assert torch.equal(multiplied(codes, scales, kind, columns), expected)


@pytest.mark.parametrize("kind", NBITS_TYPES, ids=lambda kind: kind.name)
def test_every_type_is_computed(kind: BlockType) -> None:
    """Every code, in every block; a row that ends within one."""
    columns = 2 * kind.weights + 8
    grid = {2: "int2", 4: "int4", 8: "int8"}[int(kind.name.split("-")[0])]
    weight = random(QuantScheme(grid, group_size=kind.weights), columns)
    assert torch.equal(multiplied(*operands(weight, kind), kind, columns), weight.dequantize())


@pytest.mark.parametrize(
    ("scheme", "columns", "name"),
    [
        (QuantScheme("pot3", group_size="row"), 4096, "4-bit/256"),
        (QuantScheme("pot3", group_size="row"), 576, "4-bit/64"),  # three blocks of 256 would store 768 weights
        (QuantScheme("pot3", group_size=48), 4096, "4-bit/16"),
        (QuantScheme("pot3", group_size=40), 4096, None),
        (QuantScheme("pot3", group_size=8), 4096, None),
        (QuantScheme("pot3", group_size=40), 40, "4-bit/64"),
    ],
)
def test_blocks(scheme: QuantScheme, columns: int, name: str | None) -> None:
    kind = ONNX.form(scheme, columns)
    assert (kind.name if kind else None) == name


def test_refusals_name_the_nearest() -> None:
    with pytest.raises(ExportError, match=r"pot4-g64 exactly only as 8-bit/64, 8.5 bits per weight: pass --allow-8bit"):
        check_schemes([PRESETS["pot4"]], ONNX, allow_8bit=False)
    with pytest.raises(ExportError, match="no type that holds pot5-g64 exactly; the nearest scheme that it holds is int4"):
        check_schemes([PRESETS["pot5"]], ONNX, allow_8bit=True)


def test_scales_that_a_processor_may_flush_are_refused() -> None:
    scheme = QuantScheme("pot3", scale_dtype="e8m0")
    weight = random(scheme, 64)
    weight.scale[3] = 2  # 2**-125, by the reference 4
    with pytest.raises(ExportError, match="beyond the range"):
        operands(weight, NBITS_TYPES[-1])
    weight.scale[3] = 3
    kind = ONNX.form(scheme, 64)
    assert kind is not None
    assert torch.equal(multiplied(*operands(weight, kind), kind, 64), weight.dequantize())
