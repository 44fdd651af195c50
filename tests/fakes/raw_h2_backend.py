"""A backend as bare HTTP/2 frames, for what no server library lets one say: several GOAWAYs, and what comes between."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import ConnectionTerminated, DataReceived, PingAckReceived, RequestReceived
from h2.settings import SettingCodes
from hyperframe.frame import GoAwayFrame

from gateway.backends.pb import backend_pb2 as pb

ANY_STREAM = 2**31 - 1
"""The last stream of a GOAWAY that only announces the next one."""


class RawConnection:
    """Frames are collected until `flush`, so that a test says which of them arrive together."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, streams_max: int | None) -> None:
        self.calls: list[int] = []
        """Streams with a request, in the order in which they came."""
        self.pings_answered = 0
        self.is_closed = False
        self._reader, self._writer = reader, writer
        self._h2 = H2Connection(H2Configuration(client_side=False, header_encoding="utf-8"))
        self._h2.initiate_connection()
        if streams_max is not None:
            self._h2.update_settings({SettingCodes.MAX_CONCURRENT_STREAMS: streams_max})
        self._out = bytearray()
        self._changed = asyncio.Event()
        self.flush()

    async def run(self) -> None:
        with suppress(ConnectionError):
            while data := await self._reader.read(65536):
                for event in self._h2.receive_data(data):
                    self._take(event)
                self.flush()
                self._note()
        self.is_closed = True
        self._note()
        self._writer.close()

    def _take(self, event: object) -> None:
        match event:
            case RequestReceived():
                self.calls.append(event.stream_id)
            case DataReceived():
                self._h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            case PingAckReceived():
                self.pings_answered += 1
            case ConnectionTerminated():
                self.is_closed = True

    def _note(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def wait(self, condition: Callable[[], bool]) -> None:
        while not condition():
            await self._changed.wait()

    def begin(self, stream: int) -> None:
        self._h2.send_headers(stream, [(":status", "200"), ("content-type", "application/grpc")])

    def say(self, stream: int, word: str) -> None:
        message = pb.Reply(message=word.encode()).SerializeToString()
        self._h2.send_data(stream, b"\0" + len(message).to_bytes(4, "big") + message)

    def end(self, stream: int) -> None:
        self._h2.send_headers(stream, [("grpc-status", "0")], end_stream=True)

    def refuse(self, stream: int) -> None:
        self._h2.reset_stream(stream, ErrorCodes.REFUSED_STREAM)

    def ping(self) -> None:
        self._h2.ping(b"graceful")

    def go_away(self, last_stream: int, error: ErrorCodes = ErrorCodes.NO_ERROR) -> None:
        """Past h2, which would take the connection for ended."""
        self._out += self._h2.data_to_send()
        self._out += GoAwayFrame(0, last_stream_id=last_stream, error_code=error).serialize()

    def flush(self) -> None:
        self._out += self._h2.data_to_send()
        self._writer.write(bytes(self._out))
        self._out.clear()

    def hang_up(self) -> None:
        self._writer.close()


class RawBackend:
    """Made by `open_raw_backend`."""

    def __init__(self, streams_max: int | None) -> None:
        self.connections: list[RawConnection] = []
        self.port = 0
        self._streams_max = streams_max
        self._server: asyncio.Server | None = None
        self._accepted = asyncio.Event()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = RawConnection(reader, writer, self._streams_max)
        self.connections.append(connection)
        self._accepted.set()
        self._accepted = asyncio.Event()
        await connection.run()

    async def connection(self, number: int) -> RawConnection:
        """The first one is 0; waits until it is there."""
        while len(self.connections) <= number:
            await self._accepted.wait()
        return self.connections[number]

    def stop_listening(self) -> None:
        if self._server is not None:
            self._server.close()


@asynccontextmanager
async def open_raw_backend(*, streams_max: int | None = None) -> AsyncIterator[RawBackend]:
    """`streams_max`: calls at a time on one connection."""
    backend = RawBackend(streams_max)
    await backend.start()
    try:
        yield backend
    finally:
        backend.stop_listening()
        for connection in backend.connections:
            connection.hang_up()
