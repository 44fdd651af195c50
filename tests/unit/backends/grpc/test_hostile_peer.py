"""A backend that breaks the rules of HTTP/2 costs a bounded amount of work and memory, and ends only its connection."""

import pytest
from h2.errors import ErrorCodes
from h2.settings import SettingCodes
from hypothesis import given
from hypothesis import strategies as st

from gateway.backends.grpc.connection_state import STREAM_WINDOW_BYTES, ConnectionState
from gateway.backends.grpc.events import ConnectionBroken, HeadersReceived, StreamBroken
from gateway.backends.grpc.headers import HEADER_LIST_BYTES_MAX
from gateway.backends.grpc.output import REPLIES_MAX
from tests.fakes import h2_frames as peer
from tests.unit.backends.grpc.test_connection_state import BLOCK, MUCH, Client, answer_of_all_kinds

BEGIN = peer.block(peer.BEGIN)


def indexed_bomb() -> bytes:
    """A large field is put into the table, and named a thousand times."""
    return b"\x40\x01a" + b"\x7f\x81\x17" + b"v" * 3_072 + b"\xbe" * 1_000


@pytest.mark.parametrize(
    ("frames", "code"),
    [
        pytest.param([peer.bare(0, 0, 1, bytes(16_385))], ErrorCodes.FRAME_SIZE_ERROR, id="an oversized frame"),
        pytest.param([b"\xff\xff\xff\0\0\0\0\0\1"], ErrorCodes.FRAME_SIZE_ERROR, id="the head of a huge frame"),
        pytest.param([peer.bare(0, 0x8, 1, b"\x05abc")], ErrorCodes.PROTOCOL_ERROR, id="padding beyond data"),
        pytest.param([peer.bare(0, 0x8, 1, b"")], ErrorCodes.PROTOCOL_ERROR, id="padding of nothing"),
        pytest.param(
            [peer.bare(1, 0xC, 1, b"\x09" + BEGIN[:4])], ErrorCodes.PROTOCOL_ERROR, id="padding beyond headers"
        ),
        pytest.param([peer.bare(1, 0x24, 1, b"abc")], ErrorCodes.FRAME_SIZE_ERROR, id="no room for a priority"),
        pytest.param([peer.data(7, b"x")], ErrorCodes.PROTOCOL_ERROR, id="data of a stream to come"),
        pytest.param([peer.headers(7)], ErrorCodes.PROTOCOL_ERROR, id="headers of a stream to come"),
        pytest.param([peer.reset(7)], ErrorCodes.PROTOCOL_ERROR, id="reset of a stream to come"),
        pytest.param([peer.window_update(7, 1)], ErrorCodes.PROTOCOL_ERROR, id="window of a stream to come"),
        pytest.param([peer.headers(2)], ErrorCodes.PROTOCOL_ERROR, id="a stream of the server"),
        pytest.param([peer.bare(0, 0, 0, b"x")], ErrorCodes.PROTOCOL_ERROR, id="data of the connection"),
        pytest.param([peer.bare(5, 4, 1, bytes(4) + BEGIN)], ErrorCodes.PROTOCOL_ERROR, id="a push"),
        pytest.param([peer.continuation(1, b"", complete=True)], ErrorCodes.PROTOCOL_ERROR, id="a lone CONTINUATION"),
        pytest.param(
            [peer.raw_headers(1, BEGIN, complete=False), peer.ping()], ErrorCodes.PROTOCOL_ERROR, id="PING in a block"
        ),
        pytest.param(
            [peer.raw_headers(1, BEGIN, complete=False), peer.continuation(3, b"", complete=True)],
            ErrorCodes.PROTOCOL_ERROR,
            id="CONTINUATION of another stream",
        ),
        pytest.param(
            [peer.raw_headers(1, BEGIN, complete=False), *[peer.continuation(1, b"", complete=False)] * 100],
            ErrorCodes.ENHANCE_YOUR_CALM,
            id="endless empty CONTINUATION",
        ),
        pytest.param(
            [peer.raw_headers(1, BEGIN, complete=False), *[peer.continuation(1, bytes(16_000), complete=False)] * 5],
            ErrorCodes.ENHANCE_YOUR_CALM,
            id="endless CONTINUATION",
        ),
        pytest.param([peer.raw_headers(1, indexed_bomb())], ErrorCodes.COMPRESSION_ERROR, id="an HPACK bomb"),
        pytest.param([peer.raw_headers(1, b"\xff" * 50)], ErrorCodes.COMPRESSION_ERROR, id="an endless number"),
        pytest.param([peer.raw_headers(1, b"\x80")], ErrorCodes.COMPRESSION_ERROR, id="field 0"),
        pytest.param([peer.raw_headers(1, b"\x3f\xff\xff\x7f")], ErrorCodes.COMPRESSION_ERROR, id="a huge table"),
        pytest.param([peer.raw_headers(1, b"\x40\x7f\xff")], ErrorCodes.COMPRESSION_ERROR, id="a name that is cut"),
        pytest.param([peer.bare(4, 0, 0, b"12345")], ErrorCodes.FRAME_SIZE_ERROR, id="half a setting"),
        pytest.param([peer.bare(4, 0, 1, b"")], ErrorCodes.PROTOCOL_ERROR, id="settings of a stream"),
        pytest.param([peer.bare(6, 0, 0, b"short")], ErrorCodes.FRAME_SIZE_ERROR, id="a short PING"),
        pytest.param([peer.bare(6, 0, 1, bytes(8))], ErrorCodes.PROTOCOL_ERROR, id="PING of a stream"),
        pytest.param([peer.bare(7, 0, 0, bytes(7))], ErrorCodes.FRAME_SIZE_ERROR, id="a short GOAWAY"),
        pytest.param([peer.bare(3, 0, 1, b"")], ErrorCodes.FRAME_SIZE_ERROR, id="a short reset"),
        pytest.param([peer.bare(8, 0, 0, bytes(4))], ErrorCodes.PROTOCOL_ERROR, id="a window of 0"),
        pytest.param([peer.window_update(0, 2**31 - 1)], ErrorCodes.FLOW_CONTROL_ERROR, id="too large a window"),
        pytest.param([peer.window_update(1, 2**31 - 1)], ErrorCodes.FLOW_CONTROL_ERROR, id="too large a stream window"),
        pytest.param(
            [peer.bare(4, 0, 0, b"\0\4\xff\xff\xff\xff")],
            ErrorCodes.FLOW_CONTROL_ERROR,
            id="too large an initial window",
        ),
        pytest.param([peer.bare(4, 0, 0, b"\0\5\0\0\0\1")], ErrorCodes.PROTOCOL_ERROR, id="too small a frame size"),
        pytest.param(
            [peer.window_update(1, 2**31 - 1 - 65_535), peer.settings({SettingCodes.INITIAL_WINDOW_SIZE: 65_540})],
            ErrorCodes.FLOW_CONTROL_ERROR,
            id="a setting that makes a window too large",
        ),
        pytest.param(
            [peer.headers(1), *[peer.data(1, bytes(16_384))] * 9], ErrorCodes.FLOW_CONTROL_ERROR, id="overflow"
        ),
    ],
)
def test_what_breaks_the_rules_ends_the_connection(frames: list[bytes], code: ErrorCodes) -> None:
    client = Client()
    client.open()
    assert client.broken_by(*frames) is code
    assert client.receive(peer.headers(1), peer.ping()) == []
    assert client.sent() == []


