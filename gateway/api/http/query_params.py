"""Reads single values of a URL's query, or names the wrong one in words for the caller. Pure."""

import re
from collections.abc import Mapping
from typing import Final

from gateway.api.http.json_body import INVALID_VALUE, shown
from gateway.domain.errors import BadRequest

_DIGITS: Final = re.compile(r"[0-9]{1,10}")


def count_of(query: Mapping[str, str], name: str, default: int, maximum: int) -> int:
    """Returns a whole number from 1 to `maximum`. Raises `BadRequest`."""
    text = query.get(name)
    if text is None:
        return default
    if not _DIGITS.fullmatch(text) or not 1 <= int(text) <= maximum:
        raise _wrong(name, f"be a whole number from 1 to {maximum}", text)
    return int(text)


def flag_of(query: Mapping[str, str], name: str) -> bool:
    """Returns `true` or `false`; the default is false. Raises `BadRequest`."""
    text = query.get(name, "false")
    if text not in {"true", "false"}:
        raise _wrong(name, "be 'true' or 'false'", text)
    return text == "true"


def _wrong(name: str, must: str, got: str) -> BadRequest:
    return BadRequest(f"Invalid value for '{name}': must {must}, got {shown(got)}.", param=name, code=INVALID_VALUE)
