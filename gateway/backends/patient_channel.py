"""A gRPC channel that loses no answer that could be had: it reads what has arrived, and waits for backends that are
leaving.

grpclib ends all open calls of a lost connection with an error, even those whose last message has arrived and is only
unread. A backend that drains hangs up right after its last answer, and a client that reads slowly would then lose the
end of a complete one (R13). grpclib also ends them when a backend announces that it will end after its calls: see
`leaving_connection`.
"""

import asyncio
from collections.abc import Callable

from grpclib.client import Channel
from grpclib.protocol import EventsProcessor, H2Protocol, Stream
from h2.errors import ErrorCodes
from h2.events import ConnectionTerminated, StreamReset

from gateway.backends.keepalive import end_with_peer
from gateway.backends.leaving_connection import LeavingConnection, fail_unprocessed, is_graceful


class _PatientProcessor(EventsProcessor):
    """Keeps calls whose answer is complete or still arriving."""

    connection: LeavingConnection

    def register(self, stream: Stream) -> Callable[[], None]:
        """Adds a stream, and returns what removes it."""
        release = super().register(stream)

        def release_stream() -> None:
            """Removes the stream. The last one on a connection that is left closes it."""
            release()
            if self.connection.is_leaving and not self.streams:
                self.close()

        return release_stream

    def process_connection_terminated(self, event: ConnectionTerminated) -> None:
        """Handles GOAWAY: without an error, the open calls go on."""
        if not is_graceful(event):
            super().process_connection_terminated(event)
            return
        self.handler.close()  # The channel then makes another connection for the next call.
        self.connection.leave()
        last_stream_id = event.last_stream_id or 0
        for number, stream in self.streams.items():
            if number > last_stream_id and stream.headers is None:
                fail_unprocessed(stream)
        if not self.streams:
            self.close()

    def process_stream_reset(self, event: StreamReset) -> None:
        """Handles a reset. REFUSED_STREAM says of one call what GOAWAY says of all calls above a number (RFC 9113,
        8.7)."""
        stream = self.streams.get(event.stream_id)
        if stream is not None and event.error_code == ErrorCodes.REFUSED_STREAM and stream.headers is None:
            fail_unprocessed(stream)
            return
        super().process_stream_reset(event)

    def close(self, reason: str = "Connection closed") -> None:
        """Closes the connection. Calls whose answer is complete keep it until it was read."""
        complete = {number: stream for number, stream in self.streams.items() if _is_complete(stream)}
        for number in complete:
            del self.streams[number]
        super().close(reason)
        self.streams.update(complete)  # Each is removed once it was read.


def _is_complete(stream: Stream) -> bool:
    return stream.buffer._eof  # noqa: SLF001 - grpclib has no public word for it


class _PatientProtocol(H2Protocol):
    def connection_made(self, transport: "asyncio.BaseTransport") -> None:
        """Replaces the connection of grpclib by one that can be left."""
        super().connection_made(transport)
        plain = self.connection
        self.connection = LeavingConnection(plain._connection, plain._transport, config=self.config)  # noqa: SLF001
        end_with_peer(transport.get_extra_info("socket"))
        self.processor = _PatientProcessor(self.handler, self.connection)


class PatientChannel(Channel):
    """A channel of grpclib that reaches into its inner parts. tests/integration/backends/test_late_reader.py and
    test_goaway.py check the behaviour."""

    def __init__(self, *args: object, **options: object) -> None:
        super().__init__(*args, **options)  # type: ignore[arg-type]
        self._left: set[H2Protocol] = set()
        """Connections whose backend is ending and still has open calls, and perhaps some that are over."""

    async def __connect__(self) -> H2Protocol:
        if self._protocol is not None and not self._connected:
            self._left = {each for each in (*self._left, self._protocol) if not each.connection.is_closing()}
        return await super().__connect__()

    def close(self) -> None:
        """Closes the channel's connections, including those whose backend is ending and still has calls."""
        for protocol in self._left:
            protocol.processor.close()
        self._left.clear()
        super().close()

    def _protocol_factory(self) -> H2Protocol:
        plain = super()._protocol_factory()
        return _PatientProtocol(plain.handler, plain.config, plain.h2_config)
