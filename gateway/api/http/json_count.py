"""Counts the values of a JSON text before it is parsed. Pure.

A body of 30 MB has room for millions of values, and making objects of them blocks the whole process for seconds,
because the parser cannot be interrupted. Counting takes a few passes over slices of the text, between which other tasks
run.
"""

from dataclasses import dataclass, replace
from typing import Final

from pydantic_core import from_json

from gateway.domain.errors import BadRequest

VALUES_MAX: Final = 400_000
"""The largest number of values of one body: room for 300,000 token ids, which is what OpenAI accepts in one request."""
STRINGS_MAX: Final = 100_000
"""The largest number of strings of one body, names of fields included: room for 16,384 messages, or 65,536 biased
tokens."""
CONTAINERS_MAX: Final = 80_000
"""The largest number of arrays and objects of one body: room for the tool calls of 16,384 messages. Each is work for
the garbage collector, which blocks the process as well."""
COUNTED_FROM_BYTES: Final = 256 * 1024
"""The size from which on texts are counted, because a smaller text cannot have that many values."""
TOO_MANY: Final = "too_many_values"

_SLICE_BYTES: Final = 128 * 1024
_STEPS_BYTES: Final = (_SLICE_BYTES, 1024, 1)
_FIELDS_MAX: Final = 64
"""A number of fields that no real request has. Beyond it no single field is to blame."""


@dataclass
class JsonCounter:
    """Counts the values of a text that is fed in slices, cut anywhere. For a text that is no JSON the counts mean
    nothing."""

    values: int = 0
    """The number of values, counted by commas: all but the first of each array and object."""
    containers: int = 0
    strings: int = 0
    """The number of strings that have begun, names of fields included."""
    _inside: bool = False
    """Whether the last slice ended inside a string."""
    _escaping: bool = False
    """Whether the last slice ended with a backslash that belongs to the next one's first byte."""

    def feed(self, data: bytes) -> None:
        """Count what the next slice of the text has; a slice may end anywhere, also within a string or an escape."""
        outside, quotes = self._take_strings_out(self._without_escapes(data))
        self.strings += (quotes + (not self._inside)) // 2
        self._inside ^= quotes % 2 == 1
        self.values += outside.count(b",")
        self.containers += outside.count(b"[") + outside.count(b"{")

    def bound_broken(self) -> str | None:
        """The bound that the counts break, in words for the caller. Returns None if they keep all."""
        if self.values > VALUES_MAX:
            return f"{VALUES_MAX} values"
        if self.containers > CONTAINERS_MAX:
            return f"{CONTAINERS_MAX} arrays and objects"
        if self.strings > STRINGS_MAX:
            return f"{STRINGS_MAX} strings, names of fields included"
        return None

    def _without_escapes(self, data: bytes) -> bytes:
        """Return the slice without escapes: every quote that remains begins or ends a string."""
        if self._escaping and data:
            self._escaping, data = False, data[1:]
        if b"\\" not in data:
            return data
        trailing = len(data) - len(data.rstrip(b"\\"))
        self._escaping = trailing % 2 == 1
        return data.replace(b"\\\\", b"").replace(b'\\"', b"")

    def _take_strings_out(self, data: bytes) -> tuple[bytes, int]:
        texts = data.split(b'"')
        return b"".join(texts[self._inside :: 2]), len(texts) - 1


def check_counts(body: bytes) -> None:
    """Raises `BadRequest` for a text with more values than one request may have, and `ValueError` for a text that is no
    JSON, as far as it was examined."""
    bound, counted_bytes = find_broken_bound(body)
    if bound is not None:
        raise _too_many(body[:counted_bytes], bound)


def find_broken_bound(text: bytes) -> tuple[str | None, int]:
    """Return the bound that `text` breaks, in words, and how much of the text breaks it; the bound is None if it keeps
    all."""
    if len(text) <= COUNTED_FROM_BYTES:
        return None, 0
    counter, bound, start, end = JsonCounter(), None, 0, len(text)
    for step in _STEPS_BYTES:  # The last slice is counted again in smaller ones, and so on, to the exact byte.
        counter, bound, start = _find_slice(counter, memoryview(text)[:end], start, step)
        if bound is None:
            return None, 0
        end = min(end, start + step)
    return bound, end


def _find_slice(counter: JsonCounter, text: memoryview, start: int, step: int) -> tuple[JsonCounter, str | None, int]:
    """Return the slice in which a bound is broken: its start, and the counts before it."""
    for at in range(start, len(text), step):
        before = replace(counter)
        counter.feed(bytes(text[at : at + step]))
        if (bound := counter.bound_broken()) is not None:
            return before, bound, at
    return counter, None, len(text)


def _too_many(beginning: bytes, bound: str) -> BadRequest:
    field = _field_at_the_end(beginning)
    if field is None:
        return BadRequest(f"The request body must have at most {bound}.", code=TOO_MANY)
    message = f"Invalid value for '{field}': with it the request body has more than {bound}."
    return BadRequest(message, param=field, code=TOO_MANY)


def _field_at_the_end(beginning: bytes) -> str | None:
    """Return the body's last field, as far as it goes, or None if it is no object, or has too many fields to name one.

    Raises `ValueError` if it is no JSON.
    """
    beginning = beginning.lstrip()
    is_short = len(_fields(beginning[:_SLICE_BYTES])) <= _FIELDS_MAX  # Otherwise much of the work can be spared.
    fields = _fields(beginning) if is_short else {}
    return next(reversed(fields))[:_FIELDS_MAX] if 0 < len(fields) <= _FIELDS_MAX else None


def _fields(beginning: bytes) -> dict[str, object]:
    value = from_json(beginning, allow_inf_nan=False, allow_partial=True)
    return value if isinstance(value, dict) else {}
