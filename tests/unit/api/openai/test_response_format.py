"""The form that an answer must have: what is taken, what is refused and by which path."""

import json
from typing import Any

import pytest

from gateway.api.openai.response_format import FORMAT_BYTES_MAX, SHOWN_STEPS_MAX
from gateway.api.openai.schema import parse_chat, parse_completion
from gateway.domain.errors import BadRequest

SCHEMA = "response_format.json_schema.schema"
TOOL = {"type": "function", "function": {"name": "f"}}


def body(**fields: object) -> bytes:
    return json.dumps({"model": "tiny", "messages": [{"role": "user", "content": "hello"}]} | fields).encode()


def in_schema(schema: object, **more: object) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, **more}}


def grammar(**fields: object) -> tuple[str | None, str]:
    generation = parse_chat(body(**fields)).generation
    return generation.grammar, generation.grammar_param


def refusal(**fields: object) -> BadRequest:
    with pytest.raises(BadRequest) as caught:
        parse_chat(body(**fields))
    return caught.value


@pytest.mark.parametrize("form", [None, {"type": "text"}])
def test_a_text_needs_no_grammar(form: object) -> None:
    assert parse_chat(body(response_format=form)) == parse_chat(body())


def test_a_schema_becomes_a_grammar_and_names_where_it_comes_from() -> None:
    text, param = grammar(response_format=in_schema({"const": 5}, strict=True, description="five"))
    assert text is not None
    assert text.startswith('root ::= r0\nr0 ::= "5"\n')
    assert param == "response_format"


def test_any_object_is_a_grammar_too() -> None:
    text, param = grammar(response_format={"type": "json_object"})
    assert text is not None
    assert text.startswith("root ::= object\n")
    assert param == "response_format"


def test_a_grammar_is_passed_on_as_it_is() -> None:
    assert grammar(grammar='root ::= "a"') == ('root ::= "a"', "grammar")
    raw = parse_completion(json.dumps({"model": "m", "prompt": "a", "grammar": 'root ::= "a"'}).encode())
    assert raw.generation.grammar == 'root ::= "a"'


def nested(depth: int) -> Any:
    schema: Any = {}
    for _ in range(depth):
        schema = {"not": schema}
    return {"properties": {"a": schema}}


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"response_format": "json"}, "response_format", "expected an object, got a string"),
        ({"response_format": {}}, "response_format.type", "Missing required parameter"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "must be 'text', 'json_object' or"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "Missing required parameter"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, SCHEMA, "Missing required parameter"),
        ({"response_format": in_schema([])}, SCHEMA, "must be a JSON schema"),
        ({"response_format": in_schema({"items": {"pattern": "a"}})}, f"{SCHEMA}.items.pattern", "not supported"),
        ({"response_format": in_schema({"anyOf": [{"$ref": "#/x"}]})}, f"{SCHEMA}.anyOf[0].$ref", "which is not there"),
        ({"response_format": in_schema({"$ref": "#"})}, f"{SCHEMA}.$ref", "contains itself"),
        ({"response_format": in_schema({"title": "x" * FORMAT_BYTES_MAX})}, SCHEMA, "must be at most"),
        ({"response_format": in_schema(nested(300))}, "response_format", "nested too deeply"),
        ({"response_format": in_schema(nested(10_000))}, "response_format", "nested too deeply"),
        ({"grammar": ""}, "grammar", "must not be empty"),
        ({"grammar": 5}, "grammar", "expected a string, got an integer"),
        ({"grammar": "x" * (FORMAT_BYTES_MAX + 1)}, "grammar", "at most"),
        ({"grammar": "x", "response_format": {"type": "json_object"}}, "grammar", "not both"),
        ({"grammar": "x", "tools": [TOOL]}, "grammar", "can't be combined with 'tools'"),
        ({"response_format": {"type": "json_object"}, "tools": [TOOL]}, "response_format", "combined with 'tools'"),
    ],
)  # fmt: skip
def test_what_can_not_be_is_refused_by_its_path(fields: dict[str, Any], param: str, message: str) -> None:
    raw = written(fields)
    with pytest.raises(BadRequest) as caught:
        parse_chat(raw)
    assert (caught.value.status, caught.value.param) == (400, param)
    assert message in caught.value.message


def written(fields: dict[str, Any]) -> bytes:
    """The body of a request, written without recursion: Python's own writer ends at a depth of about 1,000."""
    form = fields.get("response_format")
    if not (isinstance(form, dict) and isinstance(inner := form.get("json_schema"), dict) and "schema" in inner):
        return body(**fields)
    depth, schema = 0, inner["schema"]
    while isinstance(schema, dict) and (inside := next(iter(schema.values()), None)) and isinstance(inside, dict):
        depth, schema = depth + 1, inside
    if depth < 200:
        return body(**fields)
    text = '{"not":' * depth + "{}" + "}" * depth
    return body(response_format=in_schema("HERE")).replace(b'"HERE"', text.encode())


def test_tools_that_may_not_be_called_are_no_hindrance() -> None:
    text, _ = grammar(response_format={"type": "json_object"}, tools=[TOOL], tool_choice="none")
    assert text is not None


def test_the_path_in_an_error_is_short() -> None:
    deep: Any = {"uniqueItems": True}
    for _ in range(60):
        deep = {"items": deep}
    assert refusal(response_format=in_schema(deep)).param == SCHEMA + ".items" * SHOWN_STEPS_MAX
