"""One HTTP/2 connection: hypercorn's, with bounded writes, and with an inbox for each request.

`TCPServer` of hypercorn is not a public name. `pyproject.toml` pins the version, and
tests/integration/api/test_http2_edge.py checks the behaviour.
"""

from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

import structlog
import trio
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.trio.task_group import TaskGroup, _handle
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import AppWrapper, ConnectionState, Scope
from hypercorn.utils import parse_socket_addr

from gateway.api.http.client_watch import CLIENT_WATCH, ClientWatch
from gateway.api.http.listener.byte_stream import READ_BYTES
from gateway.api.http.listener.dropping import Dropping
from gateway.api.http.listener.http2 import BoundedH2Protocol

log = structlog.get_logger(__name__)

Addresses = tuple[tuple[str, int] | None, tuple[str, int] | None]
Stream = trio.SocketStream | trio.SSLStream[trio.SocketStream]


class Http2Connection(TCPServer):
    """A connection that is closed when its client does not read or is gone."""

    _input_ended = False

    def __init__(
        self,
        app: AppWrapper,
        config: Config,
        context: WorkerContext,
        stream: Stream,
        *,
        dropping: Dropping,
        write_timeout_seconds: float,
    ) -> None:
        super().__init__(app, config, context, ConnectionState({}), stream)  # type: ignore[arg-type]
        self._spoken = stream
        self._dropping = dropping
        self._write_timeout_seconds = write_timeout_seconds

    async def serve(self, begin: bytes) -> None:
        """Serves the connection until it ends, beginning with what has come already."""
        try:
            addresses = self._addresses()
            async with _Tasks(self._dropping) as tasks:
                self._task_group = tasks
                self.protocol = self._open_protocol(tasks, addresses)  # type: ignore[assignment]
                await self.protocol.initiate()
                await self.idle_task.restart(tasks, self._idle_timeout)
                if begin:
                    await self.protocol.handle(RawData(begin))
                await self._read_data()
        except OSError:
            pass
        finally:
            await self._close()

    def _addresses(self) -> Addresses:
        """Returns the addresses of the client and of this end. Raises `OSError` for a client that has left already."""
        socket = (self._spoken.transport_stream if isinstance(self._spoken, trio.SSLStream) else self._spoken).socket
        family = socket.family
        return parse_socket_addr(family, socket.getpeername()), parse_socket_addr(family, socket.getsockname())

    def _open_protocol(self, tasks: TaskGroup, addresses: Addresses) -> BoundedH2Protocol:
        is_tls = isinstance(self._spoken, trio.SSLStream)
        return BoundedH2Protocol(
            *(self.app, self.config, self.context, tasks, ConnectionState(self.state)),
            *(is_tls, *addresses, self.protocol_send),
            write_timeout_seconds=self._write_timeout_seconds,
            dropping=self._dropping,
        )

    async def protocol_send(self, event: Event) -> None:
        """Writes what the protocol has to send, or act on its being idle or closed; hypercorn's protocols call this."""
        match event:
            case RawData():
                if not await self._send_bounded(event.data):
                    await self.protocol.handle(Closed())
            case Updated(idle=True) if self._input_ended:
                pass  # There is no client for which the connection could wait.
            case _:
                await self._end_response(event)

    async def _end_response(self, event: Event) -> None:
        """Starts the timer of an idle connection, stops it, or closes the connection.

        This is the last act of a response. The application, which got "disconnect" just before, may have cancelled
        itself. Without this act, the connection would stay for as long as its client likes, and delay the drain.
        """
        with trio.move_on_after(self._write_timeout_seconds, shield=True):
            await super().protocol_send(event)

    async def _read_data(self) -> None:
        """Reads until the client has closed the connection. Then there is nothing to wait for, and the descriptor is
        closed at once."""
        data = b"not the end"
        while data:
            await self._dropping.wait_turn()
            try:
                data = bytes(await self._spoken.receive_some(READ_BYTES))
            except (trio.ClosedResourceError, trio.BrokenResourceError):
                break
            await self.protocol.handle(RawData(data))
        await self.protocol.handle(Closed())
        self._input_ended = True
        await self.idle_task.stop()

    async def _send_bounded(self, data: bytes) -> bool:
        """Writes data, and returns whether everything was written. It is shielded, as hypercorn's own write, because a
        half-written frame cannot be taken back."""
        async with self.send_lock:
            try:
                with trio.move_on_after(self._write_timeout_seconds, shield=True) as scope:
                    await self.stream.send_all(data)
                if not scope.cancelled_caught:
                    return True
                log.warning("http.slow_client", seconds=self._write_timeout_seconds)
                await self.close_now()
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass
        return False

    async def close_now(self) -> None:
        """Closes the connection at once, without waiting for unsent data."""
        with trio.CancelScope(shield=True):  # Closing forcefully only schedules, and never waits.
            await trio.aclose_forcefully(self.stream)


