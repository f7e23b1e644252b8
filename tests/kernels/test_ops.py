"""The registered ops: what torch asks of an op, and the same results compiled, exported and eager."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from potq import native
from potq.kernels import ops, set_activations
from potq.kernels.cpu import backend
from potq.kernels.prepared import Prepared
from potq.kernels.weight import PackedWeight
from potq.nn.packed import pack_module
from potq.numerics.scheme import PRESETS, QuantScheme
from potq.numerics.tensor import QuantizedWeight
from potq.ptq.algorithms.rtn import rtn

IN, OUT = 70, 11
NAMES = ["pot4", "pot3", "int8", "mxpot", "pot5"]  # pot5 is the reference's
ROWS = QuantScheme("pot4", group_size=32, scale_dtype="e8m0", row_scale=True)


def _rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _weight(scheme: QuantScheme) -> QuantizedWeight:
    return rtn(_rand(OUT, IN), scheme, method="absmax")


def _linear(scheme: QuantScheme = PRESETS["pot4"], bias: bool = True) -> Any:
    return pack_module(nn.Linear(IN, OUT, bias=bias), _weight(scheme)).requires_grad_(False)


class _Tied(nn.Module):
    """Look-up, two layers and a head that reads the table."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = pack_module(nn.Embedding(13, IN), rtn(_rand(13, IN), PRESETS["int8"], method="absmax"))
        schemes = PRESETS["pot4"], PRESETS["pot3"], ROWS
        layers = [rtn(_rand(IN, IN, seed=seed), scheme) for seed, scheme in enumerate(schemes)]
        self.layers = nn.ModuleList(pack_module(nn.Linear(IN, IN), layer) for layer in layers)
        self.head = pack_module(nn.Linear(IN, 13, bias=False), self.embedding)

    def forward(self, ids: Tensor) -> Tensor:
        hidden: Tensor = self.embedding(ids)
        for layer in self.layers:
            hidden = hidden + torch.relu(layer(hidden))
        logits: Tensor = self.head(hidden)
        return logits


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> None:
    torch._dynamo.reset()


# ---- the ops -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "dtype", "bias", "input_grad", "bias_grad"),
    [
        ("pot4", torch.float32, False, False, False),
        ("pot3", torch.float32, True, False, False),
        ("pot4", torch.bfloat16, True, False, False),
        ("int8", torch.float32, False, True, False),
        ("pot4", torch.float32, True, True, True),
        ("pot4", torch.float32, True, True, False),
        ("pot4", torch.float32, True, False, True),
        ("mxpot", torch.bfloat16, True, True, True),
        ("pot5", torch.float64, True, True, True),
    ],
)
def test_linear_is_an_op_as_torch_wants_them(
    name: str, dtype: torch.dtype, bias: bool, input_grad: bool, bias_grad: bool
) -> None:
    weight = _weight(PRESETS[name])
    x = _rand(2, 3, IN).to(dtype).requires_grad_(input_grad)
    b = _rand(OUT).to(dtype).requires_grad_(bias_grad) if bias else None
    torch.library.opcheck(ops.linear, (x, weight.packed, weight.scale, b, weight.scheme.model_dump_json(), "int8"))


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_linear_with_row_scales_is_an_op_as_torch_wants_them(dtype: torch.dtype, grad: bool) -> None:
    weight = _weight(ROWS)
    x, bias = _rand(2, 3, IN).to(dtype).requires_grad_(grad), _rand(OUT).to(dtype).requires_grad_(grad)
    arguments = (x, weight.packed, weight.scale, bias, ROWS.model_dump_json(), "int8", weight.row_scale)
    torch.library.opcheck(ops.linear, arguments)


def test_embedding_with_row_scales_is_an_op_as_torch_wants_them() -> None:
    weight, ids = _weight(ROWS), torch.tensor([[0, 10, 3], [3, 3, 7]])
    arguments = (ids, weight.packed, weight.scale, ROWS.model_dump_json(), IN, torch.bfloat16, weight.row_scale)
    torch.library.opcheck(ops.embedding, arguments)
    assert torch.equal(ops.embedding(*arguments), weight.dequantize()[ids].bfloat16())


