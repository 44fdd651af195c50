"""The words for what a section refuses: pydantic's findings as sentences that show no secret."""

from collections.abc import Collection, Iterator
from difflib import get_close_matches
from typing import Final

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from gateway.config.model import ApiKey, BackendSection, Config, ModelEntry, Section
from gateway.config.problems import Loc
from gateway.config.units import describe, kind

_EXPECTED: Final = {
    "string_type": "a string",
    "string_unicode": "a string in UTF-8",
    "int_type": "a whole number",
    "bool_type": "true or false",
    "tuple_type": "an array",
    "mapping_type": "a table",
    "dict_type": "a table",
    "model_type": "a table",
}
_CONSEQUENCE: Final = "default_factory_not_called"
"""Reported for a default that is derived from a key which is reported itself."""


def explain_errors(error: ValidationError, at: Loc) -> Iterator[tuple[Loc, str]]:
    """(place, sentence) of each finding about the table that lies at `at`."""
    for detail in error.errors(include_url=False):
        if detail["type"] != _CONSEQUENCE:
            steps = detail["loc"]
            loc = (*at, *(steps[:-1] if steps and steps[-1] == "[key]" else steps))
            yield loc, _sentence(detail, loc)


def _sentence(detail: ErrorDetails, loc: Loc) -> str:
    context = detail.get("ctx", {})
    match detail["type"]:
        case "missing":
            return "is required"
        case "extra_forbidden":
            return unknown_key(loc)
        case "too_short":
            return "must not be empty"
        case "value_error":
            return str(context["error"])
        case "literal_error":
            return _expected(str(context["expected"]).replace("'", '"'), detail["input"], loc)
        case "greater_than_equal":
            return _expected(f"at least {context['ge']}", detail["input"], loc)
        case "less_than_equal":
            return _expected(f"at most {context['le']}", detail["input"], loc)
        case known if known in _EXPECTED:
            return _expected(_EXPECTED[known], detail["input"], loc)
        case _:
            return detail["msg"]


def _expected(what: str, value: object, loc: Loc) -> str:
    return f"expected {what}, got {kind(value) if is_secret(loc) else describe(value)}"


def is_secret(loc: Loc) -> bool:
    """Whether the value at this place may be, or carry, a secret and must not be shown."""
    return loc[:1] in {("auth",), ("registry",)} or (loc[:1] == ("backends",) and loc[2:3] == ("env",))


def unknown_key(loc: Loc) -> str:
    """What to say of a key that the table around it doesn't have."""
    key = str(loc[-1])
    home = next((name for name, keys in _sections() if key in keys), None)
    if home is not None and loc[:-1] != (home,):
        return f"unknown key; it belongs to [{home}]"
    return "unknown key" + suggest(key, table_at(loc[:-1]).model_fields)


def suggest(name: str, known: Collection[str]) -> str:
    """A hint at the known name that is closest to a mistyped one; empty if none is close."""
    close = get_close_matches(name.lower(), known, n=1)
    return f'; did you mean "{close[0]}"?' if close else ""


def _sections() -> Iterator[tuple[str, Collection[str]]]:
    for name, field in Config.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield name, field.annotation.model_fields


def table_at(loc: Loc) -> type[Section]:
    """The class of the table at a place; of `Config` itself for the document and for places that are no table."""
    match loc:
        case ("models", int()):
            return ModelEntry
        case ("backends", str()):
            return BackendSection
        case ("auth", "api_keys", int()):
            return ApiKey
        case (str() as name,) if name in Config.model_fields:
            section = Config.model_fields[name].annotation
            return section if isinstance(section, type) and issubclass(section, Section) else Config
        case _:
            return Config
