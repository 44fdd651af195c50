"""The listener: an accept loop with a limited number of connections, a drain and a hard end.

HTTP/1 is our own, and hypercorn speaks HTTP/2. Its `serve` is not used: a client that reads nothing holds its shutdown
for ever (pitfalls 5, 36), and one failing connection can take the server down (pitfall 10).
"""

import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial

import structlog
import trio
from hypercorn.config import Config
from hypercorn.trio.lifespan import Lifespan
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.utils import wrap_app

from gateway.api.http.exchange import App
from gateway.api.http.listener.accepting import accept_connections
from gateway.api.http.listener.connection import ClientConnection, Http2Service
from gateway.api.http.listener.dropping import open_drop_pace
from gateway.api.http.listener.http1_request import Http1Service
from gateway.api.http.listener.http2 import STREAMS_MAX
from gateway.api.http.listener.listening_socket import url_of
from gateway.api.http.listener.retirement import Retirement, wait_first
from gateway.domain.pacing import TokenBucket

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class ListenerSettings:
    """Time limits of the HTTP listener in seconds, its number of connections, and whether it speaks HTTP/2."""

    drain_seconds: float
    """How long open requests may continue after the stop was requested."""
    write_timeout_seconds: float
    """How long a client may leave sent data unread."""
    connections_max: int
    http2: bool = True
    """Whether clients may speak HTTP/2, by ALPN or by prior knowledge."""
    header_timeout_seconds: float = 15.0
    """How long a request's head may take to arrive, and how long a connection may have no request."""
    end_grace_seconds: float = 1.0
    """How long streams may take after the drain to send their last event, before connections are cut."""


@dataclass
class Listener:
    """Serves `app` until `stop` is set, then drains. `run` returns when the last connection has ended."""

    app: App
    settings: ListenerSettings
    on_drain: Callable[[], None]
    """Called when the stop begins: later requests on open connections are refused."""
    on_drain_end: Callable[[], None]
    """Called when the drain time is over: open streams have to end with an error event."""
    tls: ssl.SSLContext | None = None
    """The TLS context, or None for plain connections."""
    stop: trio.Event = field(default_factory=trio.Event)
    retirement: Retirement = field(default_factory=Retirement)
    drop_pace: TokenBucket = field(default_factory=open_drop_pace)
    """The pace, in bytes, at which all connections together throw away the rests of refused bodies."""
    _connections: set[ClientConnection] = field(default_factory=set)
    _left: trio.Event = field(default_factory=trio.Event)
    """Set when a connection has ended."""

    async def run(
        self, *listening: socket.socket, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Serves the sockets `listening`, and closes them. Reports started with the address of the first one, as
        `http://host:port`."""
        config = _hypercorn_config(self.settings)
        app = wrap_app(self.app, config.wsgi_max_body_size, "asgi")
        lifespan = Lifespan(app, config, {})
        async with trio.open_nursery() as outer:
            await outer.start(lifespan.handle_lifespan)
            await lifespan.wait_for_startup()
            http1, http2 = self._http1_service(), Http2Service(app, config, WorkerContext(None), self.drop_pace)
            async with trio.open_nursery() as connections:
                serve = partial(self._serve_connection, http1, http2)
                await self._accept(listening, serve, connections, task_status)
                await self._retire_until_stop(http1, http2)
                outer.start_soon(self._end_in_time, connections.cancel_scope)
                await self._begin_drain(http1, http2)
            await lifespan.wait_for_shutdown()
            outer.cancel_scope.cancel()

    def _http1_service(self) -> Http1Service:
        timeout, http2 = self.settings.header_timeout_seconds, self.settings.http2
        return Http1Service(self.app, timeout, speaks_http2=http2, drop_pace=self.drop_pace)

    async def _retire_until_stop(self, http1: Http1Service, http2: Http2Service) -> None:
        """Lets the clients leave one by one, unless the stop was requested. Returns with the stop."""
        if self.stop.is_set():
            return
        http1.is_ending = True
        await http2.context.terminated.set()
        idle_seconds = self.settings.header_timeout_seconds + self.settings.end_grace_seconds
        with trio.move_on_after(idle_seconds):
            await wait_first(self._wait_alone, self.stop.wait)
        self.retirement.over.set()
        await self.stop.wait()

    async def _wait_alone(self) -> None:
        """Waits until there is no connection."""
        while self._connections:
            self._left = trio.Event()
            await self._left.wait()

    async def _begin_drain(self, http1: Http1Service, http2: Http2Service) -> None:
        """Closes connections without a request now, and the others after theirs."""
        http1.is_ending = http1.is_draining = True
        await http2.context.terminated.set()
        for connection in self._connections:
            connection.begin_drain()
        self.on_drain()

    async def _accept(
        self,
        listening: Sequence[socket.socket],
        serve: Callable[[trio.SocketStream], Awaitable[None]],
        connections: trio.Nursery,
        task_status: trio.TaskStatus[str],
    ) -> None:
        """Accepts connections until the stop or the retirement. Then it closes the sockets, so that no client waits in
        their backlogs."""
        url = url_of(listening[0], "http" if self.tls is None else "https")
        async with AsyncExitStack() as held, trio.open_nursery() as accepting:
            sockets = [trio.SocketListener(trio.socket.from_stdlib_socket(each)) for each in listening]
            listeners = [await held.enter_async_context(each) for each in sockets]
            for each in listeners:
                accepting.start_soon(accept_connections, each, serve, connections)
            task_status.started(url)
            await wait_first(self.stop.wait, self.retirement.begun.wait)
            accepting.cancel_scope.cancel()

    async def _serve_connection(self, http1: Http1Service, http2: Http2Service, stream: trio.SocketStream) -> None:
        if len(self._connections) >= self.settings.connections_max:
            log.warning("http.too_many_connections", limit=self.settings.connections_max)
            await trio.aclose_forcefully(stream)
            return
        spoken = stream if self.tls is None else trio.SSLStream(stream, self.tls, server_side=True)
        connection = ClientConnection(http1, http2, spoken, write_timeout_seconds=self.settings.write_timeout_seconds)
        self._connections.add(connection)
        try:
            await connection.run()
        finally:
            self._connections.discard(connection)
            self._left.set()

    async def _end_in_time(self, connections: trio.CancelScope) -> None:
        """Limits the drain: first streams end, then sockets are cut, then tasks are cancelled."""
        await trio.sleep(self.settings.drain_seconds)
        self.on_drain_end()
        await trio.sleep(self.settings.end_grace_seconds)
        log.warning("http.drain_timeout", connections=len(self._connections))
        for connection in tuple(self._connections):
            await connection.close_now()
        await trio.sleep(self.settings.end_grace_seconds)
        connections.cancel()


def _hypercorn_config(settings: ListenerSettings) -> Config:
    config = Config()
    config.keep_alive_timeout = settings.header_timeout_seconds
    config.keep_alive_max_requests = 10**9
    config.read_timeout = None  # It would cut healthy event streams, whose clients send nothing.
    config.max_app_queue_size = 2  # These are unread parts of a body; each connection has as many.
    config.h2_max_concurrent_streams = STREAMS_MAX
    config.include_server_header = False
    config.accesslog = None
    config.errorlog = None
    return config
