"""The state machine of one HTTP/2 connection: bytes in, events and bytes out, whatever the other side does."""

import pytest
from h2.errors import ErrorCodes
from h2.settings import SettingCodes
from hpack import Decoder, Encoder
from hyperframe.frame import DataFrame, GoAwayFrame, HeadersFrame, PingFrame, RstStreamFrame, SettingsFrame

from gateway.backends.grpc.connection_state import CONNECTION_WINDOW_BYTES, STREAM_WINDOW_BYTES, ConnectionState
from gateway.backends.grpc.events import ConnectionBroken, DataReceived, Event, HeadersReceived, StreamBroken
from gateway.backends.grpc.headers import encode_request
from gateway.backends.grpc.peer_settings import STREAMS_BEFORE_SETTINGS
from tests.fakes import h2_frames as peer

BLOCK = encode_request(
    scheme="http", authority="h:1", path="/backend.Backend/Predict", user_agent="test", metadata={"authorization": "x"}
)
MUCH = 2**30


class Client:
    """A connection whose other side has sent its settings."""

    def __init__(self, settings: dict[int, int] | None = None) -> None:
        self.state = ConnectionState()
        self.now = 0.0
        self.receive(peer.settings(settings))
        self.greeting = self.sent()

    def receive(self, *data: bytes) -> list[Event]:
        return self.state.receive(b"".join(data), self.now)

    def open(self, body: bytes = b"body") -> int:
        return self.state.open_stream(BLOCK, body)

    def sent(self) -> list[object]:
        return list(peer.parse(self.state.take_output(MUCH)))

    def broken_by(self, *data: bytes) -> ErrorCodes:
        """The error with which the client ends the connection."""
        self.sent()
        events = self.receive(*data)
        assert isinstance(events[-1], ConnectionBroken)
        assert self.state.is_broken
        assert self.state.is_over
        [last] = [each for each in self.sent() if isinstance(each, GoAwayFrame)]
        return ErrorCodes(last.error_code)