def test_another_protocol_is_noticed_at_its_first_bytes() -> None:
    for first in (b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x15\x03\x01\x00\x02\x02\x46", b"SSH-2.0-OpenSSH_9.6\r\n"):
        state = ConnectionState()
        state.open_stream(BLOCK, b"")
        assert isinstance(state.receive(first + bytes(9), 0.0)[-1], ConnectionBroken)


def test_a_server_that_answers_before_its_settings_does_not_speak_http2() -> None:
    state = ConnectionState()
    state.open_stream(BLOCK, b"")
    [event] = state.receive(peer.headers(1), 0.0)
    assert isinstance(event, ConnectionBroken)


@pytest.mark.parametrize(
    "flood",
    [
        peer.ping(),
        peer.ping(ack=True),
        peer.settings(),
        peer.settings_ack(),
        peer.window_update(0, 1),
        peer.window_update(1, 1),
        peer.data(1, b""),
        peer.data(5, b"x"),
        peer.reset(3),
        peer.goaway(2**31 - 1),
        peer.headers(1, ((":status", "103"),)),
        peer.bare(0x2, 0, 1, bytes(5)),
        peer.bare(0xBE, 0, 0, b""),
    ],
    ids=lambda each: peer.parse(each)[0].__class__.__name__,
)
def test_a_flood_of_frames_that_carry_no_call_is_ended(flood: bytes) -> None:
    client = Client()
    for _ in range(3):
        client.open()
    client.state.cancel(3)
    client.receive(peer.headers(5), peer.trailers(5))
    if flood[3] == 0:
        client.receive(peer.headers(1))
    for number in range(2_000):
        client.now = number / 1_000_000
        client.receive(flood)
        client.sent_bytes = len(client.state.take_output(MUCH))  # type: ignore[attr-defined]
        if client.state.is_broken:
            break
    assert client.state.is_broken


def test_what_was_on_its_way_when_a_fast_stream_was_cancelled_is_no_flood() -> None:
    client = Client()
    client.open()
    client.receive(peer.headers(1))
    client.state.cancel(1)
    for _ in range(STREAM_WINDOW_BYTES // 10):
        assert client.receive(peer.data(1, b"0123456789")) == []
        client.sent()
    assert not client.state.is_broken
    assert client.broken_by(peer.data(1, b"0123456789")) is ErrorCodes.FLOW_CONTROL_ERROR


def test_a_ping_each_second_is_no_flood() -> None:
    client = Client()
    client.open()
    for number in range(100_000):
        client.now = float(number)
        client.receive(peer.ping())
        client.sent()
    assert not client.state.is_broken


def test_as_many_pings_as_messages_are_no_flood() -> None:
    """Servers of Go measure the connection while they send."""
    client = Client()
    client.open()
    client.receive(peer.headers(1))
    for _ in range(20_000):
        client.receive(peer.data(1, b"x"), peer.ping(), peer.ping(ack=True))
        client.state.acknowledge(1, 1)
        client.sent()
    assert not client.state.is_broken


def test_as_many_windows_as_frames_of_a_large_request_are_no_flood() -> None:
    client = Client()
    client.open(bytes(50_000_000))
    while not client.state.take_sent():
        for frame in client.sent():
            size = len(vars(frame)["data"]) if "data" in vars(frame) else 0
            if size:
                client.receive(peer.window_update(0, size), peer.window_update(1, size))
        assert not client.state.is_broken


def test_what_has_to_be_answered_does_not_pile_up_for_a_backend_that_does_not_read() -> None:
    client = Client()
    client.open()
    client.sent()
    for number in range(REPLIES_MAX + 1):
        client.now = float(number)  # no flood by its pace
        client.receive(peer.ping())
    assert client.state.is_broken
    assert len(client.state.take_output(MUCH)) < 17 * REPLIES_MAX + 200


def test_streams_that_are_all_reset_end_each_for_itself() -> None:
    client = Client()
    streams = [client.open() for _ in range(1_500)]
    events = client.receive(*(peer.reset(stream) for stream in streams))
    assert [event.stream_id for event in events if isinstance(event, StreamBroken)] == streams
    assert not client.state.is_broken


@pytest.mark.parametrize(
    "frames",
    [[peer.data(1, b"early")], [peer.headers(1), peer.headers(1)], [peer.headers(1), peer.headers(1, peer.OK)]],
    ids=["data before headers", "headers twice", "trailers that do not end"],
)
def test_a_wrong_order_ends_the_stream_alone(frames: list[bytes]) -> None:
    client = Client()
    client.open()
    client.open()
    event = client.receive(*frames)[-1]
    assert isinstance(event, StreamBroken)
    assert event.is_processed
    assert not client.state.is_broken
    [answer, _] = client.receive(peer.headers(3), peer.trailers(3))
    assert isinstance(answer, HeadersReceived)


def test_a_list_of_fields_within_the_bound_is_taken() -> None:
    client = Client()
    client.open()
    text = "x" * (HEADER_LIST_BYTES_MAX - 200)
    block = peer.block([*peer.BEGIN, ("grpc-status", "13"), ("grpc-message", text)])
    parts = [block[at : at + 16_384] for at in range(0, len(block), 16_384)]
    first, *rest = parts
    frames = [peer.raw_headers(1, first, end=True, complete=not rest)]
    frames += [peer.continuation(1, each, complete=each is rest[-1]) for each in rest]
    [event] = client.receive(*frames)
    assert isinstance(event, HeadersReceived)
    assert event.fields["grpc-message"] == text


@given(
    st.lists(st.tuples(st.integers(0, 11), st.integers(0, 255), st.integers(0, 8), st.binary(max_size=40)), max_size=12)
)
def test_any_frames_are_survived(frames: list[tuple[int, int, int, bytes]]) -> None:
    client = Client()
    client.open(b"x" * 100)
    client.open(b"y" * 100_000)
    for frame in frames:
        client.receive(peer.bare(*frame))
        client.state.acknowledge(1, 5)
        client.state.take_output(MUCH)
    client.state.cancel(1)
    client.state.take_output(MUCH)


@given(st.data())
def test_any_damage_to_an_answer_is_survived(data: st.DataObject) -> None:
    answer = bytearray(answer_of_all_kinds())
    for _ in range(data.draw(st.integers(1, 4))):
        answer[data.draw(st.integers(0, len(answer) - 1))] = data.draw(st.integers(0, 255))
    state = ConnectionState()
    for _ in range(4):
        state.open_stream(BLOCK, b"body")
    cut = data.draw(st.integers(0, len(answer)))
    for part in (answer[:cut], answer[cut:]):
        state.receive(bytes(part), 0.0)
        state.take_output(MUCH)
