"""Tools: how a model is told of them, and how its calls are found in what it writes.

A chat template that knows tools says how calls look. Where it writes ``<tool_call>``, each is JSON between that and
``</tool_call>`` (Hermes, Qwen). Where it has another way, a text that is JSON is a call (Llama 3, Mistral, whose markers are
special tokens). A template without tools is told of them in the system turn, in Hermes' way.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

from potq.serve.requests import Message, Tool

_BEGIN, _END = "<tool_call>", "</tool_call>"
_TOLD = """You can call these functions, one JSON object a line:
<tools>
{tools}
</tools>
To call a function, answer with its name and arguments:
<tool_call>
{{"name": "FUNCTION", "arguments": {{...}}}}
</tool_call>"""
Way: TypeAlias = Literal["marked", "json", "arguments"]
_decode = json.JSONDecoder().raw_decode


class Called(NamedTuple):
    """A call that the model made; ``arguments`` is JSON."""

    id: str
    name: str
    arguments: str


def knows_tools(template: str) -> bool:
    """Whether a chat template writes tools."""
    return "tools" in template


def way_of(template: str) -> Way:
    """How calls look in what a model with this chat template writes."""
    return "marked" if _BEGIN in template or not knows_tools(template) else "json"


def turns(messages: Sequence[Message], tools: Sequence[Tool], template: str) -> list[dict[str, Any]]:
    """Messages as a chat template takes them, told of ``tools`` if it has no way of its own."""
    own = knows_tools(template)
    written = [_turn(message, own) for message in messages]
    if not tools or own:
        return written
    told = _TOLD.format(tools="\n".join(json.dumps(tool.function.model_dump(exclude_none=True)) for tool in tools))
    if written[0]["role"] == "system":
        return [{"role": "system", "content": f"{written[0]['content']}\n\n{told}"}, *written[1:]]
    return [{"role": "system", "content": told}, *written]


def _turn(message: Message, own: bool) -> dict[str, Any]:
    role = "system" if message.role == "developer" else message.role
    calls = [{"name": call.function.name, "arguments": _loose(call.function.arguments)} for call in message.tool_calls or ()]
    if own:
        more = {"tool_calls": [{"type": "function", "function": call} for call in calls]} if calls else {}
        name = {"name": message.name} if message.name else {}
        return {"role": role, "content": message.text, **more, **name}
    if role == "tool":
        return {"role": "user", "content": f"<tool_response>\n{message.text}\n</tool_response>"}
    said = [message.text] if message.text else []
    return {"role": role, "content": "\n".join(said + [f"{_BEGIN}\n{json.dumps(call)}\n{_END}" for call in calls])}


def _loose(arguments: str) -> Any:
    """Arguments as an object, which templates take; clients may send back what is no JSON."""
    try:
        return json.loads(arguments)
    except ValueError:
        return arguments


def call_schema(tools: Sequence[Tool]) -> dict[str, Any]:
    """The schema of a call of one of several tools."""
    return {"anyOf": [_one_call(tool) for tool in tools]}


def _one_call(tool: Tool) -> dict[str, Any]:
    properties = {"name": {"const": tool.function.name}, "arguments": tool.function.parameters}
    return {
        "type": "object",
        "properties": properties,
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


class ToolReader:
    """Parts what the model writes into text, which comes as it is written, and calls, which come at the end.

    Args:
        way: how calls look: between markers; as a text that is JSON; as a text that is the arguments of the one tool.
        names: of the tools. A call of another is text.
    """

    def __init__(self, way: Way, names: Sequence[str]) -> None:
        self._way, self._names = way, names
        self._held = ""
        self._said = False

    def put(self, piece: str) -> str:
        """The text that is certain with ``piece``."""
        self._held += piece
        end = self._certain()
        text, self._held = self._held[:end], self._held[end:]
        self._said = self._said or bool(text.strip())
        return text

    def finish(self) -> tuple[str, list[Called]]:
        """The text that was held back and is no call, and the calls."""
        held, self._held = self._held, ""
        if self._way == "arguments":
            return "", [called(self._names[0], held)]
        text, found = _marked(held) if self._way == "marked" else _whole(held)
        calls = [call for call in map(self._call, found) if call is not None]
        return (text, calls) if len(calls) == len(found) else (held, [])

    def _certain(self) -> int:
        """How much of the held text is surely none of a call."""
        if self._way == "arguments":
            return 0
        if self._way == "json":
            begins = self._held.lstrip()[:1]
            return 0 if not self._said and (not begins or begins in "{[") else len(self._held)
        if (at := self._held.find(_BEGIN)) >= 0:
            return at
        partial = (n for n in range(len(_BEGIN) - 1, 0, -1) if self._held.endswith(_BEGIN[:n]))
        return len(self._held) - next(partial, 0)

    def _call(self, found: object) -> Called | None:
        if not isinstance(found, Mapping) or found.get("name") not in self._names:
            return None
        arguments = found.get("arguments", found.get("parameters", {}))
        return called(str(found["name"]), arguments if isinstance(arguments, str) else json.dumps(arguments))


def called(name: str, arguments: str) -> Called:
    """A call with a new id."""
    return Called(f"call_{secrets.token_hex(12)}", name, arguments)


def _marked(held: str) -> tuple[str, list[object]]:
    """Texts around the markers, and what stands between them; the last end may be missing."""
    text, *parts = held.split(_BEGIN)
    found: list[object] = []
    for part in parts:
        inner, _, rest = part.partition(_END)
        found.append(_json(inner))
        text += rest if rest.strip() else ""
    return text, found


def _whole(held: str) -> tuple[str, list[object]]:
    found = _json(held)
    if found is None:
        return held, []
    return "", list(found) if isinstance(found, list) else [found]


def _json(text: str) -> object:
    try:
        found, end = _decode(text.strip())
    except ValueError:
        return None
    return None if text.strip()[end:].strip() else found
