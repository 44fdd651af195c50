"""The client's side of one HTTP/2 connection as a state machine: bytes in, events and bytes out. Pure.

It knows what gRPC needs of HTTP/2 (RFC 9113): requests of one header block and one body, answers of headers, data and
trailers. Whoever drives it reads from a socket into `receive`, and writes to it what `take_output` returns.

The file is longer than others because it is one state machine, whose frames all touch the same state.
"""

from typing import Final

from h2.errors import ErrorCodes
from h2.settings import SettingCodes

from gateway.backends.grpc import frames
from gateway.backends.grpc.events import ConnectionBroken, DataReceived, Event, HeadersReceived, StreamBroken
from gateway.backends.grpc.flow import INITIAL_WINDOW_BYTES, WINDOW_BYTES_MAX, ReceiveWindow
from gateway.backends.grpc.frame_budget import FrameBudget
from gateway.backends.grpc.frames import BrokenConnection, FrameReader
from gateway.backends.grpc.headers import EMPTY_TABLE, HEADER_LIST_BYTES_MAX, HeaderBlock, HeaderDecoder
from gateway.backends.grpc.output import Output, StreamState
from gateway.backends.grpc.peer_settings import PeerSettings

STREAM_WINDOW_BYTES: Final = 128 * 1024
"""The number of bytes that a backend may send ahead per stream. It is small, so that a slow client slows down its own
backend."""
CONNECTION_WINDOW_BYTES: Final = 16 * 1024 * 1024
"""The same for all streams together. It is given back as data arrives: no stream waits for the reader of another."""
CANCELLED_MAX: Final = 256
"""The number of cancelled streams whose data may still come without counting as a flood."""
PING_BYTES: Final = 8
LEAVES: Final = "the backend takes no new calls on this connection (GOAWAY)"
REFUSED: Final = "the backend has refused the call before it looked at it (REFUSED_STREAM)"


