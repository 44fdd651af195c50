"""Limits that grpclib lacks: the connections of a server, what a peer may send before it has shown a credential, how
fast it may send, the size of messages, and the time for hanging up.

grpclib has no setting for any of them, so this module reaches into it, and no other does.
tests/integration/transport/test_sessions.py checks the behaviour.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final, cast

import structlog
from grpclib.client import Stream as ClientStream
from grpclib.config import Configuration
from grpclib.protocol import H2Protocol
from grpclib.server import Server
from grpclib.server import Stream as ServerStream
from h2.errors import ErrorCodes
from h2.events import UnknownFrameReceived
from h2.exceptions import ProtocolError

from gateway.frame_meter import Allowance, Flood, FrameLimits, FrameMeter
from gateway.transport.stream_pump import check_size

log = structlog.get_logger(__name__)

AnyStream = ClientStream[Any, Any] | ServerStream[Any, Any]

WINDOW_BYTES: Final = 256 * 1024
"""The number of bytes that a peer may have sent and this process has not read."""
CONNECTIONS_MAX: Final = 2048
"""The largest number of connections of one server, whether their sessions were accepted or not."""
UNAUTHENTICATED_MAX: Final = 256
"""The largest number of connections without a session. One more closes the oldest of them; a worker needs only a
moment."""
CREDENTIAL_SECONDS: Final = 10.0
"""How long a new connection may take to show a credential, however often it tries."""
IDLE_SECONDS: Final = 30.0
"""How long a connection may stay open after its session."""
LINGER_SECONDS: Final = 2.0
"""How long a connection that was refused is still read. Bytes that nobody reads would make the kernel reset it, and the
reset would overtake the GOAWAY that says why."""
LINGER_BYTES: Final = 4 * 1024 * 1024
"""The number of bytes that are read from it meanwhile, and thrown away."""
HEADER_BYTES_MAX: Final = 16 * 1024
"""The largest size of one call's headers; a credential is short."""
LIMITS: Final = FrameLimits(
    control=Allowance(at_once=100, per_second=20),
    resets=Allowance(at_once=20, per_second=2),
    reset_streams=Allowance(at_once=20, per_second=2),
    rapid_resets=Allowance(at_once=20, per_second=2),
    small_data=Allowance(at_once=5000, per_second=1000),  # These are messages of a session and lines of a log.
    window_updates=Allowance(at_once=5000, per_second=1000),
    requests=Allowance(at_once=10, per_second=1),
    header_block_bytes_max=HEADER_BYTES_MAX,
)
"""The frames that one connection may send. A worker has one call for as long as it lives."""

CONFIGURATION: Final = Configuration(
    http2_connection_window_size=WINDOW_BYTES,
    http2_stream_window_size=WINDOW_BYTES,
)


def bound_messages(stream: AnyStream) -> None:
    """Makes reading fail with `StreamFailed` at the beginning of a message that is too large, before any of it is
    kept."""
    inner = stream._stream  # noqa: SLF001
    read = inner.recv_data

    async def read_bounded(size: int) -> bytes:
        """Reads as before, after a check of the announced size. Raises `StreamFailed`."""
        check_size(size)
        return await read(size)

    inner.recv_data = read_bounded  # type: ignore[method-assign]


def cut(stream: AnyStream) -> None:
    """Ends the stream's connection at once, and drops unsent data. A closed transport would wait for its reader."""
    _transport(stream).abort()


@contextmanager
def in_use(stream: ServerStream[Any, Any]) -> Iterator[None]:
    """Marks the connection of a `BoundedServer`'s stream as in use while the body runs."""
    connection = cast("_BoundedConnection", _transport(stream).get_protocol())
    connection.begin_use()
    try:
        yield
    finally:
        connection.end_use()


def _transport(stream: AnyStream) -> asyncio.Transport:
    return stream._stream._transport  # noqa: SLF001


class BoundedServer(Server):
    """A server with a limited number of connections. A connection without a session is closed after a while."""

    def __init__(self, services: Collection[Any]) -> None:
        super().__init__(services, config=CONFIGURATION)
        self._open: set[_BoundedConnection] = set()

    async def close_aio(self, seconds: float) -> None:
        """Stops listening, ends open calls, and hangs up. Sent data may take `seconds` to leave."""
        self.close()
        left = [connection.lost for connection in self._open]
        for connection in tuple(self._open):
            connection.transport.close()
        if left:
            await asyncio.wait(left, timeout=seconds)
        for connection in tuple(self._open):
            connection.transport.abort()
        await self.wait_closed()

    def _protocol_factory(self) -> H2Protocol:
        return _BoundedConnection(super()._protocol_factory(), self._open, self._make_room)

    def _make_room(self) -> None:
        """Closes the oldest connection that has shown no credential, for a new one."""
        unauthenticated = [each for each in self._open if each.is_unauthenticated]
        if len(unauthenticated) > UNAUTHENTICATED_MAX:
            min(unauthenticated, key=lambda each: each.opened_at).transport.abort()


