"""Reads overrides from the environment: `GATEWAY_SERVER__PORT=9000` sets `port` of `[server]`.

A double underscore separates the section, the key, and a key within a table. Case does not matter. Other `GATEWAY_*`
names are left alone, because platforms inject such names (`GATEWAY_SERVICE_HOST`). A value is text where text is
allowed, and otherwise TOML: a number, true or false, an array, an inline table.
"""

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, get_origin

from pydantic import ValidationError

from gateway.config.messages import suggest, table_at
from gateway.config.model import Config, Section
from gateway.config.problems import Loc, Problem, format_path
from gateway.config.units import quote

PREFIX: Final = "GATEWAY_"
SEPARATOR: Final = "__"
SOURCE: Final = "environment"
_NOT_BY_VARIABLE: Final = "models"


@dataclass(frozen=True)
class Override:
    """A value that replaces the file's value at `loc`."""

    loc: Loc
    value: object
    source: str


def read_overrides(environ: Mapping[str, str], document: Mapping[str, Any]) -> Iterator[Override | Problem]:
    """Yields the overrides of the environment. `document` is the content of the file: keys that users choose (labels,
    backends) are found in it whatever their case. New ones become lower-case, except the variables of a backend
    (`env`)."""
    for name, text in sorted(environ.items()):
        rest = name[len(PREFIX) :]
        if name.upper().startswith(PREFIX) and SEPARATOR in rest:
            yield _read_override(name, rest.split(SEPARATOR), text, document)


def _read_override(name: str, steps: list[str], text: str, document: Mapping[str, Any]) -> Override | Problem:
    section, keys = steps[0].lower(), steps[1:]
    if section not in Config.model_fields:
        return Problem(name, f"unknown section {quote(section)}" + suggest(section, Config.model_fields), source=SOURCE)
    if section == _NOT_BY_VARIABLE:
        return Problem(name, "models can be declared in the file only", source=SOURCE)
    table: Loc = (section,)
    if section == "backends":
        backend = _find_key(keys[0], _look_up(document, table))
        table, keys = (section, backend or keys[0].lower()), keys[1:]
    return _set_key(name, table, keys, text, document)


def _set_key(name: str, table: Loc, keys: list[str], text: str, document: Mapping[str, Any]) -> Override | Problem:
    """Returns the override of one variable. `keys` is the key within `table`, perhaps followed by a key within that."""
    model, key = table_at(table), "".join(keys[:1]).lower()
    field = model.model_fields.get(key)
    if field is None:
        what = f"unknown key {quote(key)}" + suggest(key, model.model_fields) if key else "names no key"
        return Problem(name, what, source=SOURCE)
    loc, inner = (*table, key), keys[1:]
    if not inner:
        return Override(loc, _read_value(model, key, text), name)
    if get_origin(field.annotation) is not Mapping or len(inner) > 1:
        return Problem(name, f"{format_path(loc)} has no keys of that kind", source=SOURCE)
    new = inner[0] if key == "env" else inner[0].lower()
    return Override((*loc, _find_key(inner[0], _look_up(document, loc)) or new), text, name)


def _look_up(document: Mapping[str, Any], loc: Loc) -> Mapping[str, Any]:
    """Returns the table at a place of the document, or an empty one if there is none."""
    found: Any = document
    for step in loc:
        found = found.get(step) if isinstance(found, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def _find_key(wanted: str, table: Mapping[str, Any]) -> str | None:
    """Returns the key that a variable's name means. The name has no case and no dashes."""
    folded = _fold(wanted)
    return next((key for key in table if _fold(key) == folded), None)


def _fold(key: str) -> str:
    return key.lower().replace("-", "_")


def _read_value(model: type[Section], key: str, text: str) -> object:
    if _accepts(model, key, text):
        return text
    try:
        parsed = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    return parsed["value"] if parsed.keys() == {"value"} else text


def _accepts(model: type[Section], key: str, value: object) -> bool:
    try:
        model.model_validate({key: value})
    except ValidationError as error:
        return all(detail["loc"][:1] != (key,) for detail in error.errors(include_url=False, include_input=False))
    return True
