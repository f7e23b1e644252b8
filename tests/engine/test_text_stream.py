"""Tokens to text as they come: whole characters, stop texts."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from potq.engine.text_stream import TextStream

TEXTS = ["the cat sat", "zwölf Boxkämpfer", "日本語 😀👩‍👩‍👧 é", " \n\n the", "\x00\x7f\u00a0", "a\ufffdb\ufffd"]


def pieces(
    tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], *, prompt: Sequence[int] = (), stop: str = ""
) -> list[str]:
    stream = TextStream(tokenizer, prompt, [stop] if stop else [])
    found = []
    for token in ids:
        found.append(stream.put(token))
        if stream.stopped:
            break
    found.append(stream.finish())
    assert stream.text == "".join(found)
    return found


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_are_the_text_and_never_part_of_a_character(text: str, byte_tokenizer: PreTrainedTokenizerFast) -> None:
    found = pieces(byte_tokenizer, byte_tokenizer(text)["input_ids"])
    assert "".join(found) == text
    assert [piece for piece in found if "\ufffd" in piece] == [] or "\ufffd" in text


@pytest.mark.parametrize("seed", range(20))
def test_any_tokens_give_what_decoding_them_at_once_gives(seed: int, byte_tokenizer: PreTrainedTokenizerFast) -> None:
    rng = random.Random(seed)
    ids = [rng.randrange(len(byte_tokenizer)) for _ in range(60)]  # mostly no valid UTF-8, and end tokens among them
    assert "".join(pieces(byte_tokenizer, ids, prompt=byte_tokenizer("a prompt")["input_ids"])) == byte_tokenizer.decode(
        ids, skip_special_tokens=True
    )


def test_a_character_that_ends_too_soon(byte_tokenizer: PreTrainedTokenizerFast) -> None:
    ids = byte_tokenizer("a😀")["input_ids"][:-1]
    assert pieces(byte_tokenizer, ids)[-1] == "\ufffd"
    assert "".join(pieces(byte_tokenizer, ids)) == "a\ufffd"


def test_a_space_that_a_tokenizer_drops_at_the_beginning_is_kept_behind_a_prompt() -> None:
    inner = Tokenizer(models.WordLevel({"▁hello": 0, "▁world": 1, "!": 2}, unk_token="!"))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner)
    assert tokenizer.decode([1]) == "world"
    assert pieces(tokenizer, [1, 2], prompt=[0]) == [" world", "!", ""]
    assert "".join(pieces(tokenizer, [1, 0] * 20, prompt=[0])) == " world hello" * 20


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("the cat sat", "cat", "the "),
        ("the cat sat", "the", ""),
        ("aaab", "aab", "a"),
        ("the cat", "cats", "the cat"),
        ("the cat sat", "t s", "the ca"),
        ("ab😀cd", "😀", "ab"),
        ("the end", "d", "the en"),
    ],
)
def test_a_stop_text_ends_the_text_before_it(
    text: str, stop: str, expected: str, byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    assert "".join(pieces(byte_tokenizer, byte_tokenizer(text)["input_ids"], stop=stop)) == expected


def test_the_first_of_several_stop_texts_ends_it(byte_tokenizer: PreTrainedTokenizerFast) -> None:
    stream = TextStream(byte_tokenizer, [], ["sat", "cat", "x"])
    for token in byte_tokenizer("the cat sat")["input_ids"]:
        stream.put(token)
    assert (stream.text, stream.stopped, stream.finish(), stream.put(5)) == ("the ", True, "", "")


def test_nothing_is_held_that_no_stop_text_can_begin_with(byte_tokenizer: PreTrainedTokenizerFast) -> None:
    stream = TextStream(byte_tokenizer, [], ["zz"])
    assert [stream.put(token) for token in byte_tokenizer("azb")["input_ids"]] == ["a", "", "zb"]
