"""Whatever is sent: a request comes out, or a `BadRequest` in words that a caller understands."""

import json
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.api.openai.parameter_rows import CHAT, COMPLETIONS, EMBEDDINGS
from gateway.api.openai.schema import parse_chat, parse_completion, parse_embeddings
from gateway.domain.errors import BadRequest
from tests.amounts import examples_to_run

Parse = Callable[..., object]

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just(10**400)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)
WORDS = ["role", "user", "tool", "content", "type", "text", "name", "5", "include_usage"]
WORDS += ["thinking", "reasoning.text", "refusal", "num_predict", "temperature", "enabled", "-1"]
WORDS += ["id", "function", "arguments", "parameters", "strict", "auto", "required", "enable_thinking", "{}"]
NEARLY = st.recursive(
    SCALARS | st.sampled_from(WORDS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS), inner, max_size=4),
    max_leaves=12,
)
"""JSON that gets past the first checks."""
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "tool", "system", "assistant"])},
        optional=dict.fromkeys(
            [
                "content",
                "name",
                "tool_call_id",
                "tool_calls",
                "|x",
                "reasoning",
                "reasoning_details",
                "refusal",
                "images",
            ],
            NEARLY,
        ),
    ),
    max_size=3,
)
JARGON = ("Input should", "pydantic", "|text", "|array", "{param}", "{got}")
REQUIRED: dict[Parse, dict[str, object]] = {
    parse_chat: {"messages": [{"role": "user", "content": "x"}]},
    parse_completion: {"prompt": "x"},
    parse_embeddings: {"input": "x"},
}
NAMES = sorted({name for table in (CHAT, COMPLETIONS, EMBEDDINGS) for name in table.rows} | {"unknown"})


def refusal(parse: Parse, body: bytes) -> BadRequest | None:
    try:
        parse(body)
    except BadRequest as error:
        return error
    return None


def check(parse: Parse, body: bytes) -> None:
    """A refusal is an error about the request, in plain words and of bounded length."""
    error = refusal(parse, body)
    if error is not None:
        assert (error.status, error.type) == (400, "invalid_request_error")
        assert error.code is not None
        assert len(error.message) < 1000
        assert not any(word in error.message and word.encode() not in body for word in JARGON)


@pytest.mark.parametrize("parse", REQUIRED)
@given(body=st.binary(max_size=64))
def test_any_bytes(parse: Parse, body: bytes) -> None:
    check(parse, body)


@pytest.mark.parametrize("parse", REQUIRED)
@given(value=JSON)
def test_any_json(parse: Parse, value: object) -> None:
    check(parse, json.dumps(value).encode())


@pytest.mark.parametrize("parse", REQUIRED)
@settings(max_examples=examples_to_run(300))
@given(fields=st.dictionaries(st.sampled_from(NAMES), NEARLY | JSON, max_size=3))
def test_any_value_of_any_parameter(parse: Parse, fields: dict[str, Any]) -> None:
    body = json.dumps({"model": "m"} | REQUIRED[parse] | fields).encode()
    check(parse, body)
    check(partial(parse, ignore_unknown=True), body)


@settings(max_examples=examples_to_run(300))
@given(messages=MESSAGES)
def test_any_messages(messages: object) -> None:
    check(parse_chat, json.dumps({"model": "m", "messages": messages}).encode())
