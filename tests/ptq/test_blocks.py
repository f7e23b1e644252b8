"""Blocks of a decoder, and the hidden states that run through them as through the model itself."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from kinds_helpers import KINDS, small_model
from potq.errors import ModelError
from potq.ptq.blocks import (
    Call,
    HiddenStates,
    Keeper,
    _in_file,
    find_blocks,
    first_tokens,
    merge,
    record_calls,
    second_moments,
    shared_inputs,
)


def test_no_more_text_than_is_enough() -> None:
    batches = [torch.zeros(shape, dtype=torch.long) for shape in ((1, 10), (4, 20), (3, 5))]
    for enough, windows in ((1, [1]), (10, [1]), (11, [1, 1]), (50, [1, 2]), (91, [1, 4, 1]), (1000, [1, 4, 3])):
        assert [len(each) for each in first_tokens(batches, enough)] == windows


def _tokens() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(3, 64, shape, generator=generator) for shape in ((2, 12), (1, 7))]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", KINDS)
def test_hidden_states_are_the_models_own(kind: str, attention: str) -> None:
    model = small_model(kind, "eager" if kind == "gemma2" else attention)
    blocks = find_blocks(model)[1]
    expected: list[list[Tensor]] = []
    handles = [blocks[0].register_forward_pre_hook(lambda module, args: expected.append([args[0].clone()]))]
    for block in blocks:
        handles.append(block.register_forward_hook(lambda module, args, output: expected[-1].append(output)))
    with torch.no_grad():
        for batch in _tokens():
            model(batch)
    for handle in handles:
        handle.remove()
    states = HiddenStates(record_calls(model, list(blocks), _tokens()))
    for index in range(4):
        assert all(torch.equal(call.hidden, wanted[index]) for call, wanted in zip(states, expected, strict=True))
        if index < 3:
            states.advance(blocks[index])
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("kind", "name"), [("llama", "model.layers"), ("gpt2", "transformer.h"), ("opt", "model.decoder.layers")]
)
def test_the_blocks_are_the_largest_list(kind: str, name: str) -> None:
    model = small_model(kind)
    model.extra = nn.ModuleList([nn.Linear(2, 2)])
    model.empty = nn.ModuleList()
    found, blocks = find_blocks(model)
    assert found == name
    assert blocks is model.get_submodule(name)


def test_a_model_without_blocks_is_refused() -> None:
    with pytest.raises(ModelError, match=r"Sequential has no list of blocks .*; use effort='fast'"):
        find_blocks(nn.Sequential(nn.Linear(2, 2), nn.ModuleList()))


def test_a_block_that_the_model_never_runs_is_refused() -> None:
    model = small_model("llama")
    blocks = find_blocks(model)[1]
    blocks.append(nn.Linear(2, 2))
    with pytest.raises(ModelError, match="the model never runs block 3 of 4"):
        record_calls(model, list(blocks), _tokens())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_in_files_it_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model("llama")
    blocks = find_blocks(model)[1]
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    memory = HiddenStates(record_calls(model, list(blocks), _tokens()))
    with ExitStack() as stack:
        files = memory.copy(Keeper(0, stack))
        for block in blocks:
            memory.advance(block)
            files.advance(block)
        assert all(torch.equal(a.hidden, b.hidden) for a, b in zip(memory, files, strict=True))
        assert memory.nbytes == files.nbytes == (24 + 7) * 32 * 4
        assert sum(file.stat().st_size for file in tmp_path.glob("*/*")) == files.nbytes
    assert not list(tmp_path.iterdir())


def test_files_are_for_what_does_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with ExitStack() as stack:
        keep, tensors = Keeper(100, stack), [torch.randn(1, 2, 10).to(torch.bfloat16) for _ in range(4)]
        kept = [keep(tensor) for tensor in tensors]
        assert all(torch.equal(a, b) and a.data_ptr() != b.data_ptr() for a, b in zip(kept, tensors, strict=True))
        assert len(list(tmp_path.glob("*/*"))) == 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match=r"no room for the hidden states .* in /dev .*; set TMPDIR"):
        _in_file(torch.zeros(1 << 20), Path("/dev/full"))


def test_memory_holds_the_states_once() -> None:
    model = small_model("llama")
    blocks = find_blocks(model)[1]
    calls = record_calls(model, list(blocks), _tokens())
    states = HiddenStates(calls)
    assert all(own.hidden is call.hidden for own, call in zip(states, calls, strict=True))


@pytest.mark.parametrize("what", ["halved", "twice"])
def test_blocks_that_are_no_chain_are_refused(what: str) -> None:
    """RWKV halves the state now and then; some models run their blocks several times."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(64, 8)
            self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))

        def forward(self, ids: Tensor, use_cache: bool) -> Tensor:
            hidden = self.embedding(ids)
            for block in [self.blocks[0], *self.blocks] if what == "twice" else self.blocks:
                hidden = block(hidden / 2 if what == "halved" and block is self.blocks[2] else hidden)
            return hidden

    model = Model()
    with pytest.raises(ModelError, match=r"Model does not hand .* \(block [12] of 3\); use effort='fast'"):
        record_calls(model, list(model.blocks), _tokens())


