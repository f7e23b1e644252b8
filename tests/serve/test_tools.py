"""``potq.serve.tools``: a model is told of tools, and its calls are found however the text is cut."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("fastapi", reason="the server is not installed: pip install 'potq[serve]'")

from potq.serve.requests import Message, Tool
from potq.serve.tools import ToolReader, Way, call_schema, turns, way_of

TOOL = Tool.model_validate({"type": "function", "function": {"name": "f", "description": "does f"}})
CALL = '{"name": "f", "arguments": {"a": 1}}'
PLAIN, OWN = "{{ messages }}", "{{ messages }}{{ tools }}"


def read(way: Way, text: str, cuts: set[int] | None = None) -> tuple[str, str, list[tuple[str, str]]]:
    """What came as it was written, what came at the end, and the calls."""
    reader, said = ToolReader(way, ["f"]), ""
    places = sorted({0, len(text)} | {cut for cut in cuts or () if cut < len(text)})
    for start, end in pairwise(places):
        said += reader.put(text[start:end])
    rest, calls = reader.finish()
    return said, rest, [(call.name, call.arguments) for call in calls]


@pytest.mark.parametrize(
    ("way", "text", "said", "calls"),
    [
        ("marked", "hello", "hello", 0),
        ("marked", f"hm <tool_call>\n{CALL}\n</tool_call>", "hm ", 1),
        ("marked", f"<tool_call>{CALL}</tool_call>\n<tool_call>{CALL}</tool_call>", "", 2),
        ("marked", f"<tool_call>{CALL}", "", 1),
        ("marked", "a <tool", "a <tool", 0),
        ("marked", "<tool_call>no JSON</tool_call>", "<tool_call>no JSON</tool_call>", 0),
        ("marked", '<tool_call>{"name": "g"}</tool_call>', '<tool_call>{"name": "g"}</tool_call>', 0),
        ("json", CALL, "", 1),
        ("json", f"[{CALL}, {CALL}]", "", 2),
        ("json", CALL.replace("arguments", "parameters"), "", 1),
        ("json", "{x", "{x", 0),
        ("json", f"see {CALL}", f"see {CALL}", 0),
        ("arguments", '{"a": 1}', "", 1),
    ],
)
@given(cuts=st.sets(st.integers(1, 60)))
def test_calls_are_found_however_the_text_is_cut(way: Way, text: str, said: str, calls: int, cuts: set[int]) -> None:
    first, rest, found = read(way, text, cuts)
    assert first + rest == said
    assert found == [("f", '{"a": 1}')] * calls


def test_text_is_not_held_back_without_need() -> None:
    reader = ToolReader("marked", ["f"])
    assert reader.put("a < b") == "a < b"
    assert reader.put(" <tool") == " "
    assert reader.put("box>") == "<toolbox>"


def test_calls_have_ids_of_their_own() -> None:
    reader = ToolReader("json", ["f"])
    reader.put(f"[{CALL}, {CALL}]")
    assert len({call.id for call in reader.finish()[1]}) == 2


def test_ways() -> None:
    assert [way_of(template) for template in (PLAIN, OWN, OWN + "<tool_call>")] == ["marked", "json", "marked"]


def test_a_template_that_knows_tools_gets_them_as_they_are() -> None:
    call = {"id": "1", "function": {"name": "f", "arguments": '{"a": 1}'}}
    chat = [Message(role="user", content="x"), Message.model_validate({"role": "assistant", "tool_calls": [call]})]
    written = turns([*chat, Message(role="tool", content="2", tool_call_id="1")], [TOOL], OWN)
    assert written[1]["tool_calls"] == [{"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}]
    assert written[2] == {"role": "tool", "content": "2"}


def test_any_other_template_is_told_in_words() -> None:
    call = {"id": "1", "function": {"name": "f", "arguments": '{"a": 1}'}}
    chat = [
        Message(role="developer", content="be brief"),
        Message(role="user", content="x"),
        Message.model_validate({"role": "assistant", "tool_calls": [call]}),
        Message(role="tool", content="2", tool_call_id="1"),
    ]
    system, _, called, answered = turns(chat, [TOOL], PLAIN)
    assert system["role"] == "system"
    assert system["content"].startswith("be brief\n\n")
    assert "does f" in system["content"]
    assert read("marked", called["content"])[2] == [("f", '{"a": 1}')]  # as it is told, so it is read
    assert answered == {"role": "user", "content": "<tool_response>\n2\n</tool_response>"}
    assert [turn["role"] for turn in turns(chat[1:2], [TOOL], PLAIN)] == ["system", "user"]
    assert turns(chat[1:2], [], PLAIN) == [{"role": "user", "content": "x"}]


def test_the_schema_of_a_call() -> None:
    [one] = call_schema([TOOL])["anyOf"]
    assert one["properties"]["name"] == {"const": "f"}
    json.dumps(one)
