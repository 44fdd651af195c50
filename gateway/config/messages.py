"""Turns pydantic's findings into sentences that show no secret."""

from collections.abc import Collection, Iterator
from difflib import get_close_matches
from typing import Final, NamedTuple

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from gateway.config.model import ApiKey, BackendSection, Config, ModelEntry, Section
from gateway.config.problems import Loc
from gateway.config.units import describe, kind
from gateway.field_errors import TOML_TYPES, FieldError, FieldErrorKind, sort_error

_CONSEQUENCE: Final = "default_factory_not_called"
"""The error of a default that derives from a key which is reported itself."""


class Explained(NamedTuple):
    """One of pydantic's findings, for the user."""

    loc: Loc
    message: str
    kind: FieldErrorKind


def explain_errors(error: ValidationError, at: Loc) -> Iterator[Explained]:
    """Yields an explanation of each finding about the table at `at`, with its place in the document."""
    for detail in error.errors(include_url=False):
        if detail["type"] != _CONSEQUENCE:
            steps = detail["loc"]
            loc = (*at, *(steps[:-1] if steps and steps[-1] == "[key]" else steps))
            found = sort_error(detail, TOML_TYPES)
            yield Explained(loc, _sentence(found, detail, loc), found.kind)


def _sentence(found: FieldError, detail: ErrorDetails, loc: Loc) -> str:
    match found.kind:
        case FieldErrorKind.MISSING:
            return "is required"
        case FieldErrorKind.UNKNOWN:
            return unknown_key(loc)
        case FieldErrorKind.TYPE | FieldErrorKind.RANGE:
            return _expected(found.rule.replace("'", '"'), detail["input"], loc)
        case FieldErrorKind.LENGTH:
            return f"must {found.rule}"
        case FieldErrorKind.OTHER:
            return str(detail["ctx"]["error"]) if detail["type"] == "value_error" else found.rule


def _expected(what: str, value: object, loc: Loc) -> str:
    return f"expected {what}, got {kind(value) if is_secret(loc) else describe(value)}"


def is_secret(loc: Loc) -> bool:
    """Returns whether the value at this place may be a secret, or contain one, and must not be shown."""
    return loc[:1] in {("auth",), ("registry",)} or (loc[:1] == ("backends",) and loc[2:3] == ("env",))


def unknown_key(loc: Loc) -> str:
    """Returns the sentence about a key that its table does not have."""
    key = str(loc[-1])
    home = next((name for name, keys in _sections() if key in keys), None)
    if home is not None and loc[:-1] != (home,):
        return f"unknown key; it belongs to [{home}]"
    return "unknown key" + suggest(key, table_at(loc[:-1]).model_fields)


def suggest(name: str, known: Collection[str]) -> str:
    """Returns a hint at the known name that is closest to a mistyped one, or an empty text."""
    close = get_close_matches(name.lower(), known, n=1)
    return f'; did you mean "{close[0]}"?' if close else ""


def _sections() -> Iterator[tuple[str, Collection[str]]]:
    for name, field in Config.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield name, field.annotation.model_fields


def table_at(loc: Loc) -> type[Section]:
    """Returns the class of the table at a place, or `Config` itself for the document and for places that are no
    table."""
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