def test_a_connection_begins_with_the_preface_and_settings() -> None:
    state = ConnectionState()
    output = state.take_output(MUCH)
    assert output.startswith(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
    settings, window = peer.parse(output)
    assert isinstance(settings, SettingsFrame)
    assert settings.settings[SettingCodes.HEADER_TABLE_SIZE] == 0
    assert settings.settings[SettingCodes.ENABLE_PUSH] == 0
    assert settings.settings[SettingCodes.INITIAL_WINDOW_SIZE] == STREAM_WINDOW_BYTES
    assert vars(window)["window_increment"] == CONNECTION_WINDOW_BYTES - 65_535


def test_a_request_is_headers_and_data_in_one_write() -> None:
    client = Client()
    assert (client.open(), client.open()) == (1, 3)
    first, second, body, other = client.sent()
    assert isinstance(first, HeadersFrame)
    assert isinstance(second, HeadersFrame)
    decoder = Decoder()
    fields = {str(name): str(value) for name, value in decoder.decode(first.data)}
    assert decoder.header_table_size == 0  # no setting of the other side can be smaller
    assert {str(name): str(value) for name, value in decoder.decode(second.data)} == fields
    assert (fields[":path"], fields["te"], fields["authorization"]) == ("/backend.Backend/Predict", "trailers", "x")
    assert isinstance(body, DataFrame)
    assert (body.stream_id, body.data, "END_STREAM" in body.flags) == (1, b"body", True)
    assert isinstance(other, DataFrame)
    assert client.state.take_sent() == [1, 3]


def test_an_answer_is_headers_data_and_trailers() -> None:
    client = Client()
    client.open()
    events = client.receive(peer.headers(1), peer.data(1, b"abc"), peer.data(1, b"def"), peer.trailers(1))
    assert events == [
        HeadersReceived(1, dict(peer.BEGIN), is_end=False),
        DataReceived(1, b"abc", is_end=False),
        DataReceived(1, b"def", is_end=False),
        HeadersReceived(1, dict(peer.OK), is_end=True),
    ]
    assert client.receive(peer.reset(1), peer.window_update(1, 5)) == []  # of a stream that has ended


def answer_of_all_kinds() -> bytes:
    """Padding, priority, CONTINUATION, unknown frames, interim headers, several streams, GOAWAY."""
    begin = peer.block(peer.BEGIN)
    return b"".join(
        [
            peer.settings({SettingCodes.MAX_FRAME_SIZE: 20_000}),
            peer.settings_ack(),
            peer.headers(1, ((":status", "103"),)),
            peer.bare(1, 0x20 | 0x8, 1, b"\x02" + bytes(4) + b"\x10" + begin[:3] + b"\0\0"),
            peer.continuation(1, begin[3:5], complete=False),
            peer.continuation(1, begin[5:], complete=True),
            peer.ping(),
            peer.bare(0x2, 0, 1, bytes(5)),
            peer.bare(0xFA, 0xFF, 0, b"from the future"),
            peer.data(1, peer.message("one") + peer.message("two"), padding=9),
            peer.headers(3, ((":status", "200"), ("content-type", "application/grpc"), ("grpc-status", "5")), end=True),
            peer.data(1, b""),
            peer.reset(5, ErrorCodes.REFUSED_STREAM),
            peer.goaway(2**31 - 1),
            peer.window_update(0, 100),
            peer.window_update(1, 100),
            peer.data(1, peer.message("three")[:4]),
            peer.data(1, peer.message("three")[4:]),
            peer.goaway(1),
            peer.trailers(1),
        ]
    )


def merged(events: list[Event]) -> list[Event]:
    """What they say, with neighbouring data in one."""
    found: list[Event] = []
    for event in events:
        last = found[-1] if found else None
        if isinstance(event, DataReceived) and isinstance(last, DataReceived) and last.stream_id == event.stream_id:
            found[-1] = DataReceived(event.stream_id, last.data + event.data, event.is_end)
        else:
            found.append(event)
    return found


def test_where_the_bytes_are_cut_does_not_matter() -> None:
    def play(*parts: bytes) -> tuple[list[Event], bytes]:
        state, events = ConnectionState(), list[Event]()
        for _ in range(4):
            state.open_stream(BLOCK, b"body")
        for part in parts:
            events += state.receive(part, 0.0)
        return events, state.take_output(MUCH)

    answer = answer_of_all_kinds()
    whole = play(answer)
    assert [type(event) for event in whole[0]] == [
        HeadersReceived,
        DataReceived,
        HeadersReceived,
        StreamBroken,
        DataReceived,
        DataReceived,
        StreamBroken,
        HeadersReceived,
    ]
    for at in range(len(answer)):
        assert play(answer[:at], answer[at:]) == whole
    assert play(*(answer[at : at + 1] for at in range(len(answer)))) == whole


def test_ping_is_answered_and_settings_are_acknowledged() -> None:
    client = Client()
    [acknowledgement] = [each for each in client.greeting if isinstance(each, SettingsFrame) and "ACK" in each.flags]
    assert acknowledgement.settings == {}
    assert client.receive(peer.ping(b"question")) == []
    [pong] = client.sent()
    assert isinstance(pong, PingFrame)
    assert (pong.opaque_data, "ACK" in pong.flags) == (b"question", True)
    assert client.receive(peer.ping(ack=True)) == []
    assert client.sent() == []


def data_bytes(frames: list[object]) -> list[int]:
    return [len(each.data) for each in frames if isinstance(each, DataFrame)]


def test_a_body_is_sent_as_the_windows_and_the_frame_size_allow() -> None:
    client = Client()
    client.open(b"x" * 100_000)
    assert data_bytes(client.sent()) == [16_384, 16_384, 16_384, 16_383]  # both windows are 65,535 bytes
    client.receive(peer.window_update(1, 50_000))
    assert client.sent() == []
    client.receive(peer.window_update(0, 20_000), peer.settings({SettingCodes.MAX_FRAME_SIZE: 18_000}))
    assert data_bytes(client.sent()) == [18_000, 2_000]
    assert client.state.take_sent() == []
    client.receive(peer.window_update(0, 50_000))
    frames = client.sent()
    assert data_bytes(frames) == [14_465]
    assert isinstance(frames[-1], DataFrame)
    assert "END_STREAM" in frames[-1].flags
    assert client.state.take_sent() == [1]


def test_a_large_body_is_taken_in_portions_and_streams_take_turns() -> None:
    client = Client({SettingCodes.INITIAL_WINDOW_SIZE: 2**31 - 1})
    client.receive(peer.window_update(0, 2**30))
    client.open(b"x" * 1_000_000)
    client.open(b"y" * 40_000)
    frames = peer.parse(client.state.take_output(60_000))
    assert [each.stream_id for each in frames if isinstance(each, DataFrame)] == [1, 3, 1, 3]
    assert 60_000 <= sum(data_bytes(list(frames))) < 100_000


def test_a_smaller_initial_window_holds_for_what_is_under_way() -> None:
    client = Client()
    client.open(b"x" * 100_000)
    client.sent()
    client.receive(peer.window_update(0, MUCH), peer.settings({SettingCodes.INITIAL_WINDOW_SIZE: 10_000}))
    client.receive(peer.window_update(1, 55_000))
    assert data_bytes(client.sent()) == []  # 65,535 bytes are sent, and the window is below zero
    client.receive(peer.settings({SettingCodes.INITIAL_WINDOW_SIZE: 20_000}))
    assert data_bytes(client.sent()) == [9_465]
    client.open(b"y" * 30_000)
    assert sum(data_bytes(client.sent())) == 20_000


def test_an_empty_body_needs_no_window() -> None:
    client = Client({SettingCodes.INITIAL_WINDOW_SIZE: 0})
    client.open(b"")
    assert data_bytes(client.sent()) == [0]


def windows(frames: list[object], stream: int) -> int:
    return sum(vars(each).get("window_increment", 0) for each in frames if vars(each)["stream_id"] == stream)


def test_the_window_of_a_stream_grows_only_as_its_data_is_dealt_with() -> None:
    client = Client()
    client.open()
    client.receive(peer.headers(1))
    client.sent()
    part = peer.data(1, b"x" * 16_000)
    client.receive(*[part] * 8)  # 128,000 of 131,072
    assert windows(client.sent(), 1) == 0
    client.state.acknowledge(1, 60_000)
    assert windows(client.sent(), 1) == 0  # not worth a frame
    client.state.acknowledge(1, 10_000)
    assert windows(client.sent(), 1) == 70_000
    client.receive(*[part] * 4)
    assert client.broken_by(part) is ErrorCodes.FLOW_CONTROL_ERROR


def test_the_connection_window_grows_as_data_arrives_also_of_ended_streams() -> None:
    client = Client()
    part = b"x" * 16_000
    granted = 0
    for _ in range(CONNECTION_WINDOW_BYTES // 128_000 + 10):
        stream = client.open()
        client.receive(peer.headers(stream), *[peer.data(stream, part)] * 4)
        client.state.cancel(stream)
        assert client.receive(*[peer.data(stream, part)] * 4) == []
        client.now += 1
        granted += windows(client.sent(), 0)
    assert not client.state.is_broken
    assert granted >= CONNECTION_WINDOW_BYTES // 2


def test_padding_counts_as_data_that_is_dealt_with() -> None:
    client = Client()
    client.open()
    client.receive(peer.headers(1))
    client.sent()
    for _ in range(2_000):
        [event] = client.receive(peer.data(1, b"x", padding=255))
        assert event == DataReceived(1, b"x", is_end=False)
    assert not client.state.is_broken


def test_a_cancel_is_one_reset_and_what_still_comes_is_ignored() -> None:
    client = Client()
    client.open()
    client.sent()
    client.state.cancel(1)
    client.state.cancel(1)
    [reset] = client.sent()
    assert isinstance(reset, RstStreamFrame)
    assert reset.error_code == ErrorCodes.CANCEL
    assert client.receive(peer.headers(1), peer.data(1, b"late"), peer.trailers(1)) == []
    assert client.sent() == []


def test_a_request_that_is_answered_before_it_is_read_is_not_sent_to_its_end() -> None:
    client = Client()
    client.open(b"x" * 100_000)
    client.sent()
    [event] = client.receive(peer.headers(1, (*peer.BEGIN, ("grpc-status", "8")), end=True))
    assert isinstance(event, HeadersReceived)
    client.receive(peer.window_update(0, MUCH))
    [reset] = client.sent()
    assert isinstance(reset, RstStreamFrame)


@pytest.mark.parametrize("began", [True, False])
@pytest.mark.parametrize("code", list(ErrorCodes))
def test_only_a_stream_that_is_refused_before_it_began_was_not_processed(code: ErrorCodes, began: bool) -> None:
    client = Client()
    client.open()
    if began:
        client.receive(peer.headers(1))
    [event] = client.receive(peer.reset(1, code))
    assert isinstance(event, StreamBroken)
    assert event.is_processed is not (code is ErrorCodes.REFUSED_STREAM and not began)


def test_a_goaway_ends_what_is_above_it_and_keeps_the_rest() -> None:
    client = Client()
    for _ in range(3):
        client.open()
    client.receive(peer.headers(5))
    [event] = client.receive(peer.goaway(1))
    assert isinstance(event, StreamBroken)
    assert (event.stream_id, event.is_processed) == (3, False)  # 5 has begun, whatever the number says
    assert (client.state.takes_streams, client.state.is_over) == (False, False)
    client.receive(peer.headers(1), peer.trailers(1))
    assert (client.state.takes_streams, client.state.is_over) == (False, False)
    client.receive(peer.trailers(5))
    assert client.state.is_over


def test_a_goaway_with_an_error_is_the_end() -> None:
    client = Client()
    client.open()
    client.open()
    above, end = client.receive(peer.goaway(1, ErrorCodes.ENHANCE_YOUR_CALM), peer.headers(1))
    assert isinstance(above, StreamBroken)
    assert not above.is_processed
    assert isinstance(end, ConnectionBroken)
    assert "ENHANCE_YOUR_CALM" in end.text


def test_the_other_side_decides_how_many_streams_there_are() -> None:
    client = Client({SettingCodes.MAX_CONCURRENT_STREAMS: 1})
    found = [client.state.has_room]
    client.open()
    found.append(client.state.has_room)
    client.receive(peer.settings({SettingCodes.MAX_CONCURRENT_STREAMS: 2}))
    found.append(client.state.has_room)
    client.open()
    found.append(client.state.has_room)
    client.receive(peer.headers(1), peer.trailers(1))
    found.append(client.state.has_room)
    assert found == [True, False, True, False, True]


def test_few_streams_are_opened_before_the_other_side_has_said_how_many_it_takes() -> None:
    state = ConnectionState()
    for _ in range(STREAMS_BEFORE_SETTINGS):
        assert state.has_room
        state.open_stream(BLOCK, b"")
    assert not state.has_room
    state.receive(peer.settings(), 0.0)
    assert state.has_room


def test_a_connection_without_further_stream_numbers_is_left() -> None:
    client = Client()
    client.state._next_id = 2**31 - 1
    assert client.open() == 2**31 - 1
    assert not client.state.takes_streams
    assert not client.state.is_over


def test_a_backend_may_use_a_table_and_then_give_it_up() -> None:
    client, encoder = Client(), Encoder()
    begin = [*peer.BEGIN, ("x-long", "value" * 10)]
    for number in range(6):
        if number == 3:
            encoder.header_table_size = 0
        stream = client.open()
        [event] = client.receive(peer.raw_headers(stream, encoder.encode(begin)), peer.settings_ack())
        assert isinstance(event, HeadersReceived)
        assert event.fields == dict(begin)
    assert [*client.state._headers._known.values()] == [dict(begin)]  # without a table equal blocks mean the same


def test_the_blocks_of_ended_streams_still_change_the_table() -> None:
    client, encoder = Client(), Encoder()
    client.open()
    client.open()
    client.state.cancel(1)
    begin = [*peer.BEGIN, ("x-long", "value" * 10)]
    assert client.receive(peer.raw_headers(1, encoder.encode(begin))) == []
    [event] = client.receive(peer.raw_headers(3, encoder.encode(begin)))
    assert isinstance(event, HeadersReceived)
    assert event.fields == dict(begin)
