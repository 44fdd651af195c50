"""Bounded reads from a stream that may claim any length and end anywhere."""

import struct
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, Protocol

from gateway.gguf.errors import BrokenHeader, NeedMore

HEADER_BYTES_MAX: Final = 256 * 1024**2
"""The largest header that is read. Real ones have up to about 20 MB, nearly all of it vocabulary."""
STRING_BYTES_MAX: Final = 16 * 1024**2
NAME_BYTES_MAX: Final = 65_535
"""The longest name of a key that the specification allows. Tensors have far shorter names."""
SKIP_STEP_BYTES: Final = 1024**2
SCALARS: Final[Mapping[int, str]] = MappingProxyType({
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d",
})  # fmt: skip
"""The `struct` layout of one value for each type number."""

Scalar = int | float | bool | str


class Readable(Protocol):
    """A binary file, or anything that gives bytes in order."""

    def read(self, size: int, /) -> bytes:
        """Reads and returns at most `size` bytes, from where the last read ended; an empty result means the end."""


class Reader:
    """Reads the values of a header from a binary stream. Every method raises `BrokenHeader`, and its subclass
    `NeedMore` where the stream ends."""

    def __init__(self, stream: Readable) -> None:
        self._stream = stream
        self.position = 0
        """The number of bytes read so far."""

    def take(self, size: int, what: str) -> bytes:
        """Reads exactly `size` bytes; errors call them `what`. Raises `NeedMore` where the stream ends."""
        self._admit(size, what)
        data = self._stream.read(size)
        # A raw stream may give less than was asked for, and then go on.
        while len(data) < size and (more := self._stream.read(size - len(data))):
            data += more
        if len(data) < size:
            raise NeedMore(what, self.position, self.position + size)
        self.position += size
        return data

    def skip(self, size: int, what: str) -> None:
        """Skips `size` bytes without keeping them."""
        self._admit(size, what)
        end = self.position + size
        while self.position < end:
            began = self.position
            try:
                self.take(min(SKIP_STEP_BYTES, end - began), what)
            except NeedMore as error:
                raise NeedMore(what, began, end) from error

    def unpack(self, layout: str, what: str) -> tuple[int, ...]:
        """Reads the values of a `struct` layout; errors call them `what`. Raises `NeedMore` where the stream ends."""
        return struct.unpack(layout, self.take(struct.calcsize(layout), what))

    def count(self, most: int, what: str) -> int:
        """Reads a length of 64 bits. A file with a length above `most` is broken."""
        at = self.position
        (count,) = self.unpack("<Q", what)
        if count > most:
            raise BrokenHeader(f"{what} at byte {at} claims a count of {count}; at most {most} are read")
        return count

    def text(self, what: str, most: int = STRING_BYTES_MAX) -> str:
        """Reads a 64-bit length, at most `most`, and a string of so many bytes; what is not UTF-8 is replaced."""
        return self.take(self.count(most, what), what).decode(errors="replace")

    def scalar(self, kind: int, what: str) -> int | float | bool:
        """Reads one number or boolean of the GGUF value type `kind`. Raises `BrokenHeader` for an unknown type."""
        (value,) = self.unpack(self.layout(kind, what), what)
        return value

    def layout(self, kind: int, what: str) -> str:
        """Returns the `struct` layout of the GGUF value type `kind`. Raises `BrokenHeader` for an unknown type."""
        if kind not in SCALARS:
            raise BrokenHeader(f"{what} at byte {self.position} is of unknown type {kind}")
        return SCALARS[kind]

    def _admit(self, size: int, what: str) -> None:
        if self.position + size > HEADER_BYTES_MAX:
            raise BrokenHeader(
                f"{what} at byte {self.position} goes beyond the {HEADER_BYTES_MAX} bytes that a header may have"
            )
