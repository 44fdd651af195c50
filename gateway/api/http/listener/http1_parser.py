"""The HTTP/1 parser of a server, without I/O: bytes in, events out.

It takes one event at a time from what has arrived, so that requests which follow stay bytes until their turn. A body is
counted, or taken out of its chunks, here; `http1_head` reads the heads.
"""

import re
from enum import Enum, auto
from typing import Final, NamedTuple

from gateway.api.http.listener.http1_head import (
    BAD_REQUEST,
    TOKEN_BYTES,
    Head,
    RefusedHead,
    are_fields,
    fault_of_lines,
    parse_head,
)

HEAD_BYTES_MAX: Final = 64 * 1024
"""The limit of an incomplete head. A complete one has a lower limit, by `Exchange.check_headers`."""
CHUNK_LINE_BYTES_MAX: Final = 4 * 1024
CHUNKS_AT_ONCE: Final = 64
"""The largest number of chunks in one event. Each costs microseconds, and may have one byte: without a bound, a client
that sends such chunks would keep other tasks from their turn."""
TRAILER_BYTES_MAX: Final = 16 * 1024
HEADERS_TOO_LARGE: Final = 431
URI_TOO_LONG: Final = 414
CR: Final = ord("\r")
HTTP2_HEAD: Final = b"PRI * HTTP/2.0\r\n\r\n"
"""The beginning of HTTP/2 by prior knowledge (RFC 9113, 3.4)."""
_CHUNK_LINE: Final = re.compile(rb"([0-9a-fA-F]{1,16}+)(?:;[^\x00-\x08\x0a-\x1f\x7f]*+|[ \t]*+)")


class BodyPart(NamedTuple):
    """A part of the body of the request whose head came last."""

    data: bytes
    is_last: bool


class Fault(NamedTuple):
    """The end of what can be understood. No event but this one comes any more."""

    status: int
    """The HTTP status with which the request is refused."""
    why: str


class Preface(NamedTuple):
    """The connection begins with HTTP/2. Its bytes, this beginning included, are what `Http1Parser.take_rest` has."""


Event = Head | BodyPart | Fault | Preface


class _State(Enum):
    HEAD = auto()
    COUNTED = auto()
    """Inside a body of known length."""
    CHUNK_LINE = auto()
    CHUNK_DATA = auto()
    CHUNK_END = auto()
    """At the line end behind the data of a chunk."""
    TRAILERS = auto()
    BROKEN = auto()


