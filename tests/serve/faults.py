"""Clients that do what they should not, each checked for what it hears; and honest ones, whose texts nothing may change."""

from __future__ import annotations

import http.client
import json
import random
import select
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from serve_helpers import ASK

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
_AT_ONCE = struct.pack("ii", 1, 0)  # a connection that is closed is gone: no state is kept of it
_BIG = 100 << 20
_SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
_UNMET = {"type": "string", "allOf": [{"pattern": "^a+$"}, {"pattern": "^b+$"}]}

HONEST: Sequence[tuple[str, dict[str, Any]]] = (
    (TEXT, {"prompt": "the cat", "max_tokens": 24, "temperature": 0}),
    (TEXT, {"prompt": "the cat sat on the mat " * 12, "max_tokens": 9, "temperature": 0, "logprobs": 3, "echo": True}),
    (TEXT, {"prompt": "the cat sat on the mat " * 12 + "then", "max_tokens": 5, "temperature": 0}),
    (TEXT, {"prompt": ["mat on", "a"], "max_tokens": 12, "temperature": 1.5, "seed": 7, "n": 2, "stream": True}),
    (TEXT, {"prompt": "then", "max_tokens": 40, "temperature": 0.7, "top_k": 20, "seed": 3, "repetition_penalty": 1.2}),
    (CHAT, {"messages": ASK, "max_tokens": 16, "temperature": 0, "logprobs": True, "top_logprobs": 2}),
    (CHAT, {"messages": ASK, "max_tokens": 30, "temperature": 1.0, "seed": 11, "stream": True, "stop": ["mat"]}),
    (
        CHAT,
        {
            "messages": ASK,
            "max_tokens": 60,
            "seed": 5,
            "response_format": {"type": "json_schema", "json_schema": {"schema": _SCHEMA}},
        },
    ),
)


