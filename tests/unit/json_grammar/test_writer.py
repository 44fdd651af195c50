"""Which schemas become a grammar, and which are refused with which path. What the grammars admit is tried with
llama.cpp in tests/integration/engines/test_json_grammar.py."""

import json
from typing import Any

import pytest

from gateway.json_grammar.errors import SchemaError
from gateway.json_grammar.numbers import NumberBounds, integer_expression, number_expression
from gateway.json_grammar.references import DEPTH_MAX
from gateway.json_grammar.text import REPEATED_MAX, literal, repeated
from gateway.json_grammar.writer import RULES_MAX, GrammarWriter


def grammar(schema: object, *, is_lenient: bool = False) -> str:
    writer = GrammarWriter(is_lenient=is_lenient)
    return writer.text(writer.add(schema))


def refused(schema: object, *, is_lenient: bool = False) -> SchemaError:
    with pytest.raises(SchemaError) as caught:
        grammar(schema, is_lenient=is_lenient)
    return caught.value


def nested(depth: int) -> Any:
    schema: Any = {"type": "null"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


@pytest.mark.parametrize(
    "schema",
    [
        True,
        {},
        {"title": "anything", "description": "with words only", "default": 1, "format": "date", "x-mine": [1]},
        {"$ref": "#/$defs/a b~/c", "$defs": {"a b~": {"c": {"type": "null"}}}},
        {"$ref": "#/%24defs/x~1y", "$defs": {"x/y": {"type": "null"}}},
        {"type": "object", "properties": {"a": True, "b": False}, "required": ["a", "c"]},
        {"type": ["string", "null"], "maxLength": 3},
        {"anyOf": [False, {"type": "string"}]},
        {"oneOf": [{"type": "string"}, {"type": "null"}]},
        {"uniqueItems": False, "multipleOf": 1, "patternProperties": {}},
        {"type": "array", "items": [{"type": "null"}], "additionalItems": False},
        {"allOf": [{"type": ["integer", "string"]}, {"type": "number"}], "minimum": 3},
        nested(DEPTH_MAX // 2),
    ],
)
def test_what_a_grammar_can_promise_becomes_one(schema: object) -> None:
    assert grammar(schema).startswith("root ::= ")


@pytest.mark.parametrize(
    ("schema", "path"),
    [
        (False, ()),
        ([], ()),
        ({"type": "text"}, ("type",)),
        ({"type": []}, ("type",)),
        ({"properties": {"a": {"uniqueItems": True}}}, ("properties", "a", "uniqueItems")),
        ({"items": {"pattern": "^a$"}}, ("items", "pattern")),
        ({"not": {}}, ("not",)),
        ({"$ref": "#/$defs/nothing"}, ("$ref",)),
        ({"$ref": "https://example.com/schema.json"}, ("$ref",)),
        ({"$ref": 5}, ("$ref",)),
        ({"properties": {"a": False}, "required": ["a"]}, ("properties", "a")),
        ({"properties": {"a": 5}}, ("properties", "a")),
        ({"properties": []}, ("properties",)),
        ({"required": [1]}, ("required",)),
        ({"additionalProperties": False, "required": ["a"]}, ("additionalProperties",)),
        ({"anyOf": []}, ("anyOf",)),
        ({"anyOf": [False]}, ("anyOf",)),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, ("oneOf",)),
        ({"enum": []}, ("enum",)),
        ({"enum": ["a"], "type": "null"}, ("enum",)),
        ({"const": "a", "minLength": 1}, ("minLength",)),
        ({"minLength": 2, "maxLength": 1}, ("maxLength",)),
        ({"maxLength": -1}, ("maxLength",)),
        ({"minItems": 1.5}, ("minItems",)),
        ({"items": False, "minItems": 1}, ("minItems",)),
        ({"type": "integer", "minimum": 1.2, "maximum": 1.8}, ("minimum",)),
        ({"type": "number", "minimum": True}, ("minimum",)),
        ({"minProperties": 2}, ("minProperties",)),
        ({"allOf": [{"const": 1}, {"const": 2}]}, ("const",)),
        ({"allOf": [{"additionalProperties": False}, {"properties": {"b": True}}]}, ("additionalProperties",)),
        ({"allOf": [{"type": "null"}, {"type": "string"}]}, ("type",)),
    ],
)  # fmt: skip
def test_what_it_can_not_promise_is_refused_with_its_path(schema: object, path: tuple[str | int, ...]) -> None:
    assert refused(schema).path == path


@pytest.mark.parametrize(
    ("schema", "path"),
    [
        ({"$ref": "#"}, ("$ref",)),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/x"}}, "x": {"$ref": "#/$defs/a"}}, ("x", "$ref")),
        ({"properties": {"next": {"$ref": "#"}}}, ("properties", "next", "$ref")),
        ({"properties": {"a": {"anyOf": [{"type": "null"}, {"$ref": "#"}]}}}, ("properties", "a", "anyOf", 1, "$ref")),
        ({"allOf": [{"$ref": "#"}]}, ()),
        ({"properties": {"a": {"allOf": [{"$ref": "#"}, {"type": "object"}]}}}, ("properties", "a", "properties", "a")),
    ],
)  # fmt: skip
def test_a_schema_that_contains_itself_is_refused(schema: object, path: tuple[str | int, ...]) -> None:
    assert refused(schema).path == path


def test_a_schema_that_grows_by_joining_itself_ends_at_the_number_of_rules() -> None:
    tree = {"allOf": [{"$ref": "#"}, {"type": "object"}]}
    assert str(RULES_MAX) in refused({"properties": {"a": tree, "b": tree, "c": tree}}).message


def test_many_long_repetitions_are_refused_but_equal_strings_are_one() -> None:
    def strings(count: int, *, differ: bool) -> object:
        return {
            "properties": {
                f"p{index}": {"type": "string", "maxLength": 2_000 + index * differ} for index in range(count)
            }
        }

    assert grammar(strings(300, differ=False))
    assert refused(strings(300, differ=True)).path[0] == "properties"
    assert refused({"prefixItems": [{"maxItems": 5_000 + index} for index in range(30)]}).path[0] == "prefixItems"


def test_a_deep_schema_is_refused_and_costs_no_stack() -> None:
    error = refused(nested(10_000))
    assert error.path == ("items",) * 8
    assert str(DEPTH_MAX) in error.message


def test_a_lenient_writer_leaves_out_what_it_can_not_promise() -> None:
    tree = {"type": "object", "properties": {"left": {"$ref": "#"}, "name": {"type": "string", "pattern": "^a"}}}
    assert grammar(tree, is_lenient=True)
    assert grammar({"oneOf": [{}, {}], "uniqueItems": True}, is_lenient=True)
    assert refused({"anyOf": [{"$ref": "#"}, {"type": "null"}]}, is_lenient=True).path == ("anyOf", 0, "$ref")


def test_two_schemas_in_one_grammar_have_rules_of_their_own() -> None:
    writer = GrammarWriter()
    one, other = (writer.add({"properties": {"a": {"const": value}}}) for value in (1, 2))
    assert one != other
    text = writer.text(f"{one} | {other}")
    assert '"1"' in text
    assert '"2"' in text


def test_a_literal_admits_exactly_its_text() -> None:
    assert literal('a"\\\n\r\tü\x7f\u2028') == '"a\\"\\\\\\n\\r\\x09ü\\x7F\\u2028"'
    assert json.loads(grammar({"const": "x"}).splitlines()[1].partition("::= ")[2]) == '"x"'


@pytest.mark.parametrize(
    ("least", "most", "expected"),
    [
        (0, None, "c*"),
        (2, None, "c{2} c*"),
        (0, 5, "c{0,5}"),
        (3, 3, "c{3,3}"),
        (1500, None, f"( c{{{REPEATED_MAX}}} ){{1}} c{{500}} c*"),
        (0, 2500, "( ( c{1000} ){2} c{0,500} | ( c{1000} ){0,1} c{0,999} )"),
        (1200, 1300, "( c{1000} ){1} c{200} c{0,100}"),
    ],
)
def test_repetitions_are_made_of_blocks(least: int, most: int | None, expected: str) -> None:
    assert repeated("c", least, most) == expected


@pytest.mark.parametrize(
    ("bounds", "integers", "numbers"),
    [
        (NumberBounds(least=0, most=9), "[0-9]{1}", '( [0-9]{1} | [0-8] ( "." [0-9]{1,9} )? )'),
        (NumberBounds(least=5, most=5), '"5"', '"5"'),
        (NumberBounds(above=0, below=1), None, '"0" "." [0-9]{0,8} [1-9]'),
        (NumberBounds(least=-3, most=-2), '"-" [2-3]', '( "-" [2-3] | "-" "2" ( "." [0-9]{1,9} )? )'),
        (NumberBounds(least=0.2, most=0.7), None, None),
        (NumberBounds(least=2, most=1), None, None),
        (NumberBounds(least=1e300), None, None),
    ],
)
def test_numbers_within_bounds(bounds: NumberBounds, integers: str | None, numbers: str | None) -> None:
    assert integer_expression(bounds) == integers
    assert number_expression(bounds) == numbers
