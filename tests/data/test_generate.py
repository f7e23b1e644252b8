"""Text that a model writes itself: what it starts with, which tokens are greedy, what is sampled, where it starts anew."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import potq
from potq.data.generate import GREEDY, _sample, self_generated
from potq.errors import DataError, ModelError


class Chain(nn.Module):
    """A model without cache that looks at the last token only: ``logits[last]`` are those of the next one."""

    def __init__(self, logits: Tensor, **ids: Any) -> None:
        super().__init__()
        self.logits, self.device = logits, torch.device("cpu")
        settings = SimpleNamespace(vocab_size=len(logits), max_position_embeddings=None, **ids)
        self.config = SimpleNamespace(get_text_config=lambda: settings)

    def forward(self, ids: Tensor, attention_mask: Tensor, use_cache: bool) -> SimpleNamespace:
        assert ids.shape == attention_mask.shape
        assert not self.training
        return SimpleNamespace(logits=self.logits[ids])


def write(model: Any, window: int = 24, windows: int = 5, seed: int = 0, **options: Any) -> Tensor:
    return self_generated(model, window=window, windows=windows, seed=seed, **options)


def llama(**changes: Any) -> LlamaForCausalLM:
    """Random weights, large enough that it has preferences."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    fields = {**sizes, "vocab_size": 40, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(**(fields | changes), initializer_range=0.3))
    return model.eval()


