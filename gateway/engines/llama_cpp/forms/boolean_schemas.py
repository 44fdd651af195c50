"""Rewrites the boolean schemas in a tool's parameters, which llama.cpp does not know. Pure.

`true` admits everything and `false` nothing (JSON Schema, 4.3.2). Go's `any` becomes `true` in many MCP servers.
"""

from typing import Any, Final

MAPS_OF_SCHEMAS: Final = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
LISTS_OF_SCHEMAS: Final = ("anyOf", "oneOf", "allOf", "prefixItems")
CHOICES: Final = ("anyOf", "oneOf")
SCHEMAS: Final = ("items", "additionalItems", "contains", "propertyNames", "not", "if", "then", "else")
NOTHING: Final[dict[str, Any]] = {"not": {}}


def without_booleans(schema: Any) -> Any:  # noqa: ANN401 - any JSON
    """Returns a schema that means the same and has no boolean where llama.cpp wants an object.

    It recurses, so the depth of the schema has to be checked before.
    """
    if isinstance(schema, bool):
        return {} if schema else NOTHING
    if not isinstance(schema, dict):
        return schema
    return {key: _rewritten(key, value) for key, value in _without_impossible(schema).items()}


def _rewritten(key: str, value: Any) -> Any:  # noqa: ANN401 - any JSON
    if key in MAPS_OF_SCHEMAS and isinstance(value, dict):
        return {name: without_booleans(each) for name, each in value.items()}
    if (key in LISTS_OF_SCHEMAS or key == "items") and isinstance(value, list):
        return [without_booleans(each) for each in value]
    if key in SCHEMAS or (key == "additionalProperties" and not isinstance(value, bool)):
        return without_booleans(value)
    return value


def _without_impossible(schema: dict[str, Any]) -> dict[str, Any]:
    """Leaves out the properties, choices and items that `false` forbids."""
    kept = dict(schema)
    if isinstance(properties := kept.get("properties"), dict):
        kept["properties"] = {name: each for name, each in properties.items() if each is not False}
    for key in CHOICES:
        if isinstance(choices := kept.get(key), list):
            kept[key] = [each for each in choices if each is not False] or [False]
    if kept.get("items") is False:
        del kept["items"]
        first = kept.get("prefixItems")
        kept["maxItems"] = len(first) if isinstance(first, list) else 0
    return kept