class Client:
    """What asks one server, from an address of its own. A request has a connection of its own, which leaves no trace."""

    def __init__(self, address: tuple[str, int], seed: int, here: str = "127.0.0.1") -> None:
        self.address, self.random, self._here = address, random.Random(seed), here

    def connected(self) -> socket.socket:
        found = socket.create_connection(self.address, timeout=120, source_address=(self._here, 0))
        found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
        return found

    def ask(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        """Status and whole body of an answer."""
        connection = http.client.HTTPConnection(*self.address, timeout=120)
        connection.sock = sock = self.connected()
        try:
            connection.request(method, path, body, {"content-type": "application/json"})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            sock.close()  # the connection forgets it where the server closes it

    def text(self, path: str, asked: dict[str, Any]) -> Any:
        """All of an answer but what no two have in common."""
        status, body = self.ask("POST", path, json.dumps(asked).encode())
        assert status == 200, body
        lines = body.decode().split("\n\n") if asked.get("stream") else [body.decode()]
        events = [json.loads(line.removeprefix("data: ")) for line in lines if line and "[DONE]" not in line]
        for event in events:
            assert event.pop("id")
            assert event.pop("created")
        return sorted(events, key=lambda event: event["choices"][0]["index"]) if len(events) > 1 else events

    def refused(self, path: str, asked: object, *statuses: int) -> dict[str, Any]:
        """The error of a request that is refused, in the API's form."""
        status, body = self.ask("POST", path, asked if isinstance(asked, bytes) else json.dumps(asked).encode())
        assert status in statuses, (status, body)
        error: dict[str, Any] = json.loads(body)["error"]
        assert set(error) == {"message", "type", "param", "code"}
        return error

    def send(self, asked: dict[str, Any], part: float = 1.0) -> socket.socket:
        """A connection over which so much of a request was sent."""
        body = json.dumps(asked).encode()
        head = f"POST {TEXT} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        content, found = head.encode() + body, self.connected()
        found.sendall(content[: max(1, int(part * len(content)))])
        return found


def vanish(client: Client) -> None:
    """Amid a stream, or before anything of an answer came."""
    draw = client.random
    asked = {"prompt": "the cat sat on the mat " * draw.randint(1, 30), "n": draw.randint(1, 4), "max_tokens": 400}
    with client.send({**asked, "stream": draw.random() < 0.7}) as connection:
        time.sleep(draw.random() * 0.2)
        if draw.random() < 0.6:
            connection.recv(draw.randint(1, 4000))


def vanish_early(client: Client) -> None:
    with client.send({"prompt": "the", "max_tokens": 9}, part=client.random.random()):
        pass


def read_slowly(client: Client) -> None:
    """A stream that nobody reads for a while."""
    with client.send({"prompt": "a", "n": 4, "max_tokens": 100, "stream": True, "ignore_eos": True}) as connection:
        time.sleep(client.random.random())
        found = b""
        while b"[DONE]" not in found:
            piece = connection.recv(1 << 16)
            assert piece
            found += piece


def no_json(client: Client) -> None:
    draw = client.random
    whole = json.dumps({"prompt": "the cat", "max_tokens": 4}).encode()
    bodies = (whole[: draw.randrange(len(whole))], draw.randbytes(200), b"[" * 50_000, b'{"prompt": ' + b"9" * 9_999 + b"}")
    client.refused(draw.choice((TEXT, CHAT)), draw.choice(bodies), 400, 422)


def no_utf8(client: Client) -> None:
    client.refused(TEXT, b'{"prompt": "the \xff\xfe cat", "max_tokens": 2}', 400, 422)
    client.refused(TEXT, rb'{"prompt": "\ud800", "max_tokens": 2}', 400, 422)


def no_http(client: Client) -> None:
    with client.connected() as connection:
        connection.sendall(b"\x16\x03\x01" + client.random.randbytes(300) + b"\r\n\r\n")
        with suppress(ConnectionError):
            assert connection.recv(4096)[:12] in (b"", b"HTTP/1.1 400")


def big_body(client: Client) -> None:
    """100 MB, of which the length is told or not; it is refused before all is read."""
    told = client.random.random() < 0.5
    length = f"content-length: {_BIG}" if told else "transfer-encoding: chunked"
    piece = b"x" * (1 << 20) if told else b"100000\r\n" + b"x" * (1 << 20) + b"\r\n"
    with client.connected() as connection:
        answered = select.poll()  # select() knows no more than 1,024 files
        answered.register(connection, select.POLLIN)
        connection.sendall(f"POST {TEXT} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n{length}\r\n\r\n".encode())
        with suppress(ConnectionError):  # told in time, or not
            for _ in range(_BIG >> 20):
                if answered.poll(0):
                    break
                connection.sendall(piece)
            answer = connection.recv(4096)[:12]
            in_time = told or answer != b"HTTP/1.1 408"  # of a body whose length is not told 8 MB have to come first
            assert not in_time or answer == b"HTTP/1.1 413", answer


def big_head(client: Client) -> None:
    """Many headers, a long one, or one that never ends; refused before all is read."""
    pieces = (b"a: b\r\n" * (1 << 17), b"a: " + b"x" * (1 << 20) + b"\r\n", b"x" * (1 << 20))
    piece = client.random.choice(pieces)
    with client.connected() as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\na: ")
        with suppress(ConnectionError):  # told in time, or not
            for _ in range(_BIG >> 20):
                connection.sendall(piece)
            raise AssertionError("a head of 100 MB was taken")


def beyond_the_context(client: Client) -> None:
    prompt = [1] * client.random.randint(2_000, 50_000)
    assert "does not fit the context" in client.refused(TEXT, {"prompt": prompt}, 400)["message"]


def unknown_key(client: Client) -> None:
    assert client.refused(CHAT, {"messages": ASK, "temprature": 1}, 422)["param"] == "temprature"


def many_stops(client: Client) -> None:
    stops = [f"stop {number}" for number in range(client.random.randint(17, 5_000))]
    assert client.refused(TEXT, {"prompt": "the", "stop": stops}, 422)["param"] == "stop"


def unmet_schema(client: Client) -> None:
    wanted = {"type": "json_schema", "json_schema": {"schema": client.random.choice((_UNMET, {"enum": []}, {"not": {}}))}}
    asked = {"messages": ASK, "max_tokens": 20, "response_format": wanted, "stream": client.random.random() < 0.5}
    assert client.refused(CHAT, asked, 400)["message"]


def other_path(client: Client) -> None:
    path = f"/{client.random.randrange(1 << 30)}"
    assert client.ask("GET", path)[0] == 404
    assert client.ask("DELETE", TEXT)[0] == 405


FAULTS: Sequence[Callable[[Client], None]] = (
    vanish,
    vanish_early,
    read_slowly,
    no_json,
    no_utf8,
    no_http,
    big_body,
    big_head,
    beyond_the_context,
    unknown_key,
    many_stops,
    unmet_schema,
    other_path,
)


class Load:
    """Threads of clients on one server until they are told to end; what fails in one of them ends all.

    Attributes:
        counts: requests by what they were, and connections that said nothing.
        failure: what failed first.
    """

    def __init__(self, address: tuple[str, int], *, silent: int) -> None:
        self._address, self._silent = address, silent
        self.counts: Counter[str] = Counter()
        self.failure: BaseException | None = None
        self._over = threading.Event()
        alone = Client(address, 0)
        self._expected = [alone.text(*asked) for asked in HONEST]
        loops = [(self._honest, number) for number in range(3)] + [(self._faulty, number) for number in range(3)]
        self._threads = [threading.Thread(target=self._guarded, args=loop) for loop in [*loops, (self._say_nothing, 0)]]

    @property
    def requests(self) -> int:
        """How many were sent so far."""
        return self.counts.total() - self.counts["silent"]

    def run(self, seconds: float, watch: Callable[[int], None]) -> None:
        """So long; ``watch`` gets the number of requests so far, twenty times."""
        for thread in self._threads:
            thread.start()
        for _ in range(20):
            self._over.wait(seconds / 20)
            watch(self.requests)
        self._over.set()
        for thread in self._threads:
            thread.join(180)
        if self.failure is not None:
            raise self.failure
        assert not any(thread.is_alive() for thread in self._threads)

    def _guarded(self, loop: Callable[[int], None], number: int) -> None:
        try:
            loop(number)
        except BaseException as error:
            self.failure = self.failure or error
            self._over.set()

    def _honest(self, number: int) -> None:
        client = Client(self._address, number)
        while not self._over.is_set():
            place = client.random.randrange(len(HONEST))
            assert client.text(*HONEST[place]) == self._expected[place], HONEST[place]
            self.counts["honest"] += 1

    def _faulty(self, number: int) -> None:
        client = Client(self._address, 100 + number)
        while not self._over.is_set():
            fault = client.random.choice(FAULTS)
            fault(client)
            self.counts[fault.__name__] += 1

    def _say_nothing(self, number: int) -> None:
        """A crowd that is connected and sends nothing, or half a head, and comes again when it is sent away."""
        client = Client(self._address, 200 + number, "127.0.0.2")
        while not self._over.is_set():
            crowd = []
            with suppress(ConnectionError, TimeoutError):
                for _ in range(self._silent):
                    crowd.append(client.connected())
                    if client.random.random() < 0.1:
                        crowd[-1].sendall(b"POST /v1/comple")
                    if self._over.is_set():
                        break
            self.counts["silent"] += len(crowd)
            self._over.wait(15)  # longer than the server waits
            for connection in crowd:
                connection.close()
