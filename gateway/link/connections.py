"""What grpclib leaves open, bounded: connections of a server, sizes of messages, how long hanging up takes.

grpclib has no setting for any of it, so this reaches into it, here and nowhere else; tests/integration/test_link.py
holds the behaviour.
"""

import asyncio
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any, Final, cast

from grpclib.client import Stream as ClientStream
from grpclib.config import Configuration
from grpclib.protocol import H2Protocol
from grpclib.server import Server
from grpclib.server import Stream as ServerStream

from gateway.link.pump import check_size

AnyStream = ClientStream[Any, Any] | ServerStream[Any, Any]

WINDOW_BYTES: Final = 256 * 1024
"""What a peer may have sent that was not read yet."""
CONNECTIONS_MAX: Final = 2048
"""Of one server, whether their sessions were let in or not."""
IDLE_SECONDS: Final = 30.0
"""How long a connection may be open without a session on it."""

CONFIGURATION: Final = Configuration(
    http2_connection_window_size=WINDOW_BYTES,
    http2_stream_window_size=WINDOW_BYTES,
)


def bound_messages(stream: AnyStream) -> None:
    """Has reading fail with `StreamFailed` at the head of a message that is too large, before any of it is kept."""
    inner = stream._stream  # noqa: SLF001
    read = inner.recv_data

    async def read_bounded(size: int) -> bytes:
        check_size(size)
        return await read(size)

    inner.recv_data = read_bounded  # type: ignore[method-assign]


def cut(stream: AnyStream) -> None:
    """Ends the stream's connection at once, whatever was not sent yet. A closed transport would wait for its reader."""
    _transport(stream).abort()


@contextmanager
def in_use(stream: ServerStream[Any, Any]) -> Iterator[None]:
    """While the body runs, the connection of a `BoundedServer`'s stream is not idle."""
    connection = cast("_Connection", _transport(stream).get_protocol())
    connection.begin_use()
    try:
        yield
    finally:
        connection.end_use()


def _transport(stream: AnyStream) -> asyncio.Transport:
    return stream._stream._transport  # noqa: SLF001


class BoundedServer(Server):
    """A server with a bounded number of connections, each of which has a session or is cut."""

    def __init__(self, services: Collection[Any]) -> None:
        super().__init__(services, config=CONFIGURATION)
        self._open: set[_Connection] = set()

    async def close_aio(self, seconds: float) -> None:
        """Stops listening, ends what still runs, and hangs up; what was sent may take `seconds` to leave."""
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
        return _Connection(super()._protocol_factory(), self._open)


class _Connection(H2Protocol):
    """One worker's connection; enters itself into `open_connections` while it lives."""

    transport: asyncio.Transport

    def __init__(self, plain: H2Protocol, open_connections: "set[_Connection]") -> None:
        super().__init__(plain.handler, plain.config, plain.h2_config)
        self._open = open_connections
        self._uses = 0
        self._idle: asyncio.TimerHandle | None = None
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.transport = cast("asyncio.Transport", transport)
        if len(self._open) >= CONNECTIONS_MAX:
            self.transport.abort()
            return
        self._open.add(self)
        self._await_use()

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        self._open.discard(self)
        self._stop_timer()
        if not self.lost.done():
            self.lost.set_result(None)

    def begin_use(self) -> None:
        self._uses += 1
        self._stop_timer()

    def end_use(self) -> None:
        self._uses -= 1
        if not self._uses and not self.lost.done():
            self._await_use()

    def _await_use(self) -> None:
        self._idle = asyncio.get_running_loop().call_later(IDLE_SECONDS, self.transport.abort)

    def _stop_timer(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
