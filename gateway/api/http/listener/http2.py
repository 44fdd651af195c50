"""HTTP/2 with limits: on a client's frames, on how long it may leave an answer unread, and with an end for each stream.

hypercorn's protocol processes everything that it receives in one go, and a handler waits in it for a client that does
not read, even after that client has left. It has no settings for that, so this module reaches into it, and no other
does. tests/integration/api/test_http2_edge.py checks the behaviour.
"""

from contextlib import suppress
from typing import Any, Final

import structlog
import trio
from h2.errors import ErrorCodes
from h2.events import Event as H2Event
from h2.events import PriorityUpdated, RequestReceived, StreamReset
from h2.exceptions import ProtocolError
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol.events import Body, EndBody
from hypercorn.protocol.events import Event as StreamEvent
from hypercorn.protocol.h2 import H2Protocol

from gateway.api.http.listener.dropping import Dropping
from gateway.api.http.listener.http1_head import SINGLE
from gateway.api.http.listener.request_target import ASTERISK, OPTIONS
from gateway.frame_meter import Allowance, Flood, FrameLimits, FrameMeter

log = structlog.get_logger(__name__)

STREAMS_MAX: Final = 128
"""The largest number of requests at a time on one connection."""
LIMITS: Final = FrameLimits(
    control=Allowance(at_once=200, per_second=50),
    resets=Allowance(at_once=4 * STREAMS_MAX, per_second=100),
    reset_streams=Allowance(at_once=STREAMS_MAX + 22, per_second=30),  # A client may cancel all its requests at once.
    rapid_resets=Allowance(at_once=50, per_second=10),
    small_data=Allowance(at_once=1000, per_second=200),
    window_updates=Allowance(at_once=1000, per_second=100),
    requests=None,
    header_block_bytes_max=64 * 1024,
)
"""The limits on frames. They are far beyond what browsers, proxies and HTTP libraries send, and far below what other
clients could feel."""


class _AnsweredStream:
    """Takes the rest of a request's body after the answer."""

    idle = True

    def __init__(self, dropping: Dropping) -> None:
        self._dropping = dropping

    async def handle(self, event: object) -> None:
        """Drops the event."""
        if isinstance(event, Body):
            self._dropping.record(len(event.data))


class _Streams(dict[int, Any]):
    """The streams of a connection. hypercorn takes a late part of a refused body (413, 401) for a failure of the
    connection, and would end all its streams."""

    def __init__(self, dropping: Dropping) -> None:
        super().__init__()
        self._dropping = dropping

    def __missing__(self, stream_id: int) -> _AnsweredStream:
        return _AnsweredStream(self._dropping)


