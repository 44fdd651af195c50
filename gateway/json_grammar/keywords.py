"""Reads the keywords of one schema strictly: types, constants, numbers and lengths."""

from collections.abc import Mapping
from typing import Any, Final, cast

from gateway.json_grammar.combine import TYPES, has_type, types_of
from gateway.json_grammar.errors import Path, SchemaError
from gateway.json_grammar.numbers import NumberBounds, integer_expression, number_expression
from gateway.json_grammar.references import Schema
from gateway.json_grammar.text import INTEGER, NUMBER, json_literal, one_of

COUNT_MAX: Final = 100_000
"""The largest length that a grammar counts to. No answer is longer."""
KEYWORDS: Final[Mapping[str, tuple[str, ...]]] = {
    "string": ("minLength", "maxLength"),
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
    "array": ("items", "prefixItems", "additionalItems", "minItems", "maxItems"),
    "object": ("properties", "required", "additionalProperties", "minProperties", "maxProperties"),
}
"""The keywords that a grammar can promise, by the type that they are about."""
NO_PROMISE: Final[Mapping[str, tuple[object, ...]]] = {
    "not": (),
    "if": (),
    "then": (),
    "else": (),
    "pattern": (),
    "multipleOf": (1,),
    "uniqueItems": (False,),
    "contains": (True,),
    "minContains": (0,),
    "maxContains": (),
    "patternProperties": ({},),
    "propertyNames": (True, {}),
    "dependencies": ({},),
    "dependentRequired": ({},),
    "dependentSchemas": ({},),
    "unevaluatedItems": (True, {}),
    "unevaluatedProperties": (True, {}),
    "$dynamicRef": (),
    "$recursiveRef": (),
}
"""The keywords that a grammar cannot promise, with the values at which they ask for nothing."""
COMBINING: Final = ("$ref", "allOf", "anyOf", "oneOf", "const", "enum", "type")
MEANINGFUL: Final = frozenset((*COMBINING, *NO_PROMISE, *(key for keys in KEYWORDS.values() for key in keys)))


def kinds(schema: Schema, path: Path) -> tuple[str, ...]:
    """Returns the types that a schema admits. One without types admits those that its keywords are about."""
    types = types_of(schema, path)
    if types is not None:
        kinds = tuple(kind for kind in types if kind != "integer" or "number" not in types)
        if not kinds:
            raise SchemaError((*path, "type"), "leaves no type")
        return kinds
    about = tuple(kind for kind, keys in KEYWORDS.items() if schema.keys() & set(keys))
    return about or tuple(kind for kind in TYPES if kind != "integer")


def constants(schema: Schema, path: Path) -> str:
    """Returns the expression of the values that `const` or `enum` lists. Raises `SchemaError`."""
    key = "const" if "const" in schema else "enum"
    values = [schema["const"]] if key == "const" else schema["enum"]
    if not isinstance(values, list) or not values:
        raise SchemaError((*path, key), "must be an array that is not empty")
    others = schema.keys() - {key, "type"}
    if others:
        raise SchemaError((*path, min(others)), f"can't be combined with '{key}'")
    types = types_of(schema, path)
    fitting = [value for value in values if types is None or has_type(value, types)]
    if not fitting:
        raise SchemaError((*path, key), "has no value of the type that is asked for")
    return one_of(json_literal(value) for value in fitting)


def counts(schema: Schema, least_key: str, most_key: str, path: Path) -> tuple[int, int | None]:
    """Returns the least and the largest count; None means that there is no bound. Raises `SchemaError`."""
    least, most = schema.get(least_key, 0), schema.get(most_key)
    for key in {least_key, most_key} & schema.keys():
        value = schema[key]
        is_whole = type(value) is int or (type(value) is float and value.is_integer())
        if not is_whole or value < 0:
            raise SchemaError((*path, key), "must be a whole number from 0")
    if least > COUNT_MAX:
        raise SchemaError((*path, least_key), f"must be at most {COUNT_MAX}")
    if most is not None and most < least:
        raise SchemaError((*path, most_key), f"is less than '{least_key}'")
    return int(least), None if most is None or most > COUNT_MAX else int(most)


def number(kind: str, schema: Schema, path: Path) -> str:
    """Returns the expression of integers or numbers within the schema's bounds. Raises `SchemaError`."""
    for key in KEYWORDS["number"]:
        value = schema.get(key, 0)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise SchemaError((*path, key), "must be a number")
    bounds = NumberBounds(*(schema.get(key) for key in KEYWORDS["number"]))
    if not bounds.are_set:
        return INTEGER if kind == "integer" else NUMBER
    found = (integer_expression if kind == "integer" else number_expression)(bounds)
    if found is None:
        key = next(key for key in KEYWORDS["number"] if key in schema)
        raise SchemaError((*path, key), f"leaves no {kind} that a grammar can promise")
    return found


def properties_of(schema: Schema, path: Path) -> tuple[dict[str, Any], list[str]]:
    """Returns the schemas of the properties, and the names of those that are required. Raises `SchemaError`."""
    properties, required = schema.get("properties", {}), schema.get("required", [])
    if not isinstance(properties, dict):
        raise SchemaError((*path, "properties"), "must be an object of schemas")
    if not (isinstance(required, list) and all(isinstance(name, str) for name in required)):
        raise SchemaError((*path, "required"), "must be an array of names")
    return properties, cast("list[str]", required)