class _BoundedConnection(H2Protocol):
    """One worker's connection. It is in `open_connections` while it lives."""

    transport: asyncio.Transport

    def __init__(
        self, plain: H2Protocol, open_connections: "set[_BoundedConnection]", make_room: Callable[[], None]
    ) -> None:
        super().__init__(plain.handler, plain.config, plain.h2_config)
        self._open = open_connections
        self._make_room = make_room
        self._uses = 0
        self.opened_at = asyncio.get_running_loop().time()
        self._meter = FrameMeter(LIMITS)
        self._steps: deque[bytes] = deque()
        """The steps of received data that are not processed yet."""
        self._is_refused = False
        """Whether a GOAWAY was sent because of a flood. What arrives afterwards is thrown away."""
        self._linger_bytes = LINGER_BYTES
        """The number of bytes that may still arrive after that."""
        self._idle: asyncio.TimerHandle | None = None
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Limits the connection, which has `CREDENTIAL_SECONDS` to show a credential."""
        super().connection_made(transport)
        self.transport = cast("asyncio.Transport", transport)
        if len(self._open) >= CONNECTIONS_MAX:
            self.transport.abort()
            return
        self._open.add(self)
        self._await_use(CREDENTIAL_SECONDS)
        inner = self.connection._connection  # noqa: SLF001
        inner.decoder.max_header_list_size = HEADER_BYTES_MAX
        self.processor.processors[UnknownFrameReceived] = _ignore  # grpclib fails on them (RFC 9113, 5.5).
        self._make_room()

    @property
    def is_unauthenticated(self) -> bool:
        """Whether the connection has no session."""
        return not self._uses

    def data_received(self, data: bytes) -> None:
        """Processes received bytes in small steps, so that other work of this process has a turn in between."""
        if self._is_refused:
            self._throw_away(len(data))
            return
        is_idle = not self._steps
        try:
            self._steps.extend(self._meter.read(data, asyncio.get_running_loop().time()))
        except Flood as flood:
            self._send_away(flood)
        else:
            if is_idle:
                self._work_on()

    def _work_on(self) -> None:
        if self.transport.is_closing() or not self._steps:
            self._steps.clear()
            return
        super().data_received(self._steps.popleft())
        if self._steps:
            self.transport.pause_reading()
            asyncio.get_running_loop().call_soon(self._work_on)
        elif not self.transport.is_closing():
            self.transport.resume_reading()

    def _send_away(self, flood: Flood) -> None:
        log.warning("session.flood", reason=str(flood), peer=self.transport.get_extra_info("peername"))
        self._steps.clear()
        self._is_refused = True
        with suppress(ProtocolError):
            self.connection._connection.close_connection(ErrorCodes.ENHANCE_YOUR_CALM)  # noqa: SLF001
        self.connection.flush()
        self.handler.close()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.transport.resume_reading()
        self._stop_timer()
        self._idle = asyncio.get_running_loop().call_later(LINGER_SECONDS, self.transport.abort)

    def _throw_away(self, size: int) -> None:
        self._linger_bytes -= size
        if self._linger_bytes < 0:
            self.transport.abort()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Removes the connection from the open ones."""
        super().connection_lost(exc)
        self._open.discard(self)
        self._stop_timer()
        if not self.lost.done():
            self.lost.set_result(None)

    def begin_use(self) -> None:
        """Counts a session on this connection, which therefore may stay open."""
        self._uses += 1
        self._stop_timer()

    def end_use(self) -> None:
        """Counts a session less. Without any, the connection has `IDLE_SECONDS` left."""
        self._uses -= 1
        if not self._uses and not self.lost.done() and not self._is_refused:
            self._await_use(IDLE_SECONDS)

    def _await_use(self, seconds: float) -> None:
        self._idle = asyncio.get_running_loop().call_later(seconds, self.transport.abort)

    def _stop_timer(self) -> None:
        if self._idle is not None:
            self._idle.cancel()


def _ignore(_event: object) -> None:
    """Ignores a frame of an unknown kind."""
