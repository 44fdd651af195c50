"""Reads a JSON request body into a pydantic model, or names the first wrong field in words for the caller.

pydantic's own errors are written for programmers ("Input should be ...", union branches in the path), and it collects
all of them, which a hostile body can make millions. Here one error becomes one `BadRequest` with the field's path as
OpenAI writes it (`messages[0].content`), and the models are built so that the number of errors is bounded.
"""

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar, Final, TypeVar

from pydantic import BaseModel, ConfigDict, Discriminator, Tag, ValidationError, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError, from_json, to_json

from gateway.api.http.json_count import COUNTED_FROM_BYTES, check_counts, field_at_the_end
from gateway.domain.errors import BadRequest
from gateway.field_errors import JSON_TYPES, NOT_EMPTY, FieldErrorKind, sort_error

READ_ON_LOOP_BYTES: Final = 32 * 1024
"""The size from which on reading and checking may take milliseconds, in which the event loop would stand still."""
SHOWN_CHARACTERS_MAX: Final = 64
"""The length at which a caller's own value is cut in an error."""

INVALID_JSON: Final = "invalid_json"
INVALID_TYPE: Final = "invalid_type"
INVALID_VALUE: Final = "invalid_value"
MISSING: Final = "missing_required_parameter"
UNKNOWN: Final = "unknown_parameter"
UNSUPPORTED: Final = "unsupported_parameter"
UNSUPPORTED_VALUE: Final = "unsupported_value"

ANY_VALUE: Final[tuple[object, ...]] = (object(),)
"""Stands for all values, in `JsonBody.without_effect`."""

_VALIDATION_ERROR: Final = "complaint"
_TOO_DEEP: Final = re.compile("(recursion limit exceeded) at line ([0-9]+) column ([0-9]+)")
_BRANCH_MARK: Final = "|"
"""The beginning of the tags of union branches, which pydantic puts into an error's path although they are no fields."""
TEXT: Final = Tag(_BRANCH_MARK + "text")
ARRAY: Final = Tag(_BRANCH_MARK + "array")


class JsonBody(BaseModel):
    """The base of all request bodies. JSON types are not converted: "1" is no number, and 1 is no boolean.

    Unknown keys are refused one by one here and not by pydantic's `extra="forbid"`, which lists all of them: a body
    with a million keys would block the loop for four seconds.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore", allow_inf_nan=False)

    without_effect: ClassVar[Mapping[str, tuple[object, ...]]] = MappingProxyType({})
    """The known parameters that are not supported, with the values, besides null, at which they change nothing.
    Those values are accepted, and any other value is refused by name."""
    reasons: ClassVar[Mapping[str, str]] = MappingProxyType({})
    """The reason why a parameter of `without_effect` is refused, as a clause, if there is more to say than that."""

    _known: ClassVar[frozenset[str]] = frozenset()

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: object) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        cls._known = frozenset(cls.model_fields)

    @model_validator(mode="before")
    @classmethod
    def _refuse_other_keys(cls, data: object) -> object:
        if isinstance(data, dict):
            for key in data:
                if key not in cls._known:
                    cls._check_without_effect(key, data[key])
        return data

    @classmethod
    def _check_without_effect(cls, key: str, value: object) -> None:
        accepted = cls.without_effect.get(key)
        if accepted is None:
            raise validation_error(UNKNOWN, unknown_message("{param}"), key)
        if accepted is not ANY_VALUE and value is not None and not any(equal_json(value, each) for each in accepted):
            raise validation_error(UNSUPPORTED, unsupported_message("{param}", cls.reasons.get(key)), key)


Body = TypeVar("Body", bound=JsonBody)


def parse_object(body: bytes) -> dict[str, Any]:
    """Parses a body. Raises `BadRequest` if it is not JSON, not an object, or has too many values."""
    try:
        if len(body) > COUNTED_FROM_BYTES:
            check_counts(body)
        value = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise _not_json(body, error) from None
    if not isinstance(value, dict):
        message = f"The request body must be a JSON object, got {json_kind(value)}."
        raise BadRequest(message, code=INVALID_TYPE)
    return value


def parse_json(model_type: type[Body], body: bytes) -> Body:
    """Parses a body into `model_type`. Raises `BadRequest` if it does not match, besides the errors of
    `parse_object`."""
    return read_object(model_type, parse_object(body))


def read_object(model_type: type[Body], value: Mapping[str, Any]) -> Body:
    """Reads a parsed body into `model_type`. Raises `BadRequest` if it does not match."""
    try:
        return model_type.model_validate(value)
    except ValidationError as error:
        raise _bad_request(error.errors(include_url=False)[0]) from None


def validation_error(code: str, message: str, *at: str | int) -> PydanticCustomError:
    """Returns the error of a validator with a message of its own.

    In `message`, `{param}` stands for the path of the field and `{got}` for the JSON type of its value. `at` is the
    path from the validated value to the wrong part of it, so that a validator of a whole array can point at one entry.
    """
    return PydanticCustomError(_VALIDATION_ERROR, "{message}", {"code": code, "message": message, "at": at})


def text_or_array(expected: str) -> Discriminator:
    """Returns the discriminator of a union of a string, tagged `TEXT`, and an array, tagged `ARRAY`: many parameters
    have both forms."""
    tags: dict[type, str] = {str: TEXT.tag, list: ARRAY.tag}
    return Discriminator(
        lambda value: tags.get(type(value)),
        custom_error_type=_VALIDATION_ERROR,
        custom_error_message=type_message(expected, "{got}"),
    )


def wrong_type(expected: str, got: object, *at: str | int) -> PydanticCustomError:
    """Returns the complaint that a value is not of the JSON type `expected`; `at` is that of `validation_error`."""
    return validation_error(INVALID_TYPE, type_message(expected, json_kind(got)), *at)


def wrong_value(must: str, *at: str | int) -> PydanticCustomError:
    """Returns the complaint that a value breaks a rule; `must` is a verb phrase, such as `not be empty`."""
    return validation_error(INVALID_VALUE, f"Invalid value for '{{param}}': must {must}.", *at)


def unknown_message(param: str) -> str:
    """Returns the sentence that refuses a parameter that the gateway does not know."""
    return f"Unrecognized request argument supplied: {param}"


def unsupported_message(param: str, reason: str | None) -> str:
    """Returns the sentence that refuses a parameter whose effect the gateway lacks; `reason` is a clause."""
    return f"Parameter '{param}' is not supported by this gateway yet{f': {reason}' if reason else ''}."


def equal_json(value: object, other: object) -> bool:
    """Returns whether two values are the same JSON. 1 and 1.0 are, and 1 and true are not."""
    return value == other and isinstance(value, bool) == isinstance(other, bool)


def json_kind(value: object) -> str:
    """Returns the JSON type of a parsed value, with its article."""
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int():
            return "an integer"
        case float():
            return "a number"
        case str():
            return "a string"
        case list():
            return "an array"
        case _:
            return "an object"


def shown(value: object) -> str:
    """Returns a caller's value for an error message: scalars as JSON, shortened; for anything larger its type."""
    if isinstance(value, str):
        text = to_json(value[:SHOWN_CHARACTERS_MAX]).decode()
    elif isinstance(value, int | float) and not isinstance(value, bool):
        text = str(value)
    else:
        text = json_kind(value)
    return text if len(text) <= SHOWN_CHARACTERS_MAX else text[:SHOWN_CHARACTERS_MAX] + "..."


