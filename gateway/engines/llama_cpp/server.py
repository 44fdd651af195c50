"""grpclib's server with what an engine needs: limited messages, more streams, and a close that loses nothing."""

import asyncio
from collections.abc import Collection, Iterable
from typing import Any, Final, cast

from google.protobuf.message import DecodeError
from grpclib import GRPCError
from grpclib.const import Status
from grpclib.encoding.proto import ProtoCodec
from grpclib.protocol import H2Protocol
from grpclib.server import Server
from h2.settings import SettingCodes

from gateway.backends.metadata import MESSAGE_BYTES_MAX

CONCURRENT_STREAMS_MAX: Final = 10_000
"""The largest number of streams per connection. grpclib's is 100, at which a client queues its calls invisibly. This
engine refuses calls instead."""


HANG_UP_SECONDS: Final = 1.0


async def _wait_all(events: Iterable[asyncio.Event]) -> None:
    for event in events:
        await event.wait()


class BoundedCodec(ProtoCodec):
    """Refuses messages over `MESSAGE_BYTES_MAX` in both directions, as other gRPC servers do and grpclib does not."""

    def encode(self, message: Any, message_type: Any) -> bytes:  # noqa: ANN401 - grpclib's signature
        """Serializes a message. Raises `GRPCError` (RESOURCE_EXHAUSTED) if it is over `MESSAGE_BYTES_MAX`."""
        data: bytes = super().encode(message, message_type)
        _check_size(len(data))
        return data

    def decode(self, data: bytes, message_type: Any) -> Any:  # noqa: ANN401 - grpclib's signature
        """Parses a message. Raises `GRPCError`: RESOURCE_EXHAUSTED if it is too large, else INVALID_ARGUMENT."""
        _check_size(len(data))
        try:
            return super().decode(data, message_type)
        except DecodeError as error:
            raise GRPCError(Status.INVALID_ARGUMENT, f"not a {message_type.__name__}: {error}") from error


def _check_size(size_bytes: int) -> None:
    if size_bytes > MESSAGE_BYTES_MAX:
        raise GRPCError(
            Status.RESOURCE_EXHAUSTED, f"a message of {size_bytes} bytes; at most {MESSAGE_BYTES_MAX} are allowed"
        )


class _EngineConnection(H2Protocol):
    """One client's connection. It is in `open_connections` while it lives."""

    def __init__(self, plain: H2Protocol, open_connections: "dict[_EngineConnection, asyncio.Event]") -> None:
        super().__init__(plain.handler, plain.config, plain.h2_config)
        self._open = open_connections
        self._transport: asyncio.Transport | None = None
        self._has_ended = False

    def end(self) -> None:
        """Sends the buffered data, and tells the client that nothing more comes.

        Data that the client still sends is read and dropped. If it stayed unread it would reset the connection, and the
        client would lose what it has not read yet (RFC 1122, 4.2.2.13).
        """
        if self._transport is not None:
            self._has_ended = True
            self._transport.write_eof()

    def cut(self) -> None:
        """Closes the connection."""
        if self._transport is not None:
            self._transport.close()

    def data_received(self, data: bytes) -> None:
        """Passes data on until the server has ended its side; later data is dropped."""
        if not self._has_ended:
            super().data_received(data)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Allows more streams than grpclib does, and lists the connection as open."""
        super().connection_made(transport)
        h2 = self.connection._connection  # noqa: SLF001 - grpclib has no setting for this
        h2.update_settings({SettingCodes.MAX_CONCURRENT_STREAMS: CONCURRENT_STREAMS_MAX})
        self.connection.flush()
        self._transport = cast("asyncio.Transport", transport)  # uvloop's transport is none by its type.
        self._open[self] = asyncio.Event()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Removes the connection from the open ones, and tells those that wait for its end."""
        super().connection_lost(exc)
        if (lost := self._open.pop(self, None)) is not None:
            lost.set()


class EngineServer(Server):
    """A server of grpclib. It reaches into grpclib at one place, `_protocol_factory`, which a test checks
    (test_engine_limits)."""

    def __init__(self, services: Collection[Any]) -> None:
        super().__init__(services, codec=BoundedCodec())
        self._open: dict[_EngineConnection, asyncio.Event] = {}

    async def close_flushed(self) -> None:
        """Stops listening, and ends every connection when its buffered data was sent. Clients hang up then; a client
        that does not within `HANG_UP_SECONDS` is disconnected."""
        self.close()
        lost = list(self._open.values())
        for connection in tuple(self._open):
            connection.end()
        try:
            async with asyncio.timeout(HANG_UP_SECONDS):
                await _wait_all(lost)
        except TimeoutError:
            for connection in tuple(self._open):
                connection.cut()
            await _wait_all(lost)

    def _protocol_factory(self) -> H2Protocol:
        return _EngineConnection(super()._protocol_factory(), self._open)