def test_linear_takes_a_vector_and_keeps_activations_if_asked() -> None:
    weight = _weight(PRESETS["pot4"])
    x, bias = _rand(IN), _rand(OUT)
    torch.library.opcheck(ops.linear, (x, weight.packed, weight.scale, bias, weight.scheme.model_dump_json(), "float"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["int8", "pot3"])
def test_embedding_is_an_op_as_torch_wants_them(name: str, dtype: torch.dtype) -> None:
    weight = _weight(PRESETS[name])
    for ids in (torch.tensor([[0, 10, 3], [3, 3, 7]]), torch.tensor([4], dtype=torch.int32)):
        arguments = (ids, weight.packed, weight.scale, weight.scheme.model_dump_json(), IN, dtype)
        torch.library.opcheck(ops.embedding, arguments)


@pytest.mark.parametrize("activations", ["int8", "float"])
@pytest.mark.parametrize("name", NAMES)
def test_linear_is_what_the_module_computes(name: str, activations: Any) -> None:
    linear, x = _linear(PRESETS[name]), _rand(3, IN)
    set_activations(linear, activations)
    weight = linear.quantized
    found = ops.linear(x, weight.packed, weight.scale, linear.bias, weight.scheme.model_dump_json(), activations)
    assert torch.equal(found, linear(x))


@pytest.mark.parametrize("name", NAMES)
def test_embedding_is_the_dequantized_rows(name: str) -> None:
    weight, ids = _weight(PRESETS[name]), torch.tensor([[0, 10], [3, 3]])
    found = ops.embedding(ids, weight.packed, weight.scale, weight.scheme.model_dump_json(), IN, torch.float32)
    assert torch.equal(found, weight.dequantize()[ids])


def test_embedding_refuses_ids_outside_the_table() -> None:
    weight = _weight(PRESETS["int8"])
    with pytest.raises(IndexError):
        ops.embedding(torch.tensor([OUT]), weight.packed, weight.scale, weight.scheme.model_dump_json(), IN, torch.float32)


@pytest.mark.parametrize("scheme", [PRESETS["pot2"], ROWS], ids=lambda s: s.name)
@pytest.mark.parametrize("activations", ["int8", "float"])
def test_gradients_pass_rounding_straight_through(activations: str, scheme: QuantScheme) -> None:
    weight, x, bias = _weight(scheme), _rand(2, 3, IN).requires_grad_(), _rand(OUT).requires_grad_()
    upstream = _rand(2, 3, OUT, seed=4)
    spec = weight.scheme.model_dump_json()
    ops.linear(x, weight.packed, weight.scale, bias, spec, activations, weight.row_scale).backward(upstream)
    assert x.grad is not None
    assert torch.equal(x.grad, upstream @ weight.dequantize())
    torch.testing.assert_close(bias.grad, upstream.sum((0, 1)))


# ---- compile -------------------------------------------------------------------------------------------------------


def _compiled(module: Any) -> Any:
    return torch.compile(module, fullgraph=True, backend="aot_eager")


@pytest.mark.parametrize("activations", ["int8", "float"])
@pytest.mark.parametrize("name", ["pot4", "pot5"])
def test_a_compiled_linear_equals_the_eager_one(name: str, activations: Any) -> None:
    linear = _linear(PRESETS[name])
    set_activations(linear, activations)
    compiled = _compiled(linear)
    for m in (1, 2, 5):
        assert torch.equal(compiled(_rand(m, IN)), linear(_rand(m, IN)))


def test_a_compiled_model_equals_the_eager_one() -> None:
    model, ids = _Tied(), torch.tensor([[1, 5, 0], [12, 3, 3]])
    compiled = _compiled(model)
    for mode in (torch.no_grad, torch.enable_grad):
        with mode():
            assert torch.equal(compiled(ids), model(ids))


def test_a_compiled_half_model_equals_the_eager_one() -> None:
    model, ids = _Tied().bfloat16(), torch.tensor([1, 5])
    assert _compiled(model)(ids).dtype == torch.bfloat16
    assert torch.equal(_compiled(model)(ids), model(ids))


def test_compiled_gradients_equal_the_eager_ones() -> None:
    linear, upstream = _linear(), _rand(3, OUT, seed=2)
    linear.bias.requires_grad_(True)
    gradients = []
    for module in (linear, _compiled(linear)):
        linear.bias.grad, x = None, _rand(3, IN).requires_grad_()
        module(x).backward(upstream)
        gradients.append((x.grad, linear.bias.grad))
    assert torch.equal(gradients[0][0], gradients[1][0])
    assert torch.equal(gradients[0][1], gradients[1][1])


@pytest.mark.skipif(native.missing() is not None, reason=native.missing() or "")
def test_compiled_calls_reuse_the_tiles_and_notice_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[PackedWeight] = []

    def counted(weight: PackedWeight) -> backend.Kernel:
        made.append(weight)
        return backend.Kernel(weight)

    monkeypatch.setattr(backend, "kernels", Prepared(counted))
    linear, x = _linear(), _rand(3, IN)
    compiled = _compiled(linear)
    for _ in range(4):
        before = compiled(x)
    linear(x)
    assert len(made) == 1
    linear.weight_packed.fill_(0x21)
    assert not torch.equal(compiled(x), before)
    assert torch.equal(compiled(x), linear(x))
    assert len(made) == 2


# ---- export --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strict", [False, True])
def test_an_exported_model_equals_the_eager_one(strict: bool) -> None:
    model, ids = _Tied().eval(), torch.tensor([[1, 5, 0], [12, 3, 3]])
    exported = torch.export.export(model, (ids,), strict=strict)
    called = {str(node.target) for node in exported.graph.nodes if node.op == "call_function"}
    assert {"potq.linear.default", "potq.embedding.default"} <= called
    assert torch.equal(exported.module()(ids), model(ids))


def test_an_exported_model_takes_batches_of_other_sizes() -> None:
    model = _Tied().eval()
    rows = torch.export.Dim("rows", min=1, max=64)
    exported = torch.export.export(model, (torch.tensor([1, 5, 0]),), dynamic_shapes={"ids": {0: rows}}).module()
    ids = torch.arange(13)
    assert torch.equal(exported(ids), model(ids))
