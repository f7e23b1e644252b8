"""Settings and prompts of a generation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from potq.engine.generation import Settings, encode, encode_chat, token_ids
from potq.errors import ConfigError, DataError

WRONG: list[dict[str, Any]] = [
    {"max_new_tokens": 0},
    {"max_new_tokens": None},
    {"temperature": -1},
    {"temperature": float("nan")},
    {"temperature": "hot"},
    {"top_k": -1},
    {"top_k": 2**31},
    {"top_k": 1.5},
    {"top_p": 1.1},
    {"top_p": float("nan")},
    {"min_p": -0.1},
    {"repetition_penalty": 0},
    {"repetition_penalty": float("inf")},
    {"seed": -1},
    {"seed": 2**64},
    {"stop": ""},
    {"stop": ["a", ""]},
    {"stop": 5},
    {"stop_token_ids": [-1]},
    {"stop_token_ids": [2**31]},
    {"best_of": 3},
]


@pytest.mark.parametrize("wrong", WRONG, ids=str)
def test_settings_out_of_range_are_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Settings(**wrong)


@pytest.mark.parametrize("idle", [{"seed": 0}, {"top_k": 5}, {"top_p": 0.9}, {"min_p": 0.1}], ids=str)
def test_a_wish_without_effect_is_an_error(idle: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(idle))} has no effect at temperature 0"):
        Settings(**idle)
    assert Settings(temperature=0.5, **idle).temperature == 0.5


def test_one_stop_text_or_several() -> None:
    assert Settings(stop="ab").stop == ("ab",)  # type: ignore[arg-type]
    assert Settings(stop=["ab", "c"]).stop == ("ab", "c")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "ids", [[5, 6], (5, 6), range(5, 7), torch.tensor([5, 6]), torch.tensor([[5, 6]], dtype=torch.int16)], ids=repr
)
def test_token_ids_of_every_kind(ids: Any) -> None:
    assert token_ids(ids).tolist() == [5, 6]


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([1.5], "whole numbers"),
        (["a"], "whole numbers"),
        ([[1, 2]], "whole numbers"),
        ([2**31], "whole numbers"),
        ([-(2**31) - 1], "whole numbers"),
        (7, "whole numbers"),
        (None, "whole numbers"),
        (b"text", "bytes"),
        ({"input_ids": [1]}, "whole numbers"),
        (torch.tensor([1.0]), "whole numbers"),
        (torch.tensor([[1], [2]]), r"the tensor is \(2, 1\)"),
        (torch.tensor(1), r"the tensor is \(\)"),
    ],
)
def test_what_are_no_token_ids(ids: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        token_ids(ids)


def test_a_chat_is_written_by_its_template(byte_tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer = byte_tokenizer
    turns = [{"role": "user", "content": "hi"}]
    with pytest.raises(DataError, match="no chat template"):
        encode_chat(tokenizer, turns)
    tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
    assert tokenizer.decode(encode_chat(tokenizer, turns)) == "<user>hi<assistant>"
    tokenizer.chat_template = "{{ raise_exception('no user turn') }}"
    with pytest.raises(DataError, match="no user turn"):
        encode_chat(tokenizer, turns)


def test_a_text_of_nothing(byte_tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(DataError, match="the prompt is empty"):
        encode(byte_tokenizer, "")


@pytest.mark.parametrize("text", ["\ud83d", "a\udcff"])  # half of an emoji; a byte of a command line that is no UTF-8
def test_a_text_that_is_no_unicode(text: str, byte_tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(DataError, match="not valid Unicode"):
        encode(byte_tokenizer, text)
