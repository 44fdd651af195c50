"""Decodes compressed request bodies (RFC 9110, 8.4), in slices and within the limits that hold for every body.

A few kilobytes can stand for gigabytes. So no decoder ever makes more than one slice at a time, the slices count as
received bytes, and other tasks have their turn in between.
"""

import zlib
from collections.abc import Callable, Iterator
from io import BytesIO
from typing import Final

import trio

from gateway.api.http.bodies import BodyCharge
from gateway.api.http.exchange import Exchange, Message, Receive, Scope
from gateway.domain.errors import BadRequest, PayloadTooLarge, UnsupportedMediaType

SLICE_BYTES: Final = 256 * 1024
"""The largest amount that is decoded at once. It takes about a millisecond."""
ZSTD_WINDOW_BYTES_MAX: Final = 8 * 1024 * 1024
"""The memory that a decoder of Zstandard may take besides its output (RFC 8878, 3.1.1.1.2)."""
GZIP_WINDOW: Final = 31
ZLIB_WINDOW: Final = 15
RAW_WINDOW: Final = -15
IDENTITY: Final = "identity"


class BrokenCoding(Exception):
    """The body is not in the coding that its head names, or its end is missing."""


def _gzip(body: bytes) -> Iterator[bytes]:
    """Yields the slices of one or more members (RFC 1952)."""
    rest = body
    while rest:
        decoder = zlib.decompressobj(GZIP_WINDOW)
        yield from _inflate(decoder, rest)
        rest = decoder.unused_data


def _deflate(body: bytes) -> Iterator[bytes]:
    """Yields the slices of a zlib stream, or of a raw one, which some clients send instead (RFC 9110, 8.4.1.2)."""
    has_head = len(body) > 1 and body[0] & 0x0F == zlib.DEFLATED and int.from_bytes(body[:2], "big") % 31 == 0
    decoder = zlib.decompressobj(ZLIB_WINDOW if has_head else RAW_WINDOW)
    yield from _inflate(decoder, body)
    if decoder.unused_data:
        raise BrokenCoding


def _inflate(decoder: "zlib._Decompress", data: bytes) -> Iterator[bytes]:
    try:
        while not decoder.eof:
            part = decoder.decompress(data, SLICE_BYTES)
            data = decoder.unconsumed_tail
            if not part and not data and not decoder.eof:
                raise BrokenCoding
            yield part
    except zlib.error as error:
        raise BrokenCoding from error


def _zstd(body: bytes) -> Iterator[bytes]:
    """Yields the slices of one or more frames (RFC 8878). A frame whose end is missing yields what there is of it."""
    import zstandard  # here, since few clients send this, and the library takes memory

    decoder = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW_BYTES_MAX)
    reader = decoder.stream_reader(BytesIO(body), read_across_frames=True)
    try:
        while part := reader.read(SLICE_BYTES):
            yield part
    except zstandard.ZstdError as error:
        raise BrokenCoding from error


DECODERS: Final[dict[str, Callable[[bytes], Iterator[bytes]]]] = {"gzip": _gzip, "deflate": _deflate, "zstd": _zstd}
SUPPORTED: Final = ", ".join(DECODERS)
CHANGED: Final = frozenset({b"content-encoding", b"content-length", b"transfer-encoding"})
"""The headers that are not those of the decoded body."""


def check_coding(exchange: Exchange, header: str) -> None:
    """Raises `UnsupportedMediaType` for a `Content-Encoding` that no decoder here knows, and for several codings, one
    within another. The answer names those that are supported (RFC 9110, 12.5.3)."""
    if _coding(header) not in {IDENTITY, *DECODERS}:
        exchange.response_headers.append((b"accept-encoding", SUPPORTED.encode()))
        raise UnsupportedMediaType(
            f"The body's Content-Encoding is not supported. Send it without one, or with one of: {SUPPORTED}.",
            code="unsupported_content_encoding",
        )


def _coding(header: str) -> str:
    return header.strip().lower().removeprefix("x-") or IDENTITY


async def read_coded_body(exchange: Exchange, bytes_max: int, timeout_seconds: float, charge: BodyCharge) -> bytes:
    """Reads the body of a request that has a `Content-Encoding`, and returns what it stands for. Both forms count in
    `charge`, and each has the limit `bytes_max`. Raises `BadRequest` and the errors of `Exchange.read_body`."""
    body = await exchange.read_body(bytes_max, timeout_seconds, charge)
    coding = _coding(exchange.header("content-encoding") or "")
    return body if coding == IDENTITY or not body else await _decode(body, coding, bytes_max, charge)


def replace_body(scope: Scope, receive: Receive, body: bytes) -> tuple[Scope, Receive]:
    """Returns the request with a body that has been read, for an ASGI application that reads it itself."""
    unread: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_replaced() -> Message:
        """Returns the body, and then what `receive` has."""
        return unread.pop() if unread else await receive()

    headers = [(name, value) for name, value in scope["headers"] if name.lower() not in CHANGED]
    return {**scope, "headers": [*headers, (b"content-length", str(len(body)).encode())]}, receive_replaced


async def _decode(body: bytes, coding: str, bytes_max: int, charge: BodyCharge) -> bytes:
    with BytesIO() as decoded:
        try:
            for part in DECODERS[coding](body):
                decoded.write(part)
                if decoded.tell() > bytes_max:
                    raise PayloadTooLarge(f"The request's body has more than {bytes_max} bytes once it is decoded.")
                charge.record_arrived(len(body) + decoded.tell())
                await trio.lowlevel.checkpoint()
        except BrokenCoding:
            raise BadRequest(f"The request's body can't be decoded as {coding}, which its head names.") from None
        charge.record_arrived(decoded.tell())
        return decoded.getvalue()
