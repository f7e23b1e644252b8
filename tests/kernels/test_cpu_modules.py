"""Packed modules on the cpu backend: the right product whatever happens to the module, its weight and its input."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from potq import native
from potq.errors import ConfigError
from potq.kernels import explain, set_activations
from potq.kernels.cpu import backend
from potq.kernels.prepared import Prepared
from potq.kernels.weight import PackedWeight
from potq.nn.packed import PackedModule, PoTLinear, pack_module
from potq.numerics.scheme import PRESETS, QuantScheme
from potq.ptq.algorithms.rtn import rtn

pytestmark = pytest.mark.skipif(native.missing() is not None, reason=native.missing() or "")

IN, OUT = 70, 11
HALVES = [torch.bfloat16, torch.float16]
ACTIVATIONS: list[Any] = ["int8", "float"]


def _rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _linear(scheme: QuantScheme = PRESETS["pot4"], bias: bool = True, columns: int = IN, seed: int = 0) -> Any:
    linear = nn.Linear(columns, OUT, bias=bias).requires_grad_(False)
    linear.weight.copy_(_rand(OUT, columns, seed=seed))
    return pack_module(linear, rtn(linear.weight, scheme, method="absmax"))


def _learning(linear: PoTLinear) -> PoTLinear:
    """``linear``, whose bias gets gradients, if it has one."""
    if linear.bias is not None:
        linear.bias.requires_grad_(True)
    return linear


def _embedding(scheme: QuantScheme = PRESETS["int8"]) -> PackedModule:
    embedding = nn.Embedding(13, IN).requires_grad_(False)
    embedding.weight.copy_(_rand(13, IN))
    return pack_module(embedding, rtn(embedding.weight, scheme, method="absmax"))


class _Tied(nn.Module):
    """An embedding and a head that reads its weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = _embedding()
        self.head = pack_module(nn.Linear(IN, 13, bias=False), self.embedding)

    def forward(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.head(self.embedding(ids))
        return logits


def _anew(module: PackedModule, x: Tensor, *, bias: bool = True) -> Tensor:
    """The product with what the buffers hold now (row scales apart), by tiles that nobody has used before."""
    weight = module.quantized
    kernel = backend.Kernel(PackedWeight(weight.packed.clone(), weight.scale.clone(), weight.scheme, weight.shape[1]))
    return kernel(x, module._parameters["bias"] if bias else None, module.activations)


# ---- products ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activations", ACTIVATIONS)
@pytest.mark.parametrize("name", sorted(name for name in PRESETS if PRESETS[name].grid.fits_int8))
def test_a_linear_computes_with_the_kernel_and_near_the_exact_product(name: str, activations: Any) -> None:
    linear, x = _linear(QuantScheme(name)), _rand(6, IN, seed=1)
    set_activations(linear, activations)
    exact = nn.functional.linear(x, linear.quantized.dequantize(), linear.bias)
    assert torch.equal(linear(x), _anew(linear, x))
    assert (linear(x) - exact).norm() < {"int8": 0.01, "float": 1e-6}[activations] * exact.norm()


@pytest.mark.parametrize("shape", [(IN,), (1, IN), (2, 3, IN), (0, IN), (2, 0, 3, IN)])
def test_inputs_of_any_shape(shape: tuple[int, ...]) -> None:
    linear, x = _linear(), _rand(*shape)
    assert linear(x).shape == (*shape[:-1], OUT)
    assert torch.equal(linear(x).reshape(-1, OUT), _anew(linear, x.reshape(-1, IN)))


@pytest.mark.parametrize("columns", [IN - 1, IN + 1, 7, 10 * IN])
def test_inputs_of_the_wrong_width_are_refused_as_nn_linear_does(columns: int) -> None:
    linear = _linear()
    for _ in range(2):  # before and after the tiles are there
        with pytest.raises(RuntimeError, match="shape"):
            linear(_rand(2, columns))
        linear(_rand(2, IN))
    with pytest.raises(RuntimeError, match="shape"):
        nn.Linear(IN, OUT)(_rand(2, columns))


def test_inputs_need_not_be_contiguous() -> None:
    linear, x = _linear(), _rand(IN, 5).T
    wide = _rand(5, 2 * IN)
    assert not x.is_contiguous()
    assert torch.equal(linear(x), linear(x.contiguous()))
    assert torch.equal(linear(wide[:, ::2]), linear(wide[:, ::2].contiguous()))
    assert torch.equal(linear(wide[:, 3 : 3 + IN]), linear(wide[:, 3 : 3 + IN].contiguous()))
    row = _rand(1, IN)
    assert torch.equal(linear(row.expand(4, IN)), linear(row).expand(4, OUT))


@pytest.mark.parametrize("dtype", HALVES)
def test_halves_are_computed_in_float32_and_rounded_once(dtype: torch.dtype) -> None:
    linear, x = _linear().to(dtype), _rand(3, IN).to(dtype)
    wide = _anew(copy.deepcopy(linear).float(), x.float())
    assert linear(x).dtype == dtype
    assert torch.equal(linear(x), wide.to(dtype))


def test_an_input_of_another_dtype_than_the_bias_keeps_its_own() -> None:
    linear = _linear()
    assert linear(_rand(2, IN).bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_results_are_the_same_without_gradients(mode: Any) -> None:
    linear, x = _learning(_linear()), _rand(3, IN)
    with mode():
        without = linear(x)
        made_there = linear(_rand(3, IN))
    assert torch.equal(linear(x).detach(), without)
    assert torch.equal(made_there, without)
    assert not without.requires_grad


def test_a_module_made_in_inference_mode() -> None:
    with torch.inference_mode():
        linear, x = _linear(), _rand(3, IN)
        assert torch.equal(linear(x), _anew(linear, x))
    assert torch.equal(linear(x), _anew(linear, x))
    source = _linear(seed=5)
    linear.load_state_dict(source.state_dict(), assign=True)
    assert torch.equal(linear(x), source(x))


def test_an_embedding_looks_up_the_dequantized_rows() -> None:
    embedding, ids = _embedding(), torch.tensor([[0, 12, 3], [3, 3, 7]])
    for dtype in (torch.float32, *HALVES):
        assert torch.equal(embedding.to(dtype)(ids), embedding.quantized.dequantize()[ids].to(dtype))
    assert embedding(torch.empty(0, 2, dtype=torch.long)).shape == (0, 2, IN)
    assert torch.equal(embedding(ids.int()), embedding(ids))
    assert torch.equal(embedding(ids.T), embedding(ids).transpose(0, 1))


@pytest.mark.parametrize("index", [13, -1])
def test_an_embedding_refuses_ids_outside_the_table(index: int) -> None:
    with pytest.raises(IndexError, match=f"index {index} "):
        _embedding()(torch.tensor([0, index]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool, torch.uint8])
def test_an_embedding_refuses_ids_that_nn_embedding_refuses(dtype: torch.dtype) -> None:
    for embedding in (nn.Embedding(13, IN), _embedding()):
        with pytest.raises((RuntimeError, ConfigError), match=r"Int|int"):
            embedding(torch.ones(2).to(dtype))


# ---- row scales ----------------------------------------------------------------------------------------------------


def _rows(name: str = "pot4", group_size: Any = 32) -> QuantScheme:
    return QuantScheme(name, group_size=group_size, scale_dtype="e8m0", signed_scale=False, row_scale=True)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("group_size", [16, 64, "row"])
@pytest.mark.parametrize("activations", ACTIVATIONS)
@pytest.mark.parametrize("name", sorted(name for name in PRESETS if PRESETS[name].grid.fits_int8))
def test_row_scales_multiply_the_kernels_product(name: str, activations: Any, group_size: Any, bias: bool) -> None:
    linear, x = _linear(_rows(name, group_size), bias), _rand(2, 3, IN, seed=1)
    set_activations(linear, activations)
    assert explain(linear).backend == "cpu"
    exact = nn.functional.linear(x, linear.quantized.dequantize(), linear.bias)
    assert (linear(x) - exact).norm() < {"int8": 0.01, "float": 1e-6}[activations] * exact.norm()
    product = _anew(linear, x, bias=False) * linear.weight_row_scale.float().T
    assert torch.equal(linear(x), product if linear.bias is None else product + linear.bias)


@pytest.mark.parametrize("dtype", HALVES)
def test_halves_with_row_scales_are_rounded_once(dtype: torch.dtype) -> None:
    linear, x = _linear(_rows()).to(dtype), _rand(3, IN).to(dtype)
    wide = copy.deepcopy(linear).float()(x.float())
    assert linear(x).dtype == dtype
    assert torch.equal(linear(x), wide.to(dtype))


@pytest.mark.parametrize("name", ["pot4", "pot3", "pot2", "int8", "apot4"])
def test_an_embedding_with_row_scales_is_exact(name: str) -> None:
    embedding, ids = _embedding(_rows(name)), torch.tensor([[0, 12, 3], [3, 3, 7]])
    assert explain(embedding).backend == "cpu"
    for dtype in (torch.float32, *HALVES):
        assert torch.equal(embedding.to(dtype)(ids), embedding.quantized.dequantize()[ids].to(dtype))
    assert torch.equal(embedding(ids.int()), embedding(ids))
    assert embedding(torch.empty(0, 2, dtype=torch.long)).shape == (0, 2, IN)
    for index in (13, -1):
        with pytest.raises(IndexError, match=f"index {index} "):
            embedding(torch.tensor([0, index]))


def test_a_row_scale_that_changes_is_noticed() -> None:
    linear, x = _linear(_rows(), bias=False), _rand(3, IN)
    before = linear(x)
    linear.weight_row_scale *= 2
    assert torch.equal(linear(x), 2 * before)


@pytest.mark.parametrize("make", [lambda good: None, lambda good: good.T, lambda good: good.float(), lambda good: good[:-1]])
def test_row_scales_that_are_none_are_refused(make: Any) -> None:
    weight = PackedWeight.of(_linear(_rows()).quantized)
    weight = weight._replace(row_scale=make(weight.row_scale))
    with pytest.raises(RuntimeError, match="row scale"):
        backend.linear(_rand(3, IN), weight, None, "int8")
    with pytest.raises(RuntimeError, match="row scale"):
        backend.embedding(torch.tensor([1]), weight, torch.float32)


def test_a_row_scale_that_the_scheme_does_not_have_is_refused() -> None:
    weight = PackedWeight.of(_linear().quantized)._replace(row_scale=torch.ones(OUT, 1, dtype=torch.float16))
    with pytest.raises(RuntimeError, match="no row scale"):
        backend.linear(_rand(3, IN), weight, None, "int8")


def test_gradients_with_row_scales_are_those_of_the_exact_product() -> None:
    linear, x, upstream = _learning(_linear(_rows())), _rand(3, IN).requires_grad_(), _rand(3, OUT, seed=2)
    linear(x).backward(upstream)
    assert x.grad is not None
    assert torch.equal(x.grad, upstream @ linear.quantized.dequantize())
    torch.testing.assert_close(linear.bias.grad, upstream.sum(0))


# ---- changed weights -----------------------------------------------------------------------------------------------


def _fill(linear: PoTLinear) -> None:
    linear.weight_packed.fill_(0x21)


def _scale_up(linear: PoTLinear) -> None:
    linear.weight_scale *= 2


def _copy(linear: PoTLinear) -> None:
    linear.weight_packed.copy_(_linear(seed=5).weight_packed)


def _one_element(linear: PoTLinear) -> None:
    linear.weight_packed[3, 4] ^= 0x11


def _through_a_view(linear: PoTLinear) -> None:
    linear.weight_packed.view(-1)[::2].zero_()


def _load(linear: PoTLinear) -> None:
    linear.load_state_dict(_linear(seed=5).state_dict())


def _assign(linear: PoTLinear) -> None:
    linear.load_state_dict(_linear(seed=5).state_dict(), assign=True)


def _new_buffer(linear: PoTLinear) -> None:
    linear.weight_packed = torch.full_like(linear.weight_packed, 0x43)


def _hold(linear: PoTLinear) -> None:
    linear.hold(rtn(_rand(OUT, IN, seed=5), QuantScheme("int4", group_size=32)), torch.float32)


def _through_data(linear: PoTLinear) -> None:
    linear.weight_packed.data = torch.full_like(linear.weight_packed, 0x43)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize(
    "change",
    [_fill, _scale_up, _copy, _one_element, _through_a_view, _load, _assign, _new_buffer, _hold, _through_data],
)
def test_a_changed_weight_is_noticed(change: Any, mode: Any) -> None:
    linear, x = _linear(), _rand(3, IN)
    before = linear(x)
    with mode():
        change(linear)
        assert not torch.equal(linear(x), before)
        assert torch.equal(linear(x), _anew(linear, x))
    assert torch.equal(linear(x), _anew(linear, x))


@pytest.mark.parametrize("change", [_fill, _scale_up, _new_buffer])
def test_a_tied_head_follows_its_owner(change: Any) -> None:
    model, x = _Tied(), _rand(3, IN)
    before = model.head(x)
    assert torch.equal(before, _anew(model.head, x))
    change(model.embedding)
    assert not torch.equal(model.head(x), before)
    assert torch.equal(model.head(x), _anew(model.head, x))


def test_the_same_codes_under_another_scheme_are_another_weight() -> None:
    """A head may hold the tensors of a weight that it reads differently."""
    linear, x = _linear(), _rand(3, IN)
    other = _linear(PRESETS["int4"])
    weight = linear.quantized
    other.weight_packed, other.weight_scale = weight.packed, weight.scale
    for _ in range(2):
        assert torch.equal(linear(x), _anew(linear, x))
        assert torch.equal(other(x), _anew(other, x))
    assert not torch.equal(other(x), linear(x))


def test_two_modules_do_not_share_tiles() -> None:
    first, second, x = _linear(seed=1), _linear(seed=2), _rand(3, IN)
    for _ in range(2):
        assert torch.equal(first(x), _anew(first, x))
        assert torch.equal(second(x), _anew(second, x))


# ---- repeated calls ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", [_fill, _scale_up, _new_buffer, _through_data])
def test_a_module_comes_back_to_its_product_until_the_weight_changes(change: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, ready = [], backend.ready
    monkeypatch.setattr(backend, "ready", lambda weight: asked.append(weight) or ready(weight))
    linear, x = _linear(), _rand(3, IN)
    before = [linear(x) for _ in range(3)]
    assert len(asked) == 1
    change(linear)
    after = [linear(x) for _ in range(3)]
    assert len(asked) == 2
    assert all(torch.equal(y, before[0]) for y in before)
    assert all(torch.equal(y, _anew(linear, x)) for y in after)


def test_every_dtype_and_rounding_has_its_own_product() -> None:
    linear, x = _linear(bias=False), _rand(3, IN)
    for _ in range(2):
        for dtype in (torch.float32, *HALVES, torch.float64):
            for activations in ACTIVATIONS:
                set_activations(linear, activations)
                fresh = copy.deepcopy(linear)
                assert torch.equal(linear(x.to(dtype)), fresh(x.to(dtype)))


def test_a_later_call_refuses_what_the_first_refuses() -> None:
    linear = _linear()
    linear(_rand(2, IN))
    with pytest.raises(RuntimeError, match=rf"an input of shape \(2, 7\) does not fit a weight of shape \({OUT}, {IN}\)"):
        linear(_rand(2, 7))
    with pytest.raises(RuntimeError, match="the input is on meta, the packed weight on cpu"):
        linear(torch.empty(2, IN, device="meta"))


def test_threads_may_call_one_module_at_once() -> None:
    """Arguments of a call are its own; each thread has inputs of its own to tell."""
    linear, inputs = _linear(columns=640), [_rand(1 + seed % 3, 640, seed=seed) for seed in range(8)]
    expected = [linear(x) for x in inputs]

    def wrong(seed: int) -> int:
        return sum(not torch.equal(linear(inputs[seed]), expected[seed]) for _ in range(300))

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(wrong, range(8))) == 0


def test_the_output_is_where_the_input_is() -> None:
    linear, embedding, x, ids = _linear(), _embedding(), _rand(3, IN), torch.tensor([1, 5])
    with torch.device("meta"):  # where new tensors are
        found = linear(x), embedding(ids)
    assert torch.equal(found[0], linear(x))
    assert torch.equal(found[1], embedding(ids))


# ---- copies, saves, memory -----------------------------------------------------------------------------------------


def test_running_leaves_the_state_dict_alone() -> None:
    linear = _linear()
    before = copy.deepcopy(linear.state_dict())
    linear(_rand(3, IN))
    assert list(linear.state_dict()) == list(before)
    assert all(torch.equal(tensor, before[name]) for name, tensor in linear.state_dict().items())


def test_a_copy_of_a_model_that_ran_is_independent() -> None:
    model, ids = _Tied(), torch.tensor([3, 1])
    expected = model(ids)
    clone = copy.deepcopy(model)
    assert torch.equal(clone(ids), expected)
    clone.embedding.weight_packed.zero_()
    assert not clone(ids).any()
    assert torch.equal(model(ids), expected)


def test_a_model_that_ran_can_be_pickled_and_grows_by_no_tiles() -> None:
    model, ids, x = _Tied(), torch.tensor([3, 1]), _rand(2, IN)
    linear = _linear()
    fresh = len(pickle.dumps(linear))
    linear(x)
    assert len(pickle.dumps(linear)) < fresh + 200
    assert torch.equal(pickle.loads(pickle.dumps(linear))(x), linear(x))
    expected = model(ids)
    assert torch.equal(pickle.loads(pickle.dumps(model))(ids), expected)


def test_tiles_are_made_once_and_go_with_the_module(monkeypatch: pytest.MonkeyPatch) -> None:
    made = _count_kernels(monkeypatch)
    gc.collect()
    before = len(backend.kernels)
    model = nn.Sequential(_linear(), _linear(seed=1))
    for part in model:
        for _ in range(3):
            part(_rand(2, IN))
    assert (len(made), len(backend.kernels)) == (2, before + 2)
    del model, part
    gc.collect()
    assert len(backend.kernels) == before


def test_old_tiles_go_when_a_weight_changes() -> None:
    gc.collect()
    before, linear = len(backend.kernels), _linear()
    for value in range(5):
        linear(_rand(2, IN))
        linear.weight_packed.fill_(value)
    for value in range(5):
        linear(_rand(2, IN))
        linear.weight_packed = torch.full_like(linear.weight_packed, value)
    gc.collect()
    assert len(backend.kernels) <= before + 1


def test_a_module_does_not_keep_the_tiles_of_a_weight_that_it_lost() -> None:
    gc.collect()
    before, linear = len(backend.kernels), _linear()
    linear(_rand(2, IN))
    kernel = weakref.ref(backend.kernels.of(PackedWeight.of(linear.quantized)).made.__self__)
    linear.weight_packed = torch.zeros_like(linear.weight_packed)
    gc.collect()
    assert kernel() is None
    assert len(backend.kernels) == before


def test_a_tied_pair_has_one_set_of_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    made, model = _count_kernels(monkeypatch), _Tied()
    for _ in range(3):
        model(torch.tensor([1, 2]))
    assert len(made) == 1


def _count_kernels(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    made: list[None] = []

    class Counted(backend.Kernel):
        def __init__(self, *arguments: Any) -> None:
            made.append(None)
            super().__init__(*arguments)

    monkeypatch.setattr(backend, "kernels", Prepared(Counted))
    return made


# ---- gradients -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(IN,), (3, IN), (2, 3, IN), (0, IN)])
@pytest.mark.parametrize("bias", [True, False])
def test_gradients_are_those_of_the_exact_product(bias: bool, shape: tuple[int, ...]) -> None:
    linear, x = _learning(_linear(bias=bias)), _rand(*shape).requires_grad_()
    upstream = _rand(*shape[:-1], OUT, seed=2)
    result = linear(x)
    assert torch.equal(result.detach().reshape(-1, OUT), _anew(linear, x.detach().reshape(-1, IN)).detach())
    result.backward(upstream)
    assert x.grad is not None
    assert torch.equal(x.grad, upstream @ linear.quantized.dequantize())
    if bias:
        torch.testing.assert_close(linear.bias.grad, upstream.reshape(-1, OUT).sum(0))


@pytest.mark.parametrize("dtype", HALVES)
def test_gradients_of_halves_have_their_dtype(dtype: torch.dtype) -> None:
    linear = _learning(_linear().to(dtype))
    x, upstream = _rand(3, IN).to(dtype).requires_grad_(), _rand(3, OUT, seed=2).to(dtype)
    linear(x).backward(upstream)
    assert x.grad is not None
    assert torch.equal(x.grad, upstream @ linear.quantized.dequantize().to(dtype))
    assert linear.bias.grad.dtype == dtype


def test_only_the_bias_may_want_a_gradient() -> None:
    linear = _linear()
    linear.bias.requires_grad_(True)
    linear(_rand(3, IN)).sum().backward()
    assert torch.equal(linear.bias.grad, torch.full((OUT,), 3.0))


# ---- where the reference computes ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scheme", "reason"),
    [
        (QuantScheme("pot4", group_size=7), "multiple of 16"),
        (QuantScheme("pot5"), "exceed int8"),
        (QuantScheme("pot6"), "exceed int8"),
    ],
)
def test_weights_without_a_kernel_go_to_the_reference(scheme: QuantScheme, reason: str) -> None:
    linear, embedding, x = _linear(scheme), _embedding(scheme), _rand(3, IN)
    assert torch.equal(linear(x), nn.functional.linear(x, linear.quantized.dequantize(), linear.bias))
    assert torch.equal(embedding(torch.tensor([5])), embedding.quantized.dequantize()[[5]])
    for module in (linear, embedding):
        assert explain(module).backend == "reference"
        assert reason in explain(module).rejected["cpu"]


def test_float64_goes_to_the_reference() -> None:
    linear, embedding, x = _linear().double(), _embedding().double(), _rand(3, IN).double()
    assert torch.equal(linear(x), nn.functional.linear(x, linear.quantized.dequantize().double(), linear.bias))
    assert torch.equal(embedding(torch.tensor([5])), embedding.quantized.dequantize()[[5]].double())
    assert "float64" in explain(linear).rejected["cpu"]
    assert torch.equal(linear.float()(x.float()), _anew(linear, x.float()))  # and back


def test_the_meta_device_goes_to_the_reference() -> None:
    linear = _linear()
    linear(_rand(1, IN))
    linear.to("meta")
    assert linear(torch.empty(2, IN, device="meta")).is_meta
    assert "meta" in explain(linear).rejected["cpu"]


def test_inputs_on_another_device_are_refused() -> None:
    linear, embedding = _linear(), _embedding()
    with pytest.raises((RuntimeError, ConfigError), match="meta"):
        linear(torch.empty(2, IN, device="meta"))
    with pytest.raises((RuntimeError, ConfigError), match="meta"):
        embedding(torch.empty(2, dtype=torch.long, device="meta"))
