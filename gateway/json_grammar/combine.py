"""Joins schemas that hold at the same time (`allOf`), and says which exclude each other (`oneOf`)."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, Final

from gateway.json_grammar.errors import Path, SchemaError
from gateway.json_grammar.references import Schema
from gateway.json_grammar.text import json_text

TYPES: Final = ("object", "array", "string", "number", "integer", "boolean", "null")
LARGER_WINS: Final = ("minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties")
SMALLER_WINS: Final = ("maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties")
BRANCHES_MAX: Final = 64
"""The largest number of branches of `oneOf` that are compared with each other."""


def types_of(schema: Mapping[str, Any], at: Path) -> tuple[str, ...] | None:
    """Returns the types that a schema names, or None if it names none. Raises `SchemaError`."""
    if "type" not in schema:
        return None
    given = schema["type"]
    names = (given,) if isinstance(given, str) else given
    if not isinstance(names, Sequence) or not names or not all(name in TYPES for name in names):
        raise SchemaError((*at, "type"), f"must be one of {', '.join(TYPES)}, or an array of them")
    return tuple(names)


def has_type(value: object, types: Sequence[str]) -> bool:
    """Returns whether a JSON value has one of the types. A number without a fraction is an integer, too."""
    match value:
        case bool():
            return "boolean" in types
        case None:
            return "null" in types
        case str():
            return "string" in types
        case int() | float():
            return "number" in types or ("integer" in types and value == int(value))
        case list():
            return "array" in types
        case _:
            return "object" in types


def joined(one: Schema, other: Schema, at: Path) -> Schema:
    """Returns the schema that admits what both admit. Raises `SchemaError` for keywords that it cannot join."""
    _check_closed(one, other, at)
    _check_closed(other, one, at)
    both = {**other, **one}
    for key in one.keys() & other.keys():
        if one[key] != other[key]:
            both[key] = _joined_values(key, one[key], other[key], at)
    return both


def _joined_values(key: str, one: Any, other: Any, at: Path) -> Any:  # noqa: ANN401 - any JSON
    if key in LARGER_WINS or key in SMALLER_WINS:
        if not all(isinstance(each, int | float) for each in (one, other)):
            raise SchemaError((*at, key), "must be a number")
        return max(one, other) if key in LARGER_WINS else min(one, other)
    if key == "type":
        return _joined_types(types_of({key: one}, at) or (), types_of({key: other}, at) or ())
    if isinstance(one, list) and isinstance(other, list) and key in ("required", "enum"):
        return [*one, *other] if key == "required" else [each for each in one if each in other]
    if key == "properties" and isinstance(one, dict) and isinstance(other, dict):
        return {
            name: {"allOf": [one[name], other[name]]} if name in one and name in other else {**one, **other}[name]
            for name in {**other, **one}
        }
    if key in ("items", "additionalProperties") and not isinstance(one, list) and not isinstance(other, list):
        return {"allOf": [one, other]}
    raise SchemaError((*at, key), "is there twice, with values that can't be combined")


def _joined_types(one: Sequence[str], other: Sequence[str]) -> list[str]:
    types = [name for name in one if name in other]
    if ("integer" in one and "number" in other) or ("number" in one and "integer" in other):
        types.append("integer")
    return list(dict.fromkeys(types))


def _check_closed(one: Schema, other: Schema, at: Path) -> None:
    """Refuses a schema that says something about further properties, which the other one would add."""
    if one.get("additionalProperties", True) is True or "properties" not in other:
        return
    known, more = one.get("properties", {}), other["properties"]
    if not (isinstance(known, dict) and isinstance(more, dict) and more.keys() <= known.keys()):
        raise SchemaError((*at, "additionalProperties"), "can't be combined with properties of another schema")


def check_exclusive(branches: Sequence[Schema], at: Path) -> None:
    """Raises `SchemaError` unless it can tell that no value matches two branches: by their types, or by a property that
    all require with different constants."""
    if len(branches) > BRANCHES_MAX:
        raise SchemaError(at, f"must have at most {BRANCHES_MAX} entries")
    for one, other in combinations(branches, 2):
        if not _exclude_each_other(one, other, at):
            message = "has entries that may match the same value; use 'anyOf', or give each a constant of its own"
            raise SchemaError(at, message)


def _exclude_each_other(one: Schema, other: Schema, at: Path) -> bool:
    some, others = types_of(one, at), types_of(other, at)
    if some and others and not _joined_types(some, others):
        return True
    if _constants_differ(one, other):
        return True
    if not (some == others == ("object",)):
        return False
    here, there = one.get("properties"), other.get("properties")
    if not (isinstance(here, dict) and isinstance(there, dict)):
        return False
    shared = [name for name in here if name in there and _requires(one, name) and _requires(other, name)]
    return any(_constants_differ(here[name], there[name]) for name in shared)


def _requires(schema: Schema, name: str) -> bool:
    required = schema.get("required")
    return isinstance(required, list) and name in required


def _constants_differ(one: object, other: object) -> bool:
    some, others = _constants(one), _constants(other)
    return some is not None and others is not None and not some & others


def _constants(schema: object) -> set[str] | None:
    """Returns the values that a schema lists, as JSON, or None if it lists none."""
    if not isinstance(schema, dict):
        return None
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    return {json_text(value) for value in values} if isinstance(values, list) else None
