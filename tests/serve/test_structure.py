"""``potq.serve.structure``: whatever a model would write, what comes out is JSON that meets the schema."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

pytest.importorskip("fastapi", reason="the server is not installed: pip install 'potq[serve]'")

import potq
from potq.errors import EngineError
from potq.serve.failures import RequestError
from potq.serve.structure import Vocabulary
from serve_helpers import ASK, Live

VOCAB, END = 260, 0


@pytest.fixture(scope="module")
def vocabulary(_tiny_source: Path) -> Vocabulary:
    return Vocabulary(potq.load_tokenizer(_tiny_source), VOCAB, [END])


def _object(properties: dict[str, Any], needed: int) -> dict[str, Any]:
    required = list(properties)[:needed]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


leaves = st.one_of(
    st.sampled_from([{"type": "boolean"}, {"type": "null"}, {"type": "string", "pattern": "^(ab|c)d?$"}]),
    st.builds(
        lambda low, more: {"type": "integer", "minimum": low, "maximum": low + more},
        st.integers(-99, 99),
        st.integers(0, 99),
    ),
    st.builds(lambda most: {"type": "string", "maxLength": most}, st.integers(0, 5)),
    st.builds(
        lambda values: {"enum": values}, st.lists(st.text(max_size=4) | st.integers() | st.none(), min_size=1, max_size=4)
    ),
    st.builds(lambda value: {"const": value}, st.text(max_size=4) | st.integers(-5, 5) | st.booleans()),
)
schemas = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.builds(_object, st.dictionaries(st.text(min_size=1, max_size=4), inner, max_size=3), st.integers(0, 3)),
        st.builds(lambda item, most: {"type": "array", "items": item, "maxItems": most}, inner, st.integers(0, 3)),
        st.builds(lambda kinds: {"anyOf": kinds}, st.lists(inner, min_size=1, max_size=3)),
    ),
    max_leaves=6,
)
referring = st.builds(  # references are from the root
    lambda kind: {"$defs": {"x": kind}, "type": "array", "items": {"$ref": "#/$defs/x"}, "maxItems": 2}, schemas
)
LEAST = 200  # different schemas
drawn = settings(max_examples=max(320, settings().max_examples))


def test_any_choice_of_allowed_tokens_meets_the_schema(vocabulary: Vocabulary) -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="checks what was written; pip install jsonschema")
    seen = set()

    @drawn
    @given(schema=schemas | referring, seed=st.integers(0, 2**32))
    def check(schema: dict[str, Any], seed: int) -> None:
        jsonschema.validate(json.loads(_written(vocabulary, schema, random.Random(seed))), schema)
        seen.add(json.dumps(schema))

    check()
    assert len(seen) >= LEAST


def _written(vocabulary: Vocabulary, schema: dict[str, Any], draw: random.Random) -> str:
    """A text of tokens that are allowed; where it may end, it does half the time."""
    mask, made = vocabulary.mask(vocabulary.grammar(schema, "x")), list[int]()
    while True:
        bits = mask(made)
        assert len(bits) * 8 >= VOCAB
        allowed = [token for token in range(VOCAB) if bits[token // 8] >> token % 8 & 1]
        token = END if END in allowed and draw.random() < 0.5 else draw.choice(allowed)
        if token == END:
            return b"".join(vocabulary.bytes_of(token) for token in made).decode()
        made.append(token)
        assert len(made) < 2000, "a bounded schema has bounded texts"


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"not": {}}, "not"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"enum": []}, "Unsatisfiable"),
        ({"type": "integer", "minimum": 5, "maximum": 4}, "Unsatisfiable"),
        ({"type": "bogus"}, "bogus"),
        ({"$ref": "#/none"}, "does not exist"),
        ({"type": "string", "pattern": "(?=a)b"}, "look-around"),
    ],
)
def test_schemas_that_cannot_be_served(vocabulary: Vocabulary, schema: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError, match="the JSON schema cannot be served") as error:
        vocabulary.grammar(schema, "field")
    assert said in str(error.value)
    assert error.value.param == "field"


def test_a_schema_nested_beyond_measure(vocabulary: Vocabulary) -> None:
    schema: dict[str, Any] = {"type": "null"}
    for _ in range(5000):
        schema = {"type": "array", "items": schema}
    with pytest.raises(RequestError, match="cannot be served"):
        vocabulary.grammar(schema, "x")


def test_a_token_that_is_not_allowed_ends_the_text(vocabulary: Vocabulary) -> None:
    mask = vocabulary.mask(vocabulary.grammar({"type": "boolean"}, "x"))
    with pytest.raises(EngineError, match="no token can follow"):
        mask([200])


def test_bytes_of_tokens(vocabulary: Vocabulary, byte_tokenizer: PreTrainedTokenizerFast) -> None:
    ids = byte_tokenizer.encode("zwölf cats")
    assert b"".join(map(vocabulary.bytes_of, ids)).decode() == "zwölf cats"
    assert vocabulary.text_of(byte_tokenizer.encode("a")[0]) == "a"
    assert vocabulary.text_of(byte_tokenizer.encode("ö")[0]) == r"bytes:\xc3"


def test_a_tokenizer_in_pure_python() -> None:
    with pytest.raises(EngineError, match="object has no tokenizer"):
        Vocabulary(object(), VOCAB, [END])  # type: ignore[arg-type]


@pytest.mark.parametrize("schema", [{"enum": ["yes", "no"]}, _object({"a": {"type": "integer", "maximum": 9}}, 1)])
@pytest.mark.parametrize("seed", range(3))
def test_texts_of_the_server(server: Live, schema: dict[str, Any], seed: int) -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="checks what was written; pip install jsonschema")
    wanted = {"type": "json_schema", "json_schema": {"schema": schema}}
    body = {"messages": ASK, "response_format": wanted, "temperature": 2, "seed": seed, "max_tokens": 400}
    status, answer = server.post("/v1/chat/completions", body)
    assert status == 200
    if answer["choices"][0]["finish_reason"] == "stop":
        jsonschema.validate(json.loads(answer["choices"][0]["message"]["content"]), schema)
