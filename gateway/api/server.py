"""The listener: hypercorn's Trio worker with bounded writes, a drain and a hard end.

Added to hypercorn 0.18 through a private seam (pitfalls 5, 36): a client that reads nothing loses its connection after
`write_timeout`, an idle connection always has its clock, connections are counted, and `close_all` ends every one at
once, so that no reader can hold the shutdown. `pyproject.toml` pins the version; tests/integration/test_listener.py
holds all this.
"""

import socket
import weakref
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import ClassVar, Final

import hypercorn.trio.run
import structlog
import trio
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.trio import serve
from hypercorn.trio.tcp_server import TCPServer

from gateway.api.asgi import App

log = structlog.get_logger(__name__)

BACKLOG: Final = 2048


@dataclass(frozen=True)
class ListenerSettings:
    drain_seconds: float
    """How long open requests may go on after the stop was asked for."""
    write_timeout_seconds: float
    connections_max: int
    """Open at a time; one more is closed at once."""
    header_timeout_seconds: float = 15.0
    """For a request's head to arrive whole, and for a connection without a request."""
    end_grace_seconds: float = 1.0
    """After the drain: for streams to send their last event before connections are cut."""


class BoundedTCPServer(TCPServer):
    """A connection that is closed when its client does not read."""

    open_servers: ClassVar["weakref.WeakSet[BoundedTCPServer]"] = weakref.WeakSet()
    write_timeout_seconds: ClassVar[float] = 30.0
    connections_max: ClassVar[int] = 4096
    _input_ended = False

    async def run(self) -> None:
        if len(self.open_servers) >= self.connections_max:
            log.warning("http.too_many_connections", connections_max=self.connections_max)
            await trio.aclose_forcefully(self.stream)
            return
        self.open_servers.add(self)
        try:
            await super().run()
        except Exception:
            # One connection's failure is not the server's (pitfall 10).
            log.exception("http.connection_failed")
        finally:
            self.open_servers.discard(self)

    async def protocol_send(self, event: Event) -> None:
        match event:
            case RawData():
                if not await self._send_bounded(event.data):
                    await self.protocol.handle(Closed())
            case Updated():
                await self._note_idle(event)
            case _:
                await super().protocol_send(event)

    async def _note_idle(self, event: Updated) -> None:
        """Stops the clock of an idle connection, or starts it, which is the last act of a response.

        Shielded, since the app is told "disconnected" just before and may have cancelled itself; a connection without
        the clock would stay open for as long as its client likes, also through a drain. It only starts a task.
        """
        if not (event.idle and self._input_ended):
            with trio.CancelScope(shield=True):
                await super().protocol_send(event)

    async def _read_data(self) -> None:
        """Returns when the client has closed. Then there is nothing to wait for, and the descriptor is given back."""
        await super()._read_data()
        self._input_ended = True
        await self.idle_task.stop()

    async def _send_bounded(self, data: bytes) -> bool:
        """Whether all was written. Shielded as hypercorn's own: a half-written frame can't be taken back."""
        async with self.send_lock:
            try:
                with trio.move_on_after(self.write_timeout_seconds, shield=True) as scope:
                    await self.stream.send_all(data)
                if not scope.cancelled_caught:
                    return True
                log.warning("http.reader_stalled", seconds=self.write_timeout_seconds)
                with trio.CancelScope(shield=True):  # closing forcefully only schedules, it never waits
                    await trio.aclose_forcefully(self.stream)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass
        return False


async def close_all() -> None:
    """Ends every open connection at once."""
    for server in tuple(BoundedTCPServer.open_servers):
        await trio.aclose_forcefully(server.stream)


@dataclass
class Listener:
    """Serves `app` until `stop` is set, then drains. `run` returns when the last connection has ended."""

    app: App
    settings: ListenerSettings
    on_drain: Callable[[], None]
    """Called when the stop begins: requests that come now over open connections are refused."""
    on_drain_end: Callable[[], None]
    """Called when the drain time is over: open streams are to end with an error event."""
    stop: trio.Event = field(default_factory=trio.Event)

    async def run(
        self, listening: socket.socket, *, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Takes `listening` over. Reports started with its address, as `http://host:port`."""
        BoundedTCPServer.write_timeout_seconds = self.settings.write_timeout_seconds
        BoundedTCPServer.connections_max = self.settings.connections_max
        hypercorn.trio.run.TCPServer = BoundedTCPServer  # type: ignore[attr-defined]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._end_in_time, nursery.cancel_scope)
            binds = await nursery.start(self._serve, listening, nursery.cancel_scope)
            task_status.started(binds[0])

    async def _serve(
        self, listening: socket.socket, scope: trio.CancelScope, *, task_status: trio.TaskStatus[list[str]]
    ) -> None:
        config = _hypercorn_config(self.settings, listening.detach())
        trigger: Callable[[], Awaitable[None]] = self.stop.wait
        await serve(self.app, config, shutdown_trigger=trigger, task_status=task_status)
        scope.cancel()

    async def _end_in_time(self, scope: trio.CancelScope) -> None:
        await self.stop.wait()
        self.on_drain()
        await trio.sleep(self.settings.drain_seconds)
        self.on_drain_end()
        await trio.sleep(self.settings.end_grace_seconds)
        log.warning("http.drain_cut", seconds=self.settings.drain_seconds)
        await close_all()
        await trio.sleep(self.settings.end_grace_seconds)
        scope.cancel()


def open_socket(host: str, port: int) -> socket.socket:
    """A listening TCP socket; port 0: any free one. Raises `OSError` when the address is taken or not ours."""
    family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
    listening = socket.create_server((host, port), family=family, backlog=BACKLOG)
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # inherited by each connection
    return listening


def _hypercorn_config(settings: ListenerSettings, file_descriptor: int) -> Config:
    config = Config()
    config.bind = [f"fd://{file_descriptor}"]
    config.backlog = BACKLOG
    config.keep_alive_timeout = settings.header_timeout_seconds  # it is the header deadline as well (pitfall 35)
    config.keep_alive_max_requests = 10**9
    config.read_timeout = None  # it would cut healthy event streams, whose clients say nothing
    config.graceful_timeout = settings.drain_seconds + 2 * settings.end_grace_seconds
    config.h2_max_concurrent_streams = 1000
    config.include_server_header = False
    config.accesslog = None
    config.errorlog = None
    return config
