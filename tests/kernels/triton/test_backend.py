"""The backend behind the ops and the modules; under the interpreter it is made to take weights on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("triton", reason="triton is not installed: pip install 'potq[gpu]'")

from potq.kernels import explain, ops, register_backend, registry
from potq.kernels.triton import backend
from potq.kernels.weight import PackedWeight
from potq.nn.packed import pack_module
from potq.numerics.grid import Grid, pot, uniform
from potq.numerics.scheme import PRESETS, QuantScheme
from potq.ptq.algorithms.rtn import rtn

IN, OUT = 96, 11
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
HALF = torch.float16


class _Anywhere:
    """The backend on any device."""

    NAME, linear, embedding = backend.NAME, staticmethod(backend.linear), staticmethod(backend.embedding)

    @staticmethod
    def supports(scheme: QuantScheme, shape: tuple[int, int], device: torch.device, dtype: torch.dtype) -> str | None:
        return backend.format_reason(scheme, shape, dtype)


@pytest.fixture
def _first() -> Iterator[None]:
    before = dict(registry.BACKENDS)
    register_backend(_Anywhere())
    yield
    registry.BACKENDS.clear()
    registry.BACKENDS.update(before)
    registry.choose.cache_clear()


def _rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def _linear(scheme: QuantScheme = PRESETS["pot4"]) -> Any:
    packed = pack_module(nn.Linear(IN, OUT, device=DEVICE), rtn(_rand(OUT, IN), scheme, method="absmax"))
    return packed.to(HALF).requires_grad_(False)


# ---- what it takes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scheme", "shape", "dtype", "reason"),
    [
        (PRESETS["pot4"], (8, 64), torch.float32, "it computes in float16 and bfloat16, not float32"),
        (PRESETS["int8"], (8, 64), HALF, None),
        (QuantScheme(grid=pot(6)), (8, 64), HALF, "it handles 2, 3, 4 and 8 bits, not 6"),
        (QuantScheme(grid=Grid(bits=2, magnitudes=(1, 256))), (8, 64), HALF, "levels of -256..256 exceed int8"),
        (QuantScheme("pot4", group_size=24), (8, 96), HALF, "the group size is not a multiple of 16"),
        (PRESETS["pot4"], (8, 76), HALF, "76 columns are not a multiple of 8"),
        (PRESETS["pot4"], (8, 64), torch.bfloat16, None),
        (QuantScheme("pot2t"), (8, 64), torch.bfloat16, None),
        (QuantScheme(grid=uniform(5, midrise=True), trellis=True), (8, 64), HALF, "it handles 2, 3, 4 and 8 bits, not 5"),
        (QuantScheme("pot2", group_size="row"), (8, 64), HALF, None),
        (QuantScheme("pot2", group_size="row"), (8, 168), HALF, None),
    ],
)
def test_what_it_takes(scheme: QuantScheme, shape: tuple[int, int], dtype: torch.dtype, reason: str | None) -> None:
    assert backend.format_reason(scheme, shape, dtype) == reason


def test_it_is_for_gpus() -> None:
    found = backend.supports(PRESETS["pot4"], (8, 64), torch.device("cpu"), HALF)
    assert found == "it computes on CUDA GPUs, the weight is on cpu"


# ---- ops and modules -----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("_first")
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("name", ["pot4", "pot3", "apot4"])
def test_linear_is_an_op_as_torch_wants_them(name: str, grad: bool) -> None:
    weight = rtn(_rand(OUT, IN), PRESETS[name], method="absmax")
    x, bias = _rand(2, 3, IN).to(HALF).requires_grad_(grad), _rand(OUT).to(HALF).requires_grad_(grad)
    torch.library.opcheck(ops.linear, (x, weight.packed, weight.scale, bias, weight.scheme.model_dump_json(), "float"))


@pytest.mark.usefixtures("_first")
def test_modules_use_it_compiled_or_not() -> None:
    torch._dynamo.reset()
    linear = _linear()
    assert explain(linear).backend == "triton"
    compiled = torch.compile(linear, fullgraph=True, backend="aot_eager")
    for m in (1, 3):
        x = _rand(m, IN, seed=m).to(HALF)
        torch.testing.assert_close(linear(x), nn.functional.linear(x, linear.weight, linear.bias), rtol=2e-3, atol=1e-2)
        assert torch.equal(compiled(x), linear(x))


@pytest.mark.usefixtures("_first")
def test_it_says_that_torch_looks_up_embeddings() -> None:
    table = pack_module(nn.Embedding(13, IN, device=DEVICE), rtn(_rand(13, IN), PRESETS["int8"], method="absmax")).to(HALF)
    assert str(explain(table)) == "triton (rows by torch), float activations"


@pytest.mark.usefixtures("_first")
def test_embedding_is_the_dequantized_rows() -> None:
    weight = rtn(_rand(13, IN), PRESETS["pot3"], method="absmax")
    ids = torch.tensor([[0, 12], [3, 3]], device=DEVICE)
    found = ops.embedding(ids, weight.packed, weight.scale, weight.scheme.model_dump_json(), IN, HALF)
    assert torch.equal(found, weight.dequantize()[ids].to(HALF))


# ---- the arranged weight -------------------------------------------------------------------------------------------


def test_a_weight_is_arranged_once_and_anew_after_a_write() -> None:
    weight = rtn(_rand(OUT, IN), PRESETS["pot4"], method="absmax")
    first = backend.weights.of(PackedWeight.of(weight))
    assert backend.weights.of(PackedWeight.of(weight)) is first
    weight.packed.fill_(0x21)
    assert not torch.equal(backend.weights.of(PackedWeight.of(weight)).made.words.low, first.made.words.low)


def test_an_arranged_weight_goes_with_its_tensor() -> None:
    weight = rtn(_rand(OUT, IN), PRESETS["pot4"], method="absmax")
    backend.weights.of(PackedWeight.of(weight))
    before = len(backend.weights)
    del weight
    assert len(backend.weights) == before - 1


def test_tensors_of_another_weight_are_refused() -> None:
    weight, x = PackedWeight.of(rtn(_rand(OUT, IN), PRESETS["pot4"], method="absmax")), _rand(1, IN).to(HALF)
    with pytest.raises(RuntimeError, match="has codes and scales"):
        backend.linear(x, weight._replace(scale=weight.scale[:1]), None, "float")
    with pytest.raises(RuntimeError, match=r"has row scales None, found \(11, 1\)"):
        backend.linear(x, weight._replace(row_scale=torch.ones(OUT, 1, dtype=HALF, device=DEVICE)), None, "float")