class _Tasks(TaskGroup):
    """The tasks of one connection's requests, each with an inbox of its own."""

    def __init__(self, dropping: Dropping) -> None:
        super().__init__()
        self._dropping = dropping

    async def spawn_app(
        self, app: AppWrapper, config: Config, scope: Scope, send: Callable[[Any], Awaitable[None]]
    ) -> Callable[[Any], Awaitable[None]]:
        """Starts the task of one request, and returns where its messages go."""
        watch = ClientWatch()
        scope["extensions"][CLIENT_WATCH] = watch  # type: ignore[typeddict-item,assignment]
        inbox = Inbox(config.max_app_queue_size, watch, self._dropping)

        async def send_and_record(message: Any) -> None:  # noqa: ANN401 - ASGI
            """Sends a message of the response, and records the beginning of it."""
            if message is not None and message["type"] == "http.response.start":
                inbox.record_answer()
            await send(message)

        threads = (trio.to_thread.run_sync, trio.from_thread.run)
        assert self._nursery is not None  # noqa: S101 - it is open while the connection is
        self._nursery.start_soon(_handle, app, config, scope, inbox.receive, send_and_record, *threads)
        return inbox.put


class Inbox:
    """The messages of a request that its handler has not read. The end of the client always fits. Once the handler
    answers, it is not interested in the rest of the body: with hypercorn's own inbox a refused body that nobody reads
    would hold its connection for ever. Only that more of the body has come, or its end, is still told, since a
    connection must not be closed under a client that writes its whole body before it reads the answer."""

    def __init__(self, messages_max: int, watch: ClientWatch, dropping: Dropping) -> None:
        self._messages_max = messages_max
        self._watch = watch
        self._dropping = dropping
        self._messages: deque[Any] = deque()
        self._disconnect: Any = None
        self._is_answered = False
        self._changed = trio.Event()

    async def put(self, message: Any) -> None:  # noqa: ANN401 - ASGI
        """Adds a message. Waits while the handler lags behind."""
        if message["type"] == "http.disconnect":
            self._disconnect = message
            self._drop_rest()
            self._watch.record_gone()
            return
        while len(self._messages) >= self._messages_max and not self._is_answered:
            await self._changed.wait()
        if self._is_answered:
            self._messages.clear()
            self._dropping.record(len(message["body"]))
            message = {**message, "body": b""}
        self._messages.append(message)
        self._signal_change()

    async def receive(self) -> Any:  # noqa: ANN401 - ASGI
        """Waits for the request's next ASGI message; the last one is the disconnect."""
        await trio.lowlevel.checkpoint()
        while not self._messages and self._disconnect is None:
            await self._changed.wait()
        if not self._messages:
            return self._disconnect
        message = self._messages.popleft()
        self._signal_change()
        return message

    def record_answer(self) -> None:
        """Notes that the handler has begun to answer: the rest of the request's body is thrown away."""
        self._drop_rest()

    def _drop_rest(self) -> None:
        self._is_answered = True
        self._messages.clear()
        self._signal_change()

    def _signal_change(self) -> None:
        self._changed.set()
        self._changed = trio.Event()
