"""Inference modules: exact products, scales that survive casts, tying, subclasses, Conv1D, compile, state dicts."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from potq.errors import ModelError
from potq.kernels import use_kernels
from potq.nn.packed import PackedModule, PoTEmbedding, PoTLinear, pack_module, packed_class
from potq.numerics.scheme import PRESETS, QuantScheme
from potq.ptq.algorithms.rtn import rtn

NAMES = sorted(PRESETS)
E8M0 = QuantScheme("pot4", scale_dtype="e8m0")
ROWS = QuantScheme("pot4", group_size=32, scale_dtype="e8m0", row_scale=True)
HALVES = [torch.bfloat16, torch.float16]


def _rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _linear(scheme: QuantScheme = PRESETS["pot4"], bias: bool = True, columns: int = 70) -> PoTLinear:
    linear = nn.Linear(columns, 11, bias=bias)
    with torch.no_grad():
        linear.weight.copy_(_rand(11, columns) * 0.05)
    packed = pack_module(linear, rtn(linear.weight, scheme, method="absmax"))
    assert isinstance(packed, PoTLinear)
    return packed


def _embedding(scheme: QuantScheme = PRESETS["int8"], kind: type[nn.Embedding] = nn.Embedding) -> PackedModule:
    embedding = kind(13, 70)
    with torch.no_grad():
        embedding.weight.copy_(_rand(13, 70) * 0.05)
    return pack_module(embedding, rtn(embedding.weight, scheme, method="absmax"))


class _ScaledEmbedding(nn.Embedding):
    """Like Gemma's: the look-up times a constant."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * 3.0


class _PositionEmbedding(nn.Embedding):
    """Like OPT's: an offset before the look-up, which it does with F.embedding on its own weight."""

    def forward(self, input: Tensor) -> Tensor:
        return nn.functional.embedding(input + 2, self.weight)


