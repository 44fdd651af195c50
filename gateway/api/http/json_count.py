"""Counts the values of a JSON text before it is parsed. Pure.

A body of 30 MB has room for millions of values, and making objects of them blocks the whole process for seconds,
because the parser cannot be interrupted. Counting takes a few passes over slices of the text, between which other tasks
run.
"""

from dataclasses import dataclass, replace
from itertools import accumulate
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
_FIELD_STEPS_BYTES: Final = (16 * 1024, 128, 1)
_FIELDS_MAX: Final = 64
"""A number of fields that no real request has. Beyond it no single field is to blame."""

_DEPTHS: Final = {ord("{"): 1, ord("["): 1, ord("}"): -1, ord("]"): -1, ord(","): 0}
_NO_MARKS: Final = bytes(byte for byte in range(256) if byte not in _DEPTHS)


@dataclass
class StringRemover:
    """Removes the strings of a JSON text that is fed in slices, cut anywhere, also within a string or an escape."""

    _inside: bool = False
    """Whether the last slice ended inside a string."""
    _escaping: bool = False
    """Whether the last slice ended with a backslash that belongs to the next one's first byte."""

    def remove_strings(self, data: bytes) -> tuple[bytes, int]:
        """Returns the next slice without its strings, and how many strings began in it."""
        texts = self._without_escapes(data).split(b'"')
        outside, quotes = b"".join(texts[self._inside :: 2]), len(texts) - 1
        begun = (quotes + (not self._inside)) // 2
        self._inside ^= quotes % 2 == 1
        return outside, begun

    def _without_escapes(self, data: bytes) -> bytes:
        """Returns the slice without escapes: every quote that remains begins or ends a string."""
        if self._escaping and data:
            self._escaping, data = False, data[1:]
        if b"\\" not in data:
            return data
        trailing = len(data) - len(data.rstrip(b"\\"))
        self._escaping = trailing % 2 == 1
        return data.replace(b"\\\\", b"").replace(b'\\"', b"")


@dataclass
class JsonCounter(StringRemover):
    """Counts the values of a text that is fed in slices. For a text that is no JSON the counts mean nothing."""

    values: int = 0
    """The number of values, counted by commas: all but the first of each array and object."""
    containers: int = 0
    strings: int = 0
    """The number of strings that have begun, names of fields included."""

    def feed(self, data: bytes) -> None:
        """Counts what the next slice of the text has."""
        outside, begun = self.remove_strings(data)
        self.strings += begun
        self.values += outside.count(b",")
        self.containers += outside.count(b"[") + outside.count(b"{")

    def bound_broken(self) -> str | None:
        """Returns the bound that the counts break, in words for the caller, or None if they keep all."""
        if self.values > VALUES_MAX:
            return f"{VALUES_MAX} values"
        if self.containers > CONTAINERS_MAX:
            return f"{CONTAINERS_MAX} arrays and objects"
        if self.strings > STRINGS_MAX:
            return f"{STRINGS_MAX} strings, names of fields included"
        return None


@dataclass
class FieldCounter(StringRemover):
    """Counts the fields of an object, and not those of the objects within it; the text is fed in slices."""

    fields: int = 0
    """The number of fields that have begun."""
    _depth: int = 0

    def feed(self, data: bytes) -> None:
        """Counts the fields that begin in the next slice of the text."""
        outside, _ = self.remove_strings(data)
        marks = outside.translate(None, _NO_MARKS)
        depths = list(accumulate(map(_DEPTHS.__getitem__, marks), initial=self._depth))
        if min(depths) <= 1:  # This spares most of the work: nearly all of a large text is deeper.
            self.fields += sum(depth == 1 and mark in b"{," for mark, depth in zip(marks, depths[1:], strict=True))
        self._depth = depths[-1]


def check_counts(body: bytes) -> None:
    """Raises `BadRequest` for a text with more values than one request may have, and `ValueError` for a text that is no
    JSON, as far as it was examined."""
    bound, counted_bytes = find_broken_bound(body)
    if bound is not None:
        raise _too_many(body[:counted_bytes], bound)


def find_broken_bound(text: bytes) -> tuple[str | None, int]:
    """Returns the bound that `text` breaks, in words, and how much of the text breaks it; the bound is None if it keeps
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
    """Returns the slice in which a bound is broken: its start, and the counts before it."""
    for at in range(start, len(text), step):
        before = replace(counter)
        counter.feed(bytes(text[at : at + step]))
        if (bound := counter.bound_broken()) is not None:
            return before, bound, at
    return counter, None, len(text)


def _too_many(beginning: bytes, bound: str) -> BadRequest:
    field = field_at_the_end(beginning)
    if field is None:
        return BadRequest(f"The request body must have at most {bound}.", code=TOO_MANY)
    message = f"Invalid value for '{field}': with it the request body has more than {bound}."
    return BadRequest(message, param=field, code=TOO_MANY)


def field_at_the_end(beginning: bytes) -> str | None:
    """Returns the body's last field, as far as it goes, or None if it is no object, or has too many fields to name one.

    Only parts of the text are parsed, because the parser cannot be interrupted. Raises `ValueError` if its first part
    is no JSON.
    """
    beginning = beginning.lstrip()
    if not _fields(beginning[:_SLICE_BYTES]):
        return None
    at, number = find_last_field(beginning)
    if number > _FIELDS_MAX:
        return None
    last = _fields(b"{" + beginning[at : at + _SLICE_BYTES])
    return next(iter(last), "")[:_FIELDS_MAX] or None


def find_last_field(text: bytes) -> tuple[int, int]:
    """Returns where the last field of an object begins, after the brace or the comma before it, and how many fields the
    object has.

    `text` begins with the object's brace, and may end anywhere in the object.
    """
    counter, start, end, number = FieldCounter(), 0, len(text), 0
    for step in _FIELD_STEPS_BYTES:  # The slice in which the last field begins is read again in smaller ones.
        counter, start, fields = _find_last_beginning(counter, text[:end], start, step)
        end = min(end, start + step)
        number = number or fields
    return end, number


def _find_last_beginning(counter: FieldCounter, text: bytes, start: int, step: int) -> tuple[FieldCounter, int, int]:
    """Returns the counter before the last slice in which a field begins, that slice's start, and the number of fields
    up to the end of the text."""
    before, found = counter, start
    for at in range(start, len(text), step):
        known = replace(counter)
        counter.feed(text[at : at + step])
        if counter.fields > known.fields:
            before, found = known, at
    return before, found, counter.fields


def _fields(beginning: bytes) -> dict[str, object]:
    value = from_json(beginning, allow_inf_nan=False, allow_partial="trailing-strings")
    return value if isinstance(value, dict) else {}
