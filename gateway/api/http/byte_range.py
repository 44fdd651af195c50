"""Reads the part of a file that a request's `Range` header asks for (RFC 9110, 14.1 and 14.2). Pure.

werkzeug's `parse_range_header` is not used: it ignores `bytes=-0`, which no file has, and `range_for_length` refuses
the last 500 bytes of a file of 100, which is the whole file.
"""

import re
from dataclasses import dataclass
from typing import Final

_RANGE: Final = re.compile(r"bytes=[ \t]*(\d{0,18})-(\d{0,18})[ \t]*", re.IGNORECASE)


class Unsatisfiable(Exception):
    """The file has none of these bytes."""


@dataclass(frozen=True)
class ByteRange:
    """One range of a file's bytes, by the positions of its first and its last byte, counted from 0."""

    first: int
    last: int
    """The position of the last byte, which belongs to the range."""

    @property
    def length(self) -> int:
        """The number of bytes in the range."""
        return self.last - self.first + 1


def wanted_range(header: str | None, size_bytes: int) -> ByteRange | None:
    """Returns the range, or None for the whole file. It is also None for unsupported headers, as the RFC allows:
    several ranges, another unit, nonsense.

    Raises `Unsatisfiable`.
    """
    found = _RANGE.fullmatch(header or "")
    if found is None or found[1] == found[2] == "":
        return None
    if found[1] == "":
        return _last_bytes(int(found[2]), size_bytes)
    first = int(found[1])
    last = min(int(found[2]), size_bytes - 1) if found[2] else size_bytes - 1
    if found[2] and int(found[2]) < first:
        return None
    if first >= size_bytes:
        raise Unsatisfiable
    return ByteRange(first, last)


def _last_bytes(count: int, size_bytes: int) -> ByteRange:
    if count == 0 or size_bytes == 0:
        raise Unsatisfiable
    return ByteRange(max(0, size_bytes - count), size_bytes - 1)
