"""The types of fields that several request bodies of the admin API and of workers have. Pure."""

import re
from collections.abc import Callable
from typing import Annotated, Final, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field

from gateway.api.http.json_body import INVALID_VALUE, validation_error, wrong_type, wrong_value
from gateway.config.fields import check_name
from gateway.config.units import parse_budget, vram_budget
from gateway.domain.inference import INT32_MAX
from gateway.domain.resources import VramBudget

Value = TypeVar("Value")

LABELS_MAX: Final = 64
LABEL_CHARS_MAX: Final = 128
"""The largest length of a label's name."""
LABEL_VALUE_CHARS_MAX: Final = 256

_UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def _check_uuid(text: str) -> str:
    if not _UUID.fullmatch(text):
        raise wrong_value("be a UUID in lower case, such as 3f2b8c1e-7d4a-4f0e-9a51-2c6d8e0b7f13")
    return text


def _as_the_configuration(check: Callable[[str], Value]) -> Callable[[str], Value]:
    """Makes a field's validator of a check of the configuration, with its message ("expected ..., got ...")."""

    def checked(text: str) -> Value:
        """Returns the text as `check` reads it. Raises a validation error that names the field."""
        try:
            return check(text)
        except ValueError as error:
            raise validation_error(INVALID_VALUE, f"Invalid value for '{{param}}': {error}.") from None

    return checked


def _parse_budget(value: object) -> object:
    """Parses a budget. The type is checked here, because the result has another type."""
    if not isinstance(value, str):
        raise wrong_type("a string", value)
    return vram_budget(_as_the_configuration(parse_budget)(value))


def _check_labels(labels: object) -> object:
    """Checks labels and names the first wrong one; pydantic would list all of them."""
    if not isinstance(labels, dict):
        raise wrong_type("an object", labels)
    if len(labels) > LABELS_MAX:
        raise wrong_value(f"have at most {LABELS_MAX} entries")
    for name, value in labels.items():
        if not 1 <= len(name) <= LABEL_CHARS_MAX or not name.isprintable():
            raise wrong_value(f"have names of 1 to {LABEL_CHARS_MAX} printable characters")
        if not isinstance(value, str):
            raise wrong_type("a string", value, name)
        if len(value) > LABEL_VALUE_CHARS_MAX or "\0" in value:
            raise wrong_value(f"have at most {LABEL_VALUE_CHARS_MAX} characters and no NUL", name)
    return labels


Uuid = Annotated[str, AfterValidator(_check_uuid)]
NodeName = Annotated[str, AfterValidator(_as_the_configuration(check_name))]
Budget = Annotated[VramBudget, BeforeValidator(_parse_budget)]
"""A budget, written "12GiB" or "80%" as in the configuration."""
Labels = Annotated[dict[str, str], BeforeValidator(_check_labels)]
PositiveCount = Annotated[int, Field(ge=1, le=INT32_MAX)]