class _DoubledLinear(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * 2


class _Tied(nn.Module):
    """An embedding and a head that reads its weight."""

    def __init__(self, scheme: QuantScheme = PRESETS["int8"]) -> None:
        super().__init__()
        self.embedding = _embedding(scheme)
        self.head = pack_module(nn.Linear(70, 13), self.embedding)


# what a module is, whatever computes for it; tests/kernels has the backends
pytestmark = pytest.mark.usefixtures("reference_backend")


# ---- forward -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("group_size", [16, "row", "tensor"])
@pytest.mark.parametrize("name", NAMES)
def test_linear_forward_is_the_product_with_the_dequantized_weight(name: str, group_size: Any) -> None:
    linear, x = _linear(QuantScheme(name, group_size=group_size)), _rand(2, 3, 70, seed=1)
    expected = nn.functional.linear(x, linear.quantized.dequantize(), linear.bias)
    assert torch.equal(linear(x), expected)


@pytest.mark.parametrize("group_size", [16, "row", "tensor"])
@pytest.mark.parametrize("name", NAMES)
def test_embedding_forward_looks_up_the_dequantized_rows(name: str, group_size: Any) -> None:
    embedding = _embedding(QuantScheme(name, group_size=group_size))
    ids = torch.tensor([[0, 12, 3], [3, 3, 7]])
    assert torch.equal(embedding(ids), nn.functional.embedding(ids, embedding.quantized.dequantize()))


@pytest.mark.parametrize("name", NAMES)
def test_forward_with_row_scales(name: str) -> None:
    scheme = QuantScheme(name, group_size=16, scale_dtype="e8m0", row_scale=True, signed_scale=False)
    linear, embedding, x, ids = _linear(scheme), _embedding(scheme), _rand(2, 3, 70, seed=1), torch.tensor([[0, 12], [3, 3]])
    assert torch.equal(linear(x), nn.functional.linear(x, linear.quantized.dequantize(), linear.bias))
    assert torch.equal(embedding(ids), embedding.quantized.dequantize()[ids])


@pytest.mark.parametrize("shape", [(), (1,), (0,), (2, 3, 4)])
def test_embedding_keeps_the_shape_of_its_input(shape: tuple[int, ...]) -> None:
    embedding = _embedding()
    ids = torch.zeros(shape, dtype=torch.long)
    assert embedding(ids).shape == (*shape, 70)


def test_embedding_takes_int32_ids() -> None:
    embedding, ids = _embedding(), torch.tensor([4, 1])
    assert torch.equal(embedding(ids.int()), embedding(ids))


@pytest.mark.parametrize("index", [13, -1, -100])
def test_embedding_refuses_ids_out_of_range_as_nn_embedding_does(index: int) -> None:
    with pytest.raises(IndexError):
        nn.Embedding(13, 70)(torch.tensor([0, index]))
    with pytest.raises(IndexError):
        _embedding()(torch.tensor([0, index]))


@pytest.mark.parametrize("dtype", HALVES)
def test_linear_computes_in_its_inputs_dtype(dtype: torch.dtype) -> None:
    linear, x = _linear().to(dtype), _rand(3, 70).to(dtype)
    expected = nn.functional.linear(x, linear.quantized.dequantize().to(dtype), linear.bias)
    assert linear(x).dtype == dtype
    assert torch.equal(linear(x), expected)


def test_linear_without_bias() -> None:
    linear, x = _linear(bias=False), _rand(3, 70)
    assert linear.bias is None
    assert torch.equal(linear(x), x @ linear.weight.T)


def test_gradients_flow_to_the_input_and_the_bias() -> None:
    linear, x = _linear(), _rand(3, 70).requires_grad_()
    upstream = _rand(3, 11, seed=2)
    linear(x).backward(upstream)
    assert x.grad is not None
    assert torch.equal(x.grad, upstream @ linear.quantized.dequantize())
    assert linear.bias.grad is not None
    torch.testing.assert_close(linear.bias.grad, upstream.sum(0))


# ---- casts and moves -----------------------------------------------------------------------------------------------


def _cast(module: nn.Module, dtype: torch.dtype) -> None:
    _ = module.half() if dtype == torch.float16 else module.to(dtype)


@pytest.mark.parametrize("dtype", [*HALVES, torch.float64])
@pytest.mark.parametrize("scheme", [PRESETS["pot4"], E8M0], ids=["float16", "e8m0"])
@pytest.mark.parametrize("make", [_linear, _embedding])
def test_casting_keeps_codes_and_scales_and_changes_the_compute_dtype(make: Any, scheme: QuantScheme, dtype: Any) -> None:
    module = make(scheme)
    packed, scale, weight = module.weight_packed.clone(), module.weight_scale.clone(), module.quantized.dequantize()
    _cast(module, dtype)
    assert module.weight_scale.dtype == scale.dtype
    assert torch.equal(module.weight_scale, scale)
    assert torch.equal(module.weight_packed, packed)
    assert module.compute_dtype == module.weight.dtype == dtype
    assert torch.equal(module.quantized.dequantize(), weight)
    module.float()
    assert module.weight.dtype == torch.float32
    assert torch.equal(module.weight, weight)


@pytest.mark.parametrize("dtype", HALVES)
def test_a_cast_embedding_yields_the_dtype_and_a_cast_bias_has_it(dtype: torch.dtype) -> None:
    embedding, linear = _embedding(), _linear()
    _cast(embedding, dtype)
    _cast(linear, dtype)
    ids = torch.tensor([1, 2])
    assert torch.equal(embedding(ids), embedding.quantized.dequantize()[ids].to(dtype))
    assert linear.bias.dtype == dtype


@pytest.mark.parametrize("scheme", [PRESETS["pot4"], E8M0], ids=["float16", "e8m0"])
def test_moving_to_meta_moves_everything_and_keeps_dtypes(scheme: QuantScheme) -> None:
    for arguments in ({"device": "meta"}, {"device": "meta", "dtype": torch.bfloat16}):
        module = _linear(scheme)
        before = module.weight_scale.dtype
        module.to(**arguments)
        assert module.weight_packed.is_meta
        assert module.weight_scale.is_meta
        assert module.bias.is_meta
        assert (module.weight_packed.dtype, module.weight_scale.dtype) == (torch.uint8, before)
        assert module(torch.empty(2, 70, device="meta", dtype=module.compute_dtype)).shape == (2, 11)


def test_to_empty_allocates_buffers_of_the_same_dtypes() -> None:
    module = _linear().to("meta").to_empty(device="cpu")
    assert (module.weight_packed.dtype, module.weight_scale.dtype) == (torch.uint8, torch.float16)
    assert module.weight_scale.device.type == "cpu"


def _assign(module: Any, weight: Any) -> None:
    module.weight = weight


WRITES = {
    "parameter": lambda module: _assign(module, nn.Parameter(torch.zeros(11, 70))),
    "tensor": lambda module: _assign(module, torch.zeros(11, 70)),
    "in place": lambda module: module.weight.zero_(),
    "reset": lambda module: module.reset_parameters(),
    "state dict": lambda module: module.load_state_dict({"weight": torch.zeros(11, 70)}, strict=False),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_the_weight_is_read_only(write: Any) -> None:
    linear = _linear()
    before = linear.weight + 0
    with torch.no_grad(), pytest.raises(ModelError, match="the weight of PoTLinear is read-only"):
        write(linear)
    assert torch.equal(linear.weight, before)


def test_it_does_not_train_and_says_so() -> None:
    linear, embedding = _linear(), _embedding()
    for module in (linear, embedding):
        with pytest.raises(ModelError, match=f"the weight of {type(module).__name__} does not train; train an adapter"):
            module.requires_grad_(True)
        with pytest.raises(ModelError, match="does not train"):
            torch.optim.SGD(module.parameters(), lr=1.0)
        module.requires_grad_(False)
    linear.bias.requires_grad_(True)
    linear(_rand(2, 70)).sum().backward()
    assert linear.bias.grad is not None


# ---- peft ----------------------------------------------------------------------------------------------------------

PEFT_VERBS: dict[str, tuple[dict[str, Any], Any]] = {
    "merge_and_unload": ({}, lambda model: model.merge_and_unload()),
    "safe_merge": ({}, lambda model: model.merge_and_unload(safe_merge=True)),
    "merge_adapter": ({}, lambda model: model.merge_adapter()),
    "dora": ({"use_dora": True}, lambda model: model.merge_and_unload()),
    "embedding": ({"target_modules": ["embed_tokens"]}, lambda model: model.merge_and_unload()),
}


def _lora(model: Any, **options: Any) -> Any:
    peft = pytest.importorskip("peft")
    fields: dict[str, Any] = {"r": 4, "target_modules": ["q_proj"], "init_lora_weights": False, "task_type": "CAUSAL_LM"}
    return peft.get_peft_model(model, peft.LoraConfig(**fields | options))


@pytest.mark.parametrize(("options", "verb"), PEFT_VERBS.values(), ids=PEFT_VERBS)
def test_merging_an_adapter_names_the_module_and_the_remedy(options: Any, verb: Any, packed_model: Any) -> None:
    model = _lora(packed_model, **options)
    name = r"model\.embed_tokens" if "target_modules" in options else r"model\.layers\.0\.self_attn\.q_proj"
    with pytest.raises(ModelError, match=rf"the weight of {name} is read-only.*model\.dequantize\(\) gives"):
        verb(model)


def test_the_remedy_works(packed_model: Any, tokens: Tensor, tmp_path: Any) -> None:
    peft = pytest.importorskip("peft")
    adapted = _lora(packed_model)
    use_kernels(packed_model, "float")
    expected = adapted(tokens).logits
    adapted.save_pretrained(tmp_path)
    floats = adapted.unload().dequantize()
    merged = peft.PeftModel.from_pretrained(floats, tmp_path).merge_and_unload()
    torch.testing.assert_close(merged(tokens).logits, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["lm_head", "embed_tokens"])
def test_modules_to_save_of_a_packed_module_are_refused(name: str, packed_model: Any) -> None:
    with pytest.raises(ModelError, match=rf"the weight of (model\.)?{name} does not train"):
        _lora(packed_model, modules_to_save=[name])


@pytest.mark.parametrize("options", [{}, {"use_dora": True}, {"modules_to_save": ["norm"]}], ids=str)
def test_what_peft_can_train_trains(options: Any, packed_model: Any, tokens: Tensor) -> None:
    packed_model.requires_grad_(False)
    model = _lora(packed_model, **options)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    before = [parameter.detach().clone() for parameter in trained]
    optimizer = torch.optim.SGD(trained, lr=1.0)
    model(tokens, labels=tokens).loss.backward()
    optimizer.step()
    assert not any(torch.equal(old, new) for old, new in zip(before, trained, strict=True))


@pytest.mark.parametrize("make", [_linear, _embedding])
def test_casts_and_moves_keep_row_scales(make: Any) -> None:
    module = make(ROWS)
    before, weight = module.weight_row_scale.clone(), module.weight
    for dtype in (torch.bfloat16, torch.float64, torch.float32):
        module.to(dtype)
        assert module.weight_row_scale.dtype == torch.float16
        assert torch.equal(module.weight_row_scale, before)
    assert torch.equal(module.weight, weight)
    module.to(device="meta", dtype=torch.bfloat16)
    assert (module.weight_row_scale.is_meta, module.weight_row_scale.dtype) == (True, torch.float16)
    module.to_empty(device="cpu")
    assert (module.weight_row_scale.device.type, module.weight_row_scale.dtype) == ("cpu", torch.float16)


# ---- state dicts ---------------------------------------------------------------------------------------------------


def test_state_dict_holds_packed_scale_and_bias_only() -> None:
    assert set(_linear().state_dict()) == {"weight_packed", "weight_scale", "bias"}
    assert set(_linear(bias=False).state_dict()) == {"weight_packed", "weight_scale"}
    assert set(_embedding().state_dict()) == {"weight_packed", "weight_scale"}
    assert [name for name, _ in _linear().named_parameters()] == ["bias"]


def test_row_scales_are_in_the_state_dict_if_the_scheme_has_them() -> None:
    assert set(_linear(ROWS).state_dict()) == {"weight_packed", "weight_scale", "weight_row_scale", "bias"}
    assert not hasattr(_linear(E8M0), "weight_row_scale")


@pytest.mark.parametrize("scheme", [PRESETS["pot4"], ROWS], ids=["float16", "row scales"])
def test_state_dict_loads_into_an_empty_module_bit_for_bit(scheme: QuantScheme) -> None:
    source, target = _linear(scheme), _linear(scheme).to("meta").to_empty(device="cpu")
    target.load_state_dict(source.state_dict())
    x = _rand(2, 70)
    assert torch.equal(target(x), source(x))


# ---- tying ---------------------------------------------------------------------------------------------------------


def test_a_tied_head_uses_the_embeddings_storage_and_stores_nothing() -> None:
    model = _Tied()
    assert model.head.tied_to is model.embedding
    assert model.head.quantized.packed.data_ptr() == model.embedding.weight_packed.data_ptr()
    assert set(model.state_dict()) == {"embedding.weight_packed", "embedding.weight_scale", "head.bias"}
    assert "tied" in repr(model.head)
    assert "tied" not in repr(model.embedding)
    assert "scheme=int8-g64" in repr(model.embedding)


def test_a_tied_head_multiplies_with_the_embeddings_weight() -> None:
    model, x = _Tied(), _rand(2, 70)
    expected = nn.functional.linear(x, model.embedding.quantized.dequantize(), model.head.bias)
    assert torch.equal(model.head(x), expected)
    model.embedding.weight_packed.fill_(3)
    assert torch.equal(model.head.weight, model.embedding.weight)


def test_a_tie_survives_deepcopy_inside_the_copy() -> None:
    model = _Tied()
    clone = copy.deepcopy(model)
    assert clone.head.tied_to is clone.embedding
    assert clone.embedding is not model.embedding
    clone.embedding.weight_packed.zero_()
    assert not clone.head.weight.any()
    assert model.head.weight.any()


def test_a_tied_head_reads_the_embeddings_row_scales() -> None:
    model, x = _Tied(ROWS), _rand(2, 70)
    parts = "packed", "scale", "row_scale"
    assert set(model.state_dict()) == {f"embedding.weight_{part}" for part in parts} | {"head.bias"}
    assert torch.equal(model.head(x), nn.functional.linear(x, model.embedding.quantized.dequantize(), model.head.bias))
    for clone in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert clone.head.tied_to is clone.embedding
        assert torch.equal(clone.head(x), model.head(x))
        clone.embedding.weight_row_scale.zero_()
        assert not clone.head.weight.any()
    assert model.head.weight.any()


@pytest.mark.parametrize("dtype", HALVES)
def test_a_tie_survives_casts_and_moves(dtype: torch.dtype) -> None:
    model = _Tied()
    weight = model.head.weight
    model.to(dtype)
    assert model.head.tied_to is model.embedding
    assert model.head.compute_dtype == dtype
    assert torch.equal(model.head.weight, weight.to(dtype))
    assert model.head(_rand(2, 70).to(dtype)).dtype == dtype
    model.to("meta")
    assert model.head.weight.is_meta


def test_deepcopy_of_an_untied_module_is_independent() -> None:
    linear = _linear()
    clone = copy.deepcopy(linear)
    clone.weight_packed.zero_()
    assert linear.weight_packed.any()
    assert clone.tied_to is None


# ---- classes -------------------------------------------------------------------------------------------------------


def test_a_module_keeps_its_identity_hooks_attributes_and_mode() -> None:
    linear = nn.Linear(70, 11).eval()
    linear.note = "mine"  # type: ignore[assignment]
    calls = []
    linear.register_forward_hook(lambda *_: calls.append(1))
    packed = pack_module(linear, rtn(linear.weight, PRESETS["pot4"]))
    packed(_rand(1, 70))
    assert packed is linear
    assert (packed.note, calls, packed.training) == ("mine", [1], False)
    assert type(packed) is PoTLinear
    assert (packed.in_features, packed.out_features) == (70, 11)


def test_packed_modules_are_linears_and_embeddings_to_whoever_asks() -> None:
    assert isinstance(_linear(), nn.Linear)
    assert isinstance(_embedding(), nn.Embedding)
    assert type(_embedding()) is PoTEmbedding


def test_an_embedding_subclass_keeps_its_own_forward() -> None:
    ids = torch.tensor([1, 5])
    scaled = _embedding(kind=_ScaledEmbedding)
    assert isinstance(scaled, _ScaledEmbedding)
    assert isinstance(scaled, PoTEmbedding)
    assert torch.equal(scaled(ids), scaled.quantized.dequantize()[ids] * 3.0)
    positions = _embedding(kind=_PositionEmbedding)
    assert torch.equal(positions(ids), positions.quantized.dequantize()[ids + 2])


def test_a_linear_subclass_keeps_its_own_forward() -> None:
    linear = _DoubledLinear(70, 11)
    packed, x = pack_module(linear, rtn(linear.weight, PRESETS["pot4"])), _rand(2, 70)
    assert torch.equal(packed(x), 2 * nn.functional.linear(x, packed.quantized.dequantize(), packed.bias))


def test_a_subclass_keeps_its_scales_through_a_cast() -> None:
    scaled = _embedding(PRESETS["pot4"], _ScaledEmbedding)
    before = scaled.weight_scale.clone()
    scaled.to(torch.bfloat16)
    assert torch.equal(scaled.weight_scale, before)
    assert scaled(torch.tensor([1])).dtype == torch.bfloat16


def test_one_packed_class_per_kind() -> None:
    assert packed_class(nn.Linear) is PoTLinear
    assert packed_class(nn.Embedding) is PoTEmbedding
    assert packed_class(_ScaledEmbedding) is packed_class(_ScaledEmbedding)
    assert packed_class(_ScaledEmbedding).__name__ == "PoT_ScaledEmbedding"


def test_packing_again_replaces_the_weight() -> None:
    linear = _linear()
    other = rtn(_rand(11, 70, seed=5), PRESETS["int4"])
    linear.hold(other, torch.float32)
    assert linear.scheme == PRESETS["int4"]
    assert torch.equal(linear.weight, other.dequantize())


def test_packing_again_drops_or_brings_row_scales() -> None:
    linear = _linear(ROWS)
    for scheme in (E8M0, ROWS):
        other = rtn(_rand(11, 70, seed=5), scheme)
        linear.hold(other, torch.float32)
        assert hasattr(linear, "weight_row_scale") == scheme.row_scale
        assert torch.equal(linear.weight, other.dequantize())


def test_the_original_weight_parameter_is_gone() -> None:
    assert "weight" not in dict(_linear().named_parameters())
    assert [p.numel() for p in _linear().parameters()] == [770, 11]  # the packed one is shown, and refuses to train


# ---- Conv1D --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
def test_conv1d_becomes_a_linear_of_its_transposed_weight_with_the_same_bias(training: bool) -> None:
    conv = Conv1D(11, 70).train(training)
    nn.init.normal_(conv.bias)
    quantized = rtn(conv.weight.T, PRESETS["int8"])
    linear = pack_module(conv, quantized)
    assert isinstance(linear, PoTLinear)
    assert (linear.in_features, linear.out_features, linear.training) == (70, 11, training)
    assert linear.bias is conv.bias
    x = _rand(2, 3, 70)
    exact = Conv1D(11, 70)
    exact.load_state_dict({"weight": quantized.dequantize().T, "bias": conv.bias})
    torch.testing.assert_close(linear(x), exact(x), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(linear(x), conv(x), rtol=0.05, atol=0.01)
    assert not any(tensor.is_meta for tensor in linear.state_dict().values())


# ---- compile -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", [PRESETS["pot4"], PRESETS["pot3"], PRESETS["mxpot"], ROWS], ids=lambda s: s.name)
def test_compiles_without_graph_breaks_to_the_same_result(scheme: QuantScheme) -> None:
    torch._dynamo.reset()
    linear, x = _linear(scheme), _rand(2, 70)
    compiled = torch.compile(linear, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), linear(x))


def test_a_tied_pair_compiles_without_graph_breaks() -> None:
    torch._dynamo.reset()
    model, ids = _Tied(), torch.tensor([1, 5])
    compiled = torch.compile(lambda ids: model.head(model.embedding(ids)), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(ids), model.head(model.embedding(ids)))


def test_marked_as_initialised_for_transformers() -> None:
    assert _linear()._is_hf_initialized is True
