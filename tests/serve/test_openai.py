"""``potq serve`` by the official client."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the server is not installed: pip install 'potq[serve]'")

from potq import Engine
from serve_helpers import ASK, Live, live, wait_until

TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Paris", "Rome"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


def test_models(client: Any) -> None:
    assert [model.id for model in client.models.list()] == ["tiny-pot4"]
    assert client.models.retrieve("tiny-pot4").id == "tiny-pot4"


def test_a_greedy_text_is_the_engines(client: Any, chat_folder: Path) -> None:
    with Engine(chat_folder, threads=1) as engine:
        text = engine.generate("the cat", max_new_tokens=9).finish()
        turn = engine.generate(ASK, max_new_tokens=9).finish()
    found = client.completions.create(model="tiny-pot4", prompt="the cat", max_tokens=9, temperature=0)
    assert found.choices[0].text == text.text
    assert (found.usage.completion_tokens, found.usage.prompt_tokens) == (len(text.ids), len(engine_ids(chat_folder)))
    said = client.chat.completions.create(model="tiny-pot4", messages=ASK, max_tokens=9, temperature=0)
    assert said.choices[0].message.content == turn.text
    assert said.choices[0].finish_reason == "length"


def engine_ids(folder: Path) -> list[int]:
    with Engine(folder, threads=1) as engine:
        return engine.encode("the cat")


def test_a_stream_is_the_whole_text_in_pieces(client: Any) -> None:
    asked = {"model": "tiny-pot4", "messages": ASK, "max_tokens": 20, "temperature": 0}
    whole = client.chat.completions.create(**asked)
    events = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    pieces = [event.choices[0].delta.content or "" for event in events if event.choices]
    assert "".join(pieces) == whole.choices[0].message.content
    assert len(pieces) > 1
    assert events[0].choices[0].delta.role == "assistant"
    assert events[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert events[-1].usage == whole.usage
    assert all(event.usage is None for event in events[:-1])


def test_several_texts_with_one_seed(client: Any) -> None:
    asked = {"model": "tiny-pot4", "prompt": "the", "max_tokens": 12, "temperature": 2.0, "n": 3, "seed": 5}
    texts = [choice.text for choice in client.completions.create(**asked).choices]
    assert len(set(texts)) == 3
    assert [choice.text for choice in client.completions.create(**asked).choices] == texts
    streamed = ["", "", ""]
    for event in client.completions.create(**asked, stream=True):
        streamed[event.choices[0].index] += event.choices[0].text
    assert streamed == texts


def test_several_prompts_and_token_ids(client: Any) -> None:
    asked = {"model": "tiny-pot4", "max_tokens": 5, "temperature": 0}
    alone = [client.completions.create(**asked, prompt=prompt).choices[0].text for prompt in ("the cat", "mat")]
    both = client.completions.create(**asked, prompt=["the cat", "mat"])
    assert [choice.text for choice in both.choices] == alone


def test_stop_texts(client: Any) -> None:
    asked = {"model": "tiny-pot4", "prompt": "the cat", "max_tokens": 24, "temperature": 0}
    whole = client.completions.create(**asked).choices[0].text
    assert len(whole) > 4
    stopped = client.completions.create(**asked, stop=[whole[2:4], "never"]).choices[0]
    assert (stopped.text, stopped.finish_reason) == (whole[: whole.index(whole[2:4])], "stop")


def test_logprobs(client: Any) -> None:
    asked = {"model": "tiny-pot4", "max_tokens": 4, "temperature": 0}
    said = client.chat.completions.create(**asked, messages=ASK, logprobs=True, top_logprobs=3)
    entries = said.choices[0].logprobs.content
    assert len(entries) == said.usage.completion_tokens
    for entry in entries:
        assert entry.logprob == entry.top_logprobs[0].logprob <= 0  # greedy
        assert len(entry.top_logprobs) == 3
    own = b"".join(bytes(entry.bytes) for entry in entries)
    assert own.decode(errors="replace") == said.choices[0].message.content
    zero = client.chat.completions.create(**asked, messages=ASK, logprobs=True)
    assert [entry.logprob for entry in zero.choices[0].logprobs.content] == [entry.logprob for entry in entries]
    assert all(not entry.top_logprobs for entry in zero.choices[0].logprobs.content)


def test_echo_has_the_logprobs_of_the_engine(client: Any, chat_folder: Path) -> None:
    with Engine(chat_folder, threads=1) as engine:
        ids = engine.encode("the cat")
        expected = engine.logits(ids).log_softmax(-1)[range(len(ids) - 1), ids[1:]].tolist()
    asked = {"model": "tiny-pot4", "temperature": 0, "echo": True, "logprobs": 2}
    found = client.completions.create(**asked, prompt="the cat", max_tokens=1).choices[0]
    assert found.text.startswith("the cat")
    assert found.logprobs.token_logprobs[0] is None
    assert found.logprobs.token_logprobs[1:-1] == pytest.approx(expected, abs=1e-5)
    assert len(found.logprobs.tokens) == len(ids) + 1
    assert "".join(found.logprobs.tokens[: len(ids)]) == "the cat"
    assert found.logprobs.text_offset[len(ids)] == len("the cat")
    alone = client.completions.create(**asked, prompt=ids, max_tokens=0).choices[0]
    assert alone.text == "the cat"
    assert alone.logprobs.token_logprobs[1:] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("spelled", [False, True], ids=["text", "ids"])
def test_offsets_count_characters(server: Live, byte_tokenizer: Any, spelled: bool) -> None:
    ids = byte_tokenizer.encode("aé b<|end|>€c")
    text = byte_tokenizer.decode(ids)
    body = {"prompt": ids if spelled else text, "echo": True, "logprobs": 0, "max_tokens": 0}
    [choice] = server.post("/v1/completions", body)[1]["choices"]
    assert choice["text"] == text == "aé b<|end|>€c"
    assert choice["logprobs"]["text_offset"] == [0, 1, 1, 2, 3, 4, 11, 11, 11, 12]


def test_a_text_that_ends_at_once_has_the_end_tokens_logprob(chat_folder: Path, tmp_path: Path) -> None:
    """lm-evaluation-harness asks for a token behind what it scores, and leaves the last logprob out: there must be one."""
    folder = shutil.copytree(chat_folder, tmp_path / "ends")
    with Engine(folder, threads=1) as engine:
        row = engine.logits(engine.encode("the cat"))[-1].log_softmax(-1)
    config = folder / "generation_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"eos_token_id": int(row.argmax())}))
    body = {"prompt": "the cat", "max_tokens": 3, "temperature": 0, "logprobs": 1, "echo": True}
    with live(folder) as server:
        [choice] = server.post("/v1/completions", body)[1]["choices"]
        [said] = server.post("/v1/chat/completions", {"messages": ASK, "logprobs": True, "max_tokens": 3})[1]["choices"]
        on = server.post("/v1/completions", body | {"ignore_eos": True})[1]
    assert (choice["text"], choice["finish_reason"]) == ("the cat", "stop")
    assert (on["usage"]["completion_tokens"], on["choices"][0]["finish_reason"]) == (3, "length")
    assert len(choice["logprobs"]["token_logprobs"]) == len(choice["logprobs"]["tokens"]) == len(engine_ids(folder)) + 1
    assert choice["logprobs"]["token_logprobs"][-1] == pytest.approx(row.max().item(), abs=1e-5)
    assert len(said["logprobs"]["content"]) <= 3


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
def test_a_forced_tool_call(client: Any, choice: Any) -> None:
    asked = {"model": "tiny-pot4", "messages": ASK, "tools": [TOOL], "tool_choice": choice}
    said = client.chat.completions.create(**asked).choices[0]
    assert said.finish_reason == "tool_calls"
    [call] = said.message.tool_calls
    assert call.function.name == "weather"
    assert json.loads(call.function.arguments)["city"] in ("Paris", "Rome")
    events = list(client.chat.completions.create(**asked, stream=True))
    [streamed] = [call for event in events for call in event.choices[0].delta.tool_calls or ()]
    assert json.loads(streamed.function.arguments)["city"] in ("Paris", "Rome")


def test_what_the_client_keeps_of_an_answer_is_a_turn(client: Any) -> None:
    asked = {"model": "tiny-pot4", "max_tokens": 40, "temperature": 0}
    said = client.chat.completions.create(**asked, messages=ASK).choices[0].message
    called = client.chat.completions.create(**asked, messages=ASK, tools=[TOOL], tool_choice="required").choices[0].message
    [call] = called.model_dump()["tool_calls"]
    kept = called.model_dump() | {"tool_calls": [{**call, "index": 0}]}  # as of a stream
    result = {"role": "tool", "tool_call_id": call["id"], "content": "rain"}
    history = [*ASK, said.model_dump(), kept, result, said.model_dump() | {"annotations": []}]
    assert {"annotations", "audio", "function_call"} <= set(kept)
    brief = [*ASK, {"role": "assistant", "content": said.content}, called.model_dump(exclude_none=True), result]
    found = [
        client.chat.completions.create(**asked, messages=messages).choices[0].message.content
        for messages in (history, [*brief, brief[1]])
    ]
    assert found[0] == found[1]


def test_one_of_several_tools(client: Any) -> None:
    other = {"type": "function", "function": {"name": "clock"}}
    asked = {"model": "tiny-pot4", "messages": ASK, "tools": [TOOL, other], "tool_choice": "required"}
    [call] = client.chat.completions.create(**asked, max_tokens=90).choices[0].message.tool_calls
    assert call.function.name in ("weather", "clock")
    json.loads(call.function.arguments)


def test_tools_that_are_not_called(client: Any) -> None:
    said = client.chat.completions.create(model="tiny-pot4", messages=ASK, tools=[TOOL], max_tokens=4).choices[0]
    assert said.message.tool_calls is None
    assert said.message.content is not None


def test_json_by_schema(client: Any) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"], "additionalProperties": False}
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    said = client.chat.completions.create(model="tiny-pot4", messages=ASK, response_format=wanted).choices[0]
    assert said.finish_reason == "stop"
    assert type(json.loads(said.message.content)["a"]) is bool


def test_tokens_of_a_text_and_back(server: Live, byte_tokenizer: Any) -> None:
    text = "the cat, zwölf €<|end|>"
    ids = byte_tokenizer.encode(text)
    assert server.post("/tokenize", {"content": text}) == (200, {"tokens": ids})
    assert server.post("/detokenize", {"tokens": ids}) == (200, {"content": text})
    assert server.post("/detokenize", {"tokens": []}) == (200, {"content": ""})


def test_figures(chat_folder: Path) -> None:
    """What /metrics says after two texts, of which the second finds its beginning in the cache."""
    body = {"prompt": [5] * 200, "max_tokens": 6, "ignore_eos": True, "stream": True}
    with live(chat_folder) as server:
        for _ in range(2):
            assert server.post("/v1/completions", body)[0] == 200
        wait_until(lambda: _figures(server)["potq_cache_pages_used"] == 0)
        found = _figures(server)
    assert found['potq_requests_total{path="/v1/completions",status="200"}'] == 2
    assert found["potq_prompt_tokens_total"] == 400
    assert found["potq_tokens_total"] == 12
    assert found["potq_shared_tokens"] == 192  # three pages
    assert found["potq_time_to_first_token_seconds_count"] == 2
    assert 0 < found["potq_time_to_first_token_seconds_sum"] < 60
    assert 0 < found["potq_time_between_tokens_seconds_count"] <= 10
    assert found["potq_cache_pages"] > 0
    assert found["potq_texts_running"] == found["potq_texts_waiting"] == 0


def _figures(server: Live) -> dict[str, float]:
    status, page = server.get("/metrics")
    assert status == 200
    lines = (line.rsplit(" ", 1) for line in page.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, value in lines}


def test_keys(chat_folder: Path) -> None:
    openai = pytest.importorskip("openai", reason="the official client; pip install openai")
    with live(chat_folder, api_keys=("secret", "other")) as server:
        for key in ("secret", "other"):
            assert list(openai.OpenAI(base_url=f"{server.url}/v1", api_key=key).models.list())
        with pytest.raises(openai.AuthenticationError, match="give an API key"):
            openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong").models.list()
        assert server.get("/metrics")[0] == 401
        assert server.get("/health") == (200, {"status": "ok"})
        assert server.get("/")[0] == 200


def test_the_schema_tells_of_refusals_and_of_streams(server: Live) -> None:
    schema = server.get("/openapi.json")[1]
    for path, operations in schema["paths"].items():
        for operation in operations.values():
            kinds = set(operation["responses"])
            assert {"200", "4XX", "5XX"} <= kinds
            assert "422" not in kinds  # in another form, which is FastAPI's own
            assert ("text/event-stream" in operation["responses"]["200"]["content"]) == path.endswith("completions")
    assert set(schema["components"]["schemas"]["Failed"]["properties"]) == {"error"}
