"""Bad requests, big ones, clients that vanish or say nothing: a clear error, and the others are served as ever."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import sys
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the server is not installed: pip install 'potq[serve]'")

from potq.engine.scheduler import Scheduler
from potq.errors import ConfigError
from potq.serve.server import listen
from potq.serve.settings import ServerSettings
from serve_helpers import ASK, Live, live, wait_until

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
_TOOL = {"type": "function", "function": {"name": "f"}}
_POST = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "no JSON object; send one, with content-type: application/json"),
        (b"[5]", "no JSON object"),
        (b"{", "not JSON"),
        (b'{"prompt": "a\xff"}', "parsing the body"),
        (rb'{"prompt": "\ud800"}', "not valid Unicode"),
        (b"[" * 100_000, "parsing the body"),
        (b'{"prompt": ' + b"9" * 10_000 + b"}", "parsing the body"),
    ],
    ids=["empty", "a list", "cut", "no UTF-8", "half a pair", "deep", "huge number"],
)
def test_bodies_that_are_no_json(server: Live, body: bytes, said: str) -> None:
    status, answer = server.post(TEXT, body)
    assert status in (400, 422)
    assert said in answer["error"]["message"]


@pytest.mark.parametrize(
    ("path", "change", "param", "said"),
    [
        (CHAT, {"max_token": 3}, "max_token", "did you mean 'max_tokens'"),
        (CHAT, {"top-p": 1}, "top-p", "did you mean 'top_p'"),
        (CHAT, {"max tokens": 3}, "max tokens", "did you mean 'max_tokens'"),
        (TEXT, {"str": 1}, "str", "unknown key"),
        (TEXT, {"kind of str": 1}, "kind of str", "unknown key"),
        (CHAT, {"messages": []}, "messages", "at least 1"),
        (CHAT, {"messages": [{"role": "user", "text": "a"}]}, "messages.0.text", "unknown key"),
        (CHAT, {"temperature": -1}, "temperature", "greater than or equal to 0"),
        (CHAT, {"temperature": float("nan")}, "temperature", "finite"),
        (CHAT, {"stop": ["a"] * 5000}, "stop", "at most 16"),
        (CHAT, {"stop": "a" * 500}, "stop.0", "at most 128"),
        (CHAT, {"stop": [""]}, "stop.0", "at least 1"),
        (CHAT, {"stop": 5}, "stop", "give a text, or a list of texts"),
        (CHAT, {"messages": [{"role": "user", "content": 5}]}, "messages.0.content", "a list of parts that are text"),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "messages.0.content.0.type", "'text'"),
        (CHAT, {"messages": [{"role": "user", "audio": {"id": "a"}}]}, "messages.0.audio", "text alone"),
        (CHAT, {"messages": [{"role": "user", "annotations": [{}]}]}, "messages.0.annotations", "text alone"),
        (CHAT, {"messages": [{"role": "user", "function_call": {"name": "f"}}]}, "messages.0.function_call", "tool_calls"),
        (CHAT, {"response_format": {"type": "json_schema"}}, "response_format.json_schema", "Field required"),
        (
            CHAT,
            {"response_format": {"type": "json_schema", "json_schema": {"json_schema": {}}}},
            "response_format.json_schema.schema",
            "Field required",
        ),
        (CHAT, {"response_format": {"type": "xml"}}, "response_format", "json_object or json_schema"),
        (CHAT, {"response_format": "json"}, "response_format", "json_object or json_schema"),
        (CHAT, {"tool_choice": {"type": "function"}}, "tool_choice.function", "Field required"),
        (CHAT, {"tool_choice": "any"}, "tool_choice", "'none', 'auto' or 'required'"),
        (CHAT, {"tool_choice": 5}, "tool_choice", "that names a function"),
        (CHAT, {"frequency_penalty": 0.5}, "frequency_penalty", "use repetition_penalty"),
        (CHAT, {"logit_bias": {"5": 1}}, "logit_bias", "leave it out"),
        (CHAT, {"n": 1000}, "n", "less than or equal to 128"),
        (CHAT, {"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools.0.function.name", "match"),
        (TEXT, {"suffix": "end"}, "suffix", "cannot fill in"),
        (TEXT, {"best_of": 3}, "best_of", "use n"),
        (TEXT, {"prompt": [-1]}, "prompt.0", "greater than or equal to 0"),
        (TEXT, {"prompt": ["a", 5]}, "prompt.1", "valid string"),
        (TEXT, {"prompt": [[1], []]}, "prompt.1", "at least 1"),
        *(
            (TEXT, {"prompt": prompt}, "prompt", "a text or token ids, or a list")
            for prompt in ([], None, {"str": 1}, [None])
        ),
    ],
)
def test_a_field_that_cannot_be_is_named(server: Live, path: str, change: dict[str, Any], param: str, said: str) -> None:
    body = {"messages": ASK} if path == CHAT else {"prompt": "the"}
    status, answer = server.post(path, {**body, **change})
    assert status == 422
    assert answer["error"]["param"] == param
    assert said in answer["error"]["message"]


def test_a_body_of_an_unknown_kind(server: Live) -> None:
    status, answer = server.post(TEXT, {"prompt": "a"}, **{"content-type": "text/plain"})
    assert status == 422
    assert "content-type: application/json" in answer["error"]["message"]


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        (TEXT, {"prompt": ""}, "prompt is empty"),
        (TEXT, {"prompt": [5000]}, "not in the vocabulary"),
        (TEXT, {"prompt": [1] * 2000}, "does not fit the context of 1024"),
        (TEXT, {"prompt": ["a"] * 100, "n": 2}, "may have 128 texts"),
        (CHAT, {"messages": ASK, "top_logprobs": 2}, "wants logprobs"),
        (CHAT, {"messages": ASK, "tool_choice": "required"}, "wants tools"),
        (CHAT, {"messages": ASK, "stop": "}", "response_format": {"type": "json_object"}}, "leave stop out"),
        (CHAT, {"messages": ASK, "stop": "}", "tools": [_TOOL], "tool_choice": "required"}, "leave stop out"),
        (CHAT, {"messages": ASK, "response_format": {"type": "json_schema", "json_schema": {"schema": {"not": {}}}}}, "not"),
        (
            CHAT,
            {"messages": ASK, "response_format": {"type": "json_schema", "json_schema": {"schema": {"enum": []}}}},
            "Unsat",
        ),
        ("/detokenize", {"tokens": [70000]}, "not in the vocabulary"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_cannot_be_served(server: Live, path: str, body: dict[str, Any], said: str, stream: bool) -> None:
    more = {"stream": True} if stream and path != "/detokenize" else {}
    assert said in server.refused(400, path, {**body, **more})


def test_another_model_or_path(server: Live) -> None:
    assert "'tiny-pot4' is served" in server.refused(404, TEXT, {"model": "gpt-9", "prompt": "a"})
    assert server.get("/v1/models/none")[0] == 404
    assert server.get("/none")[0] == 404
    assert server.get(TEXT)[0] == 405


@pytest.mark.parametrize(
    ("method", "path", "status", "allow"),
    [("DELETE", TEXT, 405, "POST"), ("POST", "/health", 405, "GET, HEAD"), ("HEAD", TEXT, 405, "POST")]
    + [("HEAD", path, 200, None) for path in ("/", "/health", "/v1/models")],
)
def test_methods(server: Live, method: str, path: str, status: int, allow: str | None) -> None:
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=30)
    for _ in range(2):  # over one connection: an answer to HEAD has no body
        connection.request(method, path)
        answer = connection.getresponse()
        assert (answer.status, answer.getheader("allow")) == (status, allow)
        assert bool(answer.read()) == (method != "HEAD")
    connection.close()


def test_a_mistake_of_the_server(chat_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with live(chat_folder) as server:
        monkeypatch.setattr(server.service, "check_model", lambda _: 1 / 0)
        assert "its log says which" in server.refused(500, TEXT, {"prompt": "a"})
        assert 'potq_requests_total{path="/v1/completions",status="500"} 1.0' in server.get("/metrics")[1]


def test_web_pages(chat_folder: Path) -> None:
    """Those that are named may use the server; preflights need no key."""
    with live(chat_folder, origins=("https://a.org",), api_keys=("secret",)) as server:
        ask = {"access-control-request-method": "POST", "access-control-request-headers": "authorization"}
        answers = [_preflight(server, TEXT, {**ask, "origin": origin}) for origin in ("https://a.org", "https://b.org")]
        (good, rights, _), (bad, none, body) = answers
        assert (good, rights, bad, none) == (200, "https://a.org", 400, None)
        assert "--cors-origin" in json.loads(body)["error"]["message"]
        page = server.get("/metrics", authorization="Bearer secret")[1]
        assert 'potq_requests_total{path="other",status="400"} 1.0' in page
        assert 'potq_requests_total{path="other",status="200"} 1.0' in page


def _preflight(server: Live, path: str, headers: dict[str, str]) -> tuple[int, str | None, bytes]:
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=30)
    connection.request("OPTIONS", path, headers=headers)
    answer = connection.getresponse()
    found = answer.status, answer.getheader("access-control-allow-origin"), answer.read()
    connection.close()
    return found


def test_a_schema_that_no_token_meets(server: Live) -> None:
    """Found out on the way only: the text ends with an error, others do not."""
    schema = {"type": "string", "allOf": [{"pattern": "^a+$"}, {"pattern": "^b+$"}]}
    wanted = {"type": "json_schema", "json_schema": {"schema": schema}}
    status, answer = server.post(CHAT, {"messages": ASK, "response_format": wanted, "max_tokens": 9})
    assert status == 400
    assert answer["error"]["message"]
    assert server.post(TEXT, {"prompt": "the", "max_tokens": 2})[0] == 200


def test_big_bodies(chat_folder: Path) -> None:
    with live(chat_folder, body_bytes=10_000) as server:
        assert "at most 10000 bytes" in server.refused(413, TEXT, b"x" * 10_001)
        with _connected(server) as client:  # a length that is not told
            client.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n")
            client.sendall(b"transfer-encoding: chunked\r\n\r\n")
            client.sendall((b"800\r\n" + b"x" * 2048 + b"\r\n") * 8)
            assert b"413" in client.recv(4096).split(b"\r\n")[0]
        assert server.post(TEXT, {"prompt": "the", "max_tokens": 2})[0] == 200


@pytest.mark.parametrize(
    ("before", "piece", "times"),
    [
        (b"GET /health HTTP/1.1\r\n", b"a: b\r\n" * 1000, 1),
        (b"GET /health HTTP/1.1\r\n", b"a: " + b"x" * 2001 + b"\r\n", 1),
        (b"GET /health HTTP/1.1\r\na: ", b"x" * 500, 5),
        (b"GET /health?", b"x" * 500, 5),
        (_POST + b"transfer-encoding: chunked\r\n\r\n0\r\na: ", b"x" * 500, 5),
    ],
    ids=["many headers", "one", "one that does not end", "a long address", "behind the body"],
)
def test_big_heads(chat_folder: Path, before: bytes, piece: bytes, times: int) -> None:
    with live(chat_folder, head_bytes=2000) as server, _connected(server) as client:
        client.sendall(before)
        for _ in range(times):
            time.sleep(0.02)  # so that each is a chunk
            client.sendall(piece)
        head, _, body = _all_of(client).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 431 ")
        assert "at most 2000 bytes" in json.loads(body)["error"]["message"]
        assert 'potq_requests_total{path="other",status="431"} 1.0' in server.get("/metrics")[1]


def test_a_body_is_no_part_of_the_head(chat_folder: Path) -> None:
    with live(chat_folder, head_bytes=200) as server, _connected(server) as client:
        body = json.dumps({"prompt": "the", "max_tokens": 1}).encode() + b" " * 5000
        for together in (True, False):
            client.sendall(_head(len(body)) + (body if together else b""))
            time.sleep(0.05)
            client.sendall(b"" if together else body)
            assert client.recv(65536).startswith(b"HTTP/1.1 200")


def test_what_is_no_http(server: Live) -> None:
    with _connected(server) as client:
        client.sendall(b"nothing\r\n\r\n")
        head, _, body = _all_of(client).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert json.loads(body)["error"] == {
        "message": "this is no HTTP request",
        "type": "invalid_request_error",
        "param": None,
        "code": 400,
    }


def test_a_web_socket_is_answered_without_a_word_in_the_log(chat_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with live(chat_folder) as server, _connected(server) as client:
        client.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n")
        assert client.recv(4096).startswith(b"HTTP/1.1 200")
    assert capsys.readouterr().err == ""


def test_idle_connections_stay_as_long_as_silent_ones(chat_folder: Path) -> None:
    with live(chat_folder, patience=7.5) as server:
        assert server.server.config.timeout_keep_alive == 8


def test_a_queue_that_is_full(chat_folder: Path) -> None:
    with live(chat_folder, waiting=2) as server:
        assert "can never" in server.refused(400, TEXT, {"prompt": "a", "n": 3})
        assert server.post(TEXT, {"prompt": "a", "n": 2, "max_tokens": 2})[0] == 200


def test_clients_that_vanish(server: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    step = Scheduler.step
    monkeypatch.setattr(Scheduler, "step", lambda self: time.sleep(0.1) or step(self))  # the whole would take minutes
    before = server.post(TEXT, {"prompt": "the cat", "max_tokens": 8, "temperature": 0})
    for stream in (True, False):
        body = json.dumps({"prompt": "a", "n": 8, "max_tokens": 900, "stream": stream}).encode()
        with _connected(server) as client:
            client.sendall(_head(len(body)) + body)
            wait_until(lambda: server.service.worker.open_texts > 0)
            if stream:
                assert client.recv(100)
        wait_until(lambda: server.service.worker.open_texts == 0)
    assert server.post(TEXT, {"prompt": "the cat", "max_tokens": 8, "temperature": 0})[1]["choices"] == before[1]["choices"]


def test_clients_that_say_nothing(chat_folder: Path) -> None:
    with live(chat_folder, patience=0.5, connections=64) as server:
        silent = [_connected(server) for _ in range(200)]
        slow = _connected(server)
        slow.sendall(_head(1000) + b"{")
        assert server.post(TEXT, {"prompt": "the", "max_tokens": 2})[0] == 200
        assert b"408" in slow.recv(4096).split(b"\r\n")[0]
        for client in [*silent, slow]:
            client.settimeout(20)
            with suppress(ConnectionResetError):
                assert client is slow or client.recv(1) == b""
            client.close()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have one address of their own unless told otherwise")
def test_a_crowd_does_not_drive_out_other_addresses(chat_folder: Path) -> None:
    with live(chat_folder, connections=64) as server:
        address = ("127.0.0.1", int(server.url.rpartition(":")[2]))
        early = _connected(server)
        crowd = [socket.create_connection(address, timeout=20, source_address=("127.0.0.2", 0)) for _ in range(200)]
        with suppress(ConnectionResetError):
            assert crowd[0].recv(1) == b""  # the oldest of the crowd went,
        early.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")  # and what came before it stays
        assert early.recv(4096).startswith(b"HTTP/1.1 200")
        for client in [early, *crowd]:
            client.close()


def test_an_engine_that_fails(chat_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with live(chat_folder) as server:
        monkeypatch.setattr(Scheduler, "step", lambda _: 1 / 0)
        status, answer = server.post(TEXT, {"prompt": "the"})
        assert status == 503
        assert "the engine stopped (ZeroDivisionError" in answer["error"]["message"]
        assert server.get("/health")[0] == 503
        assert server.post(TEXT, {"prompt": "the"})[0] == 503


def test_stopping(chat_folder: Path) -> None:
    """Texts under way end; new ones are refused; then the server is gone."""
    with live(chat_folder) as server, _connected(server) as client:
        body = json.dumps({"prompt": "a", "max_tokens": 200, "stream": True, "temperature": 0}).encode()
        client.sendall(_head(len(body)) + body)
        assert client.recv(50)
        server.server.handle_exit(15, None)
        assert "shutting down" in server.refused(503, TEXT, {"prompt": "a"})
        assert b"data: [DONE]" in _all_of(client)
    with pytest.raises(ConnectionRefusedError):
        _connected(server)


@pytest.mark.parametrize("signals", [1, 2], ids=["the time is up", "a second signal"])
def test_texts_that_do_not_end_in_time(
    chat_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], signals: int
) -> None:
    """Each ends with an error, and the scheduler hears of it. A client that sends half a request is left."""
    step, cancel, cancelled = Scheduler.step, Scheduler.cancel, []
    monkeypatch.setattr(Scheduler, "step", lambda self: time.sleep(0.05) or step(self))
    monkeypatch.setattr(Scheduler, "cancel", lambda self, text: cancelled.append(text) or cancel(self, text))
    bodies = [json.dumps({"prompt": "a", "n": 3, "max_tokens": 900, "stream": stream}).encode() for stream in (True, False)]
    with live(chat_folder, drain=0.3 if signals == 1 else 60.0) as server, ExitStack() as stack:
        streamed, whole, half = (stack.enter_context(_connected(server)) for _ in range(3))
        half.sendall(_head(99) + b"{")
        for client, body in zip((streamed, whole), bodies, strict=True):
            client.sendall(_head(len(body)) + body)
        wait_until(lambda: server.service.worker.open_texts == 6)
        assert streamed.recv(1) == b"H"  # a stream that begun, for whose status it is too late
        begun = time.monotonic()
        for _ in range(signals):
            server.server.handle_exit(15, None)
        error, done = _all_of(streamed).split(b"data: ")[-2:]
        assert json.loads(error.split(b"\n")[0])["error"]["code"] == 503
        assert b"[DONE]" in done
        status, _, answer = _all_of(whole).partition(b"\r\n")
        assert status == b"HTTP/1.1 503 Service Unavailable"
        assert b"the server is shutting down" in answer
        assert _all_of(half) == b""
    assert time.monotonic() - begun < 4
    assert len(cancelled) == 6
    assert capsys.readouterr().err == ""


def test_an_address_in_use() -> None:
    with (
        listen(ServerSettings(port=0)) as taken,
        pytest.raises(ConfigError, match="choose another host or port"),
    ):
        listen(ServerSettings(port=taken.getsockname()[1]))


def test_batches_end_alone(chat_folder: Path) -> None:
    """Of texts that stop at different places, each is as it is alone."""

    async def together(server: Live, prompts: list[str]) -> list[Any]:
        asks = ({"prompt": prompt, "max_tokens": 5 + 3 * i, "temperature": 0} for i, prompt in enumerate(prompts))
        return await asyncio.gather(*(asyncio.to_thread(server.post, TEXT, ask) for ask in asks))

    prompts = ["the cat", "a", "mat on", "the other", "cat", "sat", "then"]
    with live(chat_folder, slots=3) as server:
        found = [answer["choices"][0]["text"] for _, answer in asyncio.run(together(server, prompts))]
        for i, prompt in enumerate(prompts):
            alone = server.post(TEXT, {"prompt": prompt, "max_tokens": 5 + 3 * i, "temperature": 0})[1]
            assert alone["choices"][0]["text"] == found[i]


def _connected(server: Live) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=30)


def _all_of(client: socket.socket) -> bytes:
    """What comes until the server closes."""
    received = b""
    with suppress(ConnectionResetError):
        while piece := client.recv(65536):
            received += piece
    return received


def _head(length: int) -> bytes:
    return _POST + f"content-length: {length}\r\n\r\n".encode()
