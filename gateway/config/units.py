"""Durations, sizes, shares and port ranges as people write them, turned into numbers.

Every function raises `ValueError` with one complete sentence for the user: what was expected and what was found.
"""

import json
import re
from dataclasses import dataclass
from fractions import Fraction
from types import MappingProxyType
from typing import Final

from gateway.domain.host_port import PORT_MAX
from gateway.domain.resources import VramBudget

DURATION_SECONDS_MAX: Final = 365 * 24 * 3600.0
"""A year: longer is a slip of the pen, and timers far beyond it overflow."""
SIZE_BYTES_MAX: Final = 2**63 - 1
INTEGER_MAX: Final = 2**63 - 1
"""TOML integers have 64 bits; Python's reader takes larger ones, we don't."""
SHOWN_CHARACTERS: Final = 60

_SECONDS: Final = MappingProxyType({"ms": Fraction(1, 1000), "s": Fraction(1), "m": Fraction(60), "h": Fraction(3600)})
_BYTES: Final = MappingProxyType(
    {"B": 1}
    | {f"{prefix}B": 1000**power for power, prefix in enumerate("KMGT", start=1)}
    | {f"{prefix}iB": 1024**power for power, prefix in enumerate("KMGT", start=1)}
)
_NUMBER: Final = r"([0-9]{1,20}(?:\.[0-9]{1,9})?)"
_DURATION: Final = re.compile(rf"{_NUMBER}(ms|s|m|h)")
_SIZE: Final = re.compile(rf"{_NUMBER}({'|'.join(_BYTES)})")
_PERCENT: Final = re.compile(rf"{_NUMBER}%")
_PORTS: Final = re.compile(r"([0-9]{1,5})-([0-9]{1,5})")


@dataclass(frozen=True)
class Percent:
    """A share of something whose size is known only later, above 0 and up to 100."""

    value: float

    def of(self, total: int) -> int:
        """Returns this share of `total`, rounded down."""
        return int(total * Fraction(self.value) / 100)

    def __str__(self) -> str:
        return f"{self.value:g}%"


@dataclass(frozen=True)
class PortRange:
    """The ports from `first` to `last`, both included."""

    first: int
    last: int

    def __len__(self) -> int:
        return self.last - self.first + 1

    def __str__(self) -> str:
        return f"{self.first}-{self.last}"


def parse_duration(value: object) -> float:
    """Returns the seconds of a duration such as "500ms", "30s", "1.5m" or "2h"; at most a year. A bare number is
    refused, because it doesn't say its unit."""
    match = _DURATION.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f'expected a duration such as "500ms", "30s", "5m" or "2h", got {describe(value)}')
    seconds = float(Fraction(match[1]) * _SECONDS[match[2]])
    if seconds > DURATION_SECONDS_MAX:
        raise ValueError(f"expected a duration of at most a year (8760h), got {describe(value)}")
    return seconds


def parse_size(value: object) -> int:
    """Returns the bytes of a size such as "12GiB" (1024^3) or "500MB" (1000^2), or of a whole number, which is bytes
    already."""
    if isinstance(value, int) and not isinstance(value, bool):
        size = value
    elif isinstance(value, str) and (match := _SIZE.fullmatch(value)):
        size = int(Fraction(match[1]) * _BYTES[match[2]])
    else:
        raise ValueError(f'expected a size such as "12GiB" or "500MB", or a number of bytes, got {describe(value)}')
    if not 0 <= size <= SIZE_BYTES_MAX:
        raise ValueError(f"expected a size from 0 to 2^63 - 1 bytes, got {describe(value)}")
    return size


def parse_budget(value: object) -> int | Percent:
    """Returns a size in bytes, or a share such as "80%"."""
    if not isinstance(value, str) or not value.endswith("%"):
        return parse_size(value)
    match = _PERCENT.fullmatch(value)
    if match is None or not 0 < float(match[1]) <= 100:
        raise ValueError(f'expected a share above 0% and up to 100%, such as "80%", got {describe(value)}')
    return Percent(float(match[1]))


def vram_budget(parsed: int | Percent) -> VramBudget:
    """Returns what `parse_budget` has read, as a budget of GPU memory."""
    return VramBudget(share=parsed.value / 100) if isinstance(parsed, Percent) else VramBudget(amount=parsed)


def parse_port_range(value: object) -> PortRange:
    """Returns the ports of a text such as "20100-20999"."""
    match = _PORTS.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f'expected a range of ports such as "20100-20999", got {describe(value)}')
    ports = PortRange(int(match[1]), int(match[2]))
    if not 1 <= ports.first <= ports.last <= PORT_MAX:
        raise ValueError(f"expected ports from 1 to {PORT_MAX}, the lower one first, got {describe(value)}")
    return ports


def describe(value: object) -> str:
    """Returns a value of the user's for an error message, as TOML writes it and shortened. A table or an array is named
    by its kind."""
    match value:
        case str():
            return quote(value if len(value) <= SHOWN_CHARACTERS else value[:SHOWN_CHARACTERS] + "...")
        case _:
            return plain_text(value) or kind(value)


def plain_text(value: object) -> str | None:
    """Returns a boolean or a number as TOML writes it, or None for any other value and for too large a number."""
    match value:
        case bool():
            return "true" if value else "false"
        case int() if abs(value) <= INTEGER_MAX:
            return str(value)
        case float():
            return str(value)
        case _:
            return None


def quote(text: str) -> str:
    """Returns the text in double quotes and on one line."""
    return json.dumps(text, ensure_ascii=not text.isprintable())


def kind(value: object) -> str:
    """Returns the kind of a TOML value in words, for values that must not be shown."""
    match value:
        case str():
            return "a string"
        case bool():
            return "true or false"
        case int():
            return "a whole number" if abs(value) <= INTEGER_MAX else "a number of more than 64 bits"
        case float():
            return "a number with a fraction"
        case list() | tuple():
            return "an array"
        case dict():
            return "a table"
        case None:
            return "null"
        case _:
            return "a date or time"