def field_path(at: tuple[str | int, ...]) -> str:
    """Returns `("messages", 0, "content")` as `messages[0].content`. Keys of the caller are shortened."""
    steps = (f"[{step}]" if isinstance(step, int) else f".{step[:SHOWN_CHARACTERS_MAX]}" for step in at)
    return "".join(steps).removeprefix(".")


def _not_json(body: bytes, error: ValueError) -> BadRequest:
    if not body.strip():
        return BadRequest("The request body is empty; a JSON object is expected.", code=INVALID_JSON)
    reason = str(error)
    if (found := _TOO_DEEP.match(reason)) is not None:
        return BadRequest(
            f"The request body is not valid JSON: {reason.replace(found[1], 'nested too deeply')}.",
            param=_field_at(body, line=int(found[2]), column=int(found[3])),
            code=INVALID_JSON,
        )
    return BadRequest(f"The request body is not valid JSON: {reason}.", code=INVALID_JSON)


def _field_at(body: bytes, *, line: int, column: int) -> str | None:
    """Returns the field of the body at that place (both numbers count from 1), or None if that is not known."""
    before = body.split(b"\n", line)[: line - 1]
    start = sum(len(each) + 1 for each in before)
    try:
        return field_at_the_end(body[: start + column - 1])
    except ValueError:
        return None


def _bad_request(error: ErrorDetails) -> BadRequest:
    context = error.get("ctx", {})
    fields = (step for step in error["loc"] if isinstance(step, int) or not step.startswith(_BRANCH_MARK))
    param = field_path((*fields, *context.get("at", ())))
    if error["type"] == _VALIDATION_ERROR:
        code, message = context.get("code", INVALID_TYPE), error["msg"]
    else:
        code, message = _plain_message(error)
    message = message.replace("{got}", json_kind(error["input"])).replace("{param}", param)
    return BadRequest(message, param=param, code=code)


def _plain_message(error: ErrorDetails) -> tuple[str, str]:
    """Returns the code and the message for one of pydantic's own errors."""
    got = error["input"]
    if error["type"] == "finite_number" or (error["type"] == "float_type" and type(got) is int):
        return INVALID_VALUE, "Invalid value for '{param}': the number is too large."
    found = sort_error(error, JSON_TYPES)
    match found.kind:
        case FieldErrorKind.MISSING:
            return MISSING, missing_message("{param}")
        case FieldErrorKind.TYPE:
            return INVALID_TYPE, type_message(found.rule, json_kind(got))
        case FieldErrorKind.RANGE | FieldErrorKind.LENGTH:
            must = found.rule if found.kind is FieldErrorKind.LENGTH else f"be {found.rule}"
            is_shown = not isinstance(got, list | dict) and must != NOT_EMPTY
            return (
                INVALID_VALUE,
                f"Invalid value for '{{param}}': must {must}{f', got {shown(got)}' if is_shown else ''}.",
            )
        case _:
            return INVALID_VALUE, f"Invalid value for '{{param}}': {found.rule}."


def missing_message(param: str) -> str:
    """Returns the sentence that says which required field is missing."""
    return f"Missing required parameter: '{param}'."


def type_message(expected: str, got: str, param: str = "{param}") -> str:
    """Returns the sentence that says which type a value must have."""
    return f"Invalid type for '{param}': expected {expected}, got {got}."