class Http1Parser:
    """Parses the requests of one connection."""

    __slots__ = (
        "_at",
        "_buffer",
        "_fault",
        "_has_passed_line",
        "_is_new",
        "_left",
        "_searched",
        "_speaks_http2",
        "_state",
    )

    def __init__(self, *, speaks_http2: bool) -> None:
        """`speaks_http2`: the connection may begin with HTTP/2."""
        self._speaks_http2 = speaks_http2
        self._state = _State.HEAD
        self._is_new = True
        """Whether no request has begun yet."""
        self._has_passed_line = False
        """Whether an empty line in front of the next request was passed. There may be one."""
        self._buffer = b""
        self._at = 0
        """The beginning of what is not parsed yet."""
        self._searched = 0
        """The position up to which the buffer has no end of a head or of trailers."""
        self._left = 0
        """The bytes that are missing of the body, or of its chunk."""
        self._fault: Fault | None = None

    @property
    def unread_bytes(self) -> int:
        """The number of bytes that were fed and are in no event yet."""
        return len(self._buffer) - self._at

    def feed(self, data: bytes) -> None:
        """Takes bytes that have arrived."""
        if self._at == len(self._buffer):
            self._buffer = data
            self._searched = 0
        else:
            self._buffer = self._buffer[self._at :] + data
            self._searched = max(0, self._searched - self._at)
        self._at = 0

    def take_rest(self) -> bytes:
        """Returns all unread bytes. The parser has none of them any more."""
        rest, self._buffer, self._at = self._buffer[self._at :], b"", 0
        return rest

    def next_event(self) -> Event | None:
        """Returns the next event, or None until more bytes have come."""
        if self._fault is not None:
            return self._fault
        if self._at == len(self._buffer):
            return None
        if self._state is _State.HEAD:
            event = self._next_head()
        elif self._state is _State.COUNTED:
            event = self._next_counted()
        else:
            event = self._next_chunked()
        if self._at == len(self._buffer):
            self._buffer, self._at = b"", 0
        return event

    def _break(self, status: int, why: str) -> Fault:
        self._state = _State.BROKEN
        self._fault = Fault(status, why)
        return self._fault

    # Heads

    def _next_head(self) -> Event | None:
        if not self._has_passed_line and self._buffer[self._at] == CR:
            if self.unread_bytes == 1:
                return None
            if self._buffer.startswith(b"\r\n", self._at):  # RFC 9112, 2.2: some clients send one after a body.
                self._at, self._has_passed_line = self._at + 2, True
                return self._next_head() if self.unread_bytes else None
        end = self._find_block_end()
        if end < 0:
            return self._fault_of_beginning()
        raw = self._take(end)
        if self._is_new and self._speaks_http2 and raw == HTTP2_HEAD:
            self._at -= end
            return Preface()
        self._is_new = self._has_passed_line = False
        try:
            head = parse_head(raw)
        except RefusedHead as refused:
            return self._break(refused.status, refused.why)
        if head.body_bytes is None:
            self._state = _State.CHUNK_LINE
        elif head.body_bytes:
            self._state, self._left = _State.COUNTED, head.body_bytes
        return head

    def _fault_of_beginning(self) -> Fault | None:
        """Returns the fault of an incomplete head which nothing that follows could mend, or None."""
        if self._buffer[self._at] not in TOKEN_BYTES or self._has_bare_lf():
            return self._break(BAD_REQUEST, fault_of_lines(self._buffer[self._at :]))
        if self.unread_bytes >= HEAD_BYTES_MAX:
            has_line = self._buffer.find(b"\r\n", self._at) >= 0
            return self._break(HEADERS_TOO_LARGE if has_line else URI_TOO_LONG, "a head without an end")
        return None

    def _find_block_end(self) -> int:
        """Returns the length of the lines up to and including an empty one, or -1."""
        begin = max(self._at, self._searched - 3)
        found = self._buffer.find(b"\r\n\r\n", begin)
        return found + 4 - self._at if found >= 0 else -1

    def _has_bare_lf(self) -> bool:
        """Returns whether an incomplete block has a line that ends without CR, and remembers how far it has looked."""
        begin = max(self._at, self._searched)
        begin -= begin > self._at and self._buffer[begin - 1] == CR
        bare = self._buffer.count(b"\n", begin) != self._buffer.count(b"\r\n", begin)
        self._searched = len(self._buffer)
        return bare

    def _take(self, count: int) -> bytes:
        begin = self._at
        self._at = begin + count
        return self._buffer[begin : self._at]

    # Bodies

    def _next_counted(self) -> BodyPart:
        data = self._take(min(self._left, self.unread_bytes))
        self._left -= len(data)
        if not self._left:
            self._state = _State.HEAD
        return BodyPart(data, not self._left)

    def _next_chunked(self) -> Event | None:
        """Returns the data of the chunks that have arrived as one part, up to `CHUNKS_AT_ONCE` of them."""
        parts: list[bytes] = []
        while (
            self._state is not _State.HEAD
            and self._fault is None
            and self._at < len(self._buffer)
            and len(parts) < CHUNKS_AT_ONCE
        ):
            if self._state is _State.CHUNK_DATA:
                parts.append(self._take(min(self._left, self.unread_bytes)))
                self._left -= len(parts[-1])
                if not self._left:
                    self._state = _State.CHUNK_END
            elif not self._pass_line():
                break
        is_last = self._state is _State.HEAD
        return BodyPart(b"".join(parts), is_last) if parts or is_last else self._fault

    def _pass_line(self) -> bool:
        """Passes one line (or the trailers), and returns whether it was complete and in order."""
        if self._state is _State.CHUNK_LINE:
            return self._pass_chunk_line()
        if self._state is _State.CHUNK_END:
            return self._pass_chunk_end()
        return self._pass_trailers()

    def _pass_chunk_line(self) -> bool:
        end = self._buffer.find(b"\r\n", self._at, self._at + CHUNK_LINE_BYTES_MAX)
        if end < 0:
            if self.unread_bytes >= CHUNK_LINE_BYTES_MAX or self._buffer.find(b"\n", self._at) >= 0:
                self._break(BAD_REQUEST, "a chunk without a size")
            return False
        line = _CHUNK_LINE.fullmatch(self._buffer, self._at, end)
        if line is None:
            self._break(BAD_REQUEST, "a chunk without a size")
            return False
        self._at = end + 2
        self._left = int(line[1], 16)
        self._state = _State.CHUNK_DATA if self._left else _State.TRAILERS
        return True

    def _pass_chunk_end(self) -> bool:
        found = self._buffer[self._at : self._at + 2]
        if found == b"\r\n":
            self._at += 2
            self._state = _State.CHUNK_LINE
            return True
        if found != b"\r":
            self._break(BAD_REQUEST, "a chunk that is not as long as it says")
        return False

    def _pass_trailers(self) -> bool:
        """Passes the trailers, which nobody here asks for."""
        if self._buffer.startswith(b"\r\n", self._at):
            self._at += 2
            self._state = _State.HEAD
            return True
        length = self._find_block_end()
        if length < 0:
            if self._has_bare_lf() or self.unread_bytes >= TRAILER_BYTES_MAX:
                self._break(BAD_REQUEST, "trailers that are no headers")
            return False
        if not are_fields(self._take(length)):
            self._break(BAD_REQUEST, "trailers that are no headers")
            return False
        self._state = _State.HEAD
        return True
