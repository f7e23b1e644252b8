"""Tokens to text as they come: whole characters, stop texts."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
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


# ---- tokenizers with byte fallback ---------------------------------------------------------------------------------


def _with_byte_fallback() -> PreTrainedTokenizerFast:
    """Of Llama 2's kind: what the vocabulary lacks becomes a token for each byte."""
    letters = "▁abcdefgé"
    vocabulary = {"<unk>": 0, **{f"<0x{byte:02X}>": 1 + byte for byte in range(256)}}
    vocabulary |= {letter: 257 + number for number, letter in enumerate(letters)}
    inner = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    inner.normalizer = normalizers.Replace(" ", "▁")
    inner.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>")


FALLBACK = _with_byte_fallback()
UNICODE = st.text(
    st.sampled_from("abc 😀👩日é\u0301\n\ufffe") | st.characters(codec="utf-8", exclude_characters="\ufffd▁"), max_size=40
)


@given(UNICODE, st.integers(0, 200))
def test_any_text_behind_any_prompt(text: str, at: int) -> None:
    """A prompt may end inside a character, whose end then comes with its first token."""
    ids = FALLBACK(text)["input_ids"]
    prompt, rest = ids[: at % (len(ids) + 1)], ids[at % (len(ids) + 1) :]
    decoded = (FALLBACK.decode(prompt[:count]) for count in range(len(prompt), -1, -1))
    before = next(part for part in decoded if not part.endswith("\ufffd"))  # without a character that is only begun
    found = pieces(FALLBACK, rest, prompt=prompt)
    assert FALLBACK.decode(ids) == text
    if rest:
        assert before + "".join(found) == text
    assert not any("\ufffd" in piece for piece in found) or not rest


def test_emoji_in_a_row_stay_whole() -> None:
    text = "a" + "😀👩‍👩‍👧" * 20
    found = pieces(FALLBACK, FALLBACK(text)["input_ids"])
    assert "".join(found) == text
    assert max(len(piece.encode()) for piece in found) == 4


def test_a_run_that_ends_inside_a_character_keeps_those_before_it() -> None:
    ids = FALLBACK("😀😀")["input_ids"]
    assert FALLBACK.decode(ids[:-1]) == "\ufffd" * 7
    assert "".join(pieces(FALLBACK, ids[:-1])) == "😀" + "\ufffd" * 3
