"""Prompts and greedy continuations, whatever the batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evaluate_helpers import tiny_gpt2
from potq.errors import DataError
from potq.evaluate.continuations import continuations, prompts_of

pytestmark = pytest.mark.usefixtures("one_thread")  # models so small only wait for threads


def test_prompts_are_evenly_spaced() -> None:
    found = prompts_of(torch.arange(50), 4, prompt_tokens=5, new_tokens=3)
    assert found.prompts.tolist() == [list(range(start, start + 5)) for start in (0, 12, 24, 36)]
    assert found.truths.tolist() == [list(range(start + 5, start + 8)) for start in (0, 12, 24, 36)]


@given(st.integers(1, 20), st.integers(1, 9), st.integers(1, 9), st.integers(0, 99))
def test_no_prompt_overlaps_another(count: int, prompt_tokens: int, new_tokens: int, more: int) -> None:
    tokens = torch.arange(count * (prompt_tokens + new_tokens) + more)
    found = torch.cat(prompts_of(tokens, count, prompt_tokens=prompt_tokens, new_tokens=new_tokens), dim=1)
    assert found.shape == (count, prompt_tokens + new_tokens)
    assert found.unique().numel() == found.numel()
    with pytest.raises(DataError):
        prompts_of(tokens[more + 1 :], count, prompt_tokens=prompt_tokens, new_tokens=new_tokens)


def test_a_text_that_is_too_short() -> None:
    with pytest.raises(DataError, match=r"1000 tokens, room for 7 prompts of 64 .* continuations of 64, not for 100; give"):
        prompts_of(torch.arange(1000))


@pytest.mark.parametrize("name", ["count", "prompt_tokens", "new_tokens"])
def test_no_prompts_at_all(name: str) -> None:
    with pytest.raises(DataError, match=f"invalid {name} 0; use at least 1"):
        prompts_of(torch.arange(1000), **{"count": 1, name: 0})


# ---- how a model goes on


@pytest.fixture
def prompts() -> list[torch.Tensor]:
    """Seven prompts of 1 to 16 tokens."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(1, 260, (1 + 5 * i % 17,), generator=generator) for i in range(7)]


def as_lists(found: list[torch.Tensor]) -> list[list[int]]:
    return [row.tolist() for row in found]


def alone(model: Any, prompt: torch.Tensor, new_tokens: int) -> list[int]:
    ids = prompt[None]
    options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": new_tokens, "do_sample": False}
    written: list[int] = model.generate(ids, **options)[0, len(prompt) :].tolist()
    end = model.generation_config.eos_token_id
    return written[: written.index(end)] if end in written else written


@pytest.mark.parametrize("kind", ["llama", "packed", "gpt2"])
@pytest.mark.parametrize("batch", [1, 4])
def test_greedy_text_whatever_the_batch(
    request: pytest.FixtureRequest, prompts: list[torch.Tensor], kind: str, batch: int
) -> None:
    fixtures = {"llama": "tiny_model", "packed": "packed_model"}
    model = request.getfixturevalue(fixtures[kind]) if kind in fixtures else tiny_gpt2()
    found = continuations(model, prompts, new_tokens=12, batch=batch)
    assert as_lists(found) == [alone(model, prompt, 12) for prompt in prompts]


def test_a_matrix_of_prompts(tiny_model: Any, tokens: torch.Tensor) -> None:
    assert as_lists(continuations(tiny_model, tokens)) == as_lists(continuations(tiny_model, list(tokens)))
    assert continuations(tiny_model, []) == []


@pytest.mark.parametrize("several", [False, True])
def test_text_ends_at_eos(tiny_model: Any, prompts: list[torch.Tensor], several: bool) -> None:
    tiny_model.generation_config.eos_token_id = None
    whole = as_lists(continuations(tiny_model, prompts, new_tokens=12))
    assert {len(row) for row in whole} == {12}
    ends = [whole[0][5], whole[1][0]] if several else [whole[0][5]]
    tiny_model.generation_config.eos_token_id = ends if several else ends[0]
    cut = [row[: min([row.index(end) for end in ends if end in row], default=12)] for row in whole]
    assert as_lists(continuations(tiny_model, prompts, new_tokens=12, batch=4)) == cut
    assert len(cut[0]) <= 5
    assert not several or cut[1] == []


def test_the_model_is_left_as_it_was(tiny_model: Any, prompts: list[torch.Tensor]) -> None:
    expected = as_lists(continuations(tiny_model, prompts, new_tokens=12))
    settings = {"do_sample": True, "temperature": 5.0, "top_k": 3, "repetition_penalty": 9.0, "num_beams": 3}
    tiny_model.generation_config.update(**settings)
    before = tiny_model.generation_config.to_dict(), torch.random.get_rng_state()
    tiny_model.train()
    tiny_model.model.layers[0].eval()
    assert as_lists(continuations(tiny_model, prompts, new_tokens=12)) == expected
    assert tiny_model.generation_config.to_dict() == before[0]
    assert torch.equal(torch.random.get_rng_state(), before[1])
    assert tiny_model.training
    assert not tiny_model.model.layers[0].training


def test_progress_is_called_after_each_batch(tiny_model: Any, prompts: list[torch.Tensor]) -> None:
    calls: list[tuple[Any, ...]] = []
    continuations(tiny_model, prompts, new_tokens=2, batch=4, progress=lambda *call: calls.append(call))
    assert [call[:2] for call in calls] == [(4, 7), (7, 7)]
    assert all(call[2].endswith(" tokens/s") for call in calls)


def test_what_does_not_fit_the_model(tiny_model: Any) -> None:
    assert [len(row) for row in continuations(tiny_model, [torch.ones(127, dtype=torch.long)], new_tokens=1)] <= [1]
    with pytest.raises(DataError, match="a prompt of 127 tokens and 2 new ones exceed the model's limit of 128; use fewer"):
        continuations(tiny_model, [torch.ones(127, dtype=torch.long)], new_tokens=2)


@pytest.mark.parametrize("name", ["new_tokens", "batch"])
def test_no_continuation_at_all(tiny_model: Any, tokens: torch.Tensor, name: str) -> None:
    with pytest.raises(DataError, match=f"invalid {name} 0; use at least 1"):
        continuations(tiny_model, tokens, **{name: 0})  # type: ignore[arg-type]


def test_an_empty_prompt(tiny_model: Any, tokens: torch.Tensor) -> None:
    with pytest.raises(DataError, match="prompt 1 is empty"):
        continuations(tiny_model, [tokens[0], tokens[0][:0]])
