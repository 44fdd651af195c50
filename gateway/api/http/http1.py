"""Strict HTTP/1: a request that two programs could read in different ways is refused, and its connection closed.

h11 is lenient where servers once had to be. Behind a proxy that reads such a request in another way, its second half
would be another client's request (request smuggling; RFC 9112, 11.2). tests/integration/api/test_http1_edge.py has the
table.
"""

from typing import Any, Final

import h11
from h11._receivebuffer import ReceiveBuffer
from hypercorn.protocol.h11 import H11Protocol

BAD_REQUEST: Final = 400
NOT_SUPPORTED: Final = 505
VERSIONS: Final = frozenset({b"1.0", b"1.1"})
CONTROL_CHARACTERS: Final = frozenset({*range(0x20), 0x7F}) - {ord("\t")}
SINGLE: Final = frozenset(
    {b"authorization", b"content-type", b"x-gateway-node", b"x-gateway-boot"}
)  # h11 sees to Host, Content-Length and Transfer-Encoding


class StrictH11Protocol(H11Protocol):
    """hypercorn's HTTP/1 protocol with a strict parser."""

    def __init__(self, *args: Any, speaks_http2: bool) -> None:  # noqa: ANN401 - hypercorn's own arguments
        super().__init__(*args)
        self.connection = _StrictConnection(self.config.h11_max_incomplete_size, speaks_http2)


class _StrictConnection(h11.Connection):
    def __init__(self, incomplete_bytes_max: int, speaks_http2: bool) -> None:
        super().__init__(h11.SERVER, max_incomplete_event_size=incomplete_bytes_max)
        self._speaks_http2 = speaks_http2
        self._receive_buffer = _StrictBuffer()

    def next_event(self) -> Any:  # noqa: ANN401 - h11's own type is not public
        """Returns the next event. Raises `h11.RemoteProtocolError`, which hypercorn answers before it closes the
        connection."""
        event = super().next_event()
        if isinstance(event, h11.Request) and not (self._speaks_http2 and is_http2_preface(event)):
            check_request(event)
        return event


class _StrictBuffer(ReceiveBuffer):
    """A buffer in which lines end with CRLF and a header is one line, in the head of a request and in the trailers of a
    chunked body."""

    _is_reading_lines = False

    def maybe_extract_lines(self) -> list[bytearray] | None:
        """Returns the lines of a head if they are complete, and remembers that a head is being read."""
        self._is_reading_lines = True
        try:
            return super().maybe_extract_lines()
        finally:
            self._is_reading_lines = False

    def _extract(self, count: int) -> bytearray:
        taken = super()._extract(count)
        if self._is_reading_lines and (why := fault_of_lines(bytes(taken))) is not None:
            raise h11.LocalProtocolError(why, error_status_hint=BAD_REQUEST)
        return taken


def fault_of_lines(lines: bytes) -> str | None:
    """Returns the fault in the ends and beginnings of these lines, or None."""
    within = lines.replace(b"\r\n", b"")
    if b"\n" in within or b"\r" in within:
        return "a line that does not end with CRLF"
    if b"\r\n " in lines or b"\r\n\t" in lines:
        return "a header that goes on in the next line"
    return None


def is_http2_preface(request: h11.Request) -> bool:
    """Returns whether the request is the beginning of HTTP/2 by prior knowledge (RFC 9113, 3.3)."""
    return (request.method, request.target, request.http_version) == (b"PRI", b"*", b"2.0")


def check_request(request: h11.Request) -> None:
    """Raises `h11.RemoteProtocolError` if the request is ambiguous."""
    if request.http_version not in VERSIONS:
        raise h11.RemoteProtocolError("no version of HTTP/1 that there is", error_status_hint=NOT_SUPPORTED)
    if (why := _fault_of_headers(request)) is not None:
        raise h11.RemoteProtocolError(why, error_status_hint=BAD_REQUEST)


def _fault_of_headers(request: h11.Request) -> str | None:
    names = [name for name, _ in request.headers]
    if b"transfer-encoding" in names and b"content-length" in names:
        return "both Transfer-Encoding and Content-Length"
    if b"transfer-encoding" in names and request.http_version == b"1.0":
        return "Transfer-Encoding in HTTP/1.0"
    if any(names.count(name) > 1 for name in SINGLE):
        return "a header twice that there may be once"
    if any(not CONTROL_CHARACTERS.isdisjoint(value) for _, value in request.headers):
        return "a control character in a header"
    if any(name == b"upgrade" and _names_h2c(value) for name, value in request.headers):
        return "an upgrade to HTTP/2, which takes prior knowledge or TLS"
    return None


def _names_h2c(value: bytes) -> bool:
    return b"h2c" in {token.strip().lower() for token in value.split(b",")}