class BoundedH2Protocol(H2Protocol):
    """hypercorn's HTTP/2 with limits on a client's frames and on how long it may leave an answer unread."""

    def __init__(
        self,
        *args: Any,  # noqa: ANN401 - hypercorn's own arguments
        write_timeout_seconds: float,
        dropping: Dropping,
    ) -> None:
        super().__init__(*args)
        self.streams = _Streams(dropping)
        self._write_timeout_seconds = write_timeout_seconds
        self._meter = FrameMeter(LIMITS)
        self._unread_since: dict[int, float] = {}
        """For each stream with unsent data, the time since which its client has read nothing."""
        self._reader_watch = trio.CancelScope()

    async def initiate(self, headers: list[tuple[bytes, bytes]] | None = None, settings: bytes | None = None) -> None:
        """Begins the connection, and start the task that ends streams whose clients do not read."""
        await super().initiate(headers, settings)
        self.task_group.spawn(self._watch_readers)

    async def handle(self, event: Event) -> None:
        """Takes bytes that the client sent, or the end of the connection, which ends every stream of it."""
        if isinstance(event, RawData):
            await self._read(event.data)
        elif isinstance(event, Closed):
            await self._end()

    async def _read(self, data: bytes) -> None:
        """Processes data in small steps, so that other connections have a turn in between."""
        try:
            for step in self._meter.read(data, trio.current_time()):
                if self.closed:
                    return
                await super().handle(RawData(step))
                await trio.lowlevel.checkpoint()
        except Flood as flood:
            await self._send_away(flood)

    async def _send_away(self, flood: Flood) -> None:
        """Ends a connection that floods. Its requests end first, so that nothing is computed for a client that may not
        even read the reason."""
        log.warning("http.flood", reason=str(flood), client=self.client[0] if self.client else None)
        await self._end()
        with suppress(ProtocolError):
            self.connection.close_connection(ErrorCodes.ENHANCE_YOUR_CALM)
        await self._flush()
        await self.send(Closed())

    async def _end(self) -> None:
        """Ends every stream of an ended connection, so that nothing waits for its client any more."""
        await super().handle(Closed())
        self._reader_watch.cancel()
        for buffer in tuple(self.stream_buffers.values()):
            await buffer.close()

    # Requests

    async def _handle_events(self, events: list[H2Event]) -> None:
        """Handles events. A request that was reset in the same step is not begun."""
        gone = {event.stream_id for event in events if isinstance(event, StreamReset)}
        for _ in gone:
            self._meter.record_reset_stream(trio.current_time())
        await super()._handle_events(
            [event for event in events if not isinstance(event, RequestReceived) or event.stream_id not in gone]
        )
        for stream_id in gone:
            await self._release(stream_id)

    async def _create_stream(self, request: RequestReceived) -> None:
        """Creates a stream. A request on which hypercorn would fail, or that is ambiguous, is refused for this stream
        alone."""
        if not _is_well_formed(request):
            self.connection.reset_stream(request.stream_id, ErrorCodes.PROTOCOL_ERROR)
            self._meter.record_reset_stream(trio.current_time())
            return
        await super()._create_stream(request)

    async def _priority_updated(self, event: PriorityUpdated) -> None:
        """Ignores priorities. They are deprecated (RFC 9113, 5.3), and a client without requests could make a tree of
        them grow."""

    # Answers

    async def stream_send(self, event: StreamEvent) -> None:
        """Sends one event of a stream's response, and note since when its client has read nothing of it."""
        if isinstance(event, Body):
            await trio.lowlevel.checkpoint()  # A handler that keeps writing to an ended stream has to notice.
        if isinstance(event, Body | EndBody) and event.stream_id in self.stream_buffers:
            self._unread_since.setdefault(event.stream_id, trio.current_time())
        await super().stream_send(event)

    async def _send_data(self, stream_id: int) -> None:
        buffer = self.stream_buffers.get(stream_id)
        before = len(buffer.buffer) if buffer is not None else 0
        await super()._send_data(stream_id)
        buffer = self.stream_buffers.get(stream_id)
        if buffer is None or not buffer.buffer:
            self._unread_since.pop(stream_id, None)
        elif len(buffer.buffer) != before:
            self._unread_since[stream_id] = trio.current_time()
        if before:
            self._meter.record_sent_data()

    async def _watch_readers(self) -> None:
        """Ends streams whose clients take nothing for too long; hypercorn's own limit is for the whole connection."""
        with self._reader_watch:
            while not self.closed:
                now = trio.current_time()
                for stream_id, since in tuple(self._unread_since.items()):
                    if now - since >= self._write_timeout_seconds:
                        await self._give_up(stream_id)
                oldest = min(self._unread_since.values(), default=now)
                await trio.sleep_until(oldest + self._write_timeout_seconds)

    async def _give_up(self, stream_id: int) -> None:
        log.warning("http.slow_client", seconds=self._write_timeout_seconds, http_version="2")
        with suppress(ProtocolError):
            self.connection.reset_stream(stream_id, ErrorCodes.CANCEL)
        await self._close_stream(stream_id)
        await self._release(stream_id)
        await self._flush()

    async def _release(self, stream_id: int) -> None:
        """Releases the tasks that still write to the stream. Without another stream the connection is idle."""
        self._unread_since.pop(stream_id, None)
        buffer = self.stream_buffers.get(stream_id)
        if buffer is not None:
            await buffer.close()
            await self._window_updated(stream_id)  # The sending task drops it.
        if self.idle and not self.closed:
            await self.send(Updated(idle=True))


def _is_well_formed(request: RequestReceived) -> bool:
    """Returns whether the request is well-formed, as far as h2 does not check it. CONNECT is for tunnels, which do not
    exist here."""
    headers = dict(request.headers or ())
    names = [name for name, _ in request.headers or ()]
    method, path = headers.get(b":method", b""), headers.get(b":path", b"")
    is_line = bool(method and path) and method.isascii() and path.isascii() and method.upper() != b"CONNECT"
    return is_line and _is_path(method, path) and not any(names.count(name) > 1 for name in SINGLE)


def _is_path(method: bytes, path: bytes) -> bool:
    """Returns whether `:path` is a path or, for OPTIONS, an asterisk (RFC 9113, 8.3.1)."""
    return path[:1] == b"/" and b"#" not in path if path != ASTERISK else method == OPTIONS
