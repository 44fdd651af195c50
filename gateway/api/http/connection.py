"""One connection of the listener: its protocol, its bounded writes, and its failures, which affect no other connection.

`TCPServer` of hypercorn is not a public name. `pyproject.toml` pins the version, and
tests/integration/api/test_listener.py checks the behaviour.
"""

from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Final

import structlog
import trio
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol.h11 import H2ProtocolAssumedError
from hypercorn.trio.task_group import TaskGroup, _handle
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import AppWrapper, ConnectionState, Scope
from hypercorn.utils import parse_socket_addr

from gateway.api.http.http1 import StrictH11Protocol
from gateway.api.http.http2 import BoundedH2Protocol

log = structlog.get_logger(__name__)

HTTP2: Final = "h2"
"""The name of HTTP/2 in ALPN."""
Addresses = tuple[tuple[str, int] | None, tuple[str, int] | None]
Stream = trio.SocketStream | trio.SSLStream[trio.SocketStream]


class BoundedConnection(TCPServer):
    """A connection that is closed when its client does not read or is gone, and whose failure affects no other."""

    _input_ended = False

    def __init__(
        self,
        app: AppWrapper,
        config: Config,
        context: WorkerContext,
        stream: Stream,
        *,
        write_timeout_seconds: float,
        http2: bool,
    ) -> None:
        super().__init__(app, config, context, ConnectionState({}), stream)  # type: ignore[arg-type]
        self._spoken = stream
        self._write_timeout_seconds = write_timeout_seconds
        self._http2 = http2

    async def run(self) -> None:
        """Serve the connection until it ends; an error is logged and not raised, so that other connections go on."""
        try:
            await self._serve()
        except Exception:
            log.exception("http.connection_failed")

    async def _serve(self) -> None:
        try:
            alpn = await self._shake_hands()
        except (trio.BrokenResourceError, trio.TooSlowError):
            return
        try:
            addresses = self._addresses()
            async with _Tasks() as tasks:
                self._task_group = tasks
                self.protocol = self._open_conversation(tasks, addresses, alpn)  # type: ignore[assignment]
                await self.protocol.initiate()
                await self.idle_task.restart(tasks, self._idle_timeout)
                await self._read_data()
        except OSError:
            pass
        finally:
            await self._close()

    async def _shake_hands(self) -> str | None:
        """Does the TLS handshake and returns the protocol agreed on by ALPN, if any. Raises `trio.BrokenResourceError`,
        `trio.TooSlowError`."""
        if not isinstance(self._spoken, trio.SSLStream):
            return None
        with trio.fail_after(self.config.ssl_handshake_timeout):
            await self._spoken.do_handshake()
        agreed: str | None = self._spoken.selected_alpn_protocol()
        return agreed

    def _addresses(self) -> Addresses:
        """Returns the addresses of the client and of this end. Raises `OSError` for a client that has left already."""
        socket = (self._spoken.transport_stream if isinstance(self._spoken, trio.SSLStream) else self._spoken).socket
        family = socket.family
        return parse_socket_addr(family, socket.getpeername()), parse_socket_addr(family, socket.getsockname())

    def _open_conversation(self, tasks: TaskGroup, addresses: Addresses, alpn: str | None) -> "_Conversation":
        is_tls = isinstance(self._spoken, trio.SSLStream)
        arguments = (
            *(self.app, self.config, self.context, tasks, ConnectionState(self.state)),
            *(is_tls, *addresses, self.protocol_send),
        )
        return _Conversation(arguments, self.protocol_send, alpn, self._http2, self._write_timeout_seconds)

    async def protocol_send(self, event: Event) -> None:
        """Write what the protocol has to send, or act on its being idle or closed; hypercorn's protocols call this."""
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
        await super()._read_data()
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
        """Close the connection at once, without waiting for unsent data."""
        with trio.CancelScope(shield=True):  # Closing forcefully only schedules, and never waits.
            await trio.aclose_forcefully(self.stream)


class _Conversation:
    """The protocol of a connection: HTTP/2 if the client begins with it and it is allowed, else HTTP/1. It replaces
    `ProtocolWrapper`."""

    def __init__(
        self,
        arguments: tuple[Any, ...],
        send: Callable[[Event], Awaitable[None]],
        alpn: str | None,
        http2: bool,
        write_timeout_seconds: float,
    ) -> None:
        self._arguments = arguments
        self._send = send
        self._write_timeout_seconds = write_timeout_seconds
        self.protocol: StrictH11Protocol | BoundedH2Protocol = (
            self._http2() if http2 and alpn == HTTP2 else StrictH11Protocol(*arguments, speaks_http2=http2)
        )

    async def initiate(self) -> None:
        """Begins the protocol."""
        await self.protocol.initiate()

    async def handle(self, event: Event) -> None:
        """Passes an event on, and changes to HTTP/2 if the client begins with it."""
        try:
            await self.protocol.handle(event)
        except H2ProtocolAssumedError as error:
            self.protocol = self._http2()
            await self.protocol.initiate()
            await self._send(Updated(idle=True))  # It looked like a request and was none.
            await self.protocol.handle(RawData(error.data))

    def _http2(self) -> BoundedH2Protocol:
        return BoundedH2Protocol(*self._arguments, write_timeout_seconds=self._write_timeout_seconds)


class _Tasks(TaskGroup):
    """The tasks of one connection's requests, each with an inbox of its own."""

    async def spawn_app(
        self, app: AppWrapper, config: Config, scope: Scope, send: Callable[[Any], Awaitable[None]]
    ) -> Callable[[Any], Awaitable[None]]:
        """Starts the task of one request, and returns where its messages go."""
        inbox = Inbox(config.max_app_queue_size)

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
    """What has come of a request and its handler has not read. The end of the client always fits. Once the handler
    answers, it is not interested in the rest of the body: with hypercorn's own inbox a refused body that nobody reads
    would hold its connection for ever. Only that more of the body has come, or its end, is still told, since a
    connection must not be closed under a client that writes its whole body before it reads the answer."""

    def __init__(self, messages_max: int) -> None:
        self._messages_max = messages_max
        self._messages: deque[Any] = deque()
        self._disconnect: Any = None
        self._is_answered = False
        self._changed = trio.Event()

    async def put(self, message: Any) -> None:  # noqa: ANN401 - ASGI
        """Adds a message. Waits while the handler lags behind."""
        if message["type"] == "http.disconnect":
            self._disconnect = message
            self._drop_rest()
            return
        while len(self._messages) >= self._messages_max and not self._is_answered:
            await self._changed.wait()
        if self._is_answered:
            self._messages.clear()
            message = {**message, "body": b""}
        self._messages.append(message)
        self._signal_change()

    async def receive(self) -> Any:  # noqa: ANN401 - ASGI
        """Wait for the request's next ASGI message; once all are read and the client has left, it is the disconnect."""
        await trio.lowlevel.checkpoint()
        while not self._messages and self._disconnect is None:
            await self._changed.wait()
        if not self._messages:
            return self._disconnect
        message = self._messages.popleft()
        self._signal_change()
        return message

    def record_answer(self) -> None:
        """Note that the handler has begun to answer: the rest of the request's body is thrown away."""
        self._drop_rest()

    def _drop_rest(self) -> None:
        self._is_answered = True
        self._messages.clear()
        self._signal_change()

    def _signal_change(self) -> None:
        self._changed.set()
        self._changed = trio.Event()
