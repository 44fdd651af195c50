"""The four spellings of `input` for /v1/embeddings, and every way to get it wrong."""

import json
from typing import Any

import pytest

from gateway.api.openai.schema import parse_embeddings
from gateway.domain.errors import BadRequest


def body(**fields: object) -> bytes:
    return json.dumps({"model": "minilm", "input": "hello"} | fields).encode()


@pytest.mark.parametrize(
    ("value", "texts"),
    [
        ("hello", ["hello"]),
        (["a", "b", "a"], ["a", "b", "a"]),
        ([1, 2, 3], [(1, 2, 3)]),
        ([0], [(0,)]),
        ([[1, 2], [2**31 - 1]], [(1, 2), (2**31 - 1,)]),
        (["a", [1]], ["a", (1,)]),
        (["a"] * 2048, ["a"] * 2048),
    ],
)
def test_inputs_keep_their_order(value: object, texts: list[str | tuple[int, ...]]) -> None:
    call = parse_embeddings(body(input=value))
    assert [entry.text for entry in call.inputs] == texts
    assert {entry.model for entry in call.inputs} == {"minilm"}


def test_an_array_of_token_ids_is_one_input_of_any_length() -> None:
    assert parse_embeddings(body(input=[7] * 5000)).inputs[0].text == (7,) * 5000


def test_other_parameters() -> None:
    call = parse_embeddings(body(encoding_format="base64", user="ann", dimensions=None))
    assert (call.model, call.encoding_format, call.user) == ("minilm", "base64", "ann")
    assert parse_embeddings(body(encoding_format=None)).encoding_format == "float"
    assert parse_embeddings(body()).user is None


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"input": None}, "input", "expected a string, an array of strings or an array of token ids, got null"),
        ({"input": 5}, "input", "got an integer"),
        ({"input": {}}, "input", "got an object"),
        ({"input": ""}, "input", "must not be empty"),
        ({"input": []}, "input", "must have 1 to 2048 entries"),
        ({"input": ["a"] * 2049}, "input", "must have 1 to 2048 entries"),
        ({"input": ["a", ""]}, "input[1]", "must not be empty"),
        ({"input": [[1], []]}, "input[1]", "must not be empty"),
        ({"input": ["a", None]}, "input[1]", "expected a string or an array of token ids, got null"),
        ({"input": ["a", 5]}, "input[1]", "expected a string or an array of token ids, got an integer"),
        ({"input": [True]}, "input[0]", "expected a string or an array of token ids, got a boolean"),
        ({"input": [1, "a"]}, "input[1]", "expected a token id (an integer), got a string"),
        ({"input": [1, True]}, "input[1]", "expected a token id (an integer), got a boolean"),
        ({"input": [1, 1.5]}, "input[1]", "expected a token id (an integer), got a number"),
        ({"input": [5, -1]}, "input[1]", "must be a token id from 0 to 2147483647"),
        ({"input": [2**31]}, "input[0]", "must be a token id from 0 to 2147483647"),
        ({"input": ["a", [1, 2**31]]}, "input[1][1]", "must be a token id from 0 to 2147483647"),
        ({"input": [[1], [1, [2]]]}, "input[1][1]", "expected a token id (an integer), got an array"),
        ({"model": ""}, "model", "must not be empty"),
        ({"encoding_format": "hex"}, "encoding_format", "must be 'float' or 'base64', got \"hex\""),
        ({"dimensions": 64}, "dimensions", "Parameter 'dimensions' is not supported by this gateway yet"),
        ({"user": 1}, "user", "expected a string, got an integer"),
        ({"temperature": 1}, "temperature", "Unrecognized request argument supplied: temperature"),
    ],
)
def test_a_bad_value_is_refused_by_name(fields: dict[str, Any], param: str, message: str) -> None:
    with pytest.raises(BadRequest) as caught:
        parse_embeddings(body(**fields))
    assert (caught.value.status, caught.value.param) == (400, param)
    assert message in caught.value.message


def test_a_missing_input_is_named() -> None:
    with pytest.raises(BadRequest, match="Missing required parameter: 'input'"):
        parse_embeddings(b'{"model": "minilm"}')
