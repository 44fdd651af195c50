"""HTTP/2 with bounds: what clients may make us do, how long they may leave an answer unread, and that each stream ends.

hypercorn's protocol works off whatever it is sent, in one go; a handler waits in it for a client that does not read,
even when that client has long gone. It has no settings for that, so this reaches into it, here and nowhere else:
tests/integration/api/test_http2_edge.py holds the behaviour.
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

from gateway.api.http.http1 import SINGLE
from gateway.frame_meter import Allowance, Flood, FrameLimits, FrameMeter

log = structlog.get_logger(__name__)

STREAMS_MAX: Final = 128
"""Requests at a time on one connection."""
LIMITS: Final = FrameLimits(
    control=Allowance(at_once=200, per_second=50),
    resets=Allowance(at_once=4 * STREAMS_MAX, per_second=100),
    reset_streams=Allowance(at_once=STREAMS_MAX + 22, per_second=30),  # a client may give up all it has at once
    rapid_resets=Allowance(at_once=50, per_second=10),
    small_data=Allowance(at_once=1000, per_second=200),
    window_updates=Allowance(at_once=1000, per_second=100),
    requests=None,
    header_block_bytes_max=64 * 1024,
)
"""Far beyond what browsers, proxies and HTTP libraries send, far below what could be felt by others."""


class _AnsweredStream:
    """Takes what still comes of the body of a request that has had its answer."""

    idle = True

    async def handle(self, event: object) -> None:
        pass


class _Streams(dict[int, Any]):
    """hypercorn takes a late part of a refused body (413, 401) for a failure of the connection, and ends the streams of
    everybody else on it."""

    def __missing__(self, stream_id: int) -> _AnsweredStream:
        return _AnsweredStream()


class BoundedH2Protocol(H2Protocol):
    """hypercorn's HTTP/2 with limits on a client's frames and on how long it may leave an answer unread."""

    def __init__(self, *args: Any, write_timeout_seconds: float) -> None:  # noqa: ANN401 - hypercorn's own arguments
        super().__init__(*args)
        self.streams = _Streams()
        self._write_timeout_seconds = write_timeout_seconds
        self._meter = FrameMeter(LIMITS)
        self._unread_since: dict[int, float] = {}
        """By stream with something to send: since when its client has taken nothing of it."""
        self._reader_watch = trio.CancelScope()

    async def initiate(self, headers: list[tuple[bytes, bytes]] | None = None, settings: bytes | None = None) -> None:
        """Begin the connection, and start the task that ends streams whose clients do not read."""
        await super().initiate(headers, settings)
        self.task_group.spawn(self._watch_readers)

    async def handle(self, event: Event) -> None:
        """Take bytes that the client sent, or the end of the connection, which ends every stream of it."""
        if isinstance(event, RawData):
            await self._read(event.data)
        elif isinstance(event, Closed):
            await self._end()

    async def _read(self, data: bytes) -> None:
        """A little at a time: everybody else has a turn in between."""
        try:
            for step in self._meter.read(data, trio.current_time()):
                if self.closed:
                    return
                await super().handle(RawData(step))
                await trio.lowlevel.checkpoint()
        except Flood as flood:
            await self._send_away(flood)

    async def _send_away(self, flood: Flood) -> None:
        """Its requests end first, so that nothing is worked on for it while it may not even read why."""
        log.warning("http.flood", reason=str(flood), client=self.client[0] if self.client else None)
        await self._end()
        with suppress(ProtocolError):
            self.connection.close_connection(ErrorCodes.ENHANCE_YOUR_CALM)
        await self._flush()
        await self.send(Closed())

    async def _end(self) -> None:
        """The connection has ended: so does every stream of it, and nobody waits any more for a client to read."""
        await super().handle(Closed())
        self._reader_watch.cancel()
        for buffer in tuple(self.stream_buffers.values()):
            await buffer.close()

    # Requests

    async def _handle_events(self, events: list[H2Event]) -> None:
        """A request that was reset in the same step is not even begun."""
        gone = {event.stream_id for event in events if isinstance(event, StreamReset)}
        for _ in gone:
            self._meter.record_reset_stream(trio.current_time())
        await super()._handle_events(
            [event for event in events if not isinstance(event, RequestReceived) or event.stream_id not in gone]
        )
        for stream_id in gone:
            await self._release(stream_id)

    async def _create_stream(self, request: RequestReceived) -> None:
        """What hypercorn would fail over, or what could be read in two ways, is refused, for this stream alone."""
        if not _is_well_formed(request):
            self.connection.reset_stream(request.stream_id, ErrorCodes.PROTOCOL_ERROR)
            self._meter.record_reset_stream(trio.current_time())
            return
        await super()._create_stream(request)

    async def _priority_updated(self, event: PriorityUpdated) -> None:
        """Priorities are deprecated (RFC 9113, 5.3); a tree of them could be made to grow by those who never ask."""

    # Answers

    async def stream_send(self, event: StreamEvent) -> None:
        """Send one event of a stream's response, and note since when its client has read nothing of it."""
        if isinstance(event, Body):
            await trio.lowlevel.checkpoint()  # a handler that writes on and on to a stream that has ended has to notice
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
        """Whoever still writes to the stream is let go; without another one the connection is idle."""
        self._unread_since.pop(stream_id, None)
        buffer = self.stream_buffers.get(stream_id)
        if buffer is not None:
            await buffer.close()
            await self._window_updated(stream_id)  # the sending task drops it
        if self.idle and not self.closed:
            await self.send(Updated(idle=True))


def _is_well_formed(request: RequestReceived) -> bool:
    """What h2 leaves open. CONNECT is for tunnels, of which there are none here."""
    headers = dict(request.headers or ())
    names = [name for name, _ in request.headers or ()]
    method, path = headers.get(b":method", b""), headers.get(b":path", b"")
    is_line = bool(method and path) and method.isascii() and path.isascii() and method.upper() != b"CONNECT"
    return is_line and not any(names.count(name) > 1 for name in SINGLE)
