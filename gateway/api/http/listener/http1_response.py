"""One HTTP/1 response as bytes, without I/O: the head waits for the first part of the body, for a common write."""

from collections.abc import Iterable
from email.utils import formatdate
from http import HTTPStatus
from typing import Final

CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
LAST_CHUNK: Final = b"0\r\n\r\n"
BODILESS: Final = frozenset({204, 304})
"""The statuses whose responses have no body (RFC 9110, 6.4.1)."""
_STATUS_LINES: Final = {
    status.value: b"HTTP/1.1 %d %b\r\n" % (status.value, status.phrase.encode()) for status in HTTPStatus
}


class Clock:
    """The `date` header, which is written once a second."""

    __slots__ = ("_line", "_second")

    def __init__(self) -> None:
        self._second = -1
        self._line = b""

    def date_line(self, now: float) -> bytes:
        """Returns the header line for the time `now` (seconds since 1970)."""
        second = int(now)
        if second != self._second:
            self._second = second
            self._line = b"date: %b\r\n" % formatdate(second, usegmt=True).encode()
        return self._line


class Http1Response:
    """Encodes the response to one request."""

    __slots__ = ("_has_no_body", "_head", "_is_chunked", "_is_http_1_0", "_is_to_head", "_left", "closes", "has_begun")

    def __init__(self, *, is_to_head: bool, is_http_1_0: bool) -> None:
        """`is_to_head`: the request's method is HEAD."""
        self._is_to_head = is_to_head
        self._is_http_1_0 = is_http_1_0
        self._head = b""
        """The head, until it is written."""
        self._has_no_body = is_to_head
        self._is_chunked = False
        self._left: int | None = None
        """The bytes that are missing of a body of announced length."""
        self.has_begun = False
        self.closes = False
        """Whether the connection ends with the response."""

    def begin(self, status: int, headers: Iterable[tuple[bytes, bytes]], *, closes: bool, date_line: bytes) -> None:
        """Takes the head. `closes`: the listener does not keep the connection, whatever the headers say.

        Raises `ValueError` for a header that would be more than one line.
        """
        lines, named = _header_lines(headers)
        says_close = b"close" in named.get(b"connection", b"").lower()
        length = named.get(b"content-length")
        self._has_no_body = self._is_to_head or status in BODILESS
        self._left = int(length) if length is not None else None
        framed = length is not None or status in BODILESS
        self._is_chunked = not framed and not self._is_http_1_0
        self.closes = closes or says_close or not (framed or self._is_chunked)
        if self._is_chunked:
            lines.append(b"transfer-encoding: chunked\r\n")
        if self.closes and not says_close:
            lines.append(b"connection: close\r\n")
        head = b"".join((_status_line(status), *lines, date_line, b"\r\n"))
        _check_lines(head, len(lines) + 3)
        self._head = head
        self.has_begun = True

    @property
    def is_whole(self) -> bool:
        """Whether a body of announced length has been encoded to its end."""
        return self._left == 0

    def encode(self, data: bytes, *, is_last: bool) -> bytes:
        """Returns the bytes to write for one part of the body: with the head if it is the first part, and with the end
        if it is the last one.

        Raises `ValueError` for a body that is not as long as its head says.
        """
        head, self._head = self._head, b""
        if self._has_no_body:
            return head
        if self._is_chunked:
            end = LAST_CHUNK if is_last else b""
            return b"".join((head, b"%x\r\n" % len(data), data, b"\r\n", end)) if data else head + end
        if self._left is not None:
            self._left -= len(data)
            if self._left < 0 or (is_last and self._left):
                raise ValueError("the response's body is not as long as its content-length says")
        return head + data if head else data


def encode_refusal(status: int, date_line: bytes) -> bytes:
    """Returns the whole response to a request that was not understood."""
    return b"".join((_status_line(status), b"content-length: 0\r\nconnection: close\r\n", date_line, b"\r\n"))


def _status_line(status: int) -> bytes:
    return _STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status


def _header_lines(headers: Iterable[tuple[bytes, bytes]]) -> tuple[list[bytes], dict[bytes, bytes]]:
    """Returns the lines, and the values by names in small letters. How a body is framed is not for the application."""
    lines, named = [], {}
    for name, value in headers:
        small = name.lower()
        if small != b"transfer-encoding":
            lines.append(b"%b: %b\r\n" % (small, value))
            named[small] = value
    return lines, named


def _check_lines(head: bytes, lines: int) -> None:
    """Raises `ValueError` if the head has other line ends than those of its lines: a client would take what follows for
    a header, or for another response."""
    if not head.count(b"\r") == head.count(b"\n") == lines or b"\0" in head:
        raise ValueError("a header of the response contains a line break or NUL")
