"""Finds the schemas that references lead to, and checks how large a schema is."""

from typing import Any, Final, cast
from urllib.parse import unquote

from gateway.json_grammar.errors import Path, SchemaError, Step

Schema = dict[str, Any]
DEPTH_MAX: Final = 256
"""The largest depth of a schema, counted in objects and arrays within each other."""


def check_depth(schema: object, at: Path = ()) -> None:
    """Raises `SchemaError` for a schema that is nested too deeply. It does not recurse itself."""
    level: list[tuple[object, Path]] = [(schema, at)]
    for _ in range(DEPTH_MAX):
        level = [child for parent, path in level for child in _children(parent, path)]
        if not level:
            return
    path = level[0][1]
    raise SchemaError(path[: len(at) + 8], f"is nested more than {DEPTH_MAX} levels deep")


def _children(value: object, path: Path) -> list[tuple[object, Path]]:
    if isinstance(value, dict):
        return [(each, (*path, key)) for key, each in value.items() if isinstance(each, dict | list)]
    if isinstance(value, list):
        return [(each, (*path, index)) for index, each in enumerate(value) if isinstance(each, dict | list)]
    return []


def find_target(document: object, reference: object, at: Path) -> tuple[object, Path]:
    """Returns the schema that `reference` (a JSON pointer after `#`) names in its document, and its path there."""
    if not isinstance(reference, str):
        raise SchemaError(at, "must be a string")
    if reference != "#" and not reference.startswith("#/"):
        raise SchemaError(
            at, f"refers to '{reference[:64]}'; only references within the schema ('#/...') are supported"
        )
    value, path = document, cast("Path", ())
    for step in reference.split("/")[1:]:
        key = _step(value, unquote(step).replace("~1", "/").replace("~0", "~"))
        if key is None:
            raise SchemaError(at, f"refers to '{reference[:64]}', which is not there")
        value, path = value[key], (*path, key)  # type: ignore[index]  # `_step` has found the key in it
    return value, path


def _step(value: object, name: str) -> Step | None:
    if isinstance(value, dict):
        return name if name in value else None
    if isinstance(value, list) and name.isascii() and name.isdecimal() and len(name) < 9 and int(name) < len(value):
        return int(name)
    return None
