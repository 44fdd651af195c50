"""Sorts pydantic's errors into a few kinds, for the two that put them into words: the configuration and request bodies.

pydantic's own sentences are written for programmers ("Input should be ..."), so they are the last resort.
"""

from collections.abc import Mapping
from enum import Enum, auto
from types import MappingProxyType
from typing import Final, NamedTuple

from pydantic_core import ErrorDetails

TOML_TYPES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "string_type": "a string",
        "string_unicode": "a string in UTF-8",
        "int_type": "a whole number",
        "bool_type": "true or false",
        "tuple_type": "an array",
        "mapping_type": "a table",
        "dict_type": "a table",
        "model_type": "a table",
    }
)
JSON_TYPES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "string_type": "a string",
        "int_type": "an integer",
        "float_type": "a number",
        "bool_type": "a boolean",
        "list_type": "an array",
        "dict_type": "an object",
        "model_type": "an object",
    }
)
"""The expected type for each of pydantic's errors, as users of JSON call it."""

NOT_EMPTY: Final = "not be empty"
_RANGES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "greater_than": "above {gt}",
        "greater_than_equal": "at least {ge}",
        "less_than": "below {lt}",
        "less_than_equal": "at most {le}",
        "literal_error": "{expected}",
    }
)
_LENGTHS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "string_too_short": "have at least {min_length} characters",
        "string_too_long": "have at most {max_length} characters",
        "too_short": "have at least {min_length} entries",
        "too_long": "have at most {max_length} entries",
    }
)


class FieldErrorKind(Enum):
    """The kinds of errors of a field, by the information that a message can give."""

    MISSING = auto()
    UNKNOWN = auto()
    """The record has no field of that name."""
    TYPE = auto()
    RANGE = auto()
    LENGTH = auto()
    OTHER = auto()


class FieldError(NamedTuple):
    """One of pydantic's errors, sorted."""

    kind: FieldErrorKind
    rule: str
    """The rule that the value breaks. For TYPE and RANGE it is the expected value, such as `a string` or `at least
    1`, and for LENGTH a verb phrase, such as `not be empty`. For any other kind it is pydantic's own sentence."""


def sort_error(detail: ErrorDetails, types: Mapping[str, str]) -> FieldError:
    """Sorts one of pydantic's errors; `types` names the types, see `TOML_TYPES`."""
    found, context = detail["type"], {name: _whole(value) for name, value in detail.get("ctx", {}).items()}
    if found == "missing":
        return FieldError(FieldErrorKind.MISSING, detail["msg"])
    if found == "extra_forbidden":
        return FieldError(FieldErrorKind.UNKNOWN, detail["msg"])
    if found in types:
        return FieldError(FieldErrorKind.TYPE, types[found])
    if found in _RANGES:
        return FieldError(FieldErrorKind.RANGE, _RANGES[found].format_map(context))
    if context.get("min_length") == 1:
        return FieldError(FieldErrorKind.LENGTH, NOT_EMPTY)
    if found in _LENGTHS:
        return FieldError(FieldErrorKind.LENGTH, _LENGTHS[found].format_map(context))
    return FieldError(FieldErrorKind.OTHER, detail["msg"])


def _whole(value: object) -> object:
    """Returns 2.0 as 2, because a bound should read as its author wrote it."""
    return int(value) if isinstance(value, float) and value.is_integer() else value
