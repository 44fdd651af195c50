"""What servers in Go and Rust send. The frames are written by hand after the sources, and not recorded from a server.

- Go: google.golang.org/grpc, internal/transport (http2_server.go, controlbuf.go).
- Rust: tonic over hyper and h2 (h2's proto/ping_pong.rs, proto/go_away.rs, hpack/encoder.rs).
"""

from dataclasses import dataclass

import pytest
from h2.errors import ErrorCodes
from h2.settings import SettingCodes
from hpack.huffman import HuffmanEncoder
from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH

from gateway.backends.grpc.events import DataReceived, Event, HeadersReceived, StreamBroken
from tests.fakes import h2_frames as peer
from tests.unit.backends.grpc.test_connection_state import Client, merged

TABLE_OF_SIZE_0 = b"\x20"
STATUS_200 = b"\x88"
CONTENT_TYPE = b"\x0f\x10"
"""A literal that is not indexed, whose name is field 31 of the static table."""


def compressed(text: str) -> bytes:
    made = HuffmanEncoder(REQUEST_CODES, REQUEST_CODES_LENGTH).encode(text.encode())
    return bytes([0x80 | len(made)]) + made


def literal(name: str, value: str) -> bytes:
    return b"\0" + compressed(name) + compressed(value)


@dataclass(frozen=True)
class Dialect:
    """How one server says what all servers say."""

    settings: dict[int, int]
    after_settings: bytes
    ok: bytes
    """The block of the trailers."""
    after_data: bytes
    shutdown_ping: bytes
    last_words: bytes
    """After the trailers."""


GO = Dialect(
    settings={SettingCodes.MAX_FRAME_SIZE: 16_384},
    after_settings=peer.settings_ack(),
    ok=literal("grpc-status", "0") + b"\0" + compressed("grpc-message") + b"\x00",  # it always names a message
    after_data=peer.ping(bytes([2, 4, 16, 16, 9, 14, 7, 7])) + peer.window_update(0, 20),  # how fast is the connection?
    shutdown_ping=bytes([1, 6, 1, 8, 0, 3, 3, 9]),
    last_words=b"",
)
RUST = Dialect(
    settings={
        SettingCodes.MAX_CONCURRENT_STREAMS: 200,
        SettingCodes.INITIAL_WINDOW_SIZE: 1024 * 1024,
        SettingCodes.MAX_FRAME_SIZE: 16_384,
        SettingCodes.MAX_HEADER_LIST_SIZE: 16_384,
    },
    after_settings=peer.settings_ack() + peer.window_update(0, 1024 * 1024 - 65_535),
    ok=literal("grpc-status", "0"),
    after_data=b"",
    shutdown_ping=bytes([0x0B, 0x7B, 0xA2, 0xF0, 0x8B, 0x9B, 0xFE, 0x54]),
    last_words=peer.reset(1, ErrorCodes.NO_ERROR),  # of a stream that has ended: it may say so all the same
)
BOTH = pytest.mark.parametrize("dialect", [GO, RUST], ids=["Go", "Rust"])


def begin_block(*, first: bool) -> bytes:
    block = STATUS_200 + CONTENT_TYPE + compressed("application/grpc")
    return TABLE_OF_SIZE_0 + block if first else block


def greeted(dialect: Dialect) -> Client:
    client = Client(dialect.settings)
    client.receive(dialect.after_settings)
    return client


def answer(dialect: Dialect, stream: int, *, first: bool) -> list[bytes]:
    return [
        peer.raw_headers(stream, begin_block(first=first)),
        peer.data(stream, peer.message("one")),
        dialect.after_data,
        peer.data(stream, peer.message("two")),
        peer.raw_headers(stream, dialect.ok, end=True),
        dialect.last_words,
    ]


def statuses(events: list[Event]) -> list[str | None]:
    return [event.fields.get("grpc-status") for event in events if isinstance(event, HeadersReceived)]


@BOTH
def test_an_answer(dialect: Dialect) -> None:
    client = greeted(dialect)
    for number in range(3):
        stream = client.open()
        events = merged(client.receive(*answer(dialect, stream, first=number == 0)))
        assert statuses(events) == [None, "0"]
        [data] = [event for event in events if isinstance(event, DataReceived)]
        assert data.data == peer.message("one") + peer.message("two")
    assert not client.state.is_broken
    assert client.state.has_room


@BOTH
def test_an_error_before_any_message(dialect: Dialect) -> None:
    client = greeted(dialect)
    client.open()
    block = begin_block(first=True) + literal("grpc-status", "8") + literal("grpc-message", "too large")
    [event] = client.receive(peer.raw_headers(1, block, end=True), peer.reset(1, ErrorCodes.NO_ERROR))
    assert isinstance(event, HeadersReceived)
    assert event.is_end
    assert (event.fields["grpc-status"], event.fields["grpc-message"]) == ("8", "too large")


@BOTH
def test_a_graceful_end(dialect: Dialect) -> None:
    client = greeted(dialect)
    client.open()
    client.sent()
    assert client.receive(peer.goaway(2**31 - 1), peer.ping(dialect.shutdown_ping)) == []
    [pong] = client.sent()
    assert vars(pong)["opaque_data"] == dialect.shutdown_ping
    assert not client.state.takes_streams
    assert client.receive(peer.goaway(1)) == []
    assert statuses(client.receive(*answer(dialect, 1, first=True))) == [None, "0"]
    assert client.state.is_over


def test_a_server_of_go_refuses_a_stream_that_is_one_too_many() -> None:
    client = greeted(GO)
    client.open()
    client.open()
    [event] = client.receive(peer.reset(3, ErrorCodes.REFUSED_STREAM))
    assert event == StreamBroken(3, event.text, is_processed=False)  # type: ignore[union-attr]


def test_h2_of_rust_gives_the_connection_up_when_it_is_flooded() -> None:
    client = greeted(RUST)
    client.open()
    *_, end = client.receive(peer.goaway(1, ErrorCodes.ENHANCE_YOUR_CALM))
    assert "ENHANCE_YOUR_CALM" in end.text  # type: ignore[union-attr]
