"""The head of an HTTP/1 request, strictly: a request that two programs could read in different ways is refused.

Behind a proxy that reads such a request in another way, its second half would be another client's request (request
smuggling; RFC 9112, 11.2). tests/integration/api/test_http1_edge.py has the table.
"""

import re
from typing import Final, NamedTuple

from gateway.api.http.listener.request_target import is_host, split_target

BAD_REQUEST: Final = 400
FORBIDDEN: Final = 403
EXPECTATION_FAILED: Final = 417
NOT_IMPLEMENTED: Final = 501
NOT_SUPPORTED: Final = 505
SLASH: Final = ord("/")
CONNECT: Final = b"CONNECT"
VERSIONS: Final = frozenset({b"1.0", b"1.1"})
SINGLE: Final = frozenset({b"authorization", b"content-type", b"x-gateway-node", b"x-gateway-boot"})
"""The headers of which one request has at most one; `Host` and the framing have rules of their own."""

_TOKEN: Final = rb"[-!#$%&'*+.^_`|~0-9a-zA-Z]++"
_VALUE: Final = rb"[^\x00-\x08\x0a-\x1f\x7f]*+"
"""Anything but control characters; a tab is none (RFC 9110, 5.5)."""
TOKEN_BYTES: Final = frozenset(b"-!#$%&'*+.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
_LINE: Final = re.compile(rb"(%b) ([!-~]++) HTTP/([0-9]\.[0-9])\r\n" % _TOKEN)
_FIELDS: Final = re.compile(rb"(?:%b:%b\r\n)*+\r\n" % (_TOKEN, _VALUE))
_LENGTH: Final = re.compile(rb"[0-9]{1,20}")
_CONTROL: Final = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")

Headers = list[tuple[bytes, bytes]]


class RefusedHead(Exception):
    """A request that is not served, whose connection ends with the answer."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status
        self.why = why


class Head(NamedTuple):
    """The head of a request."""

    method: str
    """As it was sent: methods are case-sensitive (RFC 9110, 9.1)."""
    target: bytes
    """The path with its query, or `*`."""
    version: str
    """`1.0` or `1.1`."""
    headers: Headers
    """Their names are in small letters."""
    body_bytes: int | None
    """The length of the body, or None if it comes in chunks."""
    keeps_alive: bool
    """Whether the client allows more requests on the connection."""
    awaits_continue: bool
    """Whether the client waits for a word before it sends the body (`Expect: 100-continue`)."""


def parse_head(raw: bytes) -> Head:
    """Returns the head that these bytes are, up to and including the empty line. Raises `RefusedHead`."""
    line = _LINE.match(raw)
    if line is None or _FIELDS.fullmatch(raw, line.end()) is None:
        raise RefusedHead(BAD_REQUEST, fault_of_lines(raw))
    method, target, version = line.groups()
    if version not in VERSIONS:
        raise RefusedHead(NOT_SUPPORTED, "no version of HTTP/1 that there is")
    headers = _split_fields(raw[line.end() : -4])
    named = dict(headers)
    _check_names(headers, named, version)
    if not is_host(named.get(b"host", b"")):
        raise RefusedHead(BAD_REQUEST, "a Host that is none")
    if target[0] != SLASH or b"#" in target or b"%" in target or method == CONNECT:
        target = _unusual_target(method, target, headers)
    body_bytes = _body_bytes(headers, named, version)
    options = _connection_options(headers, named)
    if b"upgrade" in named:
        _check_upgrade(headers, method, options)
    awaits_continue = b"expect" in named and version == b"1.1" and _awaits_continue(headers)
    return Head(
        method=method.decode("ascii"),
        target=target,
        version=version.decode("ascii"),
        headers=headers,
        body_bytes=body_bytes,
        keeps_alive=version == b"1.1" and b"close" not in options,
        awaits_continue=awaits_continue and body_bytes != 0,
    )


def are_fields(block: bytes) -> bool:
    """Returns whether the block is header lines (or none) and an empty line, as the trailers of a body have to be."""
    return _FIELDS.fullmatch(block) is not None


def fault_of_lines(lines: bytes) -> str:
    """Returns the fault of lines that are not a head."""
    within = lines.replace(b"\r\n", b"")
    if b"\n" in within or b"\r" in within:
        return "a line that does not end with CRLF"
    if b"\r\n " in lines or b"\r\n\t" in lines:
        return "a header that goes on in the next line"
    if _CONTROL.search(within):
        return "a control character in a header"
    return "a line that is neither a request line nor a header"


def _split_fields(fields: bytes) -> Headers:
    headers = []
    for field in fields.split(b"\r\n") if fields else ():
        name, _, value = field.partition(b":")
        headers.append((name.lower(), value.strip(b" \t")))
    return headers


def _check_names(headers: Headers, named: dict[bytes, bytes], version: bytes) -> None:
    if b"host" not in named and version == b"1.1":
        raise RefusedHead(BAD_REQUEST, "no Host")
    if len(named) == len(headers):
        return
    names = [name for name, _ in headers]
    if names.count(b"host") > 1:
        raise RefusedHead(BAD_REQUEST, "more than one Host")
    if any(names.count(name) > 1 for name in SINGLE):
        raise RefusedHead(BAD_REQUEST, "a header twice that there may be once")


def _unusual_target(method: bytes, target: bytes, headers: Headers) -> bytes:
    """Returns the path with its query. A host in the target takes the place of the header (RFC 9112, 3.2.2)."""
    if method == CONNECT:
        raise RefusedHead(NOT_IMPLEMENTED, "a tunnel, which nothing here is for")
    try:
        path, host = split_target(method, target)
    except ValueError as error:
        raise RefusedHead(BAD_REQUEST, str(error)) from None
    if host is not None:
        headers[:] = [(b"host", host), *(each for each in headers if each[0] != b"host")]
    return path


def _awaits_continue(headers: Headers) -> bool:
    """Returns whether the client waits before it sends the body. Raises `RefusedHead` for any other expectation."""
    if any(expected not in {b"100-continue", b""} for expected in _tokens(headers, b"expect")):
        raise RefusedHead(EXPECTATION_FAILED, "an expectation other than 100-continue")
    return b"100-continue" in _tokens(headers, b"expect")


def _body_bytes(headers: Headers, named: dict[bytes, bytes], version: bytes) -> int | None:
    """Returns the length of the body, or None for chunks (RFC 9112, 6). Raises `RefusedHead`."""
    if b"transfer-encoding" in named:
        _check_chunked(headers, named, version)
        return None
    if b"content-length" not in named:
        return 0
    if len(named) == len(headers) and _LENGTH.fullmatch(named[b"content-length"]):
        return int(named[b"content-length"])  # This is the usual case. What follows says the same, for any case.
    lengths = set(_tokens(headers, b"content-length"))
    if len(lengths) != 1:
        raise RefusedHead(BAD_REQUEST, "conflicting lengths")
    (length,) = lengths
    if _LENGTH.fullmatch(length) is None:
        raise RefusedHead(BAD_REQUEST, "a Content-Length that is no number of bytes")
    _write_once(headers, b"content-length", length)
    return int(length)


def _check_chunked(headers: Headers, named: dict[bytes, bytes], version: bytes) -> None:
    codings = [value.lower() for name, value in headers if name == b"transfer-encoding"]
    if codings != [b"chunked"]:
        raise RefusedHead(NOT_IMPLEMENTED, "a Transfer-Encoding other than chunked")
    if b"content-length" in named:
        raise RefusedHead(BAD_REQUEST, "both Transfer-Encoding and Content-Length")
    if version == b"1.0":
        raise RefusedHead(BAD_REQUEST, "Transfer-Encoding in HTTP/1.0")
    _write_once(headers, b"transfer-encoding", b"chunked")


def _write_once(headers: Headers, name: bytes, value: bytes) -> None:
    """Leaves one line of this header, in the place of the first one, with the value as it was understood."""
    places = [place for place, header in enumerate(headers) if header[0] == name]
    headers[places[0]] = (name, value)
    for place in reversed(places[1:]):
        del headers[place]


def _check_upgrade(headers: Headers, method: bytes, options: tuple[bytes, ...]) -> None:
    protocols = _tokens(headers, b"upgrade")
    if b"h2c" in protocols:
        raise RefusedHead(BAD_REQUEST, "an upgrade to HTTP/2, which takes prior knowledge or TLS")
    if protocols == (b"websocket",) and method.upper() == b"GET" and b"upgrade" in options:
        raise RefusedHead(FORBIDDEN, "a WebSocket, which nothing here speaks")


def _connection_options(headers: Headers, named: dict[bytes, bytes]) -> tuple[bytes, ...]:
    usual = b"keep-alive"
    if len(named) == len(headers) and named.get(b"connection", usual) == usual:
        return ()  # It means nothing in HTTP/1.1, and is not granted in HTTP/1.0.
    return _tokens(headers, b"connection")


def _tokens(headers: Headers, wanted: bytes) -> tuple[bytes, ...]:
    """Returns the parts of a list header, in small letters, from all its lines."""
    return tuple(part.strip(b" \t").lower() for name, value in headers if name == wanted for part in value.split(b","))
