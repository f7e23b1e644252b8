"""Requests drawn from the OpenAPI schema, good and bad: none makes the server fail, and answers are as the schema says."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("fastapi", reason="the server is not installed: pip install 'potq[serve]'")
pytest.importorskip("schemathesis", reason="it draws the requests: pip install 'potq[deep]'")

import schemathesis

from serve_helpers import Live, live

DEEP = os.environ.get("HYPOTHESIS_PROFILE") == "deep"
BEYOND_SCHEMAS = [
    schemathesis.checks.positive_data_acceptance,  # a prompt may be too long for the context, a token none of the model's
    schemathesis.checks.negative_data_rejection,  # a number in quotes is served as a number
]
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not DEEP, reason="takes minutes: make check-deep")]


@pytest.fixture(scope="module")
def short(chat_folder: Path) -> Iterator[Live]:
    """A server whose texts are short: a drawn request may want 128 of them, as long as they can be."""
    with live(chat_folder, context=32) as found:
        yield found


@pytest.fixture(scope="module")
def operations(short: Live) -> list[Any]:
    """What the server offers."""
    schema = schemathesis.openapi.from_url(f"{short.url}/openapi.json")
    return [found.ok() for found in schema.get_all_operations()]


@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode), ids=lambda mode: mode.value)
@settings(suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_whatever_is_drawn_has_an_answer_of_the_schema(short: Live, operations: list[Any], mode: Any, data: Any) -> None:
    strategy = st.one_of([operation.as_strategy(generation_mode=mode) for operation in operations])
    data.draw(strategy).call_and_validate(timeout=60, excluded_checks=BEYOND_SCHEMAS)
    assert short.service.worker.failure is None


def test_every_path_is_drawn(operations: list[Any]) -> None:
    assert {"/v1/completions", "/v1/chat/completions", "/tokenize"} <= {operation.path for operation in operations}
