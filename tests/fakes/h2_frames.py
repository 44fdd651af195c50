"""Frames of a gRPC server, written with hyperframe and hpack, so that our own code is not its own judge."""

from collections.abc import Sequence

from h2.errors import ErrorCodes
from hpack import Encoder
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from gateway.backends.pb import backend_pb2 as pb

Fields = Sequence[tuple[str, str]]
BEGIN: Fields = ((":status", "200"), ("content-type", "application/grpc"))
OK: Fields = (("grpc-status", "0"),)
PREFACE_BYTES = 24


def block(fields: Fields) -> bytes:
    """One that needs no table of its own."""
    encoder = Encoder()
    encoder.header_table_size = 0
    encoder.table_size_changes = []
    return encoder.encode(list(fields))


def headers(stream: int, fields: Fields = BEGIN, *, end: bool = False) -> bytes:
    return raw_headers(stream, block(fields), end=end)


def raw_headers(stream: int, data: bytes, *, end: bool = False, complete: bool = True, padding: int = 0) -> bytes:
    made = HeadersFrame(stream, data, pad_length=padding)
    made.flags |= {flag for flag, holds in (("END_HEADERS", complete), ("END_STREAM", end)) if holds}
    if padding:
        made.flags.add("PADDED")
    return made.serialize()


def continuation(stream: int, data: bytes, *, complete: bool) -> bytes:
    made = ContinuationFrame(stream, data)
    if complete:
        made.flags.add("END_HEADERS")
    return made.serialize()


def trailers(stream: int, fields: Fields = OK) -> bytes:
    return headers(stream, fields, end=True)


def data(stream: int, payload: bytes, *, end: bool = False, padding: int = 0) -> bytes:
    made = DataFrame(stream, payload, pad_length=padding)
    if end:
        made.flags.add("END_STREAM")
    if padding:
        made.flags.add("PADDED")
    return made.serialize()


def message(text: str = "word") -> bytes:
    """One Reply, as it is within DATA."""
    body = pb.Reply(message=text.encode()).SerializeToString()
    return b"\0" + len(body).to_bytes(4, "big") + body


def settings(values: dict[int, int] | None = None) -> bytes:
    return SettingsFrame(0, settings=values or {}).serialize()


def settings_ack() -> bytes:
    return SettingsFrame(0, flags=["ACK"]).serialize()


def ping(payload: bytes = b"12345678", *, ack: bool = False) -> bytes:
    return PingFrame(0, payload, flags=["ACK"] if ack else []).serialize()


def goaway(last: int, code: ErrorCodes = ErrorCodes.NO_ERROR) -> bytes:
    return GoAwayFrame(0, last_stream_id=last, error_code=code).serialize()


def reset(stream: int, code: ErrorCodes = ErrorCodes.CANCEL) -> bytes:
    return RstStreamFrame(stream, error_code=code).serialize()


def window_update(stream: int, amount: int) -> bytes:
    return WindowUpdateFrame(stream, window_increment=amount).serialize()


def bare(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """Of any kind, however wrong."""
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def parse(sent: bytes) -> list[Frame]:
    """What a client has sent, without the preface if it begins with it."""
    if sent.startswith(b"PRI"):
        sent = sent[PREFACE_BYTES:]
    found = []
    while sent:
        frame, length = Frame.parse_frame_header(memoryview(sent[:9]))
        frame.parse_body(memoryview(sent[9 : 9 + length]))
        found.append(frame)
        sent = sent[9 + length :]
    return found