def test_no_cache_grows_from_pass_to_pass() -> None:
    model = small_model("llama")
    blocks = find_blocks(model)[1]
    call = record_calls(model, list(blocks), _tokens())[0]
    with torch.no_grad():
        assert torch.equal(call(blocks[0]), call(blocks[0]))


# ---- layers within a block


def _first(kind: str) -> tuple[nn.Module, HiddenStates]:
    model = small_model(kind)
    blocks = find_blocks(model)[1]
    return blocks[0], HiddenStates(record_calls(model, list(blocks), _tokens()))


def test_layers_that_read_the_same_are_found() -> None:
    block, states = _first("llama")
    names = [name for name, module in block.named_modules() if isinstance(module, nn.Linear)]
    assert shared_inputs(block, sorted(names), states) == [
        ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
        ["self_attn.o_proj"],
        ["mlp.gate_proj", "mlp.up_proj"],
        ["mlp.down_proj"],
    ]
    block, states = _first("gpt2")
    names = ["mlp.c_proj", "attn.c_attn", "mlp.c_fc", "attn.c_proj"]
    found = shared_inputs(block, names, states)
    assert found == [["attn.c_attn"], ["attn.c_proj"], ["mlp.c_fc"], ["mlp.c_proj"]]


def test_a_layer_that_never_runs_is_left_out() -> None:
    block, states = _first("llama")
    block.spare = nn.Linear(2, 2)
    assert shared_inputs(block, ["mlp.up_proj", "spare"], states) == [["mlp.up_proj"]]
    assert not any(module._forward_pre_hooks for module in block.modules())


def test_a_layer_that_some_text_reaches_is_found() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.often, self.rarely = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, hidden: Tensor) -> Tensor:
            return self.rarely(hidden) if bool((hidden > 2).any()) else self.often(hidden)

    block = Block()
    calls = [Call(torch.full((1, 3, 4), value), {block: ((), {})}) for value in (1.0, 1.0, 3.0)]
    assert shared_inputs(block, ["often", "rarely"], calls) == [["often"], ["rarely"]]


def test_second_moments_are_those_of_all_tokens() -> None:
    block, states = _first("llama")
    inputs: list[Tensor] = []
    handle = block.mlp.down_proj.register_forward_pre_hook(lambda module, args: inputs.append(args[0].reshape(-1, 48)))
    with torch.no_grad():
        for call in states:
            call(block)
    handle.remove()
    x = torch.cat(inputs).double()
    found = second_moments(block, ["mlp.down_proj"], states)[0]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), x.t() @ x / 31, rtol=1e-4, atol=1e-8)
    assert not any(module._forward_pre_hooks for module in block.modules())


def test_second_moments_in_mixed_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products in bfloat16, sums in float32."""
    block, states = _first("llama")
    exact = second_moments(block, ["mlp.down_proj"], states)[0]
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    block, states = _first("llama")
    found = second_moments(block, ["mlp.down_proj"], states)[0]
    states.advance(block)
    assert found.dtype == states.calls[0].hidden.dtype == torch.float32
    assert not torch.equal(found, exact)
    torch.testing.assert_close(found, exact, rtol=0.05, atol=0.02 * float(exact.diagonal().mean()))


def test_a_layer_that_loses_its_tokens_has_no_moments() -> None:
    """Routing changes when attention is quantized: an expert that the text reached may get none of it any more."""
    block, states = _first("llama")
    mlp = block.mlp
    mlp.forward = lambda hidden: mlp.down_proj(mlp.gate_proj(hidden))
    found = second_moments(block, ["mlp.up_proj"], states)[0]
    assert torch.equal(found, torch.zeros(32, 32))
    assert second_moments(block, ["mlp.down_proj"], states)[0].any()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_inputs_that_are_not_finite_are_named(bad: float) -> None:
    block, states = _first("llama")
    states.calls[1].hidden[0, 3, 5] = bad
    with pytest.raises(ModelError, match=r"^model\.layers\.0\.mlp\.up_proj: its inputs .* NaN or infinite; load"):
        second_moments(block, ["mlp.up_proj"], states, "model.layers.0.")[0]


def test_windows_of_one_length_are_put_together() -> None:
    batches = [
        torch.zeros(2, 256),
        torch.ones(1, 256),
        torch.ones(2, 256),
        torch.ones(1, 350),
        torch.ones(1, 350),
        torch.ones(9, 350),
    ]
    merged = merge(batches)
    assert [tuple(batch.shape) for batch in merged] == [(3, 256), (2, 256), (2, 350), (9, 350)]
    assert torch.equal(torch.cat([batch.flatten() for batch in merged]), torch.cat([batch.flatten() for batch in batches]))
