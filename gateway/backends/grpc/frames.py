"""HTTP/2 frames as bytes, and bytes as frames (RFC 9113, 4 and 6). Pure."""

import struct
from collections.abc import Iterator
from typing import Final, TypeAlias

from h2.errors import ErrorCodes

DATA: Final = 0x0
HEADERS: Final = 0x1
PRIORITY: Final = 0x2
RST_STREAM: Final = 0x3
SETTINGS: Final = 0x4
PUSH_PROMISE: Final = 0x5
PING: Final = 0x6
GOAWAY: Final = 0x7
WINDOW_UPDATE: Final = 0x8
CONTINUATION: Final = 0x9

END_STREAM: Final = 0x1
"""The flag of DATA and HEADERS that ends one side of a stream."""
ACK: Final = 0x1
"""The flag of SETTINGS and PING that answers one of the other side."""
END_HEADERS: Final = 0x4
PADDED: Final = 0x8
WITH_PRIORITY: Final = 0x20

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
"""The first bytes of a client (RFC 9113, 3.4)."""
HEAD_BYTES: Final = 9
FRAME_BYTES_MAX: Final = 16_384
"""The largest payload that an endpoint takes unless its settings say otherwise."""
STREAM_ID_MAX: Final = 2**31 - 1

Frame: TypeAlias = tuple[int, int, int, bytes]
"""Type, flags, number of the stream, payload."""

_HEAD: Final = struct.Struct(">HBBBI")  # the length in two parts, type, flags, number of the stream
_UINT32: Final = struct.Struct(">I")
_SETTING: Final = struct.Struct(">HI")


class BrokenConnection(Exception):
    """The other side has broken the rules of HTTP/2 in a way that ends the whole connection."""

    def __init__(self, code: ErrorCodes, text: str) -> None:
        super().__init__(text)
        self.code = code


class FrameReader:
    """Cuts the bytes of a connection into frames, however they arrive."""

    def __init__(self) -> None:
        self._rest = b""

    def read(self, data: bytes) -> Iterator[Frame]:
        """Yields the frames that are complete now. Raises `BrokenConnection` if one is too large."""
        buffer = self._rest + data if self._rest else data
        at, end = 0, len(buffer)
        while end - at >= HEAD_BYTES:
            high, low, kind, flags, stream_id = _HEAD.unpack_from(buffer, at)
            size = high << 8 | low
            if size > FRAME_BYTES_MAX:
                raise BrokenConnection(ErrorCodes.FRAME_SIZE_ERROR, f"a frame of {size} bytes is too large")
            start = at + HEAD_BYTES
            if end - start < size:
                break
            at = start + size
            yield kind, flags, stream_id & STREAM_ID_MAX, buffer[start:at]
        self._rest = buffer[at:]


def frame(kind: int, flags: int, stream_id: int, payload: bytes | memoryview) -> bytes:
    """Returns one frame."""
    return frame_head(kind, flags, stream_id, len(payload)) + payload


def frame_head(kind: int, flags: int, stream_id: int, size: int) -> bytes:
    """Returns the nine bytes before a payload of `size` bytes."""
    return _HEAD.pack(size >> 8, size & 0xFF, kind, flags, stream_id)


def headers_frames(stream_id: int, block: bytes, bytes_max: int = FRAME_BYTES_MAX) -> bytes:
    """Returns a header block as HEADERS, and CONTINUATION as far as it is needed."""
    if len(block) <= bytes_max:
        return frame(HEADERS, END_HEADERS, stream_id, block)
    parts = [block[at : at + bytes_max] for at in range(0, len(block), bytes_max)]
    first, *middle, last = parts
    return b"".join(
        [
            frame(HEADERS, 0, stream_id, first),
            *(frame(CONTINUATION, 0, stream_id, part) for part in middle),
            frame(CONTINUATION, END_HEADERS, stream_id, last),
        ]
    )


def settings_frame(*settings: tuple[int, int]) -> bytes:
    """Returns SETTINGS with pairs of identifier and value."""
    return frame(SETTINGS, 0, 0, b"".join(_SETTING.pack(*each) for each in settings))


def settings_in(payload: bytes) -> Iterator[tuple[int, int]]:
    """Yields the pairs of a SETTINGS payload. Raises `BrokenConnection` if its length is wrong."""
    if len(payload) % _SETTING.size:
        raise BrokenConnection(ErrorCodes.FRAME_SIZE_ERROR, f"SETTINGS has {len(payload)} bytes")
    return _SETTING.iter_unpack(payload)


def window_update(stream_id: int, amount: int) -> bytes:
    """Returns WINDOW_UPDATE; stream 0 is the connection."""
    return frame(WINDOW_UPDATE, 0, stream_id, _UINT32.pack(amount))


def rst_stream(stream_id: int, code: ErrorCodes) -> bytes:
    """Returns RST_STREAM, which ends a stream at once."""
    return frame(RST_STREAM, 0, stream_id, _UINT32.pack(code))


def goaway(code: ErrorCodes, text: str) -> bytes:
    """Returns the GOAWAY of a client: it has processed no stream of the server, because there are none."""
    return frame(GOAWAY, 0, 0, bytes(4) + _UINT32.pack(code) + text.encode())


def number_in(payload: bytes, at: int = 0) -> int:
    """Returns the four bytes at `at` as a number. Raises `BrokenConnection` if they are not there."""
    if len(payload) < at + _UINT32.size:
        raise BrokenConnection(ErrorCodes.FRAME_SIZE_ERROR, f"a frame ends after {len(payload)} bytes")
    number: int = _UINT32.unpack_from(payload, at)[0]
    return number


def without_padding(payload: bytes) -> bytes:
    """Returns the payload of a frame that is PADDED. Raises `BrokenConnection` if it is shorter than its padding."""
    if not payload or payload[0] >= len(payload):
        raise BrokenConnection(ErrorCodes.PROTOCOL_ERROR, "a frame is shorter than its padding")
    return payload[1 : len(payload) - payload[0]]


def header_fragment(flags: int, payload: bytes) -> bytes:
    """Returns the part of a header block in a HEADERS frame: without padding and priority. Raises
    `BrokenConnection`."""
    if flags & PADDED:
        payload = without_padding(payload)
    if flags & WITH_PRIORITY:
        if len(payload) < 5:
            raise BrokenConnection(ErrorCodes.FRAME_SIZE_ERROR, "HEADERS has no room for its priority")
        return payload[5:]
    return payload