class ConnectionState:
    """One connection, from its first byte."""

    def __init__(self, stream_window_bytes: int = STREAM_WINDOW_BYTES) -> None:
        self.is_leaving = False
        """Whether the connection finishes the streams that it has and takes no others."""
        self.is_broken = False
        self._stream_window_bytes = stream_window_bytes
        self._reader = FrameReader()
        self._headers = HeaderDecoder()
        self._budget = FrameBudget()
        self._output = Output()
        self._received = ReceiveWindow(CONNECTION_WINDOW_BYTES)
        self._streams: dict[int, StreamState] = {}
        self._cancelled: dict[int, ReceiveWindow] = {}
        """The windows of streams that were cancelled last. What the backend has sent before it knew fits into them."""
        self._next_id = 1
        self._block: HeaderBlock | None = None
        self._events: list[Event] = []
        self._now = 0.0
        self._peer = PeerSettings()
        self._handlers = {
            frames.DATA: self._receive_data,
            frames.HEADERS: self._receive_headers,
            frames.RST_STREAM: self._receive_reset,
            frames.SETTINGS: self._receive_settings,
            frames.PUSH_PROMISE: self._receive_push_promise,
            frames.PING: self._receive_ping,
            frames.GOAWAY: self._receive_goaway,
            frames.WINDOW_UPDATE: self._receive_window_update,
            frames.CONTINUATION: self._receive_continuation,
        }
        self._begin()

    def _begin(self) -> None:
        self._output.add(frames.PREFACE)
        self._output.add(
            frames.settings_frame(
                (SettingCodes.HEADER_TABLE_SIZE, 0),
                (SettingCodes.ENABLE_PUSH, 0),
                (SettingCodes.INITIAL_WINDOW_SIZE, self._stream_window_bytes),
                (SettingCodes.MAX_HEADER_LIST_SIZE, HEADER_LIST_BYTES_MAX),
            )
        )
        self._output.add(frames.window_update(0, CONNECTION_WINDOW_BYTES - INITIAL_WINDOW_BYTES))

    @property
    def takes_streams(self) -> bool:
        """Whether the connection may get further streams, now or when one ends."""
        return not self.is_leaving and not self.is_broken

    @property
    def has_room(self) -> bool:
        """Whether the other side takes another stream now."""
        return len(self._streams) < self._peer.streams_max

    @property
    def is_over(self) -> bool:
        """Whether nothing will come any more that anybody waits for."""
        return self.is_broken or (self.is_leaving and not self._streams)

    def open_stream(self, block: bytes, body: bytes) -> int:
        """Begins a request and returns the number of its stream. The caller has checked `takes_streams` and
        `has_room`."""
        stream_id = self._next_id
        self._next_id += 2
        self.is_leaving |= self._next_id > frames.STREAM_ID_MAX
        stream = self._streams[stream_id] = StreamState(body, self._peer.stream_window_bytes, self._stream_window_bytes)
        if stream_id == 1:
            block = EMPTY_TABLE + block
        self._output.add(frames.headers_frames(stream_id, block))
        self._output.add_body(stream_id, stream)
        return stream_id

    def acknowledge(self, stream_id: int, amount: int) -> None:
        """Records that `amount` bytes of a stream are dealt with, so that more may come."""
        stream = self._streams.get(stream_id)
        if stream is not None and (announced := stream.received.give_back(amount)):
            self._output.add(frames.window_update(stream_id, announced))

    def cancel(self, stream_id: int) -> None:
        """Ends a stream that nobody waits for any more. Does nothing for one that has ended."""
        if stream_id in self._streams:
            if len(self._cancelled) >= CANCELLED_MAX:
                del self._cancelled[next(iter(self._cancelled))]
            self._cancelled[stream_id] = self._streams[stream_id].received
            self._reset(stream_id, ErrorCodes.CANCEL)

    def take_output(self, bytes_max: int) -> bytes:
        """Returns what has to be sent now: all frames, and about `bytes_max` bytes of request bodies."""
        output, data_frames = self._output.take(bytes_max)
        if data_frames:
            self._budget.earn(data_frames)
        return output

    def take_sent(self) -> list[int]:
        """Returns the streams whose requests were taken to their end since the last call."""
        return self._output.take_sent()

    def receive(self, data: bytes, now: float) -> list[Event]:
        """Returns what the bytes mean that have arrived at the time `now` (seconds of any clock)."""
        if self.is_broken:
            return []
        events = self._events = []
        self._now = now
        try:
            for kind, flags, stream_id, payload in self._reader.read(data):
                self._receive_frame(kind, flags, stream_id, payload)
        except BrokenConnection as error:
            self._output.add(frames.goaway(error.code, str(error)))
            self._break(f"the backend does not speak HTTP/2 as it should: {error} ({error.code.name})")
        return events

    def _receive_frame(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        if self.is_broken:
            return  # Nothing counts after a GOAWAY with an error.
        if not self._peer.are_known and kind != frames.SETTINGS:
            raise BrokenConnection(ErrorCodes.PROTOCOL_ERROR, "its first frame is not SETTINGS")
        if self._block is not None and (kind != frames.CONTINUATION or stream_id != self._block.stream_id):
            raise BrokenConnection(ErrorCodes.PROTOCOL_ERROR, "another frame comes within a header block")
        handler = self._handlers.get(kind)
        if handler is None:  # PRIORITY, and types that this version of HTTP/2 does not know
            self._budget.spend(self._now)
            return
        handler(flags, stream_id, payload)

    def _receive_data(self, flags: int, stream_id: int, payload: bytes) -> None:
        size = len(payload)
        self._received.take(size)
        if announced := self._received.give_back(size):
            self._output.add(frames.window_update(0, announced))
        if flags & frames.PADDED:
            payload = frames.without_padding(payload)
        stream = self._streams.get(stream_id)
        if stream is None:
            self._ignore_late_data(stream_id, size)
            return
        stream.received.take(size)
        if not stream.has_headers:
            self._break_stream(stream_id, ErrorCodes.PROTOCOL_ERROR, "data comes before the headers")
            return
        is_end = bool(flags & frames.END_STREAM)
        if payload or is_end:
            self._budget.earn()
            self._events.append(DataReceived(stream_id, payload, is_end))
        else:
            self._budget.spend(self._now)
        if is_end:
            self._end(stream_id)
        elif size > len(payload):
            self.acknowledge(stream_id, size - len(payload))

    def _receive_headers(self, flags: int, stream_id: int, payload: bytes) -> None:
        fragment = frames.header_fragment(flags, payload)
        is_end = bool(flags & frames.END_STREAM)
        if flags & frames.END_HEADERS:
            self._receive_fields(stream_id, fragment, is_end=is_end)
        else:
            self._block = HeaderBlock(stream_id, fragment, is_end=is_end)

    def _receive_continuation(self, flags: int, stream_id: int, payload: bytes) -> None:
        block = self._block
        if block is None:
            raise BrokenConnection(ErrorCodes.PROTOCOL_ERROR, "CONTINUATION comes without a header block")
        block.add(payload)
        if flags & frames.END_HEADERS:
            self._block = None
            self._receive_fields(stream_id, block.whole(), is_end=block.is_end)

    def _receive_fields(self, stream_id: int, block: bytes, *, is_end: bool) -> None:
        fields = self._headers.decode(block)  # also for a stream that has ended: the table may change
        stream = self._streams.get(stream_id)
        if stream is None:
            self._ignore_ended(stream_id)
        elif not is_end and fields.get(":status", "").startswith("1"):
            self._budget.spend(self._now)  # An interim answer (RFC 9110, 15.2).
        elif stream.has_headers and not is_end:
            self._break_stream(stream_id, ErrorCodes.PROTOCOL_ERROR, "headers come twice")
        else:
            stream.has_headers = True
            self._budget.earn()
            self._events.append(HeadersReceived(stream_id, fields, is_end))
            if is_end:
                self._end(stream_id)

    def _receive_reset(self, _flags: int, stream_id: int, payload: bytes) -> None:
        code = frames.number_in(payload)
        stream = self._streams.pop(stream_id, None)
        if stream is None:
            self._ignore_ended(stream_id)
            return
        self._output.drop_body(stream_id)
        if code == ErrorCodes.REFUSED_STREAM and not stream.has_headers:
            self._events.append(StreamBroken(stream_id, REFUSED, is_processed=False))
            return
        text = f"the backend has reset the call ({name_of_code(code)})"
        self._events.append(StreamBroken(stream_id, text, is_processed=True))

    def _receive_settings(self, flags: int, stream_id: int, payload: bytes) -> None:
        _check_is_of_connection(stream_id)
        self._budget.spend(self._now)
        if flags & frames.ACK:
            return
        window_before = self._peer.stream_window_bytes
        self._peer.apply(payload)
        self._output.frame_bytes_max = self._peer.frame_bytes_max
        for stream in self._streams.values():
            stream.sendable.grow(self._peer.stream_window_bytes - window_before)
        self._output.add_reply(frames.frame(frames.SETTINGS, frames.ACK, 0, b""))

    def _receive_push_promise(self, _flags: int, _stream_id: int, _payload: bytes) -> None:
        raise BrokenConnection(ErrorCodes.PROTOCOL_ERROR, "PUSH_PROMISE comes although it is switched off")

    def _receive_ping(self, flags: int, stream_id: int, payload: bytes) -> None:
        _check_is_of_connection(stream_id)
        if len(payload) != PING_BYTES:
            raise BrokenConnection(ErrorCodes.FRAME_SIZE_ERROR, f"PING has {len(payload)} bytes")
        self._budget.spend(self._now)
        if not flags & frames.ACK:
            self._output.add_reply(frames.frame(frames.PING, frames.ACK, 0, payload))

    def _receive_goaway(self, _flags: int, stream_id: int, payload: bytes) -> None:
        """Servers that end gracefully send GOAWAY twice: first with the highest possible number, then, once they know
        that the client has got it, with that of the last stream that they process."""
        _check_is_of_connection(stream_id)
        self._budget.spend(self._now)
        last, code = frames.number_in(payload) & frames.STREAM_ID_MAX, frames.number_in(payload, 4)
        self.is_leaving = True
        for above in [number for number, stream in self._streams.items() if number > last and not stream.has_headers]:
            del self._streams[above]
            self._output.drop_body(above)
            self._events.append(StreamBroken(above, LEAVES, is_processed=False))
        if code != ErrorCodes.NO_ERROR:
            self._break(f"the backend has ended the connection (GOAWAY, {name_of_code(code)})")

    def _receive_window_update(self, _flags: int, stream_id: int, payload: bytes) -> None:
        amount = frames.number_in(payload) & WINDOW_BYTES_MAX
        if not amount:
            raise BrokenConnection(ErrorCodes.PROTOCOL_ERROR, "WINDOW_UPDATE says 0")
        self._budget.spend(self._now)
        if stream_id == 0:
            self._output.window.grow(amount)
        elif (stream := self._streams.get(stream_id)) is not None:
            stream.sendable.grow(amount)
        else:
            self._check_was_opened(stream_id)

    def _ignore_ended(self, stream_id: int) -> None:
        """Ignores a frame of a stream that has ended here, as one that was cancelled. Raises `BrokenConnection` for a
        stream that there never was."""
        self._check_was_opened(stream_id)
        self._budget.spend(self._now)

    def _ignore_late_data(self, stream_id: int, size: int) -> None:
        window = self._cancelled.get(stream_id)
        if window is None or not size:
            self._ignore_ended(stream_id)
        else:
            window.take(size)

    def _check_was_opened(self, stream_id: int) -> None:
        if stream_id % 2 == 0 or stream_id >= self._next_id:
            raise BrokenConnection(ErrorCodes.PROTOCOL_ERROR, f"a frame is of stream {stream_id}, which is not open")

    def _end(self, stream_id: int) -> None:
        """Ends a stream whose answer is complete. A backend may answer before it has read the whole request."""
        if self._output.drop_body(stream_id):
            self._output.add(frames.rst_stream(stream_id, ErrorCodes.CANCEL))
        del self._streams[stream_id]

    def _break_stream(self, stream_id: int, code: ErrorCodes, text: str) -> None:
        self._reset(stream_id, code)
        self._events.append(StreamBroken(stream_id, text, is_processed=True))

    def _reset(self, stream_id: int, code: ErrorCodes) -> None:
        self._output.drop_body(stream_id)
        self._output.add(frames.rst_stream(stream_id, code))
        del self._streams[stream_id]

    def _break(self, text: str) -> None:
        self.is_broken = True
        for stream_id in self._streams:
            self._output.drop_body(stream_id)
        self._streams.clear()
        self._events.append(ConnectionBroken(text))


def _check_is_of_connection(stream_id: int) -> None:
    if stream_id:
        raise BrokenConnection(ErrorCodes.PROTOCOL_ERROR, f"a frame of the connection names stream {stream_id}")


def name_of_code(code: int) -> str:
    """Returns the name of an error code of HTTP/2, or its number if it has none."""
    try:
        return ErrorCodes(code).name
    except ValueError:
        return str(code)