def gpt2() -> GPT2LMHeadModel:
    """BOS is EOS; positions are absolute."""
    config = GPT2Config(
        vocab_size=40, n_positions=64, n_embd=32, n_layer=2, n_head=4, bos_token_id=2, eos_token_id=2, initializer_range=0.3
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return GPT2LMHeadModel(config).eval()


def texts(row: Tensor, openings: set[int]) -> list[Tensor]:
    """The texts of a window, each with the token that opens it (the first one perhaps without)."""
    places = [place for place, token in enumerate(row.tolist()) if token in openings and place > 0]
    return list(row.tensor_split(places))


def test_shape_and_repetition(tiny_model: Any) -> None:
    tiny_model.train()
    state = torch.get_rng_state()
    found = write(tiny_model)
    assert torch.equal(torch.get_rng_state(), state)
    assert tiny_model.training
    assert found.shape == (5, 24)
    assert found.dtype == torch.int64
    assert 0 <= int(found.min()) <= int(found.max()) < 260
    assert torch.equal(found, write(tiny_model))
    assert not torch.equal(found, write(tiny_model, seed=1))
    assert len(found.unique(dim=0)) == 5


@pytest.mark.parametrize("batch", [1, 2, 5, 64])
def test_the_batch_size_changes_nothing(batch: int) -> None:
    assert torch.equal(write(llama(), batch=batch), write(llama(), batch=3))


def test_the_cache_changes_nothing() -> None:
    model = llama()
    expected = write(model)
    forward = model.forward

    def without_cache(ids: Tensor, attention_mask: Tensor, use_cache: bool) -> SimpleNamespace:
        assert ids.shape[1] == attention_mask.shape[1]
        return SimpleNamespace(logits=forward(ids, attention_mask=attention_mask, use_cache=False).logits)

    model.forward = without_cache  # type: ignore[method-assign,assignment]
    assert torch.equal(write(model), expected)


def test_a_packed_model_writes_too(packed_model: Any) -> None:
    assert write(packed_model).shape == (5, 24)


@pytest.mark.parametrize(
    ("model", "opening"), [(llama(), 1), (llama(bos_token_id=None), 2), (llama(eos_token_id=None), 1), (gpt2(), 2)]
)
def test_every_text_is_one_that_starts_alone(model: Any, opening: int) -> None:
    """After its random token each text is greedy for a while, whatever stands before it in the window."""
    found = write(model, 64, 12)
    bos, eos = model.config.bos_token_id, model.config.eos_token_id
    checked = anew = 0
    for row in found:
        parts = texts(row, {opening})
        if bos is not None:
            assert row[0] == bos
        for index, part in enumerate(parts):
            if index and bos != eos and bos is not None and eos is not None:
                assert parts[index - 1][-1] in (eos, bos) or len(parts[index - 1]) > 2  # a model may write BOS itself
            first = 0 if bos is None and not index else 1  # where the random token is
            if len(part) <= first:
                continue
            assert int(part[first]) not in {bos, eos}
            greedy = part[first + 1 : first + 1 + GREEDY].tolist()
            with torch.no_grad():
                best = model(part[None]).logits[0].argmax(-1)[first : first + GREEDY].tolist()
            if isinstance(model, LlamaForCausalLM) or not index:  # absolute positions go on in the window
                assert greedy == best[: len(greedy)]
            checked, anew = checked + len(greedy), anew + bool(index)
    assert checked > 40
    if eos is not None:
        assert anew > 3


def test_after_eos_comes_bos_and_a_random_token() -> None:
    found = write(llama(), 64, 12)
    ended = (found[:, :-2] == 2).nonzero().tolist()
    assert len(ended) > 3
    following = [found[row, place + 1 : place + 3].tolist() for row, place in ended]
    assert all(bos == 1 and random not in (1, 2) for bos, random in following)
    assert len({random for _, random in following}) > 2


def test_no_text_sees_the_one_before() -> None:
    """A model that ends at once writes only starts; each is drawn anew."""
    logits = torch.full((10, 10), -math.inf)
    logits[:, 3] = 0.0
    found = write(Chain(logits, bos_token_id=None, eos_token_id=[3, 4]), 400, 1)[0]
    assert (found[1::2] == 3).all()
    assert set(found[::2].tolist()) == {0, 1, 2, 5, 6, 7, 8, 9}


def test_eos_of_the_generation_config_counts() -> None:
    model = llama(bos_token_id=None, eos_token_id=None)
    without = write(model, 64, 12)
    frequent = int(without.flatten().bincount().argmax())
    model.generation_config.eos_token_id = [frequent, 39]
    assert not torch.equal(write(model, 64, 12), without)


def test_tokens_are_sampled_as_the_model_predicts() -> None:
    probabilities = torch.tensor([0.5, 0.0, 0.25, 0.125, 0.125])
    model = Chain(probabilities.log().expand(5, 5).contiguous(), bos_token_id=None, eos_token_id=None)
    sampled = write(model, 1000, 40)[:, 1 + GREEDY :]
    assert (write(model, 1 + GREEDY, 40)[:, 1:] == 0).all()
    shares = sampled.flatten().bincount(minlength=5) / sampled.numel()
    assert shares[1] == 0
    assert torch.allclose(shares, probabilities, atol=0.01)


def test_chances_at_the_edge_give_possible_tokens() -> None:
    logits = torch.tensor([[-math.inf, 0.0, -math.inf, 0.0, -math.inf]])
    assert [int(_sample(logits, torch.tensor([chance]))) for chance in (0.0, 0.49, 0.5, 1 - 2**-24)] == [1, 1, 3, 3]


def test_starts_are_uniform_over_ordinary_tokens(packed_folder: Path, tiny_model: Any) -> None:
    model = Chain(torch.zeros(10, 10), bos_token_id=1, eos_token_id=[2, 3], pad_token_id=4)
    starts = write(model, 2, 6000)
    assert (starts[:, 0] == 1).all()
    counts = starts[:, 1].bincount(minlength=10)
    assert counts[1:5].tolist() == [0, 0, 0, 0]
    assert all(abs(int(count) - 1000) < 130 for count in counts[[0, 5, 6, 7, 8, 9]])
    tokenizer: Any = potq.load_tokenizer(packed_folder)
    tokenizer.add_tokens(["<tool>"])  # 260, which the model does not know
    tokenizer.add_special_tokens({"pad_token": "the"})
    found = set(write(tiny_model, 2, 4000, tokenizer=tokenizer)[:, 0].tolist())
    assert found == set(range(260)) - {0, *tokenizer.get_added_vocab().values()}


def test_rows_that_pad_the_embedding_start_nothing(packed_folder: Path) -> None:
    model = Chain(torch.zeros(300, 300), bos_token_id=None, eos_token_id=None)
    tokenizer = potq.load_tokenizer(packed_folder)
    assert int(write(model, 2, 4000, tokenizer=tokenizer)[:, 0].max()) == 259
    assert int(write(model, 2, 4000)[:, 0].max()) > 290


def test_a_bos_that_the_vocabulary_lacks_is_none() -> None:
    model = Chain(torch.zeros(5, 5), bos_token_id=50256, eos_token_id=50256)  # GPT-2's defaults in a small config
    assert int(write(model).max()) < 5


def test_progress(tiny_model: Any) -> None:
    calls: list[Any] = []
    write(tiny_model, 6, 5, batch=3, progress=lambda *call: calls.append(call))
    assert [done for done, _, _ in calls] == [3, 6, 9, 12, 15, 18, 20, 22, 24, 26, 28, 30]
    assert all(total == 30 and speed.endswith(" tokens/s") for _, total, speed in calls)


# ---- what is refused


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"window": 129}, "windows of 129 tokens exceed the model's limit of 128"),
        ({"window": 1}, "invalid window 1"),
        ({"windows": 0}, "invalid windows 0; use at least 1"),
        ({"batch": 0}, "invalid batch 0; use at least 1"),
    ],
)
def test_sizes_that_cannot_be(tiny_model: Any, sizes: dict[str, int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        write(tiny_model, **sizes)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_output_that_is_not_finite(value: float) -> None:
    model = Chain(torch.full((5, 5), value), bos_token_id=None, eos_token_id=None)
    model.train()
    with pytest.raises(ModelError, match="the model's output is NaN or infinite; try dtype float32"):
        write(model)
    assert model.training


def test_a_vocabulary_without_ordinary_tokens() -> None:
    with pytest.raises(ModelError, match="all 2 tokens of the vocabulary are special; give calibration text instead"):
        write(Chain(torch.zeros(2, 2), bos_token_id=0, eos_token_id=1))
